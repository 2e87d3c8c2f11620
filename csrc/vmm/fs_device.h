/* SPDX-License-Identifier: MIT */
/* fs_device.h - virtio-fs: the file server as a device. */
#ifndef VMM_FS_DEVICE_H
#define VMM_FS_DEVICE_H

#include <stddef.h>

struct vmm_device;

/* tag: at most 36 bytes.  The view's bytes (fs/view.h) are read from the fd, which is closed. */
struct vmm_device *vmm_fs_new(const char *tag, int view_fd);
/*
 * More exports, of the view in this file; the fd stays open.  The index of the
 * first, or -1 with error set.  vmm_lock need not be held: opening may take long.
 */
int vmm_fs_add(struct vmm_device *device, int view_fd, char *error, size_t n);
/* What the guest looks at from now on can be saved with the machine: fs/server.h. */
void vmm_fs_keep(struct vmm_device *device);
/*
 * Whether the files of a restored machine, which must be paused, are as they were
 * when it was saved: 0, or -ESTALE and a line on stderr.  Locked.
 */
int vmm_fs_check(struct vmm_device *device);
/*
 * No file but those that all of the devices serve now can be opened any more, by
 * any thread, where the kernel has Landlock.  The main thread, unlocked.
 */
void vmm_fs_shut(void);

#endif
