/* SPDX-License-Identifier: MIT */
/*
 * reaper.c - pid 1 of a sandbox that was started in process.
 *
 *   nsrun-reaper PAYLOAD STATUS RELEASE LIFE SECCOMP
 *
 * A pid, then fds; an empty word stands for "none".  The process that execs
 * this shared its memory with the program that wanted the sandbox: from here
 * on there is nothing of that program in it.  No libc: it is embedded in the
 * library and started for each sandbox.
 */
#include <fcntl.h>
#include <signal.h>

#include "reaper_loop.h"

enum { SIGSET_BYTES = 8, MAX_PROGRAMS = 64 };

/* linux/signal.h has it; the C library hides it. */
struct kernel_sigaction {
	void (*handler)(int);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};
#define KERNEL_SA_RESTORER 0x04000000

static uint8_t bpf[NSR_MAX_BPF];

static _Noreturn void leave(int status)
{
	for (;;)
		SYS1(SYS_exit_group, status);
}

static int number(const char *word)
{
	int n = 0;

	if (!*word)
		return -1;
	for (; *word; word++)
		n = n * 10 + (*word - '0');
	return n;
}

static _Noreturn void fail(int status_fd, enum nsr_step step, long err)
{
	const struct nsr_record record = { .type = NSR_RECORD_FAIL, .step = step,
					   .err = (int32_t)-err, .op = -1 };

	SYS3(SYS_write, status_fd, &record, sizeof(record));
	leave(1);
}

/* The owner never writes: whatever the life pipe reports is its end. */
static void owner_gone(int signal_number)
{
	(void)signal_number;
	leave(1);
}

static int closed(int fd)
{
	char byte;

	return SYS3(SYS_read, fd, &byte, 1) == 0;
}

/*
 * SIGIO rather than poll(2): once the payload runs, only wait4(2) is called
 * here, which any filter that lets a reaper live has to allow.
 */
static void watch_owner(int life, int status_fd)
{
	const struct kernel_sigaction action = { .handler = owner_gone,
						 .flags = KERNEL_SA_RESTORER };
	const uint64_t none = 0;
	long ret = SYS4(SYS_rt_sigaction, SIGIO, &action, 0, SIGSET_BYTES);

	if (!ret)
		ret = SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, SIGSET_BYTES);
	if (!ret && life >= 0)
		ret = SYS3(SYS_fcntl, life, F_SETOWN, SYS0(SYS_getpid));
	if (!ret && life >= 0)
		ret = SYS3(SYS_fcntl, life, F_SETFL, O_ASYNC | O_NONBLOCK);
	if (ret < 0)
		fail(status_fd, NSR_STEP_REAPER, ret);
	/* gone before we listened? */
	if (life >= 0 && closed(life))
		leave(1);
}

static long read_whole(int fd, void *to, uint64_t len)
{
	uint8_t *at = to;
	uint64_t left = len;

	while (left) {
		long n = SYS3(SYS_read, fd, at, left);

		if (n == -EINTR)
			continue;
		if (n < 0)
			return n;
		if (!n)
			break;
		at += n;
		left -= (uint64_t)n;
	}
	return (long)(len - left);
}

/* The payload loads the same filters; without them here it could borrow our rights. */
static void load_filters(int fd, int status_fd)
{
	uint32_t len;

	while (fd >= 0 && read_whole(fd, &len, sizeof(len)) == sizeof(len)) {
		struct nsr_sock_fprog program = {
			.len = (unsigned short)(len / sizeof(struct nsr_sock_filter)),
			.filter = (const struct nsr_sock_filter *)(const void *)bpf,
		};
		long ret;

		if (len > sizeof(bpf) || read_whole(fd, bpf, len) != (long)len)
			fail(status_fd, NSR_STEP_SECCOMP_READ, -EIO);
		ret = SYS5(SYS_prctl, NSR_PR_SET_SECCOMP, NSR_SECCOMP_MODE_FILTER, &program, 0, 0);
		if (ret < 0)
			fail(status_fd, NSR_STEP_SECCOMP, ret);
	}
}

static void drop_caps(int status_fd)
{
	struct nsr_cap_header header = { NSR_CAP_VERSION_3, 0 };
	static const struct nsr_cap_data none[2];
	long ret = SYS2(SYS_capset, &header, none);

	if (ret < 0 && ret != -EPERM)
		fail(status_fd, NSR_STEP_CAPSET, ret);
}

static _Noreturn __attribute__((used)) void reaper_main(const long *stack)
{
	const char *const *argv = (const char *const *)(const void *)(stack + 1);
	int payload, status_fd, release, life, filters;

	/* nobody inside may look into this process, from its first instruction on */
	if (stack[0] != 6 || SYS5(SYS_prctl, NSR_PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		leave(1);
	payload = number(argv[1]);
	status_fd = number(argv[2]);
	release = number(argv[3]);
	life = number(argv[4]);
	filters = number(argv[5]);
	drop_caps(status_fd);
	watch_owner(life, status_fd);
	load_filters(filters, status_fd);
	if (SYS3(SYS_write, release, "", 1) != 1)
		fail(status_fd, NSR_STEP_REAPER, -EPIPE);
	SYS1(SYS_close, release);
	leave(nsr_reap(payload, status_fd));
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n"
	"\tcall reaper_main\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x29,#0\n\tmov x0,sp\n\tbl reaper_main\n");
#endif
