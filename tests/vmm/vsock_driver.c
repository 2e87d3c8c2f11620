/* SPDX-License-Identifier: MIT */
/* vsock_driver.c - see vsock_driver.h. */
#include "vsock_driver.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	STRIDE = 9 << 20,           /* of the queues' buffers */
	MEMORY = 4 * STRIDE,
	HEADER = sizeof(struct vsock_header),
	DESC_NEXT = 1,
	DESC_WRITE = 2,
	SIZE = 128,
	STORM = 100000,             /* more events in one go than any case has reason for */
	N_CALLS = 16,
};

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

/* The device thread's loop, by steps. */
struct vmm_loop {
	int epoll;
	struct { void (*fn)(void *arg); void *arg; } call[N_CALLS];
	uint32_t n_calls;
	struct vmm_event *current;  /* of the batch, unless it was removed */
};

struct driver driver;

void driver_fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

/* --- what the monitor gives to a device ---------------------------------------------------- */

int vmm_loop_add(struct vmm_loop *loop, struct vmm_event *event)
{
	struct epoll_event epoll = { .events = event->events, .data.ptr = event };

	return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, event->fd, &epoll) ? -errno : 0;
}

int vmm_loop_change(struct vmm_loop *loop, struct vmm_event *event, uint32_t events)
{
	struct epoll_event epoll = { .events = events, .data.ptr = event };

	if (event->events == events)
		return 0;
	event->events = events;
	return epoll_ctl(loop->epoll, EPOLL_CTL_MOD, event->fd, &epoll) ? -errno : 0;
}

void vmm_loop_remove(struct vmm_loop *loop, struct vmm_event *event)
{
	if (epoll_ctl(loop->epoll, EPOLL_CTL_DEL, event->fd, NULL))
		driver_fail("removed from the loop what is not in it");
}

int vmm_loop_call(struct vmm_loop *loop, void (*fn)(void *arg), void *arg)
{
	if (loop->n_calls == N_CALLS)
		return -ENOMEM;
	loop->call[loop->n_calls].fn = fn;
	loop->call[loop->n_calls++].arg = arg;
	return 0;
}

void vmm_device_signal(struct vmm_device *device, uint32_t queue)
{
	if (vmm_queue_should_signal(&device->queue[queue]))
		driver.ring[queue].interrupts++;
}

void vmm_device_broken(struct vmm_device *device, const char *why)
{
	(void)why;
	device->running = false;
	driver.broken++;
}

/* One event at a time, so that none is stale. */
void driver_settle(void)
{
	struct vmm_loop *loop = driver.loop;
	struct epoll_event epoll;
	struct vmm_event *event;

	for (uint32_t n = 0; n < STORM; n++) {
		if (loop->n_calls) {
			loop->n_calls--;
			loop->call[loop->n_calls].fn(loop->call[loop->n_calls].arg);
			continue;
		}
		if (epoll_wait(loop->epoll, &epoll, 1, 0) <= 0)
			return;
		event = epoll.data.ptr;
		event->ready(event, epoll.events);
	}
	driver_fail("the device never comes to rest");
}

static struct driver_event *note(enum driver_call call, uint32_t port, uint64_t cookie, int fd)
{
	struct driver_event *event = &driver.event[driver.n_events++];

	if (driver.n_events == DRIVER_EVENTS)
		driver_fail("too many callbacks");
	*event = (struct driver_event){ call, port, cookie, fd };
	return event;
}

static void connected(void *arg, uint32_t port, uint64_t cookie)
{
	(void)arg;
	note(DRIVER_CONNECTED, port, cookie, -1);
}

static void refused(void *arg, uint32_t port, uint64_t cookie)
{
	(void)arg;
	note(DRIVER_REFUSED, port, cookie, -1);
}

static void accepted(void *arg, uint32_t port, int fd)
{
	(void)arg;
	note(DRIVER_ACCEPTED, port, 0, fd);
}

/* --- the driver ------------------------------------------------------------------------------ */

static void *at(uint64_t gpa)
{
	return driver.memory.region[0].host + gpa;
}

void driver_new(void)
{
	const struct vmm_vsock_host host = { NULL, connected, refused, accepted };

	memset(&driver, 0, sizeof(driver));
	driver.repost = true;
	driver.memory.n = 1;
	driver.memory.region[0].size = MEMORY;
	driver.memory.region[0].host = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
					    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	driver.loop = calloc(1, sizeof(*driver.loop));
	if (driver.memory.region[0].host == MAP_FAILED || !driver.loop)
		driver_fail("no memory");
	driver.loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	driver.device = vmm_vsock_new(driver.loop, DRIVER_CID, VMM_VSOCK_FIRST_PORT, &host);
	if (driver.loop->epoll < 0 || !driver.device)
		driver_fail("no device: %s", strerror(errno));
}

void driver_free(void)
{
	vmm_vsock_free(driver.device);
	close(driver.loop->epoll);
	free(driver.loop);
	munmap(driver.memory.region[0].host, MEMORY);
}

static uint16_t *used_event(struct driver_ring *ring)
{
	return at(ring->avail_at + 4 + 2 * ring->size);
}

static uint16_t avail_event(struct driver_ring *ring)
{
	return *(uint16_t *)at(ring->used_at + 4 + 8 * ring->size);
}

/* Two descriptors a buffer, 2i for the header and 2i + 1 for the bytes behind it; or one. */
static uint16_t unit(void)
{
	return driver.single ? 1 : 2;
}

static void start_ring(uint32_t index, bool event_idx)
{
	struct driver_ring *ring = &driver.ring[index];
	struct vmm_queue *queue = &driver.device->queue[index];
	uint64_t base = (uint64_t)(index + 1) << 16;

	*ring = (struct driver_ring){
		.size = index == VSOCK_EVENT ? 8 : SIZE,
		.desc_at = base,
		.avail_at = base + 0x4000,
		.used_at = base + 0x8000,
		.buffers_at = (uint64_t)(index + 1) * STRIDE,
	};
	memset(at(base), 0, 1 << 16);
	for (uint16_t i = 0; i < ring->size / unit(); i++)
		ring->free[ring->n_free++] = i;
	*queue = (struct vmm_queue){
		.memory = &driver.memory, .max = driver.device->ops->queue_max[index],
		.size = ring->size, .desc = ring->desc_at, .avail = ring->avail_at,
		.used = ring->used_at, .event_idx = event_idx,
	};
	if (!vmm_queue_start(queue))
		driver_fail("queue %u does not start", index);
}

void driver_start(bool event_idx, uint32_t rx_buffers)
{
	for (uint32_t i = 0; i < 3; i++)
		start_ring(i, event_idx);
	driver.device->running = true;
	driver_post(rx_buffers);
}

void driver_reset(void)
{
	driver.device->running = false;
	driver.device->ops->reset(driver.device);
	for (uint32_t i = 0; i < 3; i++)
		vmm_queue_reset(&driver.device->queue[i]);
}

void driver_kick(uint32_t queue)
{
	if (driver.device->running)
		driver.device->ops->notify(driver.device, queue);
}

/* Make the chain of this buffer available, and kick if the device wants to hear of it. */
static void publish(uint32_t index, uint16_t buffer)
{
	struct driver_ring *ring = &driver.ring[index];
	uint16_t *avail = at(ring->avail_at);
	uint16_t old = ring->avail, new = (uint16_t)(old + 1);
	bool kick;

	avail[2 + old % ring->size] = (uint16_t)(unit() * buffer);
	ring->avail = new;
	__atomic_store_n(&avail[1], new, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (driver.device->queue[index].event_idx)
		kick = (uint16_t)(new - avail_event(ring) - 1) < (uint16_t)(new - old);
	else
		kick = !*(uint16_t *)at(ring->used_at);
	if (kick && !driver.quiet)
		driver_kick(index);
}

static uint64_t buffer_at(const struct driver_ring *ring, uint16_t buffer)
{
	return ring->buffers_at + (uint64_t)buffer * (DRIVER_TX_SIZE + HEADER);
}

static void describe(struct driver_ring *ring, uint16_t buffer, uint32_t data, uint16_t flags)
{
	struct desc *desc = (struct desc *)at(ring->desc_at) + unit() * buffer;
	uint64_t gpa = buffer_at(ring, buffer);

	if (driver.single) {
		*desc = (struct desc){ gpa, HEADER + data, flags, 0 };
		return;
	}
	desc[0] = (struct desc){ gpa, HEADER, flags | (data ? DESC_NEXT : 0),
				 (uint16_t)(2 * buffer + 1) };
	desc[1] = (struct desc){ gpa + HEADER, data, flags, 0 };
}

void driver_post(uint32_t n)
{
	struct driver_ring *ring = &driver.ring[VSOCK_RX];

	while (n-- && ring->n_free) {
		uint16_t buffer = ring->free[--ring->n_free];

		describe(ring, buffer, DRIVER_RX_SIZE, DESC_WRITE);
		publish(VSOCK_RX, buffer);
	}
}

void driver_post_event(void)
{
	struct driver_ring *ring = &driver.ring[VSOCK_EVENT];
	uint16_t buffer;

	if (!ring->n_free)
		return;
	buffer = ring->free[--ring->n_free];
	describe(ring, buffer, 0, DESC_WRITE);
	publish(VSOCK_EVENT, buffer);
}

/* The next used buffer of a ring: its number, and the bytes written; -1: none. */
static int take_used(uint32_t index, uint32_t *written)
{
	struct driver_ring *ring = &driver.ring[index];
	uint16_t *used = at(ring->used_at);
	uint32_t *elem = (uint32_t *)(used + 2) + 2 * (ring->seen % ring->size);
	uint16_t buffer;

	if (__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) == ring->seen) {
		*used_event(ring) = ring->seen;
		ring->wanted = ring->interrupts + 1;
		return -1;
	}
	if (!driver.lenient && ring->interrupts < ring->wanted)
		driver_fail("queue %u: no interrupt for what is used", index);
	ring->seen++;
	if (elem[0] % unit() || elem[0] >= ring->size || ring->n_free == ring->size / unit()) {
		if (driver.lenient)
			return -1;
		driver_fail("queue %u: a head that was never given: %u", index, elem[0]);
	}
	buffer = (uint16_t)(elem[0] / unit());
	*written = elem[1];
	ring->free[ring->n_free++] = buffer;
	return buffer;
}

static int free_tx(void)
{
	struct driver_ring *ring = &driver.ring[VSOCK_TX];
	uint32_t written;

	while (take_used(VSOCK_TX, &written) >= 0)
		if (written && !driver.lenient)
			driver_fail("bytes written into a packet from the guest");
	return ring->n_free ? ring->free[--ring->n_free] : -1;
}

bool driver_send(const struct vsock_header *header, const void *data, uint32_t len)
{
	struct driver_ring *ring = &driver.ring[VSOCK_TX];
	int buffer = free_tx();
	uint8_t *bytes;

	if (buffer < 0)
		return false;
	bytes = at(buffer_at(ring, (uint16_t)buffer));
	memcpy(bytes, header, HEADER);
	if (len)
		memcpy(bytes + HEADER, data, len);
	describe(ring, (uint16_t)buffer, len, 0);
	publish(VSOCK_TX, (uint16_t)buffer);
	return true;
}

bool driver_send_raw(const void *bytes, uint32_t len)
{
	struct driver_ring *ring = &driver.ring[VSOCK_TX];
	int buffer = free_tx();
	struct desc *desc;

	if (buffer < 0)
		return false;
	memcpy(at(buffer_at(ring, (uint16_t)buffer)), bytes, len);
	desc = (struct desc *)at(ring->desc_at) + unit() * buffer;
	*desc = (struct desc){ buffer_at(ring, (uint16_t)buffer), len, 0, 0 };
	publish(VSOCK_TX, (uint16_t)buffer);
	return true;
}

bool driver_take(struct driver_packet *packet)
{
	struct driver_ring *ring = &driver.ring[VSOCK_RX];
	uint32_t written;
	int buffer = take_used(VSOCK_RX, &written);

	if (buffer < 0 || (driver.lenient && (written < HEADER || written > sizeof(*packet))))
		return false;
	if (written < HEADER || written > sizeof(*packet))
		driver_fail("a packet of %u bytes", written);
	memcpy(packet, at(buffer_at(ring, (uint16_t)buffer)), written);
	if (packet->header.len != written - HEADER && !driver.lenient)
		driver_fail("a packet of %u bytes says %u", written, packet->header.len);
	if (driver.repost)
		driver_post(1);
	return true;
}

bool driver_take_event(uint32_t *event)
{
	struct driver_ring *ring = &driver.ring[VSOCK_EVENT];
	uint32_t written;
	int buffer = take_used(VSOCK_EVENT, &written);

	if (buffer < 0)
		return false;
	if (written != sizeof(*event) && !driver.lenient)
		driver_fail("an event of %u bytes", written);
	memcpy(event, at(buffer_at(ring, (uint16_t)buffer)), sizeof(*event));
	return true;
}
