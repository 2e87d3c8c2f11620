/* SPDX-License-Identifier: MIT */
/*
 * net.h - virtio-net (virtio 1.2, section 5.1), without offloads: a guest's
 * Ethernet, whose other side is a socket that carries a frame a record.
 */
#ifndef VMM_NET_H
#define VMM_NET_H

#include <stdint.h>

enum {
	VMM_NET_MTU_MIN = 1280,     /* IPv6 needs that much */
	VMM_NET_MTU = 1500,
	VMM_NET_MTU_MAX = 65520,
};

struct vmm_device;
struct vmm_loop;

/*
 * fd: connected, AF_UNIX, SOCK_SEQPACKET; the device's from now on.  mtu: bytes
 * of a frame behind its 14 of head.  NULL with errno; EINVAL: another kind of fd.
 */
struct vmm_device *vmm_net_new(struct vmm_loop *loop, int fd, uint32_t mtu);
void vmm_net_free(struct vmm_device *device);

#endif
