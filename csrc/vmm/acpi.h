/* SPDX-License-Identifier: MIT */
/* acpi.h - the tables by which the guest finds its hardware: ACPI 6.3, hardware-reduced. */
#ifndef VMM_ACPI_H
#define VMM_ACPI_H

#include <stdint.h>

#include "memory.h"

/* Write them to VMM_ACPI for so many processors and devices of the transport. */
void vmm_acpi(const struct vmm_memory *memory, uint32_t n_cpus, uint32_t n_devices);

#endif
