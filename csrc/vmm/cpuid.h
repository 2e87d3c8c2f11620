/* SPDX-License-Identifier: MIT */
/* cpuid.h - what the guest's processors say that they are. */
#ifndef VMM_CPUID_H
#define VMM_CPUID_H

#include <stdint.h>

struct vmm_vm;

/* What this KVM can do, for all processors; once, before the next. */
void vmm_cpuid_load(const struct vmm_vm *vm);
/* Set it for processor id of n, in one package without hyperthreads. */
void vmm_cpuid_set(int cpu_fd, uint32_t id, uint32_t n);

#endif
