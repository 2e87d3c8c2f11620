/* SPDX-License-Identifier: MIT */
/* jail.c - what is left to the monitor's threads once a guest runs. */
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "end.h"

/* younger than the headers that we may be built with */
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

enum { STACK_SIZE = 256 << 10, FILTER_MAX = 512, X32_BIT = 0x40000000 };

/* Of one argument's low 32 bits: what remains under the mask must be this. */
struct call {
	int nr;
	uint8_t argument;
	uint32_t mask, value;
};

#define ANY(name) { SYS_##name, 0, 0, 0 }
#define IOCTL(request) { SYS_ioctl, 1, UINT32_MAX, (uint32_t)(request) }
#define NOT_EXECUTABLE(name) { SYS_##name, 2, PROT_EXEC, 0 }

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
};

static const struct call devices[] = {
	ANY(epoll_wait), ANY(epoll_pwait), ANY(recvmsg), ANY(recvfrom), ANY(getrandom),
	/* to stop the processors: one libc has this call for it, another that */
	{ SYS_tkill, 1, UINT32_MAX, SIGUSR1 }, { SYS_tgkill, 2, UINT32_MAX, SIGUSR1 },
	{ SYS_socketpair, 0, UINT32_MAX, AF_UNIX },
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
	ANY(fstat), ANY(stat), ANY(lstat), ANY(fstatfs), ANY(fcntl), ANY(flock), ANY(lseek),
	ANY(getdents64), ANY(pread64), ANY(preadv), ANY(preadv2), ANY(readv), ANY(pwrite64),
	ANY(pwritev), ANY(pwritev2), ANY(copy_file_range), ANY(fallocate), ANY(ftruncate),
	ANY(fsync), ANY(fdatasync), ANY(syncfs), ANY(mkdirat), ANY(mknodat), ANY(symlinkat),
	ANY(linkat), ANY(unlinkat), ANY(renameat2), ANY(fchmod), ANY(fchmodat), ANY(chmod),
	ANY(fchown), ANY(fchownat), ANY(utimensat), ANY(fgetxattr), ANY(flistxattr),
	ANY(fsetxattr), ANY(fremovexattr), ANY(geteuid),
};

struct part {
	const struct call *call;
	size_t n;
};

#define PART(list) { list, sizeof(list) / sizeof((list)[0]) }

static const struct part roles[VMM_ROLES][4] = {
	[VMM_ROLE_CPU] = { PART(cpu_first), PART(all) },
	[VMM_ROLE_DEVICES] = { PART(devices), PART(all), PART(save) },
	[VMM_ROLE_DEVICES_FS] = { PART(devices), PART(all), PART(save), PART(fs) },
	[VMM_ROLE_DISK] = { PART(disk), PART(all) },
	[VMM_ROLE_FS] = { PART(fs), PART(all) },
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

/* The number is loaded before, and again behind it if the argument was looked at. */
static void allow(struct program *p, const struct call *call)
{
	const size_t number = offsetof(struct seccomp_data, nr);

	if (!call->mask) {
		add(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call->nr, 0, 1);
		answer(p, SECCOMP_RET_ALLOW);
		return;
	}
	add(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call->nr, 0, 5);
	/* the low half of an argument comes first on x86 */
	load(p, offsetof(struct seccomp_data, args) + call->argument * sizeof(uint64_t));
	add(p, BPF_ALU | BPF_AND | BPF_K, call->mask, 0, 0);
	add(p, BPF_JMP | BPF_JEQ | BPF_K, call->value, 0, 1);
	answer(p, SECCOMP_RET_ALLOW);
	load(p, number);
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

int vmm_jail_enter(enum vmm_role role)
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

/* Threads that were made, and those that are in. */
static struct {
	bool enabled;
	pthread_mutex_t lock;
	pthread_cond_t entered;
	uint32_t n_made, n_in;
} jail = { .lock = PTHREAD_MUTEX_INITIALIZER, .entered = PTHREAD_COND_INITIALIZER };

struct start {
	enum vmm_role role;
	void *(*fn)(void *arg);
	void *arg;
};

static void enter(enum vmm_role role)
{
	int ret = jail.enabled ? vmm_jail_enter(role) : 0;

	if (ret)
		vmm_fail(-ret, "the seccomp filter of a thread; --no-jail runs without");
}

static void *begin(void *arg)
{
	struct start start = *(struct start *)arg;

	free(arg);
	enter(start.role);
	pthread_mutex_lock(&jail.lock);
	jail.n_in++;
	pthread_cond_signal(&jail.entered);
	pthread_mutex_unlock(&jail.lock);
	return start.fn(start.arg);
}

pthread_t vmm_jail_thread(enum vmm_role role, const char *what, void *(*fn)(void *arg), void *arg)
{
	struct start *start = malloc(sizeof(*start));
	pthread_attr_t attr;
	pthread_t thread;
	int ret = start ? 0 : ENOMEM;

	if (start) {
		*start = (struct start){ .role = role, .fn = fn, .arg = arg };
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, STACK_SIZE);
		ret = pthread_create(&thread, &attr, begin, start);
		pthread_attr_destroy(&attr);
	}
	if (ret)
		vmm_fail(ret, "a thread for %s", what);
	jail.n_made++;
	return thread;
}

static int compare(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

static void close_from_to(unsigned int first, unsigned int last)
{
	struct rlimit limit;

	if (!syscall(SYS_close_range, first, last, 0))
		return;
	/* kernels before 5.9 */
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		vmm_fail(errno, "getrlimit");
	for (unsigned int fd = first; fd <= last && fd < limit.rlim_cur; fd++)
		close((int)fd);
}

static void close_others(const int *keep, int n)
{
	int sorted[64];
	unsigned int next = STDERR_FILENO + 1;

	for (int i = 0; i < n; i++)
		sorted[i] = keep[i];
	qsort(sorted, (size_t)n, sizeof(sorted[0]), compare);
	for (int i = 0; i < n; i++) {
		if (sorted[i] < (int)next)
			continue;
		if (sorted[i] > (int)next)
			close_from_to(next, (unsigned int)sorted[i] - 1);
		next = (unsigned int)sorted[i] + 1;
	}
	close_from_to(next, UINT_MAX);
}

/* Whoever waits for the end of our output must not wait for us, unless it was meant so. */
static void replace_standard(const int *keep, int n)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		vmm_fail(errno, "/dev/null");
	for (int fd = STDIN_FILENO; fd <= STDOUT_FILENO; fd++) {
		bool given = false;

		for (int i = 0; i < n; i++)
			given |= keep[i] == fd;
		if (!given && null != fd && dup2(null, fd) < 0)
			vmm_fail(errno, "/dev/null");
	}
	if (null > STDERR_FILENO)
		close(null);
}

/* Streams, nodes and open files of the guest take a descriptor each. */
static void raise_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		vmm_fail(errno, "RLIMIT_NOFILE");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		vmm_fail(errno, "RLIMIT_NOFILE");
}

void vmm_jail_begin(bool enabled, const int *keep, int n_keep)
{
	jail.enabled = enabled;
	raise_descriptors();
	if (!enabled)
		return;
	close_others(keep, n_keep);
	replace_standard(keep, n_keep);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		vmm_fail(errno, "PR_SET_NO_NEW_PRIVS");
}

static void limit(int resource, const char *name)
{
	const struct rlimit none = { 0, 0 };

	if (setrlimit(resource, &none) < 0)
		vmm_fail(errno, "%s", name);
}

void vmm_jail_end(enum vmm_role role)
{
	if (!jail.enabled)
		return;
	pthread_mutex_lock(&jail.lock);
	while (jail.n_in < jail.n_made)
		pthread_cond_wait(&jail.entered, &jail.lock);
	pthread_mutex_unlock(&jail.lock);
	/* a guest's memory is nobody's business, and there is nothing to start */
	limit(RLIMIT_CORE, "RLIMIT_CORE");
	limit(RLIMIT_NPROC, "RLIMIT_NPROC");
	limit(RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE");
	enter(role);
}
