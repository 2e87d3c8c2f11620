/* SPDX-License-Identifier: MIT */
/*
 * stream.c - one data stream: bytes between a socket and a pipe or a terminal.
 *
 * Read and written, not spliced: in some kernels splice(2) to a socket waits
 * even if the socket does not, and a terminal has no splice at all.  What was
 * read and could not be written is kept, at most NSR_FLOW_BYTES each way, and
 * nothing more is read until it is gone: so a reader that stalls stalls its
 * writer, and nobody else.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

enum {
	NSR_FLOW_BYTES = 64 << 10,
	NSR_FLOW_TURN = 4 * NSR_FLOW_BYTES, /* before others have their turn */
};

/* What fits; the number of bytes, 0: nothing now; -1: the reader is gone. */
static ssize_t put(int to, const uint8_t *bytes, size_t length)
{
	ssize_t n;

	do
		n = write(to, bytes, length);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	return n;
}

/* 0 is the end; so is an error, and for a terminal's master EIO is the usual one. */
static ssize_t get(int from, uint8_t *bytes, size_t size)
{
	ssize_t n;

	do
		n = read(from, bytes, size);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno != EAGAIN)
		return 0;
	return n;
}

static enum nsr_moved put_rest(struct nsr_way *flow, int to)
{
	while (flow->length) {
		ssize_t n = put(to, flow->rest + flow->at, flow->length);

		if (n < 0)
			return NSR_MOVED_BROKEN;
		if (!n)
			return NSR_MOVED_ALL;
		flow->at += (size_t)n;
		flow->length -= (size_t)n;
	}
	free(flow->rest);
	flow->rest = NULL;
	return NSR_MOVED_SOME;
}

static int keep_rest(struct nsr_way *flow, const uint8_t *bytes, size_t length)
{
	flow->rest = malloc(length);
	if (!flow->rest)
		return -ENOMEM;
	memcpy(flow->rest, bytes, length);
	flow->at = 0;
	flow->length = length;
	return 0;
}

enum nsr_moved nsr_way_move(struct nsr_way *flow, int from, int to)
{
	static uint8_t buffer[NSR_FLOW_BYTES];

	for (size_t moved = 0; moved < NSR_FLOW_TURN;) {
		enum nsr_moved rest = put_rest(flow, to);
		ssize_t n, done;

		if (rest != NSR_MOVED_SOME)
			return rest;
		n = flow->ended ? 0 : get(from, buffer, sizeof(buffer));
		if (n < 0)
			return NSR_MOVED_ALL;
		if (!n) {
			flow->ended = 1;
			return NSR_MOVED_END;
		}
		moved += (size_t)n;
		done = put(to, buffer, (size_t)n);
		if (done < 0 ||
		    (done < n && keep_rest(flow, buffer + done, (size_t)(n - done))))
			return NSR_MOVED_BROKEN;
	}
	return NSR_MOVED_SOME;
}

static void turn_in(struct nsr_stream *stream, uint32_t local_events)
{
	enum nsr_moved moved = nsr_way_move(&stream->in, stream->socket.fd, stream->local.fd);

	if (moved == NSR_MOVED_SOME)
		nsr_loop_again(&stream->socket);
	/* the end of our pipe is the end that the command sees; or it reads no more */
	else if (moved != NSR_MOVED_ALL || local_events & EPOLLERR)
		nsr_stream_close(stream);
}

static void turn_out(struct nsr_stream *stream, uint32_t socket_events)
{
	enum nsr_moved moved = nsr_way_move(&stream->out, stream->local.fd, stream->socket.fd);

	if (moved == NSR_MOVED_SOME)
		nsr_loop_again(&stream->socket);
	/* the command's next write finds that nobody reads, as on any pipe */
	else if (moved != NSR_MOVED_ALL || socket_events & (EPOLLERR | EPOLLHUP))
		nsr_stream_close(stream);
}

/*
 * What was typed too late is still read: closed with that in it, a socket would
 * tell the host of an error rather than of the end.
 */
static void linger(struct nsr_stream *stream)
{
	static uint8_t nowhere[4096];
	ssize_t n;

	do
		n = get(stream->socket.fd, nowhere, sizeof(nowhere));
	while (n > 0);
	if (!n)
		nsr_stream_close(stream);
}

static void end_terminal(struct nsr_stream *stream)
{
	nsr_loop_close(&stream->local);
	stream->out.ended = 1;
	if (shutdown(stream->socket.fd, SHUT_WR))
		nsr_stream_close(stream);
	else
		linger(stream);
}

/* What the host types may end before what the terminal shows does. */
static void turn_terminal(struct nsr_stream *stream, uint32_t socket_events)
{
	enum nsr_moved in = NSR_MOVED_END, out;

	if (!stream->in.ended)
		in = nsr_way_move(&stream->in, stream->socket.fd, stream->local.fd);
	if (in == NSR_MOVED_BROKEN)
		stream->in.ended = 1;
	out = nsr_way_move(&stream->out, stream->local.fd, stream->socket.fd);
	if (out == NSR_MOVED_END)
		end_terminal(stream);
	else if (out == NSR_MOVED_BROKEN || socket_events & (EPOLLERR | EPOLLHUP))
		nsr_stream_close(stream);
	else if (in == NSR_MOVED_SOME || out == NSR_MOVED_SOME)
		nsr_loop_again(&stream->socket);
}

static void turn(struct nsr_stream *stream, uint32_t socket_events, uint32_t local_events)
{
	if (stream->local.fd < 0 && stream->out.ended)
		linger(stream);
	/* else the command is not there yet */
	if (stream->local.fd < 0)
		return;
	switch (stream->role) {
	case NSR_ROLE_STDIN:
		turn_in(stream, local_events);
		break;
	case NSR_ROLE_TERMINAL:
		turn_terminal(stream, socket_events);
		break;
	default:
		turn_out(stream, socket_events);
		break;
	}
}

static void socket_ready(struct nsr_watch *watch, uint32_t events)
{
	size_t at = offsetof(struct nsr_stream, socket);

	turn((struct nsr_stream *)(void *)((char *)watch - at), events, 0);
}

static void local_ready(struct nsr_watch *watch, uint32_t events)
{
	size_t at = offsetof(struct nsr_stream, local);

	turn((struct nsr_stream *)(void *)((char *)watch - at), 0, events);
}

void nsr_stream_init(struct nsr_stream *stream, enum nsr_role role)
{
	*stream = (struct nsr_stream){
		.socket = { .fd = -1, .ready = socket_ready },
		.local = { .fd = -1, .ready = local_ready },
		.role = role,
	};
}

int nsr_stream_take(struct nsr_stream *stream, int socket)
{
	int ret;

	stream->socket.fd = socket;
	ret = nsr_loop_add(&stream->socket);
	if (ret)
		stream->socket.fd = -1;
	return ret;
}

int nsr_stream_join(struct nsr_stream *stream, int local)
{
	int ret;

	stream->local.fd = local;
	ret = nsr_loop_add(&stream->local);
	if (ret) {
		stream->local.fd = -1;
		return ret;
	}
	/* what the socket said before is not said again */
	nsr_loop_again(&stream->socket);
	return 0;
}

void nsr_stream_close(struct nsr_stream *stream)
{
	nsr_loop_close(&stream->socket);
	nsr_loop_close(&stream->local);
	free(stream->in.rest);
	free(stream->out.rest);
	stream->in.rest = stream->out.rest = NULL;
	stream->in.length = stream->out.length = 0;
}
