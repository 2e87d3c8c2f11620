/* SPDX-License-Identifier: MIT */
/*
 * snapshot.h - a machine, saved to a file and made again out of it.
 *
 * One file has the state (state.h) and, at the next multiple of VMM_STATE_ALIGN,
 * the memory, sparse where it is zero.  A restored machine maps that part
 * privately: what it never writes to is shared with all others of the file.
 */
#ifndef VMM_SNAPSHOT_H
#define VMM_SNAPSHOT_H

#include <stdint.h>

struct vmm_vm;

/* What saving needs of KVM while it can still be asked. */
void vmm_snapshot_prepare(const struct vmm_vm *vm);
/*
 * The machine, which must be paused, into an empty regular file.  Locked.
 * 0 or -errno, and a line on stderr; -EBUSY: it can be tried again later.
 */
int vmm_snapshot_save(const struct vmm_vm *vm, int fd);

/* Read the state, and map the memory as the machine's; fails by vmm_fail. */
void vmm_snapshot_open(struct vmm_vm *vm, int fd);
/* When devices are attached: interrupt controllers, processors and devices as they were. */
void vmm_snapshot_load(struct vmm_vm *vm);

#endif
