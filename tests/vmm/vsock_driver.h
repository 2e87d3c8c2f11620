/* SPDX-License-Identifier: MIT */
/*
 * vsock_driver.h - a guest's vsock driver in ordinary memory, and the loop of
 * the device thread by steps.  Kicks and interrupts are only given where the
 * rings ask for them, so that a lost one shows.
 */
#ifndef VSOCK_DRIVER_H
#define VSOCK_DRIVER_H

#include <stdnoreturn.h>

#include "../../csrc/vmm/vsock_parts.h"

enum {
	DRIVER_CID = 3,
	DRIVER_RX_SIZE = 4096,      /* of a buffer's bytes behind the header */
	DRIVER_TX_SIZE = 64 << 10,
	DRIVER_EVENTS = 4096,       /* callbacks kept */
};

struct driver_packet {
	struct vsock_header header;
	uint8_t data[DRIVER_RX_SIZE];
};

enum driver_call { DRIVER_CONNECTED = 1, DRIVER_REFUSED = 2, DRIVER_ACCEPTED = 3 };

/* A callback of the device. */
struct driver_event {
	enum driver_call call;
	uint32_t port;
	uint64_t cookie;
	int fd;
};

struct driver_ring {
	uint16_t size;
	uint16_t avail;             /* idx, as published */
	uint16_t seen;              /* used entries taken */
	uint64_t desc_at, avail_at, used_at, buffers_at;
	uint32_t interrupts;
	uint32_t wanted;            /* interrupts, when the ring was last found empty */
	uint16_t free[128];
	uint16_t n_free;
};

struct driver {
	struct vmm_memory memory;
	struct vmm_loop *loop;
	struct vmm_device *device;
	struct driver_ring ring[3];
	bool repost;                /* buffers go back as soon as their packet is taken */
	bool single;                /* a buffer is one descriptor, instead of one for the header */
	bool quiet;                 /* no kicks but by driver_kick */
	bool lenient;               /* the rings may be spoiled */
	struct driver_event event[DRIVER_EVENTS];
	uint32_t n_events;
	uint32_t broken;            /* times that the device said so */
};

extern struct driver driver;

/* Ends the process with the text. */
noreturn void driver_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

void driver_new(void);
void driver_free(void);
/* Queues set up and DRIVER_OK, with that many buffers for packets to the guest, all: UINT32_MAX. */
void driver_start(bool event_idx, uint32_t rx_buffers);
void driver_reset(void);
/* Post that many buffers, as many as are free. */
void driver_post(uint32_t n);
void driver_post_event(void);
void driver_kick(uint32_t queue);
/* Run the loop until nothing is left to do. */
void driver_settle(void);
/* Hand over a packet as it is; len bytes of data lie behind the header. False: no place now. */
bool driver_send(const struct vsock_header *header, const void *data, uint32_t len);
/* The same for a descriptor of that many raw bytes. */
bool driver_send_raw(const void *bytes, uint32_t len);
/* The next packet to the guest; false: there is none. */
bool driver_take(struct driver_packet *packet);
/* The next event of the queue of events; false: none. */
bool driver_take_event(uint32_t *event);

#endif
