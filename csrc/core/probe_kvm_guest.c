/* SPDX-License-Identifier: MIT */
/*
 * probe_kvm_guest.c - whether this KVM runs an ordinary guest kernel.
 *
 * Some KVMs run a guest's user code natively but its kernel code in an
 * instruction emulator that lacks what every kernel uses.  A tiny guest tells:
 * it does these things, and the count of emulated instructions must not grow
 * with it.  Time says nothing.
 */
#include "probe.h"

#if defined(__x86_64__)
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "diag.h"

/* linux/kvm.h */
#define KVM_CREATE_VM 0xae01
#define KVM_GET_VCPU_MMAP_SIZE 0xae04
#define KVM_GET_SUPPORTED_CPUID 0xc008ae05
#define KVM_CREATE_VCPU 0xae41
#define KVM_SET_USER_MEMORY_REGION 0x4020ae46
#define KVM_RUN 0xae80
#define KVM_SET_REGS 0x4090ae82
#define KVM_GET_SREGS 0x8138ae83
#define KVM_SET_SREGS 0x4138ae84
#define KVM_SET_MSRS 0x4008ae89
#define KVM_SET_CPUID2 0x4008ae90
#define KVM_SET_XCRS 0x4188aea7
#define KVM_GET_STATS_FD 0xaece

enum { EXIT_IO = 2, EXIT_SHUTDOWN = 8, EXIT_INTERNAL_ERROR = 17 };
enum { CPUID_ENTRIES = 256, STATS_SIZE = 1 << 16 };
enum { MSR_STAR_ = 0, MSR_LSTAR_, MSR_SFMASK_, N_MSRS };

struct memory_region {
	uint32_t slot, flags;
	uint64_t guest, size, user;
};
struct regs {
	uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8_15[8], rip, rflags;
};
struct segment {
	uint64_t base;
	uint32_t limit;
	uint16_t selector;
	uint8_t type, present, dpl, db, s, l, g, avl, unusable, padding;
};
struct dtable {
	uint64_t base;
	uint16_t limit, padding[3];
};
struct sregs {
	struct segment cs, ds, es, fs, gs, ss, tr, ldt;
	struct dtable gdt, idt;
	uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupts[4];
};
struct msrs {
	uint32_t n, padding;
	struct {
		uint32_t index, reserved;
		uint64_t data;
	} entry[N_MSRS];
};
struct xcrs {
	uint32_t n, flags;
	struct {
		uint32_t xcr, reserved;
		uint64_t value;
	} entry[16];
	uint64_t padding[16];
};
struct cpuid {
	uint32_t n, padding;
	struct {
		uint32_t function, index, flags, eax, ebx, ecx, edx, rest[3];
	} entry[CPUID_ENTRIES];
};
struct stats_header {
	uint32_t flags, name_size, n, id_offset, desc_offset, data_offset;
};
struct stats_desc {
	uint32_t flags;
	int16_t exponent;
	uint16_t size;
	uint32_t offset, bucket_size;
	char name[];
};
_Static_assert(sizeof(struct regs) == 0x90 && sizeof(struct sregs) == 0x138 &&
	       sizeof(struct xcrs) == 0x188 && sizeof(struct memory_region) == 0x20,
	       "as the ioctl numbers say");

/* kvm_guest.S */
extern const uint8_t nsr_kvm_guest[], nsr_kvm_guest_int3[], nsr_kvm_guest_syscall[],
	nsr_kvm_guest_end[];

/* Where things lie in the guest's memory; it is one large page, user's too. */
enum {
	PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, GDT = 0x4000, IDT = 0x5000, TSS = 0x6000,
	STACK = 0x8000, CODE = 0x10000, MEMORY = 0x200000,
};
enum { HAS_XSAVE = 1, HAS_CX16 = 2, HAS_POPCNT = 4, LOOP = 10000 };

struct machine {
	int kvm, vm, cpu;
	uint8_t *memory;
	const uint8_t *run;         /* struct kvm_run */
	uint64_t features;
};

static void fill_memory(uint8_t *memory)
{
	static const uint64_t gdt[] = {
		0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cff3000000ffff,
		0x00affb000000ffff,
	};
	uint64_t at = CODE + (uint64_t)(nsr_kvm_guest_int3 - nsr_kvm_guest);
	/* vector 3: an interrupt gate that CPL 3 may use too */
	const uint64_t gate[2] = { (at & 0xffff) | 8ULL << 16 | 0xeeULL << 40 |
				   (at >> 16 & 0xffff) << 48, at >> 32 };
	const uint64_t tables[] = { PDPT | 7, PD | 7, 0x87 };

	for (int i = 0; i < 3; i++)
		memcpy(memory + PML4 + i * 0x1000, &tables[i], sizeof(tables[i]));
	memcpy(memory + GDT, gdt, sizeof(gdt));
	memcpy(memory + IDT + 3 * sizeof(gate), gate, sizeof(gate));
	memcpy(memory + CODE, nsr_kvm_guest, (size_t)(nsr_kvm_guest_end - nsr_kvm_guest));
}

static int set_cpuid(struct machine *m)
{
	static struct cpuid cpuid NSR_COLD;

	cpuid.n = CPUID_ENTRIES;
	if (ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0)
		return -1;
	for (uint32_t i = 0; i < cpuid.n && i < CPUID_ENTRIES; i++) {
		if (cpuid.entry[i].function != 1)
			continue;
		m->features |= cpuid.entry[i].ecx >> 26 & 1 ? HAS_XSAVE : 0;
		m->features |= cpuid.entry[i].ecx >> 13 & 1 ? HAS_CX16 : 0;
		m->features |= cpuid.entry[i].ecx >> 23 & 1 ? HAS_POPCNT : 0;
	}
	return ioctl(m->cpu, KVM_SET_CPUID2, &cpuid);
}

static int set_segments(struct machine *m)
{
	const struct segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1,
				      .s = 1, .l = 1, .g = 1 };
	const struct segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1,
				      .db = 1, .s = 1, .g = 1 };
	struct sregs s;

	if (ioctl(m->cpu, KVM_GET_SREGS, &s) < 0)
		return -1;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct segment){ .base = TSS, .limit = 0x67, .type = 11, .present = 1 };
	s.gdt = (struct dtable){ .base = GDT, .limit = 6 * 8 - 1 };
	s.idt = (struct dtable){ .base = IDT, .limit = 4 * 16 - 1 };
	s.cr0 = 0x80010033;         /* PG, WP, NE, ET, MP, PE */
	s.cr3 = PML4;
	s.cr4 = 0x620 | (m->features & HAS_XSAVE ? 1 << 18 : 0); /* PAE, OSFXSR, OSXMMEXCPT */
	s.efer = 0x501;             /* LMA, LME, SCE */
	return ioctl(m->cpu, KVM_SET_SREGS, &s);
}

static int set_registers(struct machine *m)
{
	uint64_t syscall = CODE + (uint64_t)(nsr_kvm_guest_syscall - nsr_kvm_guest);
	struct regs regs = { .rsp = STACK, .r8_15 = { m->features }, .rip = CODE, .rflags = 2 };
	struct msrs msrs = { .n = N_MSRS, .entry = {
		[MSR_STAR_] = { 0xc0000081, 0, 0x18ULL << 48 | 8ULL << 32 },
		[MSR_LSTAR_] = { 0xc0000082, 0, syscall },
		[MSR_SFMASK_] = { 0xc0000084, 0, 0 },
	} };
	struct xcrs xcrs = { .n = 1, .entry = { { 0, 0, 3 } } };

	if (ioctl(m->cpu, KVM_SET_MSRS, &msrs) != N_MSRS ||
	    (m->features & HAS_XSAVE && ioctl(m->cpu, KVM_SET_XCRS, &xcrs) < 0))
		return -1;
	return ioctl(m->cpu, KVM_SET_REGS, &regs);
}

/* What is left open ends with the process that this runs in. */
static const char *make(struct machine *m)
{
	struct memory_region region = { .size = MEMORY };
	void *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			    0);
	void *run;
	int run_size;

	m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	if (memory == MAP_FAILED || m->vm < 0)
		return "a virtual machine";
	m->memory = memory;
	fill_memory(m->memory);
	region.user = (uint64_t)(uintptr_t)memory;
	if (ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return "its memory";
	run_size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	m->cpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
	if (m->cpu < 0 || run_size < 64)
		return "its processor";
	run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->cpu, 0);
	if (run == MAP_FAILED)
		return "its processor";
	m->run = run;
	return set_cpuid(m) < 0 || set_segments(m) < 0 || set_registers(m) < 0 ?
	       "its registers" : NULL;
}

/* The processor's statistic of that name; -1: this KVM doesn't tell. */
static int64_t statistic(const struct machine *m, const char *name)
{
	static _Alignas(8) uint8_t raw[STATS_SIZE] NSR_COLD;
	struct stats_header head;
	int fd = ioctl(m->cpu, KVM_GET_STATS_FD, 0);
	ssize_t n = fd < 0 ? -1 : pread(fd, raw, sizeof(raw), 0);
	int64_t value = -1;

	if (fd >= 0)
		close(fd);
	if (n < (ssize_t)sizeof(head))
		return -1;
	memcpy(&head, raw, sizeof(head));
	for (uint32_t i = 0; i < head.n; i++) {
		size_t size = sizeof(struct stats_desc) + head.name_size;
		size_t at = head.desc_offset + i * size;
		struct stats_desc desc;

		if (at + size > (size_t)n)
			break;
		memcpy(&desc, raw + at, sizeof(desc));
		if (strncmp((char *)raw + at + sizeof(desc), name, head.name_size) ||
		    (size_t)head.data_offset + desc.offset + sizeof(value) > (size_t)n)
			continue;
		memcpy(&value, raw + head.data_offset + desc.offset, sizeof(value));
	}
	return value;
}

static void judge(const struct machine *m, struct nsr_probe *out, int64_t emulated)
{
	uint32_t reason, data_offset;

	memcpy(&reason, m->run + 8, sizeof(reason));
	memcpy(&data_offset, m->run + 40, sizeof(data_offset));
	if (reason == EXIT_INTERNAL_ERROR)
		nsr_probe_say(out, NSR_BLOCKED, 0, "kvm-unfit",
			      "this KVM can't run an ordinary kernel: it emulates its "
			      "instructions, and lacks some (KVM_EXIT_INTERNAL_ERROR)");
	else if (reason == EXIT_SHUTDOWN)
		nsr_probe_say(out, NSR_BLOCKED, 0, "kvm-unfit",
			      "this KVM can't run an ordinary kernel: one of int3, xsave, "
			      "cmpxchg16b, popcnt, syscall and sysret faults in a guest");
	else if (reason != EXIT_IO || m->run[data_offset] != 0x2a)
		nsr_probe_say(out, NSR_BLOCKED, 0, "kvm-unfit",
			      "this KVM can't run an ordinary kernel: its guest ended with exit "
			      "reason %u", reason);
	else if (emulated > LOOP / 2)
		nsr_probe_say(out, NSR_BLOCKED, 0, "kvm-unfit",
			      "this KVM emulates a guest's kernel: %lld instructions of some %d",
			      (long long)emulated, LOOP);
	else
		nsr_probe_say(out, NSR_OK, 0, NULL, "a small guest ran as on a real processor%s",
			      emulated < 0 ? "; this kernel does not tell what it emulates" : "");
}

static void try(struct nsr_probe *out)
{
	struct machine m = { .features = 0 };
	const char *failed = make(&m);
	int64_t before, after;
	int ret;

	if (failed) {
		nsr_probe_say(out, NSR_UNKNOWN, errno, NULL, "a small guest can't be made: %s: %s",
			      failed, nsr_strerror(errno));
		return;
	}
	before = statistic(&m, "insn_emulation");
	do
		ret = ioctl(m.cpu, KVM_RUN, 0);
	while (ret < 0 && errno == EINTR);
	if (ret < 0) {
		nsr_probe_say(out, NSR_BLOCKED, errno, "kvm-unfit", "KVM_RUN: %s",
			      nsr_strerror(errno));
		return;
	}
	after = statistic(&m, "insn_emulation");
	judge(&m, out, before < 0 || after < 0 ? -1 : after - before);
}

/* A guest may hang, and KVM ties a machine to its process: both end with a child. */
static void try_in_child(struct nsr_probe *out)
{
	struct nsr_probe *answer = mmap(NULL, sizeof(*answer), PROT_READ | PROT_WRITE,
					MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int pidfd = -1, pid;

	if (answer == MAP_FAILED) {
		nsr_probe_say(out, NSR_UNKNOWN, errno, NULL, "out of memory");
		return;
	}
	pid = nsr_fork(&pidfd);
	if (!pid) {
		try(answer);
		_exit(EXIT_SUCCESS);
	}
	if (pid < 0)
		nsr_probe_say(answer, NSR_UNKNOWN, -pid, NULL, "fork: %s", nsr_strerror(-pid));
	else if (nsr_wait_bounded(pid, pidfd, NSR_PROBE_DEADLINE_MS) < 0)
		nsr_probe_say(answer, NSR_BLOCKED, ETIMEDOUT, "kvm-unfit",
			      "a small guest does not come to its end");
	memcpy(out, answer, sizeof(*out));
	munmap(answer, sizeof(*answer));
}
#endif

void nsr_probe_kvm_guest(struct nsr_probe *out, const struct nsr_probe *kvm)
{
	if (kvm->verdict != NSR_OK) {
		nsr_probe_say(out, NSR_UNKNOWN, 0, NULL, "not tried without KVM");
		return;
	}
#if defined(__x86_64__)
	try_in_child(out);
#else
	nsr_probe_say(out, NSR_UNKNOWN, 0, NULL, "not tried on this architecture");
#endif
}
