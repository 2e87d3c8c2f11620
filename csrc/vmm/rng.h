/* SPDX-License-Identifier: MIT */
/* rng.h - virtio-rng: the host's random numbers. */
#ifndef VMM_RNG_H
#define VMM_RNG_H

struct vmm_device;

struct vmm_device *vmm_rng_new(void);

#endif
