/* SPDX-License-Identifier: MIT */
/* memory.c - the guest's memory: where it lies, and whether an address is in it. */
#include "memory.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

void *vmm_memory_at(const struct vmm_memory *memory, uint64_t gpa, uint64_t len)
{
	for (uint32_t i = 0; i < memory->n; i++) {
		const struct vmm_region *region = &memory->region[i];

		/* no sum of the guest's numbers, which could wrap */
		if (gpa >= region->base && gpa - region->base <= region->size &&
		    len <= region->size - (gpa - region->base))
			return region->host + (gpa - region->base);
	}
	return NULL;
}

static int lay_out(struct vmm_memory *memory, uint64_t bytes, int flags, int fd, uint64_t offset)
{
	uint64_t low = bytes < VMM_LOW_END ? bytes : VMM_LOW_END;
	uint8_t *host = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_NORESERVE | flags, fd, (off_t)offset);

	if (host == MAP_FAILED)
		return -errno;
	memory->region[0] = (struct vmm_region){ .size = low, .host = host };
	memory->region[1] = (struct vmm_region){ .base = VMM_HIGH_BASE, .size = bytes - low,
						 .host = host + low };
	memory->n = bytes > low ? 2 : 1;
	return 0;
}

int vmm_memory_make(struct vmm_memory *memory, uint64_t bytes)
{
	return lay_out(memory, bytes, MAP_ANONYMOUS, -1, 0);
}

int vmm_memory_map(struct vmm_memory *memory, uint64_t bytes, int fd, uint64_t offset)
{
	return lay_out(memory, bytes, 0, fd, offset);
}
