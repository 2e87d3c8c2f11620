/* SPDX-License-Identifier: MIT */
/* net_driver.c - see net_driver.h. */
#include "net_driver.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	AVAIL = 0x4000, USED = 0x8000, RING = 0x10000,  /* of a queue's memory */
	STORM = 100000,             /* more turns in one go than any case has reason for */
};
#define F_MRG_RXBUF (1ULL << 15)

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
	(void)loop;
	driver.event = event;
	return 0;
}

int vmm_loop_change(struct vmm_loop *loop, struct vmm_event *event, uint32_t events)
{
	(void)loop;
	event->events = events;
	return 0;
}

void vmm_loop_remove(struct vmm_loop *loop, struct vmm_event *event)
{
	(void)loop;
	if (event != driver.event)
		driver_fail("removed from the loop what is not in it");
	driver.event = NULL;
}

void vmm_device_signal(struct vmm_device *device, uint32_t queue)
{
	if (device->running && vmm_queue_should_signal(&device->queue[queue]))
		driver.ring[queue].interrupts++;
}

void vmm_device_config_changed(struct vmm_device *device)
{
	(void)device;
	driver.config_changes++;
}

void vmm_device_broken(struct vmm_device *device, const char *why)
{
	(void)why;
	device->running = false;
	driver.broken++;
}

/* The bits of epoll are those of poll. */
void driver_settle(void)
{
	for (uint32_t n = 0; n < STORM && driver.event; n++) {
		struct pollfd poll_fd = {
			.fd = driver.event->fd, .events = (short)driver.event->events,
		};

		if (poll(&poll_fd, 1, 0) <= 0)
			return;
		driver.steps++;
		driver.event->ready(driver.event, (uint32_t)poll_fd.revents);
	}
	if (driver.event)
		driver_fail("the device never comes to rest");
}

/* --- the driver ------------------------------------------------------------------------------ */

void *driver_at(uint64_t gpa)
{
	return driver.memory.region[0].host + gpa;
}

struct driver_desc *driver_desc(uint32_t queue, uint16_t index)
{
	return (struct driver_desc *)driver_at(driver.ring[queue].base) + index;
}

static void new_device(uint32_t mtu)
{
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds))
		driver_fail("no sockets: %s", strerror(errno));
	driver.host = fds[0];
	driver.device = vmm_net_new(NULL, fds[1], mtu);
	if (!driver.device)
		driver_fail("no device: %s", strerror(errno));
}

const char *driver_restore(uint32_t mtu)
{
	struct vmm_device *old = driver.device, saved;
	struct vmm_own_state own = { .len = 0 };
	const char *why = old->ops->save(old, &own);
	uint32_t changes = driver.config_changes;

	if (why)
		return why;
	saved = *old;
	close(driver.host);
	vmm_net_free(old);
	driver.config_changes = changes;
	new_device(mtu);
	memcpy(driver.device->queue, saved.queue, sizeof(saved.queue));
	driver.device->acked = saved.acked;
	driver.device->running = saved.running;
	return driver.device->ops->load(driver.device, &own);
}

void driver_new(uint32_t mtu)
{
	memset(&driver, 0, sizeof(driver));
	driver.memory.n = 1;
	driver.memory.region[0].size = DRIVER_MEMORY;
	driver.memory.region[0].host = mmap(NULL, DRIVER_MEMORY, PROT_READ | PROT_WRITE,
					    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (driver.memory.region[0].host == MAP_FAILED)
		driver_fail("no memory: %s", strerror(errno));
	new_device(mtu);
}

void driver_free(void)
{
	vmm_net_free(driver.device);
	if (driver.host >= 0)
		close(driver.host);
	munmap(driver.memory.region[0].host, DRIVER_MEMORY);
}

static void start_ring(uint32_t index, bool event_idx, uint16_t size)
{
	struct driver_ring *ring = &driver.ring[index];
	struct vmm_queue *queue = &driver.device->queue[index];

	*ring = (struct driver_ring){
		.size = size, .base = (uint64_t)index * RING,
		.buffers = DRIVER_BUFFERS + (uint64_t)index * (DRIVER_ROOM - DRIVER_BUFFERS),
	};
	memset(driver_at(ring->base), 0, RING);
	*queue = (struct vmm_queue){
		.memory = &driver.memory, .max = driver.device->ops->queue_max[index],
		.size = size, .desc = ring->base, .avail = ring->base + AVAIL,
		.used = ring->base + USED, .event_idx = event_idx,
	};
	if (!vmm_queue_start(queue))
		driver_fail("queue %u does not start", index);
}

void driver_start(bool event_idx, bool merge, uint16_t size)
{
	start_ring(DRIVER_RX, event_idx, size);
	start_ring(DRIVER_TX, event_idx, size);
	driver.device->acked = merge ? F_MRG_RXBUF : 0;
	driver.device->running = true;
	driver.device->ops->start(driver.device);
}

void driver_reset(void)
{
	driver.device->running = false;
	driver.device->ops->reset(driver.device);
	vmm_queue_reset(&driver.device->queue[DRIVER_RX]);
	vmm_queue_reset(&driver.device->queue[DRIVER_TX]);
}

void driver_kick(uint32_t queue)
{
	driver.ring[queue].kicks++;
	if (driver.device->running)
		driver.device->ops->notify(driver.device, queue);
}

void driver_publish(uint32_t queue, uint16_t head)
{
	struct driver_ring *ring = &driver.ring[queue];
	uint16_t *avail = driver_at(ring->base + AVAIL), *used = driver_at(ring->base + USED);
	uint16_t old = ring->avail, new = (uint16_t)(old + 1), event;

	avail[2 + old % ring->size] = head;
	ring->avail = new;
	__atomic_store_n(&avail[1], new, __ATOMIC_RELEASE);
	event = used[2 + 4 * ring->size];
	if (driver.device->queue[queue].event_idx ? (uint16_t)(new - event - 1) == 0 : !used[0])
		driver_kick(queue);
}

bool driver_used(uint32_t queue, uint32_t *head, uint32_t *written)
{
	struct driver_ring *ring = &driver.ring[queue];
	uint16_t *used = driver_at(ring->base + USED), *avail = driver_at(ring->base + AVAIL);
	uint32_t elem[2];

	if (__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) == ring->seen) {
		avail[2 + ring->size] = ring->seen;
		return false;
	}
	memcpy(elem, used + 2 + 4 * (ring->seen % ring->size), sizeof(elem));
	ring->seen++;
	*head = elem[0];
	*written = elem[1];
	return true;
}
