/* SPDX-License-Identifier: MIT */
/* vm.c - the virtual machine that KVM keeps for us. */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "end.h"

#define TSS_ADDRESS 0xfffbd000UL    /* three pages that no guest needs; only Intel's uses them */

static void add_memory(const struct vmm_vm *vm, uint32_t slot)
{
	const struct vmm_region *region = &vm->memory.region[slot];
	struct kvm_userspace_memory_region memory = {
		.slot = slot,
		.guest_phys_addr = region->base,
		.memory_size = region->size,
		.userspace_addr = (uint64_t)(uintptr_t)region->host,
	};

	if (ioctl(vm->vm, KVM_SET_USER_MEMORY_REGION, &memory) < 0)
		vmm_fail(errno, "KVM_SET_USER_MEMORY_REGION of %llu MiB",
			 (unsigned long long)(region->size >> 20));
}

void vmm_vm_open(struct vmm_vm *vm)
{
	int version;

	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		vmm_fail(errno, "/dev/kvm");
	version = ioctl(vm->kvm, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		vmm_fail(0, "/dev/kvm has version %d, not %d", version, KVM_API_VERSION);
	vm->run_size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (vm->run_size < (int)sizeof(struct kvm_run))
		vmm_fail(errno, "KVM_GET_VCPU_MMAP_SIZE");
}

void vmm_vm_make(struct vmm_vm *vm)
{
	do
		vm->vm = ioctl(vm->kvm, KVM_CREATE_VM, 0);
	while (vm->vm < 0 && errno == EINTR);
	if (vm->vm < 0)
		vmm_fail(errno, "KVM_CREATE_VM");
	/*
	 * Memory first: KVM waits for a grace period of its SRCU when a slot changes, which takes
	 * 0.1 ms in a machine without devices, and 4 to 6 ms after KVM_CREATE_IRQCHIP (Linux 6.18).
	 */
	for (uint32_t i = 0; i < vm->memory.n; i++)
		add_memory(vm, i);
	if (ioctl(vm->vm, KVM_SET_TSS_ADDR, TSS_ADDRESS) < 0)
		vmm_fail(errno, "KVM_SET_TSS_ADDR");
	if (ioctl(vm->vm, KVM_CREATE_IRQCHIP, 0) < 0)
		vmm_fail(errno, "KVM_CREATE_IRQCHIP");
}

static int new_eventfd(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	if (fd < 0)
		vmm_fail(errno, "eventfd");
	return fd;
}

int vmm_vm_interrupt(const struct vmm_vm *vm, uint32_t gsi)
{
	struct kvm_irqfd irqfd = { .fd = (uint32_t)new_eventfd(), .gsi = gsi };

	if (ioctl(vm->vm, KVM_IRQFD, &irqfd) < 0)
		vmm_fail(errno, "KVM_IRQFD of interrupt %u", gsi);
	return (int)irqfd.fd;
}

int vmm_vm_doorbell(const struct vmm_vm *vm, uint64_t gpa, uint32_t value)
{
	struct kvm_ioeventfd bell = {
		.datamatch = value, .addr = gpa, .len = 4, .fd = new_eventfd(),
		.flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
	};

	if (ioctl(vm->vm, KVM_IOEVENTFD, &bell) < 0)
		vmm_fail(errno, "KVM_IOEVENTFD at %#llx", (unsigned long long)gpa);
	return bell.fd;
}
