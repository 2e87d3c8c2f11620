/* SPDX-License-Identifier: MIT */
/*
 * sys.h - system calls without libc.
 *
 * Code between clone and exec may share its memory, thread pointer included,
 * with a foreign process: libc's wrappers would write that process's errno.
 * These return -errno and touch nothing else.
 */
#ifndef NSR_SYS_H
#define NSR_SYS_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>

#if defined(__x86_64__)
static inline long nsr_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
static inline long nsr_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory", "cc");
	return x0;
}
#else
#error "nsrun has system calls for x86-64 and arm64"
#endif

#define NSR_A(x) ((long)(uintptr_t)(x))
#define SYS0(nr) nsr_syscall(nr, 0, 0, 0, 0, 0, 0)
#define SYS1(nr, a) nsr_syscall(nr, NSR_A(a), 0, 0, 0, 0, 0)
#define SYS2(nr, a, b) nsr_syscall(nr, NSR_A(a), NSR_A(b), 0, 0, 0, 0)
#define SYS3(nr, a, b, c) nsr_syscall(nr, NSR_A(a), NSR_A(b), NSR_A(c), 0, 0, 0)
#define SYS4(nr, a, b, c, d) nsr_syscall(nr, NSR_A(a), NSR_A(b), NSR_A(c), NSR_A(d), 0, 0)
#define SYS5(nr, a, b, c, d, e) \
	nsr_syscall(nr, NSR_A(a), NSR_A(b), NSR_A(c), NSR_A(d), NSR_A(e), 0)

/* Calls younger than the headers that we may be built with. */
#ifndef SYS_open_tree_attr
#define SYS_open_tree_attr 467
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

#endif
