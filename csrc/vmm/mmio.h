/* SPDX-License-Identifier: MIT */
/* mmio.h - the transport virtio-mmio, version 2: virtio 1.2, section 4.2. */
#ifndef VMM_MMIO_H
#define VMM_MMIO_H

#include <stdint.h>

#include "device.h"

#define VMM_MMIO_BASE 0xd0000000ULL
enum { VMM_MMIO_SIZE = 0x1000, VMM_MMIO_GSI = 5 };

struct vmm_vm;
struct vmm_loop;

/* Give the device the next slot. */
void vmm_mmio_attach(const struct vmm_vm *vm, struct vmm_loop *loop, struct vmm_device *device);
/* How many have one. */
uint32_t vmm_mmio_devices(void);

/*
 * The devices' registers, queues and own state, which no thread changes until
 * the lock is given free.  0 or -EBUSY, -EOPNOTSUPP; who can't be saved and why
 * is said.
 */
struct vmm_state;
int vmm_mmio_save(struct vmm_state *state);
/* To the same devices as were saved, or it fails by vmm_fail; before any processor runs. */
void vmm_mmio_load(const struct vmm_state *state);

/* A processor's access, of 1 to 8 bytes; where no device is, it reads as ones. */
void vmm_mmio_read(uint64_t gpa, uint8_t *data, uint32_t len);
void vmm_mmio_write(uint64_t gpa, const uint8_t *data, uint32_t len);

#endif
