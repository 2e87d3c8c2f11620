/* SPDX-License-Identifier: MIT */
/* vsock_stream.c - streams: found by their ports, made, put in turn, ended. */
#include <sys/mman.h>

#include "vsock_parts.h"

/* A guest can choose its ports so that all share a place: VSOCK_STREAMS steps are few enough. */
static struct vsock_stream **place(struct vmm_vsock *vsock, uint32_t guest_port,
				   uint32_t host_port)
{
	uint32_t hash = (guest_port * 0x9e3779b1u) ^ (host_port * 0x85ebca6bu);

	return &vsock->hash[(hash >> 16 ^ hash) % VSOCK_HASH];
}

struct vsock_stream *vsock_find(struct vmm_vsock *vsock, uint32_t guest_port, uint32_t host_port)
{
	struct vsock_stream *stream = *place(vsock, guest_port, host_port);

	while (stream && (stream->guest_port != guest_port || stream->host_port != host_port))
		stream = stream->hash_next;
	return stream;
}

struct vsock_stream *vsock_stream_new(struct vmm_vsock *vsock, uint32_t guest_port,
				      uint32_t host_port, int fd)
{
	struct vsock_stream *stream = vsock->free, **hash = place(vsock, guest_port, host_port);
	struct vsock_stream *next_free;

	if (!stream)
		return NULL;
	next_free = stream->hash_next;
	*stream = (struct vsock_stream){
		.event = { .fd = fd, .ready = vsock_socket_ready },
		.vsock = vsock,
		.hash_next = *hash,
		.guest_port = guest_port,
		.host_port = host_port,
		.reading = true,
		.writing = true,
		.buffer = stream->buffer,
	};
	if (vmm_loop_add(vsock->loop, &stream->event)) {
		stream->hash_next = next_free;
		return NULL;
	}
	vsock->free = next_free;
	*hash = stream;
	return stream;
}

/* What is left to send before the guest must say that it took some. */
uint32_t vsock_credit(const struct vsock_stream *stream)
{
	uint32_t under_way = stream->tx_cnt - stream->peer_fwd_cnt;

	return under_way < stream->peer_alloc ? stream->peer_alloc - under_way : 0;
}

static bool has_something(const struct vsock_stream *stream)
{
	return stream->owed ||
	       (stream->state == VSOCK_OPEN && stream->readable && vsock_credit(stream));
}

void vsock_line_up(struct vsock_stream *stream)
{
	struct vsock_stream *first = stream->vsock->ready;

	if (stream->next || !has_something(stream))
		return;
	if (!first) {
		stream->next = stream->prev = stream;
		stream->vsock->ready = stream;
		return;
	}
	stream->next = first;
	stream->prev = first->prev;
	first->prev->next = stream;
	first->prev = stream;
}

void vsock_leave_line(struct vsock_stream *stream)
{
	struct vmm_vsock *vsock = stream->vsock;

	if (!stream->next)
		return;
	if (vsock->ready == stream)
		vsock->ready = stream->next == stream ? NULL : stream->next;
	stream->prev->next = stream->next;
	stream->next->prev = stream->prev;
	stream->next = stream->prev = NULL;
}

void vsock_owe(struct vsock_stream *stream, uint32_t op)
{
	stream->owed |= 1u << op;
	vsock_line_up(stream);
}

/* What is left of the host's side, when the guest's is over: bytes to deliver, or an answer. */
static void leave_host(struct vsock_stream *stream, bool connecting)
{
	const struct vmm_vsock_host *host = &stream->vsock->host;
	uint32_t port = stream->guest_port;
	uint64_t cookie = stream->cookie;

	if (!connecting) {
		vsock_socket_finish(stream);
		return;
	}
	vsock_socket_close(stream);
	host->refused(host->arg, port, cookie);
}

void vsock_reset(struct vsock_stream *stream)
{
	bool connecting = stream->state == VSOCK_CONNECTING;

	if (connecting && stream->owed & 1u << VSOCK_OP_REQUEST) {
		vsock_forget(stream);
		return;
	}
	if (!connecting && stream->state != VSOCK_OPEN)
		return;
	stream->state = VSOCK_RESETTING;
	stream->owed = 0;
	vsock_owe(stream, VSOCK_OP_RST);
	leave_host(stream, connecting);
}

void vsock_forget(struct vsock_stream *stream)
{
	struct vsock_stream **at = place(stream->vsock, stream->guest_port, stream->host_port);
	bool connecting = stream->state == VSOCK_CONNECTING;

	while (*at != stream)
		at = &(*at)->hash_next;
	*at = stream->hash_next;
	vsock_leave_line(stream);
	stream->state = VSOCK_DRAINING;
	stream->owed = 0;
	leave_host(stream, connecting);
	vsock_free_if_over(stream);
}

void vsock_forget_all(struct vmm_vsock *vsock)
{
	for (uint32_t i = 0; i < VSOCK_HASH; i++)
		while (vsock->hash[i])
			vsock_forget(vsock->hash[i]);
	vsock->n_replies = 0;
}

void vsock_free_if_over(struct vsock_stream *stream)
{
	struct vmm_vsock *vsock = stream->vsock;

	if (stream->state != VSOCK_DRAINING || stream->event.fd >= 0)
		return;
	/* where it fails, the pages stay for the next stream */
	if (stream->touched)
		(void)madvise(stream->buffer, VSOCK_BUFFER, MADV_DONTNEED);
	stream->state = VSOCK_FREE;
	stream->hash_next = vsock->free;
	vsock->free = stream;
}
