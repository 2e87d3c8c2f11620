/* SPDX-License-Identifier: MIT */
/* probe.c - the probes by number, and those of a few lines. */
#include "probe.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "diag.h"
#include "sys.h"
#include "uapi.h"

/* linux/landlock.h, linux/seccomp.h */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#endif
#define LANDLOCK_CREATE_RULESET_VERSION 1
#define SECCOMP_GET_ACTION_AVAIL 2
#define SECCOMP_RET_KILL_PROCESS 0x80000000U

/* ABI 1 forbids every rename and link between directories. */
enum { LANDLOCK_ABI_WANTED = 2 };

const char *nsr_probe_name(enum nsr_probe_id id)
{
	static const char *const names[NSR_PROBE_END] = {
		"namespaces", "bwrap", "microvm", "kvm", "kvm-guest", "guest-kernel", "host",
		"landlock", "seccomp", "no-new-privs", "monitor-walls",
	};

	return names[id];
}

const char *nsr_verdict_name(int verdict)
{
	static const char *const names[] = { "untried", "ok", "blocked", "missing", "unknown" };

	return names[verdict];
}

void nsr_probe_landlock(struct nsr_probe *out)
{
	long abi = SYS3(SYS_landlock_create_ruleset, 0, 0, LANDLOCK_CREATE_RULESET_VERSION);

	if (abi == -ENOSYS)
		nsr_probe_say(out, NSR_MISSING, ENOSYS, "landlock-kernel",
			      "this kernel has no Landlock");
	else if (abi == -EOPNOTSUPP)
		nsr_probe_say(out, NSR_MISSING, EOPNOTSUPP, "landlock-boot",
			      "Landlock is built into the kernel, but not enabled at boot");
	else if (abi < 0)
		nsr_probe_say(out, NSR_BLOCKED, (int)-abi, "landlock-kernel",
			      "landlock_create_ruleset: %s", nsr_strerror((int)-abi));
	else if (abi < LANDLOCK_ABI_WANTED)
		nsr_probe_say(out, NSR_MISSING, 0, "landlock-kernel",
			      "Landlock ABI %ld; ABI %d is the first that permits renames", abi,
			      LANDLOCK_ABI_WANTED);
	else
		nsr_probe_say(out, NSR_OK, 0, NULL, "Landlock ABI %ld", abi);
}

void nsr_probe_seccomp(struct nsr_probe *out)
{
	uint32_t action = SECCOMP_RET_KILL_PROCESS;
	long ret = SYS3(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);
	long loaded = nsr_fact_status("Seccomp_filters", 0);

	if (ret < 0)
		nsr_probe_say(out, ret == -ENOSYS ? NSR_MISSING : NSR_BLOCKED, (int)-ret,
			      "seccomp-kernel", "seccomp(2): %s", nsr_strerror((int)-ret));
	else if (loaded > 0)
		nsr_probe_say(out, NSR_OK, 0, NULL, "filters can be loaded; %ld from outside "
			      "are at work already", loaded);
	else
		nsr_probe_say(out, NSR_OK, 0, NULL, "filters can be loaded");
}

void nsr_probe_no_new_privs(struct nsr_probe *out)
{
	int set = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);

	if (set < 0)
		nsr_probe_say(out, NSR_MISSING, errno, "seccomp-kernel",
			      "prctl(PR_GET_NO_NEW_PRIVS): %s", nsr_strerror(errno));
	else
		nsr_probe_say(out, NSR_OK, 0, NULL, set ? "set already, by whoever started this" :
			      "can be set");
}

/* The programs that a microVM is made of lie beside this one. */
static void probe_microvm(struct nsr_probe *out)
{
	static const char *const programs[] = { "nsrun-vmm", "nsrun-agent", "python3" };
	char path[NSR_PROBE_PATH];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 16);
	char *name;

	path[n > 0 ? n : 0] = '\0';
	name = strrchr(path, '/');
	for (size_t i = 0; i < sizeof(programs) / sizeof(programs[0]); i++) {
		if (name)
			strcpy(name + 1, programs[i]);
		if (name && !access(path, X_OK))
			continue;
		nsr_probe_say(out, NSR_MISSING, errno, "not-built",
			      "%s is not there: the microVM is no part of this installation",
			      name ? path : programs[i]);
		return;
	}
	nsr_probe_say(out, NSR_OK, 0, NULL, "its programs are beside nsrun");
}

const struct nsr_probe *nsr_probe(struct nsr_probes *probes, enum nsr_probe_id id)
{
	struct nsr_probe *out = &probes->probe[id];

	if (out->verdict != NSR_UNTRIED)
		return out;
	switch (id) {
	case NSR_PROBE_NAMESPACES:
		nsr_probe_namespaces(out);
		break;
	case NSR_PROBE_BWRAP:
		nsr_probe_bwrap(out, probes->bwrap);
		break;
	case NSR_PROBE_MICROVM:
		probe_microvm(out);
		break;
	case NSR_PROBE_KVM:
		nsr_probe_kvm(out);
		break;
	case NSR_PROBE_KVM_GUEST:
		nsr_probe_kvm_guest(out, nsr_probe(probes, NSR_PROBE_KVM));
		break;
	case NSR_PROBE_GUEST_KERNEL:
		nsr_probe_guest_kernel(out);
		break;
	case NSR_PROBE_HOST:
		nsr_probe_say(out, NSR_OK, 0, NULL, "the host backend is built in");
		break;
	case NSR_PROBE_LANDLOCK:
		nsr_probe_landlock(out);
		break;
	case NSR_PROBE_SECCOMP:
		nsr_probe_seccomp(out);
		break;
	case NSR_PROBE_NO_NEW_PRIVS:
		nsr_probe_no_new_privs(out);
		break;
	case NSR_PROBE_MONITOR:
	case NSR_PROBE_END:
		nsr_probe_monitor(out, nsr_probe(probes, NSR_PROBE_LANDLOCK));
		break;
	}
	return out;
}
