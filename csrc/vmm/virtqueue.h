/* SPDX-License-Identifier: MIT */
/* virtqueue.h - split virtqueues: virtio 1.2, section 2.7. */
#ifndef VMM_VIRTQUEUE_H
#define VMM_VIRTQUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "memory.h"

enum {
	VMM_QUEUE_MAX = 1024,       /* entries of the largest queue, and of an indirect table */
};

struct vmm_queue {
	const struct vmm_memory *memory;
	uint16_t max;               /* what the device offers */
	uint16_t size;              /* what the driver chose: a power of two, at most max */
	bool ready;
	bool broken;                /* the driver broke the rules; until a reset nothing is taken */
	bool event_idx;             /* VIRTIO_RING_F_EVENT_IDX was negotiated */
	uint64_t desc, avail, used; /* guest-physical; checked when ready is set */
	uint16_t next_avail;
	uint16_t next_used;
	uint16_t signalled_used;    /* next_used at the last interrupt */
};

/* One request: what the device reads, then what it writes.  All within guest memory. */
struct vmm_chain {
	uint16_t head;
	uint16_t n_out;             /* readable by the device */
	uint16_t n_in;              /* writable by the device */
	uint64_t out_bytes;
	uint64_t in_bytes;
	struct iovec out[VMM_QUEUE_MAX];
	struct iovec in[VMM_QUEUE_MAX];
};

/* A chain that is done with: written bytes are valid in its writable part. */
struct vmm_done {
	uint16_t head;
	uint32_t written;
};

/* 1: a chain; 0: none is there; -EIO: the queue is broken now. */
int vmm_queue_pop(struct vmm_queue *queue, struct vmm_chain *chain);
/* Give the last popped chain back untouched; it is popped again. */
void vmm_queue_unpop(struct vmm_queue *queue);
/* Done with it: written bytes are valid in its writable part. */
void vmm_queue_push(struct vmm_queue *queue, uint16_t head, uint32_t written);
/* The same for n chains at once: the driver sees all of them or none. */
void vmm_queue_push_all(struct vmm_queue *queue, const struct vmm_done *done, uint16_t n);
/* Whether the driver wants to be interrupted for what was pushed since the last time. */
bool vmm_queue_should_signal(struct vmm_queue *queue);
/* Tell the driver whether a kick is wanted; after enabling, look once more for chains. */
void vmm_queue_enable_kicks(struct vmm_queue *queue, bool enable);
/* How many chains the driver has added, modulo 2^16. */
uint16_t vmm_queue_added(const struct vmm_queue *queue);
/*
 * The same, and have a kick for what is added next, though there is more
 * already; to be called before the push that the driver answers by it.
 */
uint16_t vmm_queue_await_next(struct vmm_queue *queue);

/* Copy out of the readable, into the writable part, at an offset; the bytes copied. */
size_t vmm_chain_read(const struct vmm_chain *chain, uint64_t offset, void *data, size_t len);
size_t vmm_chain_write(const struct vmm_chain *chain, uint64_t offset, const void *data, size_t len);

/* The transport's: whether the driver's size and addresses can be used, then it is ready. */
bool vmm_queue_start(struct vmm_queue *queue);
/* Forget all but what the device offers. */
void vmm_queue_reset(struct vmm_queue *queue);

#endif
