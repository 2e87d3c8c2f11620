/* SPDX-License-Identifier: MIT */
/* flow.c - feed a command and collect what it says, while another fd is watched. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "nsrun.h"

enum {
	CHUNK = 1 << 16,            /* what a pipe holds by default: pipe(7) */
	MOST_AT_ONCE = 1 << 20,
	OUTPUTS = 2,
};

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

static void list_ends(struct ends *ends, const struct nsr_flow *flow, int watch)
{
	if (flow->to >= 0 && flow->left)
		ends->in = add(ends, flow->to, POLLOUT);
	for (int i = 0; i < OUTPUTS; i++)
		if (flow->out[i].fd >= 0)
			ends->out[i] = add(ends, flow->out[i].fd, POLLIN);
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
	n = read(out->fd, out->bytes + out->len, room < MOST_AT_ONCE ? room : MOST_AT_ONCE);
	if (n > 0) {
		out->len += (uint64_t)n;
		return n;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
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

/* The time until then; 0: it is over. */
static int time_until(int64_t deadline_ns, struct timespec *left)
{
	const int64_t second = 1000000000;
	struct timespec now;
	int64_t ns;

	clock_gettime(CLOCK_MONOTONIC, &now);
	ns = deadline_ns - (int64_t)now.tv_sec * second - now.tv_nsec;
	left->tv_sec = ns / second;
	left->tv_nsec = ns % second;
	return ns > 0;
}

int nsr_flow_serve(struct nsr_flow *flow, int watch, int64_t deadline_ns)
{
	int saved_errno = errno;
	int moved = 0, ret = 0;

	/* the ends of streams come before that of the command: nothing to tell by themselves */
	while (!ret && !moved) {
		struct ends ends = { .n = 0 };
		struct timespec left;
		int n;

		if (deadline_ns && !time_until(deadline_ns, &left))
			break;
		list_ends(&ends, flow, watch);
		n = ppoll(ends.fds, ends.n, deadline_ns ? &left : NULL, NULL);
		if (n < 0 && errno != EINTR)
			ret = -errno;
		if (n <= 0)
			break;
		ret = serve_ends(flow, &ends, &moved);
	}
	errno = saved_errno;
	return ret;
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
	ssize_t n = 0;

	for (int i = 0; i < OUTPUTS; i++) {
		struct nsr_output *out = &flow->out[i];
		struct pollfd end = { .fd = out->fd, .events = POLLIN };

		while (n >= 0 && out->fd >= 0 && poll(&end, 1, 0) == 1 && end.revents & POLLIN)
			n = collect(out);
	}
	errno = saved_errno;
	return n < 0 ? (int)n : 0;
}

void nsr_flow_free(struct nsr_flow *flow)
{
	for (int i = 0; i < OUTPUTS; i++) {
		free(flow->out[i].bytes);
		flow->out[i] = (struct nsr_output){ .fd = -1 };
	}
}
