/* SPDX-License-Identifier: MIT */
/* blk.h - virtio-blk: a raw image, as it is, read-only, or under a file that takes the writes. */
#ifndef VMM_BLK_H
#define VMM_BLK_H

#include "options.h"

struct vmm_device;

struct vmm_device *vmm_blk_new(const struct vmm_blk_option *option);

#endif
