/* SPDX-License-Identifier: MIT */
/* cpu.h - the machine's processors, one thread each. */
#ifndef VMM_CPU_H
#define VMM_CPU_H

#include <stdbool.h>
#include <stdint.h>

struct vmm_state;
struct vmm_vm;

/* So many of them; the first begins at entry in 64-bit mode, the others wait for it. */
void vmm_cpus_make(const struct vmm_vm *vm, uint32_t n, uint64_t entry);
/* Their threads, which wait until vmm_cpus_resume. */
void vmm_cpus_start(void);
/*
 * Stop them, and come back when all of them have; let them go on.
 * Locked; the lock is free meanwhile.
 */
void vmm_cpus_pause(void);
void vmm_cpus_resume(void);
/* Whether all of them stand still.  Locked. */
bool vmm_cpus_paused(void);

/* Their registers, while they stand still; 0, or -errno and what was refused. */
int vmm_cpus_save(struct vmm_state *state, const char **what);
/* In place of vmm_cpus_make: as they were saved. */
void vmm_cpus_restore(const struct vmm_vm *vm, struct vmm_state *state);

#endif
