/* SPDX-License-Identifier: MIT */
/*
 * outlet.c - connections of a command to its host's proxy.
 *
 * What sets the sandbox up opens two listening sockets in its network and sends
 * them here, as it sends them to a proxy on a host.  The host is told of each
 * connection, and comes with a stream for it.  One that the host does not come
 * for is closed after a while.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

enum {
	LISTENERS = 2,
	AGAIN_MS = 20,
	LINGER_MS = 2000,
	NOWHERE_BYTES = 64 << 10,
	NOWHERE_TURN = 16,
};

struct nsr_outgoing {
	struct nsr_watch guest;     /* the command's connection */
	struct nsr_watch host;      /* the stream that carries it; -1: not yet */
	struct nsr_outgoing *next;
	struct nsr_outlet *outlet;
	uint32_t number;
	int64_t until_ms;           /* when it is given up; -1: never */
	struct nsr_way out;         /* from the command */
	struct nsr_way in;
	int out_over;
	int in_over;
	int unwanted;               /* the host takes no more: what comes is read all the same */
};

/* --- one connection ------------------------------------------------------------------------------- */

static void accept_again(struct nsr_outlet *outlet)
{
	for (int i = 0; i < LISTENERS; i++)
		if (outlet->listener[i].fd >= 0)
			nsr_loop_again(&outlet->listener[i]);
}

/* Its memory stays until nsr_outlet_tend. */
static void close_one(struct nsr_outgoing *one)
{
	struct nsr_outlet *outlet = one->outlet;

	if (one->guest.fd < 0)
		return;
	if (one->host.fd < 0)
		outlet->n_waiting--;
	outlet->n_connections--;
	nsr_loop_close(&one->guest);
	nsr_loop_close(&one->host);
	free(one->out.rest);
	free(one->in.rest);
	one->out.rest = one->in.rest = NULL;
	/* its place is free for one that waits */
	accept_again(outlet);
}

/* Closed over unread bytes, the connection would lose what the host said last. */
static enum nsr_moved read_away(int fd)
{
	static uint8_t nowhere[NOWHERE_BYTES];

	for (int i = 0; i < NOWHERE_TURN; i++) {
		ssize_t n = read(fd, nowhere, sizeof(nowhere));

		if (n < 0 && errno == EAGAIN)
			return NSR_MOVED_ALL;
		if (!n || (n < 0 && errno != EINTR))
			return NSR_MOVED_END;
	}
	return NSR_MOVED_SOME;
}

static enum nsr_moved turn_out(struct nsr_outgoing *one)
{
	enum nsr_moved moved = NSR_MOVED_BROKEN;

	if (!one->unwanted)
		moved = nsr_way_move(&one->out, one->guest.fd, one->host.fd);
	if (moved == NSR_MOVED_BROKEN) {
		one->unwanted = 1;
		moved = read_away(one->guest.fd);
	}
	if (moved == NSR_MOVED_END || one->unwanted)
		shutdown(one->host.fd, SHUT_WR);
	one->out_over = moved == NSR_MOVED_END;
	return moved;
}

static enum nsr_moved turn_in(struct nsr_outgoing *one)
{
	enum nsr_moved moved = nsr_way_move(&one->in, one->host.fd, one->guest.fd);

	if (moved != NSR_MOVED_END)
		return moved;
	one->in_over = 1;
	shutdown(one->guest.fd, SHUT_WR);
	/* a host that has closed takes nothing either, which a socket tells to writers alone */
	if (send(one->host.fd, "", 0, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EPIPE)
		one->unwanted = 1;
	return moved;
}

static void turn(struct nsr_outgoing *one)
{
	enum nsr_moved in = NSR_MOVED_END, out = NSR_MOVED_END;

	if (one->host.fd < 0)
		return;
	if (!one->in_over)
		in = turn_in(one);
	if (!one->out_over)
		out = turn_out(one);
	if (in == NSR_MOVED_BROKEN || (one->out_over && (one->in_over || one->outlet->ending))) {
		close_one(one);
		return;
	}
	if (one->outlet->ending)
		one->until_ms = nsr_now_ms() + LINGER_MS;
	if (in == NSR_MOVED_SOME || out == NSR_MOVED_SOME)
		nsr_loop_again(&one->guest);
	if (one->in_over && one->unwanted && one->until_ms < 0)
		one->until_ms = nsr_now_ms() + LINGER_MS;
}

static void guest_ready(struct nsr_watch *watch, uint32_t events)
{
	struct nsr_outgoing *one = (struct nsr_outgoing *)(void *)watch;

	turn(one);
	/* it was reset: nobody reads any more */
	if (events & EPOLLERR)
		close_one(one);
}
_Static_assert(offsetof(struct nsr_outgoing, guest) == 0, "its watch is its beginning");

static void host_ready(struct nsr_watch *watch, uint32_t events)
{
	size_t at = offsetof(struct nsr_outgoing, host);

	struct nsr_outgoing *one = (struct nsr_outgoing *)(void *)((char *)watch - at);

	/* what it said before can be read yet */
	one->unwanted |= !!(events & EPOLLERR);
	turn(one);
}

/* --- accepted here, and fetched by the host ---------------------------------------------------------- */

/* The socket is the connection's, unless it fails: -errno. */
static int admit(struct nsr_outlet *outlet, int socket)
{
	struct nsr_outgoing *one = calloc(1, sizeof(*one));
	int ret;

	if (!one)
		return -ENOMEM;
	one->guest = (struct nsr_watch){ .fd = socket, .ready = guest_ready };
	one->host = (struct nsr_watch){ .fd = -1, .ready = host_ready };
	ret = nsr_loop_add(&one->guest);
	if (ret) {
		free(one);
		return ret;
	}
	one->outlet = outlet;
	one->number = ++outlet->number;
	one->until_ms = nsr_now_ms() + NSR_AGENT_PATIENCE_MS;
	one->next = outlet->first;
	outlet->first = one;
	outlet->n_connections++;
	outlet->n_waiting++;
	nsr_control_send(outlet->control, NSR_FRAME_OUTGOING, &one->number, sizeof(one->number));
	return 0;
}

/* For want of something: of that an end may not be told. */
static void starve(struct nsr_outlet *outlet)
{
	outlet->again_ms = nsr_now_ms() + AGAIN_MS;
}

static int is_full(struct nsr_outlet *outlet)
{
	/* nobody tells when the control stream has room again */
	if (!nsr_control_has_room(outlet->control))
		starve(outlet);
	return outlet->again_ms >= 0 || outlet->n_connections == NSR_OUTGOING ||
	       outlet->n_waiting == NSR_OUTGOING_WAITING;
}

static void accept_all(struct nsr_outlet *outlet, struct nsr_watch *listener)
{
	while (listener->fd >= 0 && !is_full(outlet)) {
		int socket = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (socket >= 0 && admit(outlet, socket)) {
			close(socket);
			starve(outlet);
		}
		if (socket >= 0 || errno == EINTR || errno == ECONNABORTED)
			continue;
		if (errno != EAGAIN)
			starve(outlet);
		return;
	}
}

static void first_ready(struct nsr_watch *watch, uint32_t events)
{
	size_t at = offsetof(struct nsr_outlet, listener);

	(void)events;
	accept_all((struct nsr_outlet *)(void *)((char *)watch - at), watch);
}

static void second_ready(struct nsr_watch *watch, uint32_t events)
{
	size_t at = offsetof(struct nsr_outlet, listener) + sizeof(*watch);

	(void)events;
	accept_all((struct nsr_outlet *)(void *)((char *)watch - at), watch);
}

int nsr_outlet_join(struct nsr_outlet *outlet, uint32_t number, int socket)
{
	struct nsr_outgoing *one = outlet->first;
	int ret;

	while (one && (one->number != number || one->guest.fd < 0))
		one = one->next;
	if (!one || one->host.fd >= 0)
		return -ENOENT;
	/* nothing was sent on it before: there is room for a byte */
	if (write(socket, "", 1) != 1)
		return -EIO;
	one->host.fd = socket;
	ret = nsr_loop_add(&one->host);
	if (ret) {
		one->host.fd = -1;
		return ret;
	}
	outlet->n_waiting--;
	one->until_ms = outlet->ending ? nsr_now_ms() + LINGER_MS : -1;
	/* what both said before is not said again */
	nsr_loop_again(&one->guest);
	accept_again(outlet);
	return 0;
}

/* --- the listening sockets -------------------------------------------------------------------------- */

/* Those that came with a message, at most so many; the number, or -EAGAIN. */
static int take_fds(int line, int fds[LISTENERS])
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(LISTENERS * sizeof(int))];
	} control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	const struct cmsghdr *head;
	size_t n;

	if (recvmsg(line, &msg, MSG_CMSG_CLOEXEC) < 0)
		return errno == EAGAIN ? -EAGAIN : 0;
	head = CMSG_FIRSTHDR(&msg);
	if (!head || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
		return 0;
	n = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	if (n > LISTENERS)
		return 0;
	memcpy(fds, CMSG_DATA(head), n * sizeof(int));
	return (int)n;
}

static void listen_on(struct nsr_watch *listener, int fd)
{
	listener->fd = fd;
	if (fcntl(fd, F_SETFL, O_NONBLOCK) || nsr_loop_add(listener)) {
		listener->fd = -1;
		close(fd);
	}
}

static void line_ready(struct nsr_watch *watch, uint32_t events)
{
	struct nsr_outlet *outlet = (struct nsr_outlet *)(void *)watch;
	int fds[LISTENERS];
	int n = take_fds(watch->fd, fds);

	(void)events;
	if (n < 0)
		return;
	for (int i = 0; i < n; i++)
		listen_on(&outlet->listener[i], fds[i]);
	nsr_loop_close(watch);
}
_Static_assert(offsetof(struct nsr_outlet, line) == 0, "its watch is its beginning");

void nsr_outlet_init(struct nsr_outlet *outlet, struct nsr_control *control)
{
	*outlet = (struct nsr_outlet){
		.line = { .fd = -1, .ready = line_ready },
		.listener = { { .fd = -1, .ready = first_ready },
			      { .fd = -1, .ready = second_ready } },
		.control = control,
		.again_ms = -1,
	};
}

int nsr_outlet_open(struct nsr_outlet *outlet)
{
	int line[2], ret;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, line))
		return -errno;
	outlet->line.fd = line[0];
	ret = fcntl(line[0], F_SETFL, O_NONBLOCK) ? -errno : nsr_loop_add(&outlet->line);
	if (!ret)
		return line[1];
	outlet->line.fd = -1;
	close(line[0]);
	close(line[1]);
	return ret;
}

/* --- its end ------------------------------------------------------------------------------------------ */

static void close_listeners(struct nsr_outlet *outlet)
{
	nsr_loop_close(&outlet->line);
	for (int i = 0; i < LISTENERS; i++)
		nsr_loop_close(&outlet->listener[i]);
}

void nsr_outlet_end(struct nsr_outlet *outlet)
{
	close_listeners(outlet);
	if (outlet->ending)
		return;
	outlet->ending = 1;
	for (struct nsr_outgoing *one = outlet->first; one; one = one->next) {
		if (one->guest.fd < 0 || one->host.fd < 0)
			continue;
		one->until_ms = nsr_now_ms() + LINGER_MS;
		turn(one);
	}
}

void nsr_outlet_close(struct nsr_outlet *outlet)
{
	close_listeners(outlet);
	for (struct nsr_outgoing *one = outlet->first; one; one = one->next)
		close_one(one);
}

int64_t nsr_outlet_tend(struct nsr_outlet *outlet, int64_t now)
{
	struct nsr_outgoing **at = &outlet->first;
	int64_t next = -1;

	while (*at) {
		struct nsr_outgoing *one = *at;

		if (one->until_ms >= 0 && one->until_ms <= now)
			close_one(one);
		if (one->guest.fd < 0) {
			*at = one->next;
			free(one);
			continue;
		}
		next = nsr_earlier(next, one->until_ms);
		at = &one->next;
	}
	if (outlet->again_ms >= 0 && outlet->again_ms <= now) {
		outlet->again_ms = -1;
		accept_again(outlet);
	}
	return nsr_earlier(next, outlet->again_ms);
}
