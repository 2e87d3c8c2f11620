/* SPDX-License-Identifier: MIT */
/* cpu_state.h - a processor's registers, out of KVM and into it. */
#ifndef VMM_CPU_STATE_H
#define VMM_CPU_STATE_H

#include "state.h"

struct vmm_vm;

/* Ask KVM what a processor has; 0 or -errno. */
int vmm_cpu_prepare(const struct vmm_vm *vm);
/*
 * Of a processor that stands still, with no instruction half done.
 * 0, or -errno and *what: the call that was refused.
 */
int vmm_cpu_save(int fd, struct vmm_cpu_state *state, const char **what);
/* The same of a new one. */
int vmm_cpu_load(int fd, struct vmm_cpu_state *state, const char **what);

#endif
