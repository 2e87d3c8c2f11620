/* SPDX-License-Identifier: MIT */
/* cpu.c - the machine's processors, one thread each. */
#include "cpu.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "boot.h"
#include "cpu_state.h"
#include "cpuid.h"
#include "device.h"
#include "end.h"
#include "jail.h"
#include "mmio.h"
#include "options.h"
#include "ports.h"
#include "vm.h"

/* the local APIC's page */
enum { APIC_LVT0 = 0x350, APIC_LVT1 = 0x360, APIC_EXTINT = 0x700, APIC_NMI = 0x400 };
/* MTRRs on, and all memory write-back: a guest without them does not use its PAT either */
enum { MSR_MISC_ENABLE = 0x1a0, FAST_STRINGS = 1, MSR_MTRR_DEFTYPE = 0x2ff, MTRR_WB = 0x806 };

struct cpu {
	int fd;
	struct kvm_run *run;
	uint32_t thread;
};

static struct {
	struct cpu cpu[VMM_CPUS];
	uint32_t n;
	/* guarded by vmm_lock */
	bool stop;                  /* at first, and while paused */
	uint32_t n_stopped;
	pthread_cond_t all_stopped, go;
} cpus = { .stop = true, .all_stopped = PTHREAD_COND_INITIALIZER, .go = PTHREAD_COND_INITIALIZER };

static void set_apic(int fd)
{
	const struct {
		uint32_t at, value;
	} lines[] = { { APIC_LVT0, APIC_EXTINT }, { APIC_LVT1, APIC_NMI } };
	struct kvm_lapic_state state;

	if (ioctl(fd, KVM_GET_LAPIC, &state) < 0)
		vmm_fail(errno, "KVM_GET_LAPIC");
	for (int i = 0; i < 2; i++)
		memcpy(state.regs + lines[i].at, &lines[i].value, sizeof(lines[i].value));
	if (ioctl(fd, KVM_SET_LAPIC, &state) < 0)
		vmm_fail(errno, "KVM_SET_LAPIC");
}

/* One by one: what a KVM does not have must not keep the rest from being set. */
static void set_msr(int fd, uint32_t index, uint64_t value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msr = { .head.nmsrs = 1, .entry = { .index = index, .data = value } };

	if (ioctl(fd, KVM_SET_MSRS, &msr) < 0)
		vmm_fail(errno, "KVM_SET_MSRS");
}

static void set_segments(int fd)
{
	const struct kvm_segment code = {
		.limit = ~0u, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
	};
	const struct kvm_segment data = {
		.limit = ~0u, .selector = 0x18, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1,
	};
	struct kvm_sregs s;

	if (ioctl(fd, KVM_GET_SREGS, &s) < 0)
		vmm_fail(errno, "KVM_GET_SREGS");
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){ .limit = 0xffff, .type = 11, .present = 1 };
	s.gdt = (struct kvm_dtable){ .base = VMM_GDT, .limit = 4 * 8 - 1 };
	s.idt = (struct kvm_dtable){ .base = 0 };
	s.cr0 = 0x80050033;         /* PG, AM, WP, NE, ET, MP, PE */
	s.cr3 = VMM_PAGE_TABLES;
	s.cr4 = 0x20;               /* PAE */
	s.efer = 0x500;             /* LMA, LME */
	if (ioctl(fd, KVM_SET_SREGS, &s) < 0)
		vmm_fail(errno, "KVM_SET_SREGS");
}

/* The registers of the 64-bit boot protocol. */
static void set_start(int fd, uint64_t entry)
{
	struct kvm_regs regs = { .rip = entry, .rsi = VMM_ZERO_PAGE, .rsp = VMM_STACK, .rflags = 2 };
	struct kvm_fpu fpu = { .fcw = 0x37f, .mxcsr = 0x1f80 };

	set_segments(fd);
	if (ioctl(fd, KVM_SET_REGS, &regs) < 0)
		vmm_fail(errno, "KVM_SET_REGS");
	if (ioctl(fd, KVM_SET_FPU, &fpu) < 0)
		vmm_fail(errno, "KVM_SET_FPU");
}

/* A new one, with the page that is shared with it. */
static struct cpu *create(const struct vmm_vm *vm, uint32_t id, uint32_t n)
{
	struct cpu *cpu = &cpus.cpu[id];
	void *run;

	cpu->fd = ioctl(vm->vm, KVM_CREATE_VCPU, id);
	if (cpu->fd < 0)
		vmm_fail(errno, "KVM_CREATE_VCPU %u of %u", id, n);
	run = mmap(NULL, (size_t)vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
	if (run == MAP_FAILED)
		vmm_fail(errno, "the page that is shared with processor %u", id);
	cpu->run = run;
	return cpu;
}

static void make(const struct vmm_vm *vm, uint32_t id, uint32_t n)
{
	struct cpu *cpu = create(vm, id, n);

	vmm_cpuid_set(cpu->fd, id, n);
	set_apic(cpu->fd);
	set_msr(cpu->fd, MSR_MISC_ENABLE, FAST_STRINGS);
	set_msr(cpu->fd, MSR_MTRR_DEFTYPE, MTRR_WB);
}

void vmm_cpus_make(const struct vmm_vm *vm, uint32_t n, uint64_t entry)
{
	vmm_cpuid_load(vm);
	for (uint32_t id = 0; id < n; id++)
		make(vm, id, n);
	cpus.n = n;
	set_start(cpus.cpu[0].fd, entry);
}

int vmm_cpus_save(struct vmm_state *state, const char **what)
{
	int ret = 0;

	state->n_cpus = cpus.n;
	for (uint32_t i = 0; !ret && i < cpus.n; i++)
		ret = vmm_cpu_save(cpus.cpu[i].fd, &state->cpu[i], what);
	return ret;
}

void vmm_cpus_restore(const struct vmm_vm *vm, struct vmm_state *state)
{
	const char *what;

	/* all are there first: interrupts between them have an addressee */
	for (uint32_t i = 0; i < state->n_cpus; i++)
		create(vm, i, state->n_cpus);
	cpus.n = state->n_cpus;
	for (uint32_t i = 0; i < cpus.n; i++) {
		int ret = vmm_cpu_load(cpus.cpu[i].fd, &state->cpu[i], &what);

		if (ret)
			vmm_fail(-ret, "--restore: processor %u: %s", i, what);
	}
}

static void port(struct kvm_run *run)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;

	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_OUT)
			vmm_port_write(run->io.port, data, run->io.size);
		else
			vmm_port_read(run->io.port, data, run->io.size);
	}
}

static void serve(struct cpu *cpu)
{
	struct kvm_run *run = cpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		port(run);
		break;
	case KVM_EXIT_MMIO:
		if (run->mmio.is_write)
			vmm_mmio_write(run->mmio.phys_addr, run->mmio.data, run->mmio.len);
		else
			vmm_mmio_read(run->mmio.phys_addr, run->mmio.data, run->mmio.len);
		break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		break;
	case KVM_EXIT_SHUTDOWN:
		vmm_crashed("the guest crashed or reset itself (a triple fault)");
	case KVM_EXIT_SYSTEM_EVENT:
		vmm_crashed("the guest crashed or reset itself (event %u)",
			    run->system_event.type);
	case KVM_EXIT_FAIL_ENTRY:
		vmm_crashed("the processor can't run this guest (reason %#llx)",
			    (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
	case KVM_EXIT_INTERNAL_ERROR:
		vmm_crashed("KVM can't run this guest (internal error %u); nsrun doctor tells "
			    "whether this KVM runs ordinary guests", run->internal.suberror);
	default:
		vmm_crashed("KVM stopped the guest for a reason that is not known (%u)",
			    run->exit_reason);
	}
}

/* Stand still while that is wanted. */
static void wait_to_go(struct cpu *cpu)
{
	vmm_lock();
	if (cpus.stop) {
		cpus.n_stopped++;
		pthread_cond_signal(&cpus.all_stopped);
		while (cpus.stop)
			pthread_cond_wait(&cpus.go, vmm_lock_mutex());
		cpus.n_stopped--;
	}
	cpu->run->immediate_exit = 0;
	vmm_unlock();
}

static void *run(void *arg)
{
	struct cpu *cpu = arg;

	wait_to_go(cpu);
	for (;;) {
		if (!ioctl(cpu->fd, KVM_RUN, 0))
			serve(cpu);
		else if (errno == EINTR)
			wait_to_go(cpu);
		else if (errno != EAGAIN)
			vmm_fail(errno, "KVM_RUN");
	}
	return NULL;
}

static void kicked(int signal)
{
	(void)signal;
}

void vmm_cpus_start(void)
{
	struct sigaction action = { .sa_handler = kicked };

	sigaction(VMM_KICK, &action, NULL);
	for (uint32_t i = 0; i < cpus.n; i++)
		cpus.cpu[i].thread = vmm_jail_thread(VMM_ROLE_CPU, "a processor", run,
						     &cpus.cpu[i]);
}

void vmm_cpus_pause(void)
{
	cpus.stop = true;
	for (uint32_t i = 0; i < cpus.n; i++) {
		/* the one for a processor that is about to enter, the other for one that is in */
		cpus.cpu[i].run->immediate_exit = 1;
		vmm_jail_signal(cpus.cpu[i].thread, VMM_KICK);
	}
	while (cpus.n_stopped < cpus.n)
		pthread_cond_wait(&cpus.all_stopped, vmm_lock_mutex());
}

bool vmm_cpus_paused(void)
{
	return cpus.stop && cpus.n_stopped == cpus.n;
}

void vmm_cpus_resume(void)
{
	cpus.stop = false;
	pthread_cond_broadcast(&cpus.go);
}
