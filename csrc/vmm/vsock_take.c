/* SPDX-License-Identifier: MIT */
/* vsock_take.c - packets from the guest: checked, and acted upon. */
#include <sys/socket.h>
#include <unistd.h>

#include "vsock_parts.h"

static void reply_reset(struct vmm_vsock *vsock, const struct vsock_header *header)
{
	uint32_t at = (vsock->first_reply + vsock->n_replies) % VSOCK_REPLIES;

	if (header->op == VSOCK_OP_RST)
		return;
	vsock->reply[at] = (struct vsock_reply){ header->dst_cid, header->dst_port,
						 header->src_port, header->type };
	vsock->n_replies++;
}

static bool listens(const struct vmm_vsock *vsock, uint32_t port)
{
	for (uint32_t i = 0; i < vsock->n_listeners; i++)
		if (vsock->listener[i] == port)
			return true;
	return false;
}

static void note_credit(struct vsock_stream *stream, const struct vsock_header *header)
{
	stream->peer_alloc = header->buf_alloc;
	stream->peer_fwd_cnt = header->fwd_cnt;
	if (vsock_credit(stream))
		stream->asked = false;
	vsock_line_up(stream);
}

static void accept_stream(struct vmm_vsock *vsock, const struct vsock_header *header)
{
	struct vsock_stream *stream;
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)) {
		reply_reset(vsock, header);
		return;
	}
	stream = vsock_stream_new(vsock, header->src_port, header->dst_port, fds[0]);
	if (!stream) {
		close(fds[0]);
		close(fds[1]);
		reply_reset(vsock, header);
		return;
	}
	stream->state = VSOCK_OPEN;
	vsock_owe(stream, VSOCK_OP_RESPONSE);
	note_credit(stream, header);
	vsock_watch(stream);
	vsock->host.accepted(vsock->host.arg, header->dst_port, fds[1]);
}

static void take_answer(struct vsock_stream *stream, const struct vsock_header *header)
{
	const struct vmm_vsock_host *host = &stream->vsock->host;

	if (header->op == VSOCK_OP_RST) {
		vsock_forget(stream);
		return;
	}
	/* an answer to what was not asked yet is no answer */
	if (header->op != VSOCK_OP_RESPONSE || stream->owed & 1u << VSOCK_OP_REQUEST) {
		vsock_reset(stream);
		return;
	}
	stream->state = VSOCK_OPEN;
	note_credit(stream, header);
	host->connected(host->arg, stream->guest_port, stream->cookie);
	vsock_watch(stream);
}

static void take_bytes(struct vsock_stream *stream, const struct vsock_header *header,
		       const struct vmm_chain *chain)
{
	uint32_t room = VSOCK_BUFFER - (stream->rx_cnt - stream->fwd_cnt);

	if (header->len > chain->out_bytes - sizeof(*header) || header->len > room ||
	    stream->guest_shut & VSOCK_NO_SEND) {
		vsock_reset(stream);
		return;
	}
	stream->rx_cnt += header->len;
	vsock_socket_write(stream, chain, header->len);
}

static void take_shutdown(struct vsock_stream *stream, uint32_t flags)
{
	stream->guest_shut |= flags & VSOCK_NO_MORE;
	/* done both ways: a RST is the guest's receipt for it */
	if (stream->guest_shut == VSOCK_NO_MORE)
		vsock_reset(stream);
	else
		vsock_socket_shut(stream, flags);
}

static void take_open(struct vsock_stream *stream, const struct vsock_header *header,
		      const struct vmm_chain *chain)
{
	note_credit(stream, header);
	switch (header->op) {
	case VSOCK_OP_RW:
		take_bytes(stream, header, chain);
		break;
	case VSOCK_OP_SHUTDOWN:
		take_shutdown(stream, header->flags);
		break;
	case VSOCK_OP_CREDIT_UPDATE:
		break;
	case VSOCK_OP_CREDIT_REQUEST:
		vsock_owe(stream, VSOCK_OP_CREDIT_UPDATE);
		break;
	case VSOCK_OP_RST:
		vsock_forget(stream);
		break;
	default:
		vsock_reset(stream);
	}
}

static void take_stray(struct vmm_vsock *vsock, const struct vsock_header *header)
{
	if (header->op == VSOCK_OP_REQUEST && header->type == VSOCK_TYPE_STREAM &&
	    header->dst_cid == VSOCK_HOST_CID && listens(vsock, header->dst_port))
		accept_stream(vsock, header);
	else
		reply_reset(vsock, header);
}

static void take_packet(struct vmm_vsock *vsock, const struct vmm_chain *chain)
{
	struct vsock_stream *stream = NULL;
	struct vsock_header header;

	/* the guest's own mistakes: nobody there waits for an answer */
	if (vmm_chain_read(chain, 0, &header, sizeof(header)) != sizeof(header) ||
	    header.src_cid != vsock->cid)
		return;
	if (header.type == VSOCK_TYPE_STREAM && header.dst_cid == VSOCK_HOST_CID)
		stream = vsock_find(vsock, header.src_port, header.dst_port);
	if (!stream)
		take_stray(vsock, &header);
	else if (stream->state == VSOCK_CONNECTING)
		take_answer(stream, &header);
	else if (stream->state == VSOCK_OPEN)
		take_open(stream, &header, chain);
	else if (header.op == VSOCK_OP_RST)
		vsock_forget(stream);
}

void vsock_take(struct vmm_vsock *vsock)
{
	struct vmm_queue *queue = &vsock->device.queue[VSOCK_TX];
	uint32_t taken = 0;
	int ret = 0;

	/* who does not fetch his resets is not listened to either */
	while (vsock->device.running && taken < VSOCK_BATCH && vsock->n_replies < VSOCK_REPLIES) {
		ret = vmm_queue_pop(queue, &vsock->chain);
		if (ret <= 0)
			break;
		take_packet(vsock, &vsock->chain);
		vmm_queue_push(queue, vsock->chain.head, 0);
		taken++;
	}
	if (ret < 0)
		vsock_broken(vsock, "a broken queue of packets from the guest");
	if (taken)
		vmm_device_signal(&vsock->device, VSOCK_TX);
	if (taken == VSOCK_BATCH)
		vsock_again(vsock);
}
