/* SPDX-License-Identifier: MIT */
/*
 * vsock_parts.h - what the files of the vsock device share.
 *
 * A stream has two sides that end on their own.  The guest's side is its pair
 * of ports, by which packets find it.  The host's side is a socket; bytes of
 * the guest's that the socket does not take are kept in a buffer, and are
 * still delivered after the guest's side is over.  A stream is free again when
 * both sides are gone.
 */
#ifndef VMM_VSOCK_PARTS_H
#define VMM_VSOCK_PARTS_H

#include "loop.h"
#include "vsock.h"

enum {
	VSOCK_RX = 0,               /* the queues: to the guest, */
	VSOCK_TX = 1,               /* from it, */
	VSOCK_EVENT = 2,            /* and for what concerns the device */
};

enum {
	VSOCK_HOST_CID = 2,
	VSOCK_TYPE_STREAM = 1,
	VSOCK_STREAMS = 1024,
	VSOCK_BUFFER = 256 << 10,   /* bytes kept for a slow reader, a stream */
	VSOCK_UPDATE = 64 << 10,    /* so many bytes delivered are worth a packet of their own */
	VSOCK_LISTENERS = 64,
	VSOCK_REPLIES = 64,         /* resets owed for packets that belong to no stream */
	VSOCK_BATCH = 64,           /* packets of one turn, each way */
	VSOCK_HASH = 1024,
};

/* Operations; a stream's owed packets are bits by these numbers. */
enum {
	VSOCK_OP_REQUEST = 1,
	VSOCK_OP_RESPONSE = 2,
	VSOCK_OP_RST = 3,
	VSOCK_OP_SHUTDOWN = 4,
	VSOCK_OP_RW = 5,
	VSOCK_OP_CREDIT_UPDATE = 6,
	VSOCK_OP_CREDIT_REQUEST = 7,
};

/* Flags of SHUTDOWN: what its sender will no longer do. */
enum {
	VSOCK_NO_RECEIVE = 1,
	VSOCK_NO_SEND = 2,
	VSOCK_NO_MORE = 3,
};

/* Little endian, as all of virtio. */
struct vsock_header {
	uint64_t src_cid;
	uint64_t dst_cid;
	uint32_t src_port;
	uint32_t dst_port;
	uint32_t len;
	uint16_t type;
	uint16_t op;
	uint32_t flags;
	uint32_t buf_alloc;
	uint32_t fwd_cnt;
} __attribute__((packed));

_Static_assert(sizeof(struct vsock_header) == 44, "virtio 1.2, section 5.10.6");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "virtio's byte order is taken as ours");

enum vsock_state {
	VSOCK_FREE,
	VSOCK_CONNECTING,           /* the guest is to answer our REQUEST */
	VSOCK_OPEN,
	VSOCK_RESETTING,            /* a RST is owed, and then the guest's side is over */
	VSOCK_DRAINING,             /* the guest's side is over */
};

struct vsock_stream {
	struct vmm_event event;     /* fd -1: the host's side is over */
	struct vmm_vsock *vsock;
	struct vsock_stream *hash_next;   /* also of the free ones */
	struct vsock_stream *next, *prev; /* the ring of who has something for the guest */
	enum vsock_state state;
	uint32_t guest_port, host_port;
	uint64_t cookie;
	uint32_t owed;              /* packets, 1 << op each */
	bool readable;              /* the socket may have bytes, or its end */
	bool reading;               /* its bytes are wanted, and there was no end of them */
	bool writing;               /* it takes bytes */
	bool hung_up;               /* and is no longer in the loop */
	bool asked;                 /* for credit, and got none since */
	uint8_t guest_shut;         /* what the guest said that it will not do */
	uint8_t host_shut;          /* what the host will not do */
	/* to the guest: bytes sent, and what the guest said last; all modulo 2^32 */
	uint32_t tx_cnt, peer_alloc, peer_fwd_cnt;
	/* from the guest: bytes come, bytes gone into the socket, and the last count told */
	uint32_t rx_cnt, fwd_cnt, told_fwd_cnt;
	/* VSOCK_BUFFER bytes, a ring */
	uint8_t *buffer;
	uint32_t first, buffered;
	bool touched;               /* the buffer has pages */
};

/* A packet that belongs to no stream is answered so. */
struct vsock_reply {
	uint64_t src_cid;
	uint32_t src_port, dst_port;
	uint16_t type;
};

struct vmm_vsock {
	struct vmm_device device;
	struct vmm_loop *loop;
	struct vmm_vsock_host host;
	uint64_t cid;
	struct vsock_stream *hash[VSOCK_HASH];
	struct vsock_stream *free;
	struct vsock_stream *ready; /* whose turn is next */
	uint32_t next_port;
	uint32_t listener[VSOCK_LISTENERS];
	uint32_t n_listeners;
	struct vsock_reply reply[VSOCK_REPLIES];
	uint32_t first_reply, n_replies;
	bool again;                 /* another turn is due */
	bool event_owed;            /* TRANSPORT_RESET, */
	bool event_given;           /* which the driver has not returned yet, */
	uint16_t event_added;       /* of so many that it had added */
	uint8_t *buffers;
	struct vmm_chain chain;
	struct iovec data[VMM_QUEUE_MAX];
	struct vsock_stream stream[VSOCK_STREAMS];
};

/* vsock_stream.c */
struct vsock_stream *vsock_find(struct vmm_vsock *vsock, uint32_t guest_port, uint32_t host_port);
/* Takes the fd only if it succeeds; NULL: too many, or the loop does not take it. */
struct vsock_stream *vsock_stream_new(struct vmm_vsock *vsock, uint32_t guest_port,
				      uint32_t host_port, int fd);
/* In turn for a packet to the guest, if it has one. */
void vsock_line_up(struct vsock_stream *stream);
void vsock_leave_line(struct vsock_stream *stream);
void vsock_owe(struct vsock_stream *stream, uint32_t op);
uint32_t vsock_credit(const struct vsock_stream *stream);
/* One end broke off, or both are done: the guest is told by a RST. */
void vsock_reset(struct vsock_stream *stream);
/* The guest has no such stream, or no longer. */
void vsock_forget(struct vsock_stream *stream);
void vsock_forget_all(struct vmm_vsock *vsock);
void vsock_free_if_over(struct vsock_stream *stream);

/* vsock_socket.c */
void vsock_socket_ready(struct vmm_event *event, uint32_t events);
/* Have the loop wait for what is of use now. */
void vsock_watch(struct vsock_stream *stream);
/* From the socket behind the header of this chain; the bytes, 0: none now. */
uint32_t vsock_socket_read(struct vsock_stream *stream, const struct vmm_chain *chain);
/* The len bytes behind the header of this chain, for which there is credit. */
void vsock_socket_write(struct vsock_stream *stream, const struct vmm_chain *chain, uint32_t len);
/* The guest said what it will not do. */
void vsock_socket_shut(struct vsock_stream *stream, uint32_t flags);
/* Nothing goes to the guest any more; what it sent is delivered, then the fd closed. */
void vsock_socket_finish(struct vsock_stream *stream);
void vsock_socket_close(struct vsock_stream *stream);

/* vsock_take.c: packets from the guest; vsock_give.c: packets to it.  One turn. */
void vsock_take(struct vmm_vsock *vsock);
void vsock_give(struct vmm_vsock *vsock);
/* Another turn of both, soon. */
void vsock_again(struct vmm_vsock *vsock);
void vsock_broken(struct vmm_vsock *vsock, const char *why);

#endif
