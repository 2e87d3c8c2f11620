/* SPDX-License-Identifier: MIT */
/*
 * control.h - the socket to the monitor's owner: AF_UNIX SOCK_SEQPACKET.
 *
 * Records of 16 bytes, native byte order, each with at most one descriptor.
 * Its end is the owner's end, and so the monitor's.
 */
#ifndef VMM_CONTROL_H
#define VMM_CONTROL_H

#include <stdint.h>

struct vmm_device;
struct vmm_loop;

struct vmm_record {
	uint32_t type;
	uint32_t port;
	uint64_t value;
};

enum vmm_record_type {
	/* owner to monitor */
	VMM_CONNECT = 1,            /* port, value: cookie, with a stream socket */
	VMM_LISTEN = 2,             /* port */
	VMM_UNLISTEN = 3,           /* port */
	VMM_PAUSE = 4,
	VMM_RESUME = 5,
	VMM_EXPORTS = 6,            /* value: cookie, with a view's file: more for the guest to see;
				     * port: enum vmm_exports */
	VMM_SAVE = 7,               /* value: cookie, with an empty file; while paused */
	VMM_CHECK = 8,              /* value: cookie; a restored machine's files, while paused */
	/* monitor to owner */
	VMM_RUNNING = 65,           /* value: which walls hold, enum vmm_wall */
	VMM_CONNECTED = 66,         /* port, value: cookie */
	VMM_REFUSED = 67,           /* port, value: cookie */
	VMM_ACCEPTED = 68,          /* port, with a stream socket */
	VMM_PAUSED = 69,
	VMM_RESUMED = 70,
	VMM_ENDED = 71,             /* port: a reason */
	VMM_EXPORTED = 72,          /* port: the first one's index, value: cookie */
	VMM_NOT_EXPORTED = 73,      /* port: an errno, value: cookie */
	VMM_CHECKED = 74,           /* value: cookie: they are as they were */
	VMM_NOT_CHECKED = 75,       /* port: errno, value: cookie */
	VMM_SAVED = 76,             /* value: cookie */
	VMM_NOT_SAVED = 77,         /* port: errno, value: cookie */
};

enum vmm_exports {
	/* the monitor can open nothing else, where the kernel has Landlock; more are refused */
	VMM_EXPORTS_LAST = 1 << 0,
	VMM_EXPORTS_KEEP = 1 << 1,  /* the machine is to be saved with what it knows of them */
	VMM_EXPORTS_ALL = (1 << 2) - 1,
};

enum vmm_ended {
	VMM_ENDED_POWER_OFF = 1,
	VMM_ENDED_CRASHED = 2,
	VMM_ENDED_BROKEN = 3,
};

/* What carries the streams, if there is such a device.  Called on the device thread, locked. */
struct vmm_streams {
	/* fd is the callee's; an answer follows by vmm_control_send, now or later */
	void (*connect)(void *device, uint32_t port, uint64_t cookie, int fd);
	void (*listen)(void *device, uint32_t port);
	void (*unlisten)(void *device, uint32_t port);
	void *device;
};

/* What is saved. */
struct vmm_vm;
void vmm_control_set_machine(const struct vmm_vm *vm);
/* Serve the socket from now on; ends the monitor when that can't be. */
void vmm_control_start(struct vmm_loop *loop, int fd);
/* The device that EXPORTS are for; before it each is refused. */
void vmm_control_set_fs(struct vmm_device *fs);
/* The stream device; before it every CONNECT is refused. */
void vmm_control_set_streams(const struct vmm_streams *streams);
/*
 * A record to the owner, with a descriptor unless fd is -1; it stays the caller's.
 * 0 or -EAGAIN: the owner does not read, and has far more than it can have asked for.
 */
int vmm_control_send(enum vmm_record_type type, uint32_t port, uint64_t value, int fd);
/* What the owner asked for; ends the monitor when it does not read its answers. */
void vmm_control_answer(enum vmm_record_type type, uint32_t port, uint64_t value);
/* The last record. */
void vmm_control_ended(enum vmm_ended reason);

#endif
