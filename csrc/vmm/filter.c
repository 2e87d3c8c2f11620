/* SPDX-License-Identifier: MIT */
/* filter.c - the system calls of each role, as a seccomp filter. */
#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* younger than the headers that we may be built with */
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

enum { FILTER_MAX = 512, X32_BIT = 0x40000000, CONDITIONS = 2 };

/* Of an argument's low 32 bits what remains under the mask must be this; no mask: no condition. */
struct condition {
	uint8_t argument;
	uint32_t mask, value;
	bool own_pid;               /* the value */
};

struct call {
	int nr;
	struct condition when[CONDITIONS];
};

#define ANY(name) { SYS_##name, { { 0 } } }
#define EXACTLY(name, argument, value) \
	{ SYS_##name, { { argument, UINT32_MAX, (uint32_t)(value), false } } }
#define IOCTL(request) EXACTLY(ioctl, 1, request)
#define NOT_EXECUTABLE(name) { SYS_##name, { { 2, PROT_EXEC, 0, false } } }
#define TO_OWN_THREAD(signal) \
	{ SYS_tgkill, { { 0, UINT32_MAX, 0, true }, { 2, UINT32_MAX, signal, false } } }

/* first, since it is called most */
static const struct call cpu_first[] = { IOCTL(KVM_RUN) };

/* locks, memory, eventfds, the control socket, the console, the end */
static const struct call all[] = {
	ANY(futex), ANY(write), ANY(writev), ANY(read), ANY(sendmsg), ANY(close),
	ANY(clock_gettime), ANY(rt_sigprocmask), ANY(rt_sigreturn), ANY(restart_syscall),
	NOT_EXECUTABLE(mmap), NOT_EXECUTABLE(mprotect), ANY(munmap), ANY(mremap), ANY(madvise),
	ANY(brk), ANY(getpid), ANY(gettid), ANY(exit), ANY(exit_group),
	/* a device is reset by a processor, which ends its streams */
	ANY(shutdown), ANY(epoll_ctl),
	/* of the calling thread, which can only lose by it */
	ANY(landlock_restrict_self),
};

/* for what a guest or the owner asks */
static const struct call events[] = { ANY(epoll_wait), ANY(epoll_pwait) };

static const struct call devices[] = {
	ANY(recvmsg), ANY(recvfrom), ANY(getrandom),
	/* to stop the processors */
	TO_OWN_THREAD(VMM_KICK),
	/* not of datagrams, which could be sent to other sockets by name */
	{ SYS_socketpair, { { 0, UINT32_MAX, AF_UNIX, false },
			    { 1, UINT32_MAX, SOCK_STREAM | SOCK_CLOEXEC, false } } },
};

/* the file of a snapshot, and what is asked of KVM for it */
static const struct call save[] = {
	ANY(fstat), ANY(newfstatat), ANY(ftruncate), ANY(pwrite64), ANY(pwritev),
	IOCTL(KVM_GET_MP_STATE), IOCTL(KVM_GET_REGS), IOCTL(KVM_GET_SREGS), IOCTL(KVM_GET_XSAVE),
	IOCTL(KVM_GET_XSAVE2), IOCTL(KVM_GET_XCRS), IOCTL(KVM_GET_LAPIC),
	IOCTL(KVM_GET_VCPU_EVENTS), IOCTL(KVM_GET_DEBUGREGS), IOCTL(KVM_GET_MSRS),
	IOCTL(KVM_GET_IRQCHIP), IOCTL(KVM_GET_CLOCK), IOCTL(KVM_GET_CPUID2),
};

static const struct call disk[] = {
	ANY(preadv), ANY(pwritev), ANY(fdatasync),
};

static const struct call fs[] = {
	ANY(open), ANY(openat), ANY(openat2), ANY(readlinkat), ANY(statx), ANY(newfstatat),
	ANY(fstat), ANY(stat), ANY(lstat), ANY(fstatfs), ANY(flock), ANY(lseek),
	/* not F_SETOWN, by which others get signals; the second is of some libc's open(3) */
	EXACTLY(fcntl, 1, F_DUPFD_CLOEXEC), EXACTLY(fcntl, 1, F_SETFD),
	EXACTLY(fcntl, 1, F_OFD_SETLK), EXACTLY(fcntl, 1, F_OFD_GETLK),
	ANY(getdents64), ANY(pread64), ANY(preadv), ANY(preadv2), ANY(readv), ANY(pwrite64),
	ANY(pwritev), ANY(pwritev2), ANY(copy_file_range), ANY(fallocate), ANY(ftruncate),
	ANY(fsync), ANY(fdatasync), ANY(syncfs), ANY(mkdirat), ANY(mknodat), ANY(symlinkat),
	ANY(linkat), ANY(unlinkat), ANY(renameat2), ANY(fchmod), ANY(fchmodat), ANY(chmod),
	ANY(fchown), ANY(fchownat), ANY(utimensat), ANY(fgetxattr), ANY(flistxattr),
	ANY(fsetxattr), ANY(fremovexattr), ANY(geteuid),
};

/* the rules for the files that are served, once they are known */
static const struct call shut[] = {
	ANY(landlock_create_ruleset), ANY(landlock_add_rule), TO_OWN_THREAD(VMM_SHUT),
};

struct part {
	const struct call *call;
	size_t n;
};

#define PART(list) { list, sizeof(list) / sizeof((list)[0]) }

static const struct part roles[VMM_ROLES][6] = {
	[VMM_ROLE_CPU] = { PART(cpu_first), PART(all) },
	[VMM_ROLE_DEVICES] = { PART(events), PART(devices), PART(all), PART(save) },
	[VMM_ROLE_DEVICES_FS] = { PART(events), PART(devices), PART(all), PART(save), PART(fs),
				  PART(shut) },
	[VMM_ROLE_DISK] = { PART(disk), PART(all) },
	[VMM_ROLE_FS] = { PART(events), PART(fs), PART(all) },
};

struct program {
	struct sock_filter code[FILTER_MAX];
	unsigned short len;
};

static void add(struct program *p, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
	if (p->len < FILTER_MAX)
		p->code[p->len++] = (struct sock_filter)BPF_JUMP(code, k, yes, no);
}

static void load(struct program *p, size_t offset)
{
	add(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

static void answer(struct program *p, uint32_t action)
{
	add(p, BPF_RET | BPF_K, action, 0, 0);
}

/* To the load of the number behind this call, which is some instructions away. */
static void check(struct program *p, const struct condition *when, uint8_t away)
{
	/* the low half of an argument comes first on x86 */
	load(p, offsetof(struct seccomp_data, args) + when->argument * sizeof(uint64_t));
	add(p, BPF_ALU | BPF_AND | BPF_K, when->mask, 0, 0);
	add(p, BPF_JMP | BPF_JEQ | BPF_K, when->own_pid ? (uint32_t)getpid() : when->value, 0,
	    away);
}

/* The number is loaded before, and again behind it if an argument was looked at. */
static void allow(struct program *p, const struct call *call)
{
	uint8_t n = 0;

	while (n < CONDITIONS && call->when[n].mask)
		n++;
	add(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call->nr, 0, n ? 3 * n + 2 : 1);
	for (uint8_t i = 0; i < n; i++)
		check(p, &call->when[i], 3 * (n - 1 - i) + 1);
	answer(p, SECCOMP_RET_ALLOW);
	if (n)
		load(p, offsetof(struct seccomp_data, nr));
}

static void write_filter(struct program *p, enum vmm_role role)
{
	load(p, offsetof(struct seccomp_data, arch));
	add(p, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
	answer(p, SECCOMP_RET_KILL_PROCESS);
	load(p, offsetof(struct seccomp_data, nr));
	add(p, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
	answer(p, SECCOMP_RET_KILL_PROCESS);
	for (size_t i = 0; i < sizeof(roles[role]) / sizeof(roles[role][0]); i++)
		for (size_t j = 0; j < roles[role][i].n; j++)
			allow(p, &roles[role][i].call[j]);
	answer(p, SECCOMP_RET_KILL_PROCESS);
}

int vmm_filter_enter(enum vmm_role role)
{
	struct program program = { .len = 0 };
	struct sock_fprog filter = { .filter = program.code };

	write_filter(&program, role);
	/* one that is full lost its end, and would let nothing pass */
	if (program.len == FILTER_MAX)
		return -E2BIG;
	filter.len = program.len;
	/* without the flag, older kernels slow the thread down for this filter's sake */
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
		       &filter) < 0 ? -errno : 0;
}
