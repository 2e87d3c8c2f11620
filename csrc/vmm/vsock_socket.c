/* SPDX-License-Identifier: MIT */
/* vsock_socket.c - the host's side of a stream: its socket, and the buffer before it. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vsock_parts.h"

static ssize_t send_some(struct vsock_stream *stream, struct iovec *parts, size_t n)
{
	const struct msghdr msg = { .msg_iov = parts, .msg_iovlen = n };
	ssize_t sent;

	do
		sent = sendmsg(stream->event.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 && errno == EAGAIN ? 0 : sent;
}

/* The part [skip, skip + len) of a list; how many pieces it has, of at most VMM_QUEUE_MAX. */
static size_t cut(struct iovec *out, const struct iovec *in, uint32_t n, size_t skip, size_t len)
{
	size_t pieces = 0;

	for (uint32_t i = 0; i < n && len; i++) {
		size_t from = skip < in[i].iov_len ? skip : in[i].iov_len;
		size_t take = in[i].iov_len - from;

		skip -= from;
		if (!take)
			continue;
		if (take > len)
			take = len;
		out[pieces++] = (struct iovec){ (uint8_t *)in[i].iov_base + from, take };
		len -= take;
	}
	return pieces;
}

void vsock_watch(struct vsock_stream *stream)
{
	uint32_t events = 0;

	if (stream->event.fd < 0 || stream->hung_up)
		return;
	if (stream->state == VSOCK_OPEN && stream->reading && !stream->readable)
		events |= EPOLLIN;
	if (stream->buffered)
		events |= EPOLLOUT;
	/* that fails for want of memory: the stream would wait for ever */
	if (vmm_loop_change(stream->vsock->loop, &stream->event, events)) {
		vsock_socket_close(stream);
		vsock_reset(stream);
	}
}

void vsock_socket_close(struct vsock_stream *stream)
{
	if (stream->event.fd < 0)
		return;
	if (!stream->hung_up)
		vmm_loop_remove(stream->vsock->loop, &stream->event);
	close(stream->event.fd);
	stream->event.fd = -1;
	stream->buffered = 0;
	stream->reading = stream->readable = stream->writing = false;
	vsock_free_if_over(stream);
}

/* What the host will not do from now on; all of it: then its side is over. */
static void host_shut(struct vsock_stream *stream, uint8_t flags)
{
	if (stream->state != VSOCK_OPEN) {
		if (flags & VSOCK_NO_RECEIVE)
			vsock_socket_close(stream);
		return;
	}
	if ((stream->host_shut | flags) == stream->host_shut)
		return;
	stream->host_shut |= flags;
	if (stream->host_shut == VSOCK_NO_MORE)
		vsock_socket_close(stream);
	vsock_owe(stream, VSOCK_OP_SHUTDOWN);
}

static void shut(struct vsock_stream *stream, int how)
{
	/* not connected, then: as good as gone */
	if (shutdown(stream->event.fd, how))
		host_shut(stream, VSOCK_NO_MORE);
}

/* The socket takes no more: its reader is gone. */
static void write_end(struct vsock_stream *stream)
{
	stream->writing = false;
	stream->buffered = 0;
	host_shut(stream, VSOCK_NO_RECEIVE);
}

/* All that the guest sent is in the socket. */
static void delivered(struct vsock_stream *stream)
{
	if (stream->state == VSOCK_RESETTING || stream->state == VSOCK_DRAINING)
		vsock_socket_close(stream);
	else if (stream->guest_shut & VSOCK_NO_SEND)
		shut(stream, SHUT_WR);
}

static void forwarded(struct vsock_stream *stream, uint32_t n)
{
	stream->fwd_cnt += n;
	if (stream->state == VSOCK_OPEN &&
	    stream->fwd_cnt - stream->told_fwd_cnt >= VSOCK_UPDATE)
		vsock_owe(stream, VSOCK_OP_CREDIT_UPDATE);
}

static void drain(struct vsock_stream *stream)
{
	uint32_t to_end = VSOCK_BUFFER - stream->first;
	uint32_t n = stream->buffered < to_end ? stream->buffered : to_end;
	struct iovec parts[2] = {
		{ stream->buffer + stream->first, n },
		{ stream->buffer, stream->buffered - n },
	};
	ssize_t sent = send_some(stream, parts, 2);

	if (sent < 0) {
		write_end(stream);
		return;
	}
	stream->first = (stream->first + (uint32_t)sent) % VSOCK_BUFFER;
	stream->buffered -= (uint32_t)sent;
	forwarded(stream, (uint32_t)sent);
	if (!stream->buffered)
		delivered(stream);
}

/* Behind what is buffered already; the caller knows that there is room. */
static void keep(struct vsock_stream *stream, const struct vmm_chain *chain, size_t offset,
		 uint32_t len)
{
	uint32_t at = (stream->first + stream->buffered) % VSOCK_BUFFER;
	uint32_t n = len < VSOCK_BUFFER - at ? len : VSOCK_BUFFER - at;

	vmm_chain_read(chain, offset, stream->buffer + at, n);
	vmm_chain_read(chain, offset + n, stream->buffer, len - n);
	stream->buffered += len;
	stream->touched = true;
}

void vsock_socket_write(struct vsock_stream *stream, const struct vmm_chain *chain, uint32_t len)
{
	struct iovec *data = stream->vsock->data;
	ssize_t sent = 0;

	if (!stream->writing)
		return;
	if (!stream->buffered)
		sent = send_some(stream, data, cut(data, chain->out, chain->n_out,
						   sizeof(struct vsock_header), len));
	if (sent < 0) {
		write_end(stream);
		return;
	}
	forwarded(stream, (uint32_t)sent);
	if ((uint32_t)sent == len)
		return;
	keep(stream, chain, sizeof(struct vsock_header) + (size_t)sent, len - (uint32_t)sent);
	vsock_watch(stream);
}

/* No more bytes come; whether the peer is gone altogether, only hanging up tells. */
static void read_end(struct vsock_stream *stream)
{
	stream->reading = stream->readable = false;
	host_shut(stream, stream->hung_up ? VSOCK_NO_MORE : VSOCK_NO_SEND);
}

/* Such a socket never says that it would block: there is nothing to wait for. */
static void hang_up(struct vsock_stream *stream)
{
	if (stream->hung_up || stream->event.fd < 0)
		return;
	stream->hung_up = true;
	vmm_loop_remove(stream->vsock->loop, &stream->event);
}

static uint32_t smaller(uint64_t a, uint64_t b)
{
	return (uint32_t)(a < b ? a : b);
}

uint32_t vsock_socket_read(struct vsock_stream *stream, const struct vmm_chain *chain)
{
	struct iovec *data = stream->vsock->data;
	uint32_t want = smaller(chain->in_bytes - sizeof(struct vsock_header), VSOCK_BUFFER);
	struct msghdr msg = { .msg_iov = data };
	ssize_t n;

	want = smaller(want, vsock_credit(stream));
	if (stream->state != VSOCK_OPEN || !stream->readable || !want)
		return 0;
	msg.msg_iovlen = cut(data, chain->in, chain->n_in, sizeof(struct vsock_header), want);
	do
		n = recvmsg(stream->event.fd, &msg, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno != EAGAIN)
		hang_up(stream);
	if (!n || (n < 0 && stream->hung_up)) {
		read_end(stream);
		return 0;
	}
	/* a short read emptied the socket; once it has hung up, its end comes next */
	if (n < (ssize_t)want && !stream->hung_up) {
		stream->readable = false;
		vsock_watch(stream);
	}
	stream->tx_cnt += n < 0 ? 0 : (uint32_t)n;
	return n < 0 ? 0 : (uint32_t)n;
}

void vsock_socket_shut(struct vsock_stream *stream, uint32_t flags)
{
	if (stream->event.fd >= 0 && flags & VSOCK_NO_SEND && !stream->buffered)
		shut(stream, SHUT_WR);
	if (stream->event.fd < 0 || !(flags & VSOCK_NO_RECEIVE))
		return;
	stream->reading = stream->readable = false;
	shut(stream, SHUT_RD);
	vsock_watch(stream);
}

void vsock_socket_finish(struct vsock_stream *stream)
{
	if (!stream->buffered) {
		vsock_socket_close(stream);
		return;
	}
	stream->reading = stream->readable = false;
	vsock_watch(stream);
}

void vsock_socket_ready(struct vmm_event *event, uint32_t events)
{
	struct vsock_stream *stream = (struct vsock_stream *)event;

	if (events & (EPOLLHUP | EPOLLERR))
		hang_up(stream);
	if (stream->state == VSOCK_CONNECTING && stream->hung_up)
		vsock_reset(stream);
	if (stream->buffered)
		drain(stream);
	if (stream->hung_up && !stream->reading && stream->event.fd >= 0)
		host_shut(stream, VSOCK_NO_MORE);
	if (stream->reading && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		stream->readable = true;
	vsock_line_up(stream);
	vsock_give(stream->vsock);
	/* what can't be given now must not wake us again */
	vsock_watch(stream);
}
