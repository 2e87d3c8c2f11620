/* SPDX-License-Identifier: MIT */
/* boot.h - the 64-bit boot protocol: Documentation/arch/x86/boot.rst. */
#ifndef VMM_BOOT_H
#define VMM_BOOT_H

#include <stdint.h>

#include "memory.h"

struct vmm_options;

/* Where things lie in the first MiB; kernel and initrd lie above it. */
enum {
	VMM_GDT = 0x500,
	VMM_ZERO_PAGE = 0x7000,     /* struct boot_params */
	VMM_STACK = 0x8ff0,
	VMM_PAGE_TABLES = 0x9000,   /* 4 GiB at their own addresses: 6 pages */
	VMM_CMDLINE_AT = 0x20000,
	VMM_LOW_RAM_END = 0x9fc00,
	VMM_ACPI = 0xe0000,         /* the RSDP, and behind it the tables */
	VMM_ACPI_END = 0xf0000,
	VMM_KERNEL_LEAST = 0x100000,
};

/* Fill the guest's memory; returns the kernel's entry. */
uint64_t vmm_boot(const struct vmm_memory *memory, const struct vmm_options *options);

#endif
