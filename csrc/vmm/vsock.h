/* SPDX-License-Identifier: MIT */
/*
 * vsock.h - virtio-vsock (virtio 1.2, section 5.10): the guest's streams end on
 * Unix stream sockets of the host.
 *
 * All of it is called with vmm_lock held, and calls back with vmm_lock held.
 */
#ifndef VMM_VSOCK_H
#define VMM_VSOCK_H

#include "device.h"

/* Who is told what becomes of streams; port is always the one that was asked for. */
struct vmm_vsock_host {
	void *arg;
	void (*connected)(void *arg, uint32_t port, uint64_t cookie);
	/* The guest said no, or can't be asked; the fd is closed. */
	void (*refused)(void *arg, uint32_t port, uint64_t cookie);
	/* The guest opened a stream to a port that is listened on; the fd is the callee's. */
	void (*accepted)(void *arg, uint32_t port, int fd);
};

enum { VMM_VSOCK_FIRST_PORT = 1 << 30 }; /* of the host's ends of the streams that it opens */

/*
 * The first of those ports is for a clone's sake another each time: its guest
 * may not have given up yet what it had of a stream of the template's.  NULL with errno.
 */
struct vmm_device *vmm_vsock_new(struct vmm_loop *loop, uint64_t cid, uint32_t first_port,
				 const struct vmm_vsock_host *host);
void vmm_vsock_free(struct vmm_device *device);

/*
 * Join this connected Unix stream socket, ours from now on, to a new stream to
 * the guest's port.  connected or refused is called once, perhaps from within.
 */
void vmm_vsock_connect(struct vmm_device *device, uint32_t port, uint64_t cookie, int fd);
/* Take the guest's streams to this port.  0 or -ENOSPC. */
int vmm_vsock_listen(struct vmm_device *device, uint32_t port);
void vmm_vsock_unlisten(struct vmm_device *device, uint32_t port);
/* After a restore: end all streams, and tell the driver that they are gone. */
void vmm_vsock_transport_reset(struct vmm_device *device);

/* vsock_control.c: such a device, joined to the control socket; fails only by vmm_fail. */
struct vmm_device *vmm_vsock_controlled(struct vmm_loop *loop, uint64_t cid);

#endif
