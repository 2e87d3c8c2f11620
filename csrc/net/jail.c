/* SPDX-License-Identifier: MIT */
/* jail.c - what a user-mode network stack may still do. */
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define THIS_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define THIS_ARCH AUDIT_ARCH_AARCH64
#else
#error "no list of system calls for this processor"
#endif

enum { FILES = 1024, OUTPUT = 64 << 10 };
#define MEMORY (1UL << 30)

static const char *limit(void)
{
	const struct {
		__rlimit_resource_t which;
		rlim_t most;
	} limits[] = {
		{ RLIMIT_CORE, 0 }, { RLIMIT_NOFILE, FILES }, { RLIMIT_DATA, MEMORY },
		{ RLIMIT_FSIZE, OUTPUT },   /* of messages, where they go to a file */
	};

	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		struct rlimit now;

		if (getrlimit(limits[i].which, &now) < 0)
			return "getrlimit";
		if (now.rlim_max > limits[i].most)
			now.rlim_max = limits[i].most;
		now.rlim_cur = now.rlim_max;
		if (setrlimit(limits[i].which, &now) < 0)
			return "setrlimit";
	}
	return NULL;
}

static const char *drop_capabilities(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { { .effective = 0 } };

	return syscall(SYS_capset, &head, none) < 0 ? "capset" : NULL;
}

static const char *close_others(int fd)
{
	/* kernels before 5.9 lack it; whoever started us had to see to it then */
	if (fd > 3)
		(void)syscall(SYS_close_range, 3, fd - 1, 0);
	(void)syscall(SYS_close_range, fd > 2 ? fd + 1 : 3, UINT_MAX, 0);
	return NULL;
}

/* Resolvers' addresses are read again when that file is replaced: so its directory. */
static int allow_resolver(int rules)
{
	struct landlock_path_beneath_attr rule = {
		.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE,
	};
	char path[PATH_MAX];
	int ret;

	if (!realpath("/etc/resolv.conf", path))
		return 0;
	rule.parent_fd = open(dirname(path), O_PATH | O_CLOEXEC);
	if (rule.parent_fd < 0)
		return 0;
	ret = (int)syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
	close(rule.parent_fd);
	return ret;
}

static const char *hide_files(void)
{
	/* all rights of the first version of Landlock */
	const struct landlock_ruleset_attr all = {
		.handled_access_fs = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1,
	};
	int rules = (int)syscall(SYS_landlock_create_ruleset, &all, sizeof(all), 0);
	const char *failed = NULL;

	if (rules < 0)
		return NULL;
	if (allow_resolver(rules) < 0)
		failed = "landlock_add_rule";
	else if (syscall(SYS_landlock_restrict_self, rules, 0) < 0)
		failed = "landlock_restrict_self";
	close(rules);
	return failed;
}

const char *nsr_net_jail(int fd)
{
	const char *failed;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return "PR_SET_NO_NEW_PRIVS";
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return "PR_SET_DUMPABLE";
	failed = drop_capabilities();
	if (!failed)
		failed = close_others(fd);
	if (!failed)
		failed = limit();
	if (!failed)
		failed = hide_files();
	return failed;
}

/* --- system calls ------------------------------------------------------------------------------ */

#define DATA(field) ((uint32_t)offsetof(struct seccomp_data, field))
/* the low half of an argument: all that a flag word has */
#define ARGUMENT(n) ((uint32_t)offsetof(struct seccomp_data, args[n]))
#define LOAD(offset) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset)
#define JUMP(test, value, yes, no) BPF_JUMP(BPF_JMP | (test) | BPF_K, value, yes, no)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define REFUSE BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define PERMIT(call) JUMP(BPF_JEQ, SYS_##call, 0, 1), ALLOW
/* the call, with none of these bits in that argument */
#define PERMIT_WITHOUT(call, n, bits) \
	JUMP(BPF_JEQ, SYS_##call, 0, 4), LOAD(ARGUMENT(n)), JUMP(BPF_JSET, bits, 0, 1), REFUSE, \
		ALLOW
/* the call, with one of two values of that argument */
#define PERMIT_EITHER(call, n, one, other) \
	JUMP(BPF_JEQ, SYS_##call, 0, 5), LOAD(ARGUMENT(n)), JUMP(BPF_JEQ, one, 2, 0), \
		JUMP(BPF_JEQ, other, 1, 0), REFUSE, ALLOW

enum { TYPE_MASK = 0xf };
#define NOT_READING (O_ACCMODE | O_CREAT | O_TRUNC)

static struct sock_filter calls[] = {
	LOAD(DATA(arch)),
	JUMP(BPF_JEQ, THIS_ARCH, 1, 0),
	REFUSE,
	LOAD(DATA(nr)),
	/* sockets that connect; none that listens, and no raw ones */
	JUMP(BPF_JEQ, SYS_socket, 0, 9),
	LOAD(ARGUMENT(0)),
	JUMP(BPF_JEQ, AF_INET, 1, 0),
	JUMP(BPF_JEQ, AF_INET6, 0, 4),
	LOAD(ARGUMENT(1)),
	BPF_STMT(BPF_ALU | BPF_AND | BPF_K, TYPE_MASK),
	JUMP(BPF_JEQ, SOCK_STREAM, 2, 0),
	JUMP(BPF_JEQ, SOCK_DGRAM, 1, 0),
	REFUSE,
	ALLOW,
	LOAD(DATA(nr)),
	PERMIT(connect), PERMIT(shutdown), PERMIT(sendto), PERMIT(recvfrom), PERMIT(sendmsg),
	PERMIT(recvmsg), PERMIT(setsockopt), PERMIT(getsockopt), PERMIT(getsockname),
	PERMIT(getpeername), PERMIT(ppoll), PERMIT(read), PERMIT(readv), PERMIT(write),
	PERMIT(writev), PERMIT(close), PERMIT(lseek), PERMIT(fstat), PERMIT(newfstatat),
	PERMIT(statx), PERMIT(fcntl),
	/* memory, time, and the library's own */
	PERMIT(brk), PERMIT(munmap), PERMIT(mremap), PERMIT(madvise), PERMIT(futex),
	PERMIT(getrandom), PERMIT(clock_gettime), PERMIT(gettimeofday), PERMIT(rt_sigaction),
	PERMIT(rt_sigprocmask), PERMIT(rt_sigreturn), PERMIT(restart_syscall), PERMIT(getpid),
	PERMIT(gettid), PERMIT(tgkill), PERMIT(exit), PERMIT(exit_group),
#ifdef SYS_poll
	PERMIT(poll), PERMIT(stat),
	PERMIT_WITHOUT(open, 1, NOT_READING),
#endif
	PERMIT_WITHOUT(openat, 2, NOT_READING),
	PERMIT_WITHOUT(mmap, 2, PROT_EXEC),
	PERMIT_WITHOUT(mprotect, 2, PROT_EXEC),
	PERMIT_EITHER(ioctl, 1, FIONBIO, FIONREAD),
	REFUSE,
};

const char *nsr_net_jail_calls(void)
{
	const struct sock_fprog program = {
		.len = sizeof(calls) / sizeof(calls[0]), .filter = calls,
	};

	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ? "PR_SET_SECCOMP" : NULL;
}
