/* SPDX-License-Identifier: MIT */
/* loop.h - the device thread's epoll loop. */
#ifndef VMM_LOOP_H
#define VMM_LOOP_H

#include <stdint.h>

/* Embedded in what waits; ready runs on the device thread with vmm_lock held. */
struct vmm_event {
	int fd;
	uint32_t events;            /* EPOLLIN, EPOLLOUT; 0: only EPOLLHUP and EPOLLERR */
	void (*ready)(struct vmm_event *event, uint32_t events);
};

struct vmm_loop;

/* 0 or -errno.  An event may be removed, and its memory freed, from within any ready(). */
int vmm_loop_add(struct vmm_loop *loop, struct vmm_event *event);
int vmm_loop_change(struct vmm_loop *loop, struct vmm_event *event, uint32_t events);
void vmm_loop_remove(struct vmm_loop *loop, struct vmm_event *event);
/* Run fn(arg) once on the device thread, locked, soon; from any thread. 0 or -ENOMEM. */
int vmm_loop_call(struct vmm_loop *loop, void (*fn)(void *arg), void *arg);

/* NULL and errno when there is no memory or descriptor for it. */
struct vmm_loop *vmm_loop_new(void);
/* Wait for events and bring them to their ready(), for ever; -errno when that fails. */
int vmm_loop_run(struct vmm_loop *loop);

#endif
