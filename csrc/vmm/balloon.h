/* SPDX-License-Identifier: MIT */
/* balloon.h - virtio-balloon, of which only the report of free pages is used. */
#ifndef VMM_BALLOON_H
#define VMM_BALLOON_H

struct vmm_device;

struct vmm_device *vmm_balloon_new(void);

#endif
