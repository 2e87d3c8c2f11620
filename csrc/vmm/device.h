/* SPDX-License-Identifier: MIT */
/*
 * device.h - what a virtio device is to the transport (mmio.c).
 *
 * One lock, vmm_lock, guards all device state.  It is held while any of the
 * operations below runs: config_* and reset come on a vCPU's thread, notify
 * and the events of the loop on the device thread.  A device with threads of
 * its own (fs, blk) takes the lock around its use of queues.
 */
#ifndef VMM_DEVICE_H
#define VMM_DEVICE_H

#include <pthread.h>

#include "virtqueue.h"

enum {
	VMM_DEVICE_QUEUES = 3,
};

struct vmm_device;
struct vmm_loop;

/* What a device has to keep of itself beside its registers and queues. */
struct vmm_own_state {
	uint32_t len;
	uint8_t data[64];
};

/* What one device of a machine, the first that has such, keeps of the host's files. */
struct vmm_files_state {
	uint32_t len;               /* 0: nothing */
	uint8_t data[4 << 20];
};

struct vmm_device_ops {
	const char *name;
	uint32_t id;                /* virtio 1.2, section 5 */
	uint32_t n_queues;
	uint16_t queue_max[VMM_DEVICE_QUEUES];
	uint64_t features;          /* of the device's own; VERSION_1, INDIRECT_DESC and
				       EVENT_IDX are the transport's */
	/* offset and len lie within config_size */
	uint32_t config_size;
	void (*config_read)(struct vmm_device *device, uint32_t offset, void *data, uint32_t len);
	void (*config_write)(struct vmm_device *device, uint32_t offset, const void *data,
			     uint32_t len); /* may be NULL */
	void (*start)(struct vmm_device *device);               /* DRIVER_OK; may be NULL */
	void (*notify)(struct vmm_device *device, uint32_t queue);
	/*
	 * Instead of notify: this eventfd is written to when the driver kicks the
	 * queue, for threads of the device's own to wait for.  Once for each queue,
	 * when the device is given its place.
	 */
	void (*bell)(struct vmm_device *device, uint32_t queue, int fd);
	void (*reset)(struct vmm_device *device);               /* forget all; may be NULL */
	/*
	 * Snapshots: NULL, or why it can't be saved now, or can't take this state.
	 * After save no request of the driver's is under way; it may wait for that.
	 * Without save, a machine with this device can't be saved.
	 */
	const char *(*save)(struct vmm_device *device, struct vmm_own_state *own);
	const char *(*load)(struct vmm_device *device, const struct vmm_own_state *own);
	/* The same, after these; may be NULL. */
	const char *(*save_files)(struct vmm_device *device, struct vmm_files_state *files);
	const char *(*load_files)(struct vmm_device *device, const struct vmm_files_state *files);
};

/* The first member of each device's own structure. */
struct vmm_device {
	const struct vmm_device_ops *ops;
	struct vmm_queue queue[VMM_DEVICE_QUEUES];
	uint64_t acked;             /* features that the driver took */
	bool running;               /* DRIVER_OK, and not broken */
	void *transport;            /* mmio.c's */
};

/* Of a device that has nothing of its own to be saved. */
const char *vmm_device_save_nothing(struct vmm_device *device, struct vmm_own_state *own);
const char *vmm_device_load_nothing(struct vmm_device *device, const struct vmm_own_state *own);

/* Interrupt the guest if it wants that, for what was pushed to this queue.  Any thread, locked. */
void vmm_device_signal(struct vmm_device *device, uint32_t queue);
/*
 * The same in two steps, since the guest answers an interrupt by accesses that
 * take the lock: whether one is due, locked; then to be made soon, without it.
 */
bool vmm_device_due(struct vmm_device *device, uint32_t queue);
void vmm_device_interrupt(const struct vmm_device *device);
/* Tell the guest that the configuration is another now.  Any thread, locked. */
void vmm_device_config_changed(struct vmm_device *device);
/* The driver broke the rules: DEVICE_NEEDS_RESET, and nothing is taken until then. */
void vmm_device_broken(struct vmm_device *device, const char *why);

/* As if the guest kicked this queue again, soon: for a device that left some for others' turns. */
void vmm_device_again(struct vmm_device *device, uint32_t queue);

void vmm_lock(void);
void vmm_unlock(void);
/* The lock itself, for a condition to wait with. */
pthread_mutex_t *vmm_lock_mutex(void);

#endif
