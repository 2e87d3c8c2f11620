/* SPDX-License-Identifier: MIT */
/* loop.c - the device thread's epoll loop. */
#include "loop.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "device.h"

enum { BATCH = 32 };

/* What waits on a descriptor.  A report of epoll names the generation, since it may be stale. */
struct slot {
	struct vmm_event *event;
	uint32_t generation;
};

struct call {
	struct call *next;
	void (*fn)(void *arg);
	void *arg;
};

struct vmm_loop {
	int epoll;
	struct slot *slot;          /* by descriptor; guarded by vmm_lock */
	uint32_t n_slots;
	pthread_mutex_t lock;       /* of the calls, which may come from under vmm_lock or not */
	struct call *first, **last;
	struct vmm_event wake;
};

static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;

void vmm_lock(void)
{
	pthread_mutex_lock(&device_lock);
}

void vmm_unlock(void)
{
	pthread_mutex_unlock(&device_lock);
}

pthread_mutex_t *vmm_lock_mutex(void)
{
	return &device_lock;
}

static struct slot *slot_of(struct vmm_loop *loop, int fd)
{
	uint32_t n = loop->n_slots ? loop->n_slots : 64;
	struct slot *grown;

	if (fd < 0)
		return NULL;
	while (n <= (uint32_t)fd)
		n *= 2;
	if (n > loop->n_slots) {
		grown = realloc(loop->slot, n * sizeof(*grown));
		if (!grown)
			return NULL;
		for (uint32_t i = loop->n_slots; i < n; i++)
			grown[i] = (struct slot){ .event = NULL };
		loop->slot = grown;
		loop->n_slots = n;
	}
	return &loop->slot[fd];
}

static int control(struct vmm_loop *loop, int operation, struct vmm_event *event)
{
	uint64_t key = (uint64_t)loop->slot[event->fd].generation << 32 | (uint32_t)event->fd;
	struct epoll_event epoll = { .events = event->events, .data.u64 = key };

	return epoll_ctl(loop->epoll, operation, event->fd, &epoll) < 0 ? -errno : 0;
}

int vmm_loop_add(struct vmm_loop *loop, struct vmm_event *event)
{
	struct slot *slot = slot_of(loop, event->fd);
	int ret;

	if (!slot)
		return event->fd < 0 ? -EBADF : -ENOMEM;
	ret = control(loop, EPOLL_CTL_ADD, event);
	if (!ret)
		slot->event = event;
	return ret;
}

int vmm_loop_change(struct vmm_loop *loop, struct vmm_event *event, uint32_t events)
{
	if (event->events == events)
		return 0;
	event->events = events;
	return control(loop, EPOLL_CTL_MOD, event);
}

void vmm_loop_remove(struct vmm_loop *loop, struct vmm_event *event)
{
	struct slot *slot;

	if (event->fd < 0 || (uint32_t)event->fd >= loop->n_slots)
		return;
	slot = &loop->slot[event->fd];
	if (slot->event != event)
		return;
	control(loop, EPOLL_CTL_DEL, event);
	slot->event = NULL;
	slot->generation++;
}

int vmm_loop_call(struct vmm_loop *loop, void (*fn)(void *arg), void *arg)
{
	struct call *call = malloc(sizeof(*call));
	uint64_t one = 1;

	if (!call)
		return -ENOMEM;
	*call = (struct call){ .fn = fn, .arg = arg };
	pthread_mutex_lock(&loop->lock);
	*loop->last = call;
	loop->last = &call->next;
	pthread_mutex_unlock(&loop->lock);
	/* it can only be refused because it is awake already */
	(void)!write(loop->wake.fd, &one, sizeof(one));
	return 0;
}

static struct call *take_calls(struct vmm_loop *loop)
{
	struct call *call;

	pthread_mutex_lock(&loop->lock);
	call = loop->first;
	loop->first = NULL;
	loop->last = &loop->first;
	pthread_mutex_unlock(&loop->lock);
	return call;
}

static void woken(struct vmm_event *event, uint32_t events)
{
	struct vmm_loop *loop = (void *)((char *)event - offsetof(struct vmm_loop, wake));
	struct call *call, *next;
	uint64_t count;

	(void)events;
	(void)!read(event->fd, &count, sizeof(count));
	for (call = take_calls(loop); call; call = next) {
		next = call->next;
		call->fn(call->arg);
		free(call);
	}
}

struct vmm_loop *vmm_loop_new(void)
{
	struct vmm_loop *loop = calloc(1, sizeof(*loop));

	if (!loop)
		return NULL;
	pthread_mutex_init(&loop->lock, NULL);
	loop->last = &loop->first;
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	loop->wake = (struct vmm_event){ .events = EPOLLIN, .ready = woken };
	loop->wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->epoll >= 0 && !vmm_loop_add(loop, &loop->wake))
		return loop;
	if (loop->epoll >= 0)
		close(loop->epoll);
	if (loop->wake.fd >= 0)
		close(loop->wake.fd);
	free(loop->slot);
	free(loop);
	return NULL;
}

static void bring(struct vmm_loop *loop, const struct epoll_event *epoll)
{
	uint32_t fd = (uint32_t)epoll->data.u64;
	struct slot *slot = &loop->slot[fd];

	/* one before it in the batch, or another thread, may have removed it */
	if (slot->event && slot->generation == epoll->data.u64 >> 32)
		slot->event->ready(slot->event, epoll->events);
}

int vmm_loop_run(struct vmm_loop *loop)
{
	struct epoll_event batch[BATCH];

	for (;;) {
		int n = epoll_wait(loop->epoll, batch, BATCH, -1);

		if (n < 0 && errno != EINTR)
			return -errno;
		vmm_lock();
		for (int i = 0; i < n; i++)
			bring(loop, &batch[i]);
		vmm_unlock();
	}
}
