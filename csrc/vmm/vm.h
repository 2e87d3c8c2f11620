/* SPDX-License-Identifier: MIT */
/* vm.h - the virtual machine that KVM keeps for us. */
#ifndef VMM_VM_H
#define VMM_VM_H

#include <stdint.h>

#include "memory.h"

struct vmm_vm {
	int kvm, vm;
	int run_size;               /* bytes of each processor's shared page */
	struct vmm_memory memory;
};

/* KVM itself: it can be opened for a machine that another process, a fork, will make. */
void vmm_vm_open(struct vmm_vm *vm);
/* A machine with the memory that is there, and interrupt controllers, but without processors. */
void vmm_vm_make(struct vmm_vm *vm);
/* An eventfd, by which that interrupt is raised. */
int vmm_vm_interrupt(const struct vmm_vm *vm, uint32_t gsi);
/* An eventfd that tells of 32-bit writes of that value to that address. */
int vmm_vm_doorbell(const struct vmm_vm *vm, uint64_t gpa, uint32_t value);

#endif
