/* SPDX-License-Identifier: MIT */
/*
 * probe.h - what this machine can do, found out by doing it.
 *
 * Each probe cleans up after itself and never waits for a process that it did
 * not start.
 */
#ifndef NSR_PROBE_H
#define NSR_PROBE_H

#include "plan.h"

enum nsr_probe_id {
	NSR_PROBE_NAMESPACES,
	NSR_PROBE_BWRAP,
	NSR_PROBE_MICROVM,
	NSR_PROBE_KVM,
	NSR_PROBE_KVM_GUEST,
	NSR_PROBE_GUEST_KERNEL,
	NSR_PROBE_HOST,
	NSR_PROBE_LANDLOCK,
	NSR_PROBE_SECCOMP,
	NSR_PROBE_NO_NEW_PRIVS,
	NSR_PROBE_MONITOR,
	NSR_PROBE_END,
};

/* Apart from what every run touches; see main.c. */
#define NSR_COLD __attribute__((section(".cold_bss,\"aw\",@nobits#")))

enum { NSR_PROBE_DEADLINE_MS = 20000, NSR_PROBE_PATH = 4096 };

/* Every probe is made at most once: when its answer is first asked for. */
struct nsr_probes {
	struct nsr_probe probe[NSR_PROBE_END];
	char bwrap[NSR_PROBE_PATH]; /* the installed program; empty: none */
};

const char *nsr_probe_name(enum nsr_probe_id id);
const char *nsr_verdict_name(int verdict);
const struct nsr_probe *nsr_probe(struct nsr_probes *probes, enum nsr_probe_id id);

/* The answer of one probe; remedy may be NULL. */
void nsr_probe_say(struct nsr_probe *out, enum nsr_verdict verdict, int err, const char *remedy,
		   const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* One file a kind of probe. */
void nsr_probe_bwrap(struct nsr_probe *out, char path[NSR_PROBE_PATH]);
/* The same of a bwrap that was found, for a sandbox with these new namespaces. */
void nsr_probe_bwrap_for(struct nsr_probe *out, const char *path, uint64_t unshare);
void nsr_probe_kvm(struct nsr_probe *out);
/* A small guest, where KVM itself was found. */
void nsr_probe_kvm_guest(struct nsr_probe *out, const struct nsr_probe *kvm);
void nsr_probe_guest_kernel(struct nsr_probe *out);
void nsr_probe_landlock(struct nsr_probe *out);
/* What keeps a microVM's monitor in; it has no Landlock if that is not there. */
void nsr_probe_monitor(struct nsr_probe *out, const struct nsr_probe *landlock);
void nsr_probe_seccomp(struct nsr_probe *out);
void nsr_probe_no_new_privs(struct nsr_probe *out);

/* AppArmor may let our clone through and then take its use away: ask before the run. */
int nsr_apparmor_suspect(void);

/*
 * Set a plan up in a child, as far as its exec, and take it down.  diag says at
 * which step it ended.  How, depends on whose process this is: attempt_program.c,
 * attempt_library.c.
 */
void nsr_attempt(struct nsr_plan *plan, struct nsr_diag *diag);

/* facts.c: small files of the kernel's */
/* The first bytes of a file, NUL-ended, without its last newline; -errno. */
long nsr_fact_read(const char *path, char *out, size_t size);
/* A file's number; absent or unreadable: the other value. */
long nsr_fact_number(const char *path, long otherwise);
/* Value of a "Name:\tvalue" line of /proc/self/status. */
long nsr_fact_status(const char *name, long otherwise);
/* Mount points at and below /proc, as "a, b"; "" if only /proc itself. */
void nsr_fact_proc_covers(char *out, size_t size);
/* "/" is no mount of this namespace: the caller was put there by chroot(2). */
int nsr_fact_chrooted(void);

/* wait.c: a child of our own to its end, or killed at the deadline.  wait(2) status, or -1. */
int nsr_wait_bounded(int pid, int pidfd, int timeout_ms);
/* fork(2) with a pidfd; the child dies with its parent. */
int nsr_fork(int *pidfd);

#endif
