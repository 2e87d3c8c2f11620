/* SPDX-License-Identifier: MIT */
/* disk.h - the bytes of a disk: an image, or an image and what was written since. */
#ifndef VMM_DISK_H
#define VMM_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/*
 * The overlay holds whole blocks, at the image's offsets; written tells which.
 * It begins empty and belongs to one machine: what is in it means nothing to another.
 */
struct vmm_disk {
	int image, overlay;         /* overlay: or -1 */
	uint64_t size;              /* bytes, of whole sectors */
	uint64_t *written;          /* a bit a block */
};

/* 0 or -errno; -EINVAL: the overlay isn't empty. */
int vmm_disk_open(struct vmm_disk *disk, int image, int overlay);
/*
 * All of the bytes of iov from or to that offset, which the caller has checked; 0 or -errno.
 * iov is changed.  One thread at a time.
 */
int vmm_disk_read(struct vmm_disk *disk, struct iovec *iov, int n, uint64_t offset);
int vmm_disk_write(struct vmm_disk *disk, struct iovec *iov, int n, uint64_t offset);
int vmm_disk_flush(struct vmm_disk *disk);

#endif
