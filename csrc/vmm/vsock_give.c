/* SPDX-License-Identifier: MIT */
/* vsock_give.c - packets to the guest: stream after stream, one each. */
#include "vsock_parts.h"

static void write_header(struct vmm_vsock *vsock, struct vsock_header *header)
{
	header->dst_cid = vsock->cid;
	vmm_chain_write(&vsock->chain, 0, header, sizeof(*header));
	vmm_queue_push(&vsock->device.queue[VSOCK_RX], vsock->chain.head,
		       (uint32_t)sizeof(*header) + header->len);
}

static void give_reply(struct vmm_vsock *vsock)
{
	const struct vsock_reply *reply = &vsock->reply[vsock->first_reply];
	struct vsock_header header = {
		.src_cid = reply->src_cid,
		.src_port = reply->src_port,
		.dst_port = reply->dst_port,
		.type = reply->type,
		.op = VSOCK_OP_RST,
	};

	vsock->first_reply = (vsock->first_reply + 1) % VSOCK_REPLIES;
	/* the guest's next packets had to wait for this place */
	if (vsock->n_replies-- == VSOCK_REPLIES)
		vsock_again(vsock);
	write_header(vsock, &header);
}

/* Bytes carry the credit with them; the other packets go first, by the order of their numbers. */
static uint32_t choose_op(struct vsock_stream *stream, uint32_t *len)
{
	const uint32_t update = 1u << VSOCK_OP_CREDIT_UPDATE;

	if (!(stream->owed & ~update))
		*len = vsock_socket_read(stream, &stream->vsock->chain);
	if (*len)
		return VSOCK_OP_RW;
	if (stream->owed)
		return (uint32_t)__builtin_ctz(stream->owed);
	return 0;
}

static void give_packet(struct vsock_stream *stream, uint32_t op, uint32_t len)
{
	struct vsock_header header = {
		.src_cid = VSOCK_HOST_CID,
		.src_port = stream->host_port,
		.dst_port = stream->guest_port,
		.len = len,
		.type = VSOCK_TYPE_STREAM,
		.op = (uint16_t)op,
		.flags = op == VSOCK_OP_SHUTDOWN ? stream->host_shut : 0,
		.buf_alloc = VSOCK_BUFFER,
		.fwd_cnt = stream->fwd_cnt,
	};

	stream->owed &= ~(1u << op | 1u << VSOCK_OP_CREDIT_UPDATE);
	stream->told_fwd_cnt = stream->fwd_cnt;
	write_header(stream->vsock, &header);
	if (op == VSOCK_OP_RST)
		vsock_forget(stream);
}

/* A driver that says only when asked how much it took must be asked, once. */
static void ask_for_credit(struct vsock_stream *stream)
{
	if (stream->state != VSOCK_OPEN || !stream->readable || stream->asked ||
	    vsock_credit(stream))
		return;
	stream->asked = true;
	vsock_owe(stream, VSOCK_OP_CREDIT_REQUEST);
}

/* False: the stream whose turn it was had nothing after all, and the chain is unused. */
static bool give_turn(struct vmm_vsock *vsock)
{
	struct vsock_stream *stream = vsock->ready;
	uint32_t op, len = 0;

	if (vsock->n_replies) {
		give_reply(vsock);
		return true;
	}
	vsock_leave_line(stream);
	op = choose_op(stream, &len);
	if (!op)
		return false;
	give_packet(stream, op, len);
	ask_for_credit(stream);
	vsock_line_up(stream);
	return true;
}

/* Whether there is room for a packet; if not, the driver kicks when there is. */
static bool next_chain(struct vmm_vsock *vsock)
{
	struct vmm_queue *queue = &vsock->device.queue[VSOCK_RX];
	int ret = vmm_queue_pop(queue, &vsock->chain);

	if (ret < 0)
		vsock_broken(vsock, "a broken queue of packets to the guest");
	if (ret > 0 && vsock->chain.in_bytes < sizeof(struct vsock_header)) {
		vsock_broken(vsock, "a buffer that holds no packet");
		return false;
	}
	return ret > 0;
}

void vsock_give(struct vmm_vsock *vsock)
{
	uint32_t given = 0;

	while (vsock->device.running && !vsock->event_given &&
	       (vsock->n_replies || vsock->ready) && given < VSOCK_BATCH && next_chain(vsock)) {
		if (give_turn(vsock))
			given++;
		else
			vmm_queue_unpop(&vsock->device.queue[VSOCK_RX]);
	}
	if (given)
		vmm_device_signal(&vsock->device, VSOCK_RX);
	if (given == VSOCK_BATCH)
		vsock_again(vsock);
}
