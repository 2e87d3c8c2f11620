/* SPDX-License-Identifier: MIT */
/*
 * jail_cases ROLE CALL: enters the jail of that role ("none": no jail) and makes one call.
 * The call's own failure is no failure: what counts is whether the process survives it.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "filter.h"
#include "jail.h"
#include "walls.h"

static int pair[2];
/* a process that does nothing, and ends with this one, which holds the other end of its pipe */
static pid_t other;

static void map(int protection)
{
	mmap(NULL, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void call(const char *name)
{
	struct iovec iov = { .iov_base = &pair, .iov_len = 0 };
	struct epoll_event event;
	char byte = 0;

#define CASE(word, what) \
	if (!strcmp(name, word)) { \
		what; \
		return; \
	}
	CASE("write", write(pair[0], &byte, 1));
	CASE("map", map(PROT_READ | PROT_WRITE));
	CASE("map-code", map(PROT_READ | PROT_EXEC));
	CASE("make-code", mprotect((void *)((uintptr_t)&call & ~4095UL), 4096,
				   PROT_READ | PROT_EXEC));
	CASE("run-guest", ioctl(-1, KVM_RUN, 0));
	CASE("make-guest", ioctl(-1, KVM_CREATE_VM, 0));
	CASE("read-registers", ioctl(-1, KVM_GET_REGS, 0));
	CASE("write-registers", ioctl(-1, KVM_SET_REGS, 0));
	CASE("type-ahead", ioctl(0, TIOCSTI, &byte));
	CASE("unix-pair", socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	CASE("datagram-pair", socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair));
	CASE("inet-socket", socket(AF_INET, SOCK_STREAM, 0));
	CASE("unix-socket", socket(AF_UNIX, SOCK_STREAM, 0));
	CASE("random", getrandom(&byte, 1, 0));
	CASE("wait", epoll_wait(-1, &event, 1, 0));
	CASE("open", openat(AT_FDCWD, "/dev/null", O_RDONLY));
	CASE("write-disk", pwritev(pair[0], &iov, 1, 0));
	CASE("make-directory", mkdirat(-1, "x", 0700));
	CASE("fork", fork());
	CASE("exec", execl("/nonexistent", "x", NULL));
	CASE("mount", mount("x", "/nonexistent", "tmpfs", 0, NULL));
	CASE("trace", ptrace(PTRACE_PEEKDATA, 1, 0, 0));
	CASE("kick", syscall(SYS_tgkill, getpid(), getpid(), SIGUSR1));
	CASE("kick-other", syscall(SYS_tgkill, other, other, SIGUSR1));
	CASE("kick-any", syscall(SYS_tkill, getpid(), SIGUSR1));
	CASE("shut", syscall(SYS_tgkill, getpid(), getpid(), SIGUSR2));
	CASE("confine-itself", vmm_walls_enter(-1));
	CASE("lock", fcntl(pair[0], F_OFD_GETLK, NULL));
	CASE("signals-for-others", fcntl(pair[0], F_SETOWN, other));
	CASE("kill-thread", syscall(SYS_tgkill, getpid(), 1, SIGWINCH));
	CASE("kill", kill(getpid(), SIGWINCH));
	CASE("set-user", setuid(getuid()));
	CASE("other-abi", syscall(0x40000000 + SYS_getpid));
	fprintf(stderr, "there is no case %s\n", name);
	exit(2);
}

static pid_t make_other(const int life[2])
{
	pid_t pid = fork();
	char byte;

	if (pid)
		return pid;
	close(life[1]);
	_exit((int)read(life[0], &byte, 1));
}

int main(int argc, char **argv)
{
	static const char *const roles[VMM_ROLES] = {
		[VMM_ROLE_CPU] = "cpu", [VMM_ROLE_DEVICES] = "devices",
		[VMM_ROLE_DEVICES_FS] = "devices-fs", [VMM_ROLE_DISK] = "disk",
		[VMM_ROLE_FS] = "fs",
	};
	bool known = argc == 3 && !strcmp(argv[1], "none");
	int ret = 0, life[2];

	signal(SIGUSR1, SIG_IGN);
	signal(SIGUSR2, SIG_IGN);
	if (argc != 3 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || pipe(life))
		return 2;
	other = make_other(life);
	if (other < 0)
		return 2;
	vmm_jail_begin(strcmp(argv[1], "none"), (int[]){ pair[0], pair[1], life[1] }, 3);
	for (int i = 0; i < VMM_ROLES; i++) {
		if (strcmp(argv[1], roles[i]))
			continue;
		known = true;
		ret = vmm_filter_enter((enum vmm_role)i);
	}
	if (!known || ret)
		return 2;
	call(argv[2]);
	_exit(0);
}
