/* SPDX-License-Identifier: MIT */
/* cpuid.c - what the guest's processors say that they are. */
#include "cpuid.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "end.h"
#include "vm.h"

enum { ENTRIES = 256 };
/* bits of leaf 1 */
#define ECX_X2APIC (1u << 21)
#define ECX_TSC_DEADLINE (1u << 24)
#define ECX_HYPERVISOR (1u << 31)   /* without it the guest looks for hardware timers */
#define EDX_HTT (1u << 28)
enum { LEVEL_THREAD = 1, LEVEL_CORE = 2 };

struct cpuid {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entry[ENTRIES];
};

static struct cpuid supported;

void vmm_cpuid_load(const struct vmm_vm *vm)
{
	int deadline = ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER);

	supported.head.nent = ENTRIES;
	if (ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, &supported) < 0)
		vmm_fail(errno, "KVM_GET_SUPPORTED_CPUID");
	for (uint32_t i = 0; i < supported.head.nent; i++) {
		struct kvm_cpuid_entry2 *entry = &supported.entry[i];

		if (entry->function == 1)
			entry->ecx |= ECX_HYPERVISOR | ECX_X2APIC |
				      (deadline > 0 ? ECX_TSC_DEADLINE : 0);
	}
}

/* How many bits of an APIC id tell n processors apart. */
static uint32_t bits(uint32_t n)
{
	uint32_t shift = 0;

	while (1u << shift < n)
		shift++;
	return shift;
}

static void set_levels(struct kvm_cpuid_entry2 *entry, uint32_t id, uint32_t n)
{
	uint32_t level = entry->index == 0 ? LEVEL_THREAD : entry->index == 1 ? LEVEL_CORE : 0;

	entry->eax = level == LEVEL_CORE ? bits(n) : 0;
	entry->ebx = level == LEVEL_CORE ? n : level == LEVEL_THREAD ? 1 : 0;
	entry->ecx = level << 8 | entry->index;
	entry->edx = id;
}

static void set_place(struct kvm_cpuid_entry2 *entry, uint32_t id, uint32_t n)
{
	switch (entry->function) {
	case 1:
		entry->ebx = (entry->ebx & 0xffff) | n << 16 | id << 24;
		entry->edx = n > 1 ? entry->edx | EDX_HTT : entry->edx & ~EDX_HTT;
		break;
	case 4: /* caches, each a processor's own */
		entry->eax = (entry->eax & 0x3fff) | ((1u << bits(n)) - 1) << 26;
		break;
	case 0xb:
	case 0x1f:
		set_levels(entry, id, n);
		break;
	case 0x80000008:
		entry->ecx = bits(n) << 12 | (n - 1);
		break;
	case 0x8000001e:
		entry->eax = id;
		entry->ebx = id;
		entry->ecx = 0;
		break;
	default:
		break;
	}
}

void vmm_cpuid_set(int cpu_fd, uint32_t id, uint32_t n)
{
	static struct cpuid cpuid;

	cpuid = supported;
	for (uint32_t i = 0; i < cpuid.head.nent; i++)
		set_place(&cpuid.entry[i], id, n);
	if (ioctl(cpu_fd, KVM_SET_CPUID2, &cpuid) < 0)
		vmm_fail(errno, "KVM_SET_CPUID2");
}
