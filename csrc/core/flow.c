/* SPDX-License-Identifier: MIT */
/* flow.c - the streams of a command: feed it and collect what it says, while its end is watched. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "clock.h"
#include "spawn.h"

enum {
	CHUNK = 1 << 16,            /* what a pipe holds by default: pipe(7) */
	MOST_AT_ONCE = 1 << 20,
	OUTPUTS = 2,
	STREAMS = OUTPUTS + 1,
	INPUT = 1 << 0,
	ALL = (1 << STREAMS) - 1,
};

/* --- opened and closed ------------------------------------------------------------------- */

static int open_pipe(struct nsr_flow *flow, int i)
{
	int ends[2];
	int ret = nsr_stream(ends);

	if (ret)
		return ret;
	/* the command reads from the first one, and writes to the others */
	flow->stdio[i] = ends[i ? 1 : 0];
	flow->ours[i] = ends[i ? 0 : 1];
	flow->theirs |= 1u << i;
	flow->held |= 1u << i;
	return i || !fcntl(flow->ours[i], F_SETFL, O_NONBLOCK) ? 0 : -errno;
}

static int pass_on(struct nsr_flow *flow, int i)
{
	if (fcntl(i, F_GETFD) >= 0) {
		flow->stdio[i] = i;
		return 0;
	}
	flow->stdio[i] = nsr_lift(open("/dev/null", O_RDWR | O_CLOEXEC));
	if (flow->stdio[i] < 0)
		return -errno;
	flow->theirs |= 1u << i;
	return 0;
}

/* Those of which that are open. */
static void close_each(const int *fds, unsigned int *open, unsigned int which)
{
	which &= *open;
	for (int i = 0; i < STREAMS; i++)
		if (which & 1u << i)
			close(fds[i]);
	*open &= ~which;
}

static void close_all(struct nsr_flow *flow)
{
	close_each(flow->stdio, &flow->theirs, ALL);
	close_each(flow->ours, &flow->held, ALL);
}

int nsr_flow_open(struct nsr_flow *flow, int input, int output)
{
	int saved_errno = errno;
	int ret = 0;

	for (int i = 0; !ret && i < STREAMS; i++)
		ret = (i ? output : input) ? open_pipe(flow, i) : pass_on(flow, i);
	if (ret)
		close_all(flow);
	flow->to = flow->held & INPUT ? flow->ours[0] : -1;
	for (int i = 1; i < STREAMS; i++)
		flow->out[i - 1].fd = flow->held & 1u << i ? flow->ours[i] : -1;
	errno = saved_errno;
	return ret;
}

/*
 * All of them: the end of its output, a moment before that of the command, wakes us for
 * the latter.  With those ends kept open a run is one sleep less, and a longer one, from
 * which a processor wakes later: two threads of run() have 2 % more done so (run.c), but a
 * command of a pool took a third more.
 */
void nsr_flow_started(struct nsr_flow *flow)
{
	int saved_errno = errno;

	close_each(flow->stdio, &flow->theirs, ALL);
	errno = saved_errno;
}

void nsr_flow_end_input(struct nsr_flow *flow)
{
	int saved_errno = errno;

	flow->to = -1;
	close_each(flow->ours, &flow->held, INPUT);
	errno = saved_errno;
}

/* --- served ------------------------------------------------------------------------------ */

struct ends {
	struct pollfd fds[OUTPUTS + 2];
	struct pollfd *in;          /* NULL: there is nothing to be written */
	struct pollfd *out[OUTPUTS];
	struct pollfd *watch;
	nfds_t n;
};

static struct pollfd *add(struct ends *ends, int fd, short events)
{
	ends->fds[ends->n] = (struct pollfd){ .fd = fd, .events = events };
	return &ends->fds[ends->n++];
}

static void list_outputs(struct ends *ends, const struct nsr_flow *flow)
{
	for (int i = 0; i < OUTPUTS; i++)
		if (flow->out[i].fd >= 0)
			ends->out[i] = add(ends, flow->out[i].fd, POLLIN);
}

static void list_ends(struct ends *ends, const struct nsr_flow *flow, int watch)
{
	if (flow->to >= 0 && flow->left)
		ends->in = add(ends, flow->to, POLLOUT);
	list_outputs(ends, flow);
	if (watch >= 0)
		ends->watch = add(ends, watch, POLLIN);
}

static int room_for(struct nsr_output *out)
{
	uint64_t room = out->room ? out->room * 2 : CHUNK;
	uint8_t *bytes;

	if (out->room - out->len >= CHUNK)
		return 0;
	bytes = realloc(out->bytes, room);
	if (!bytes)
		return -ENOMEM;
	out->bytes = bytes;
	out->room = room;
	return 0;
}

/* Bytes that were read; 0: none now, or it is at its end. */
static ssize_t collect(struct nsr_output *out)
{
	uint64_t room;
	ssize_t n;

	if (room_for(out))
		return -ENOMEM;
	room = out->room - out->len;
	/* there is something: a signal does not make it wait */
	do
		n = read(out->fd, out->bytes + out->len, room < MOST_AT_ONCE ? room : MOST_AT_ONCE);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		out->len += (uint64_t)n;
		return n;
	}
	if (n < 0 && errno == EAGAIN)
		return 0;
	out->fd = -1;
	/* EIO: a terminal's end of file */
	return n < 0 && errno != EIO ? -errno : 0;
}

/* NSR_FLOW_FED once all is written, or the command wants no more. */
static int feed(struct nsr_flow *flow)
{
	ssize_t n = write(flow->to, flow->data,
			  flow->left < MOST_AT_ONCE ? flow->left : MOST_AT_ONCE);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0) {
		flow->left = 0;
		/* EIO: the same of a terminal */
		return errno == EPIPE || errno == EIO ? NSR_FLOW_FED : -errno;
	}
	flow->data += n;
	flow->left -= (uint64_t)n;
	return flow->left ? 0 : NSR_FLOW_FED;
}

/* What is to be told; -errno.  moved: there was something to read or to write. */
static int serve_ends(struct nsr_flow *flow, const struct ends *ends, int *moved)
{
	int told = 0;

	if (ends->in && ends->in->revents) {
		*moved = 1;
		told = feed(flow);
	}
	for (int i = 0; i < OUTPUTS && told >= 0; i++) {
		ssize_t n = 0;

		if (!ends->out[i] || !ends->out[i]->revents)
			continue;
		/* without POLLIN nothing is in it and nobody can write to it */
		if (ends->out[i]->revents == POLLHUP)
			flow->out[i].fd = -1;
		else
			n = collect(&flow->out[i]);
		*moved |= n > 0;
		if (n < 0)
			return (int)n;
	}
	if (told >= 0 && ends->watch && ends->watch->revents)
		told |= NSR_FLOW_WATCHED;
	return told;
}

int nsr_flow_wait(struct nsr_flow *flow, int watch, int64_t deadline_ns)
{
	/* a signal that came before the call does not end it: the caller has a turn for that */
	int64_t until = nsr_now() + NSR_SLICE_NS;
	int saved_errno = errno;
	int moved = 0, ret = 0;

	if (deadline_ns && deadline_ns < until)
		until = deadline_ns;
	/* the ends of streams come before that of the command: nothing to tell by themselves */
	while (!ret && !moved) {
		struct timespec left = { .tv_nsec = until - nsr_now() };
		struct ends ends = { .n = 0 };
		int n;

		if (left.tv_nsec <= 0)
			break;
		list_ends(&ends, flow, watch);
		n = ppoll(ends.fds, ends.n, &left, NULL);
		if (n < 0 && errno != EINTR)
			ret = -errno;
		if (n <= 0)
			break;
		ret = serve_ends(flow, &ends, &moved);
	}
	errno = saved_errno;
	return ret < 0 || !moved ? ret : ret | NSR_FLOW_MOVED;
}

int nsr_flow_serve(struct nsr_flow *flow, int watch, int64_t deadline_ns)
{
	nsr_flow_started(flow);
	return nsr_flow_wait(flow, watch, deadline_ns);
}

int nsr_flow_step(struct nsr_flow *flow)
{
	struct ends ends = { .n = 0 };
	int saved_errno = errno;
	int moved = 0, ret = 0;

	list_ends(&ends, flow, -1);
	if (poll(ends.fds, ends.n, 0) > 0)
		ret = serve_ends(flow, &ends, &moved);
	errno = saved_errno;
	return ret;
}

int nsr_flow_drain(struct nsr_flow *flow)
{
	int saved_errno = errno;
	int moved = 1, ret = 0;

	while (!ret && moved) {
		struct ends ends = { .n = 0 };

		moved = 0;
		list_outputs(&ends, flow);
		if (ends.n && poll(ends.fds, ends.n, 0) > 0)
			ret = serve_ends(flow, &ends, &moved);
	}
	errno = saved_errno;
	return ret;
}

void nsr_flow_shut(struct nsr_flow *flow)
{
	int saved_errno = errno;

	close_all(flow);
	flow->to = flow->out[0].fd = flow->out[1].fd = -1;
	errno = saved_errno;
}

void nsr_flow_free(struct nsr_flow *flow)
{
	nsr_flow_shut(flow);
	for (int i = 0; i < OUTPUTS; i++) {
		free(flow->out[i].bytes);
		flow->out[i] = (struct nsr_output){ .fd = -1 };
	}
}
