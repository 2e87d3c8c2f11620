/* SPDX-License-Identifier: MIT */
/*
 * virtqueue.c - split virtqueues: virtio 1.2, section 2.7.
 *
 * All of a ring is the guest's to change at any time: each value is loaded
 * once, and what was loaded is checked.
 */
#include "virtqueue.h"

#include <errno.h>
#include <string.h>

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1 };

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct used_elem {
	uint32_t id;
	uint32_t len;
};

/* A table of descriptors: the queue's own, or an indirect one. */
struct table {
	const uint8_t *host;
	uint32_t n;
};

/* Offsets of the rings' fields; behind the entries of each comes the index of the event. */
enum { RING_FLAGS = 0, RING_IDX = 2, RING_ENTRIES = 4 };

static uint64_t avail_bytes(const struct vmm_queue *queue)
{
	return RING_ENTRIES + 2 * (uint64_t)queue->size + 2;
}

static uint64_t used_bytes(const struct vmm_queue *queue)
{
	return RING_ENTRIES + sizeof(struct used_elem) * queue->size + 2;
}

static uint16_t *avail_at(const struct vmm_queue *queue, uint64_t offset)
{
	return vmm_memory_at(queue->memory, queue->avail + offset, 2);
}

static uint16_t *used_at(const struct vmm_queue *queue, uint64_t offset)
{
	return vmm_memory_at(queue->memory, queue->used + offset, 2);
}

static uint16_t *used_event(const struct vmm_queue *queue)
{
	return avail_at(queue, RING_ENTRIES + 2 * (uint64_t)queue->size);
}

static uint16_t *avail_event(const struct vmm_queue *queue)
{
	return used_at(queue, RING_ENTRIES + sizeof(struct used_elem) * queue->size);
}

bool vmm_queue_start(struct vmm_queue *queue)
{
	uint16_t size = queue->size;

	queue->ready = size && size <= queue->max && !(size & (size - 1)) &&
		       !(queue->desc & 15) && !(queue->avail & 1) && !(queue->used & 3) &&
		       vmm_memory_at(queue->memory, queue->desc, sizeof(struct desc) * size) &&
		       vmm_memory_at(queue->memory, queue->avail, avail_bytes(queue)) &&
		       vmm_memory_at(queue->memory, queue->used, used_bytes(queue));
	queue->broken = !queue->ready;
	return queue->ready;
}

void vmm_queue_reset(struct vmm_queue *queue)
{
	*queue = (struct vmm_queue){ .memory = queue->memory, .max = queue->max };
}

static int broken(struct vmm_queue *queue)
{
	queue->broken = true;
	return -EIO;
}

/* Whether the buffer of this descriptor fits behind those that the chain has. */
static bool add_buffer(const struct vmm_queue *queue, struct vmm_chain *chain,
		       const struct desc *desc)
{
	bool in = desc->flags & DESC_WRITE;
	void *host = vmm_memory_at(queue->memory, desc->addr, desc->len);
	struct iovec *iov;

	/* what the device reads comes first */
	if (!host || (!in && chain->n_in) || chain->n_out + chain->n_in >= VMM_QUEUE_MAX)
		return false;
	if (!desc->len)
		return true;
	iov = in ? &chain->in[chain->n_in++] : &chain->out[chain->n_out++];
	*iov = (struct iovec){ .iov_base = host, .iov_len = desc->len };
	*(in ? &chain->in_bytes : &chain->out_bytes) += desc->len;
	return true;
}

static bool indirect_table(const struct vmm_queue *queue, const struct desc *desc,
			   struct table *table)
{
	table->n = desc->len / sizeof(struct desc);
	table->host = vmm_memory_at(queue->memory, desc->addr, desc->len);
	return table->host && table->n && table->n <= VMM_QUEUE_MAX &&
	       desc->len % sizeof(struct desc) == 0;
}

/* Follow the descriptors from head; a loop among them ends with the count of the table. */
static bool walk(const struct vmm_queue *queue, uint16_t head, struct vmm_chain *chain)
{
	struct table table = {
		.host = vmm_memory_at(queue->memory, queue->desc,
				      sizeof(struct desc) * queue->size),
		.n = queue->size,
	};
	bool indirect = false;
	uint32_t at = head;
	struct desc desc;

	for (uint32_t left = table.n; left; left--) {
		if (at >= table.n)
			return false;
		memcpy(&desc, table.host + at * sizeof(desc), sizeof(desc));
		__asm__ volatile("" : "+m"(desc));  /* not loaded a second time */
		if (desc.flags & DESC_INDIRECT) {
			/* one, the last of its chain, and not within another */
			if (indirect || desc.flags & DESC_NEXT ||
			    !indirect_table(queue, &desc, &table))
				return false;
			indirect = true;
			at = 0;
			left = table.n + 1;
			continue;
		}
		if (!add_buffer(queue, chain, &desc))
			return false;
		if (!(desc.flags & DESC_NEXT))
			return true;
		at = desc.next;
	}
	return false;
}

/* How many chains wait; when there are none, the driver is asked to kick for the next. */
static uint16_t waiting(struct vmm_queue *queue)
{
	uint16_t *idx = avail_at(queue, RING_IDX);
	uint16_t n = (uint16_t)(__atomic_load_n(idx, __ATOMIC_ACQUIRE) - queue->next_avail);

	if (n || !queue->event_idx)
		return n;
	__atomic_store_n(avail_event(queue), queue->next_avail, __ATOMIC_SEQ_CST);
	/* the driver stores idx, then loads the event; here it is the other way round */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return (uint16_t)(__atomic_load_n(idx, __ATOMIC_ACQUIRE) - queue->next_avail);
}

int vmm_queue_pop(struct vmm_queue *queue, struct vmm_chain *chain)
{
	uint16_t n, slot;

	if (!queue->ready || queue->broken)
		return queue->broken ? -EIO : 0;
	n = waiting(queue);
	if (!n)
		return 0;
	if (n > queue->size)
		return broken(queue);
	slot = queue->next_avail & (queue->size - 1);
	chain->head = __atomic_load_n(avail_at(queue, RING_ENTRIES + 2 * (uint64_t)slot),
				      __ATOMIC_RELAXED);
	chain->n_out = chain->n_in = 0;
	chain->out_bytes = chain->in_bytes = 0;
	if (!walk(queue, chain->head, chain))
		return broken(queue);
	queue->next_avail++;
	return 1;
}

void vmm_queue_unpop(struct vmm_queue *queue)
{
	queue->next_avail--;
}

void vmm_queue_push_all(struct vmm_queue *queue, const struct vmm_done *done, uint16_t n)
{
	struct used_elem elem;

	if (!queue->ready || queue->broken)
		return;
	for (uint16_t i = 0; i < n; i++) {
		uint64_t slot = queue->next_used++ & (queue->size - 1);

		elem = (struct used_elem){ .id = done[i].head, .len = done[i].written };
		memcpy(used_at(queue, RING_ENTRIES + slot * sizeof(elem)), &elem, sizeof(elem));
	}
	__atomic_store_n(used_at(queue, RING_IDX), queue->next_used, __ATOMIC_RELEASE);
}

void vmm_queue_push(struct vmm_queue *queue, uint16_t head, uint32_t written)
{
	const struct vmm_done done = { .head = head, .written = written };

	vmm_queue_push_all(queue, &done, 1);
}

bool vmm_queue_should_signal(struct vmm_queue *queue)
{
	uint16_t old = queue->signalled_used, new = queue->next_used, event;

	if (!queue->ready || queue->broken || old == new)
		return false;
	queue->signalled_used = new;
	/* the driver stores the event, then loads idx */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!queue->event_idx)
		return !(__atomic_load_n(avail_at(queue, RING_FLAGS), __ATOMIC_RELAXED) &
			 AVAIL_NO_INTERRUPT);
	event = __atomic_load_n(used_event(queue), __ATOMIC_RELAXED);
	return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

void vmm_queue_enable_kicks(struct vmm_queue *queue, bool enable)
{
	if (!queue->ready || queue->broken)
		return;
	/* with events there is nothing to disable: an event that is passed isn't met again */
	if (!queue->event_idx)
		__atomic_store_n(used_at(queue, RING_FLAGS), enable ? 0 : USED_NO_NOTIFY,
				 __ATOMIC_SEQ_CST);
	else if (enable)
		__atomic_store_n(avail_event(queue), queue->next_avail, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

uint16_t vmm_queue_added(const struct vmm_queue *queue)
{
	const uint16_t *idx;

	if (!queue->ready || queue->broken)
		return 0;
	idx = avail_at(queue, RING_IDX);
	return __atomic_load_n(idx, __ATOMIC_ACQUIRE);
}

uint16_t vmm_queue_await_next(struct vmm_queue *queue)
{
	uint16_t added = vmm_queue_added(queue);

	if (queue->ready && !queue->broken && queue->event_idx)
		__atomic_store_n(avail_event(queue), added, __ATOMIC_SEQ_CST);
	return added;
}

static size_t copy(const struct iovec *iov, uint16_t n, uint64_t offset, uint8_t *data, size_t len,
		   bool into)
{
	size_t done = 0;

	for (uint16_t i = 0; i < n && done < len; i++) {
		uint8_t *at = iov[i].iov_base;
		size_t room = iov[i].iov_len;

		if (offset >= room) {
			offset -= room;
			continue;
		}
		room -= offset;
		if (room > len - done)
			room = len - done;
		memcpy(into ? at + offset : data + done, into ? data + done : at + offset, room);
		done += room;
		offset = 0;
	}
	return done;
}

size_t vmm_chain_read(const struct vmm_chain *chain, uint64_t offset, void *data, size_t len)
{
	return copy(chain->out, chain->n_out, offset, data, len, false);
}

size_t vmm_chain_write(const struct vmm_chain *chain, uint64_t offset, const void *data, size_t len)
{
	return copy(chain->in, chain->n_in, offset, (uint8_t *)(uintptr_t)data, len, true);
}
