/* SPDX-License-Identifier: MIT */
/*
 * owner.h - whoever wanted the sandbox, at the other end of a pipe or a socket.
 *
 * The end of that is the owner's end.  A byte is the number of a signal for
 * everybody inside: only pid 1 can reach them all without naming a pid that may
 * be another process by then.
 */
#ifndef NSR_OWNER_H
#define NSR_OWNER_H

#include <fcntl.h>
#include <signal.h>

#include "spawn.h"
#include "sys.h"

enum nsr_owner_flag {
	NSR_OWNER_ENDS = 1,         /* its end is the sandbox's */
	NSR_OWNER_SIGNALS = 2,      /* a byte is a signal for everybody inside */
};

/*
 * A signal handler has no other way to know.  Set before there is a handler, and all zero
 * till then: the program that has no other data is started without a page of it to copy.
 */
static struct {
	int fd;                     /* -1: nobody */
	int flags;
	int status_fd;              /* where the end of the time is told; -1: nowhere */
} nsr_owner;

/* What the owner sends: a signal, or a new deadline. */
union nsr_order {
	uint8_t signal_number;      /* one byte long */
	uint64_t milliseconds;
};

/* linux/signal.h has it; the C library hides it. */
struct nsr_sigaction {
	void (*handler)(int, const siginfo_t *, void *);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};
#define NSR_SA_RESTORER 0x04000000
#define NSR_SA_SIGINFO 4

#if defined(__x86_64__)
__attribute__((naked, used)) static void nsr_restore(void)
{
	__asm__ volatile("movl $15, %eax\n\tsyscall");        /* rt_sigreturn */
}
#else
/* arm64's kernel brings its own */
static void nsr_restore(void)
{
}
#endif

static long nsr_owner_deadline(uint64_t milliseconds)
{
	/* the kernel's struct __kernel_old_itimerval: interval, value */
	const long value[4] = { 0, 0, (long)(milliseconds / 1000),
				(long)(milliseconds % 1000 * 1000) };

	return milliseconds ? SYS3(SYS_setitimer, 0, value, 0) : 0;
}

static void nsr_owner_obey(const union nsr_order *order, long len)
{
	/* only as pid 1 of a namespace: elsewhere -1 means the whole system */
	if (len == 1 && nsr_owner.flags & NSR_OWNER_SIGNALS && SYS0(SYS_getpid) == 1)
		SYS2(SYS_kill, -1, order->signal_number);
	if (len == sizeof(*order))
		nsr_owner_deadline(order->milliseconds);
}

static void nsr_owner_heard(int signal_number, const siginfo_t *info, void *context)
{
	const struct nsr_record late = { .type = NSR_RECORD_TIMEOUT, .op = -1 };
	union nsr_order order;
	long n = -EAGAIN;

	(void)context;
	/* anybody inside may send that signal; only the kernel's is the timer's */
	if (signal_number == SIGALRM && info->si_code <= 0)
		return;
	if (signal_number == SIGALRM) {
		if (nsr_owner.status_fd >= 0)
			SYS3(SYS_write, nsr_owner.status_fd, &late, sizeof(late));
		SYS1(SYS_exit_group, NSR_EXIT_KILLED);
	}
	do {
		if (nsr_owner.fd >= 0)
			n = SYS3(SYS_read, nsr_owner.fd, &order, sizeof(order));
		if (n > 0)
			nsr_owner_obey(&order, n);
	/* reset: it left without having read all that we said */
	} while (n > 0 || n == -EINTR || n == -ECONNRESET);
	if (!n && nsr_owner.flags & NSR_OWNER_ENDS)
		SYS1(SYS_exit_group, 1);
}

static inline long nsr_owner_handle(int signal_number)
{
	const struct nsr_sigaction action = { .handler = nsr_owner_heard,
					      .flags = NSR_SA_RESTORER | NSR_SA_SIGINFO,
					      .restorer = nsr_restore };

	return SYS4(SYS_rt_sigaction, signal_number, &action, 0, sizeof(action.mask));
}

/*
 * Signals rather than poll(2): once the payload runs, only wait4(2) is called
 * here, which any filter that lets a reaper live has to allow.
 */
static inline long nsr_owner_watch(int fd, int flags, int status_fd, uint64_t milliseconds)
{
	const uint64_t none = 0;
	long ret = 0;

	nsr_owner.fd = fd;
	nsr_owner.flags = flags;
	nsr_owner.status_fd = status_fd;
	ret = nsr_owner_handle(SIGIO);
	if (!ret)
		ret = nsr_owner_handle(SIGALRM);
	if (!ret)
		ret = SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof(none));
	if (!ret && fd >= 0)
		ret = SYS3(SYS_fcntl, fd, F_SETOWN, SYS0(SYS_getpid));
	if (!ret && fd >= 0)
		ret = SYS3(SYS_fcntl, fd, F_SETFL, O_ASYNC | O_NONBLOCK);
	if (!ret)
		ret = nsr_owner_deadline(milliseconds);
	/* what was said, or gone, before we listened */
	if (!ret)
		nsr_owner_heard(SIGIO, NULL, NULL);
	return ret;
}

static inline int nsr_owner_wanted(const struct nsr_plan *plan)
{
	return plan->number[NSR_LIFE_FD] != -1 || plan->number[NSR_TIMEOUT_MS];
}

static inline int nsr_owner_flags(const struct nsr_plan *plan)
{
	return (plan->number[NSR_FLAGS] & NSR_DIE_WITH_PARENT ? NSR_OWNER_ENDS : 0) |
	       (plan->number[NSR_UNSHARE] & NSR_CLONE_NEWPID ? NSR_OWNER_SIGNALS : 0);
}

#endif
