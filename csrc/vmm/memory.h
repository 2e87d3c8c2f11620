/* SPDX-License-Identifier: MIT */
/* memory.h - the guest's memory, as the monitor sees it. */
#ifndef VMM_MEMORY_H
#define VMM_MEMORY_H

#include <stdint.h>

#define VMM_LOW_END 0xc0000000ULL  /* devices are between here and 4 GiB */
#define VMM_HIGH_BASE 0x100000000ULL

/* One stretch of guest-physical addresses. */
struct vmm_region {
	uint64_t base;
	uint64_t size;
	uint8_t *host;
};

/* Below the hole for devices, and above 4 GiB where there is more. */
struct vmm_memory {
	struct vmm_region region[2];
	uint32_t n;
};

/*
 * Where [gpa, gpa + len) is, or NULL unless all of it lies within one region.
 * The guest may write there at any time: copy what is to be checked, then check the copy.
 */
void *vmm_memory_at(const struct vmm_memory *memory, uint64_t gpa, uint64_t len);

/* Reserve that much for a guest, at addresses from 0 up; 0 or -errno. */
int vmm_memory_make(struct vmm_memory *memory, uint64_t bytes);
/* The same, which begins as what is in the file from that offset on; it is not written to. */
int vmm_memory_map(struct vmm_memory *memory, uint64_t bytes, int fd, uint64_t offset);

#endif
