/* SPDX-License-Identifier: MIT */
/*
 * net_driver.h - a guest's network driver in ordinary memory, and the loop of the
 * device thread by steps.  Kicks are only given where the rings ask for them, so
 * that a lost one shows.
 */
#ifndef NET_DRIVER_H
#define NET_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "../../csrc/vmm/device.h"
#include "../../csrc/vmm/loop.h"
#include "../../csrc/vmm/net.h"

enum {
	DRIVER_RX = 0,
	DRIVER_TX = 1,
	DRIVER_MEMORY = 32 << 20,
	DRIVER_QUEUE = 256,
	DRIVER_HEAD = 12,           /* bytes before each frame */
	DRIVER_BUFFERS = 1 << 20,   /* where each queue's buffers begin, behind the rings */
	DRIVER_ROOM = 16 << 20,     /* and how much they are */
	DRIVER_NEXT = 1, DRIVER_WRITE = 2, DRIVER_INDIRECT = 4,
};

struct driver_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct driver_ring {
	uint16_t size;
	uint16_t avail;             /* idx, as published */
	uint16_t seen;              /* used entries taken */
	uint64_t base, buffers;
	uint32_t interrupts, kicks;
};

struct driver {
	struct vmm_memory memory;
	struct vmm_device *device;
	struct vmm_event *event;    /* what is in the loop */
	int host;                   /* the other side of the device's socket */
	struct driver_ring ring[2];
	uint32_t broken, config_changes;
	uint32_t steps;             /* of the loop */
};

extern struct driver driver;

/* Ends the process with the text. */
_Noreturn void driver_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

void driver_new(uint32_t mtu);
void driver_free(void);
/* Queues of that many entries set up, and DRIVER_OK. */
void driver_start(bool event_idx, bool merge, uint16_t size);
void driver_reset(void);
/* As after a snapshot: another device with the same driver; NULL, or why not. */
const char *driver_restore(uint32_t mtu);
/* Run the loop until nothing is left to do. */
void driver_settle(void);

void *driver_at(uint64_t gpa);
struct driver_desc *driver_desc(uint32_t queue, uint16_t index);
/* Make the chain available; and kick the device if it wants that. */
void driver_publish(uint32_t queue, uint16_t head);
void driver_kick(uint32_t queue);
/* The next used chain; false: none. */
bool driver_used(uint32_t queue, uint32_t *head, uint32_t *written);

#endif
