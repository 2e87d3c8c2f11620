/* SPDX-License-Identifier: MIT */
/* cpu_state.c - a processor's registers, out of KVM and into it. */
#include "cpu_state.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vm.h"

enum { MSR_TSC_DEADLINE = 0x6e0 };

/* What guests set, but older kernels leave out of their list. */
static const uint32_t mtrrs[] = {
	0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207,
	0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
	0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
};

enum { MTRRS = sizeof(mtrrs) / sizeof(mtrrs[0]) };

struct step {
	unsigned long request;
	const char *what;
	void *arg;
};

static int do_steps(int fd, const struct step *step, size_t n, const char **what)
{
	for (; n; n--, step++) {
		if (ioctl(fd, step->request, step->arg) < 0) {
			*what = step->what;
			return -errno;
		}
	}
	return 0;
}

/* What there is to be saved, asked for once. */
static struct {
	struct kvm_msr_list head;
	uint32_t index[VMM_STATE_MSRS - MTRRS - 1];
} list;
static uint32_t xsave_bytes;        /* 0: KVM_GET_XSAVE2 is not there */

int vmm_cpu_prepare(const struct vmm_vm *vm)
{
	int size = ioctl(vm->vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

	xsave_bytes = size > 0 ? (uint32_t)size : 0;
	list.head.nmsrs = sizeof(list.index) / sizeof(list.index[0]);
	return ioctl(vm->kvm, KVM_GET_MSR_INDEX_LIST, &list) < 0 ? -errno : 0;
}

static void add_msr(struct vmm_msrs *msrs, uint32_t index)
{
	for (uint32_t i = 0; i < msrs->head.nmsrs; i++)
		if (msrs->entry[i].index == index)
			return;
	msrs->entry[msrs->head.nmsrs++] = (struct kvm_msr_entry){ .index = index };
}

/* All that there are by name; the timer's deadline last, since it needs the clock. */
static void name_msrs(struct vmm_msrs *msrs)
{
	msrs->head.nmsrs = 0;
	for (uint32_t i = 0; i < list.head.nmsrs; i++)
		if (list.index[i] != MSR_TSC_DEADLINE)
			add_msr(msrs, list.index[i]);
	for (uint32_t i = 0; i < MTRRS; i++)
		add_msr(msrs, mtrrs[i]);
	add_msr(msrs, MSR_TSC_DEADLINE);
}

/*
 * KVM takes a list until the first that it refuses: that one is passed over, for
 * a list has also what this processor lacks.  Those that it took are moved to
 * the front.
 */
static int do_msrs(int fd, unsigned long request, struct vmm_msrs *msrs)
{
	static struct vmm_msrs batch;
	uint32_t n = msrs->head.nmsrs, done = 0;

	for (uint32_t at = 0; at < n;) {
		int ret;

		batch.head.nmsrs = n - at;
		memcpy(batch.entry, msrs->entry + at, (n - at) * sizeof(batch.entry[0]));
		ret = ioctl(fd, request, &batch);
		if (ret < 0)
			return -errno;
		memcpy(msrs->entry + done, batch.entry, (uint32_t)ret * sizeof(batch.entry[0]));
		done += (uint32_t)ret;
		at += (uint32_t)ret + 1;
	}
	msrs->head.nmsrs = done;
	return 0;
}

static int save_xsave(int fd, struct vmm_cpu_state *state)
{
	state->xsave_bytes = xsave_bytes ? xsave_bytes : (uint32_t)sizeof(struct kvm_xsave);
	if (state->xsave_bytes > sizeof(state->xsave))
		return -E2BIG;
	return ioctl(fd, xsave_bytes ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, state->xsave) < 0 ? -errno
											 : 0;
}

int vmm_cpu_save(int fd, struct vmm_cpu_state *state, const char **what)
{
	const struct step steps[] = {
		{ KVM_GET_MP_STATE, "KVM_GET_MP_STATE", &state->mp },
		{ KVM_GET_REGS, "KVM_GET_REGS", &state->regs },
		{ KVM_GET_SREGS, "KVM_GET_SREGS", &state->sregs },
		{ KVM_GET_XCRS, "KVM_GET_XCRS", &state->xcrs },
		{ KVM_GET_LAPIC, "KVM_GET_LAPIC", &state->lapic },
		{ KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS", &state->events },
		{ KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS", &state->debugregs },
		{ KVM_GET_CPUID2, "KVM_GET_CPUID2", &state->cpuid },
	};
	int ret;

	state->cpuid.head.nent = VMM_STATE_CPUID;
	ret = do_steps(fd, steps, sizeof(steps) / sizeof(steps[0]), what);
	if (ret)
		return ret;
	*what = "KVM_GET_XSAVE2";
	ret = save_xsave(fd, state);
	if (ret)
		return ret;
	*what = "KVM_GET_MSRS";
	name_msrs(&state->msrs);
	return do_msrs(fd, KVM_GET_MSRS, &state->msrs);
}

int vmm_cpu_load(int fd, struct vmm_cpu_state *state, const char **what)
{
	/* features first; the local APIC is where the special registers put it */
	const struct step before[] = {
		{ KVM_SET_CPUID2, "KVM_SET_CPUID2", &state->cpuid },
		{ KVM_SET_SREGS, "KVM_SET_SREGS", &state->sregs },
		{ KVM_SET_REGS, "KVM_SET_REGS", &state->regs },
		{ KVM_SET_XCRS, "KVM_SET_XCRS", &state->xcrs },
		{ KVM_SET_XSAVE, "KVM_SET_XSAVE", state->xsave },
		{ KVM_SET_LAPIC, "KVM_SET_LAPIC", &state->lapic },
	};
	const struct step after[] = {
		{ KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS", &state->events },
		{ KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS", &state->debugregs },
		{ KVM_SET_MP_STATE, "KVM_SET_MP_STATE", &state->mp },
	};
	int ret = do_steps(fd, before, sizeof(before) / sizeof(before[0]), what);

	if (ret)
		return ret;
	*what = "KVM_SET_MSRS";
	ret = do_msrs(fd, KVM_SET_MSRS, &state->msrs);
	if (ret)
		return ret;
	ret = do_steps(fd, after, sizeof(after) / sizeof(after[0]), what);
	/* its watchdogs are not to count the time since; it may have no such clock */
	if (!ret)
		(void)ioctl(fd, KVM_KVMCLOCK_CTRL, 0);
	return ret;
}
