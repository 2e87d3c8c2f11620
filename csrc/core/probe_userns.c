/* SPDX-License-Identifier: MIT */
/*
 * probe_userns.c - own namespaces, and by whom they are refused.
 *
 * The sandbox is a real one with everything that most have.  Its command does
 * not exist: the set-up has worked when only the exec fails.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "caps.h"
#include "diag.h"
#include "probe.h"
#include "spawn.h"

#define APPARMOR "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
#define DEBIAN "/proc/sys/kernel/unprivileged_userns_clone"
#define LIMITS "/proc/sys/user/max_"

enum { SECCOMP_FILTER = 2, COVERS = 512 };

void nsr_probe_say(struct nsr_probe *out, enum nsr_verdict verdict, int err, const char *remedy,
		   const char *fmt, ...)
{
	va_list ap;

	out->verdict = (int)verdict;
	out->err = err;
	snprintf(out->remedy, sizeof(out->remedy), "%s", remedy ? remedy : "");
	va_start(ap, fmt);
	vsnprintf(out->evidence, sizeof(out->evidence), fmt, ap);
	va_end(ap);
	/* one line, whatever a file or a program said */
	for (char *c = out->evidence; *c; c++)
		if (*c == '\n')
			*c = ' ';
}

/* The security module's name for this process, such as "unconfined" or "nsrun (enforce)". */
static void own_label(char out[128])
{
	if (nsr_fact_read("/proc/self/attr/apparmor/current", out, 128) <= 0)
		nsr_fact_read("/proc/self/attr/current", out, 128);
}

static int apparmor_restricts(void)
{
	return nsr_fact_number(APPARMOR, 0) == 1;
}

int nsr_apparmor_suspect(void)
{
	uint64_t caps = 0, inheritable;
	char label[128];

	if (!apparmor_restricts())
		return 0;
	if (!nsr_caps_read(&caps, &inheritable) && caps >> NSR_CAP_SYS_ADMIN & 1)
		return 0;
	own_label(label);
	/* under a profile of its own a program has what that grants */
	return !*label || !strncmp(label, "unconfined", 10);
}

static void say_apparmor(struct nsr_probe *out, const struct nsr_diag *diag)
{
	char label[128];

	own_label(label);
	nsr_probe_say(out, NSR_BLOCKED, diag->err, "userns-apparmor",
		      "AppArmor lets the namespaces be made but not be used (%s); "
		      "kernel.apparmor_restrict_unprivileged_userns is 1%s%s%s", diag->text,
		      *label ? ", this program runs under the label \"" : "", label,
		      *label ? "\"" : "");
}

/* Names of the namespace limits that are 0, or "". */
static const char *zero_limit(void)
{
	static const char *const kinds[] = { "user", "mnt", "pid", "net", "ipc", "uts",
					     "cgroup" };
	char path[64];

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		snprintf(path, sizeof(path), LIMITS "%s_namespaces", kinds[i]);
		if (!nsr_fact_number(path, 1))
			return kinds[i];
	}
	return "";
}

static void say_limit(struct nsr_probe *out, int err)
{
	const char *kind = zero_limit();
	char remedy[32];

	snprintf(remedy, sizeof(remedy), "userns-max-%s", kind);
	if (*kind)
		nsr_probe_say(out, NSR_BLOCKED, err, remedy,
			      "the sysctl user.max_%s_namespaces is 0", kind);
	else
		nsr_probe_say(out, NSR_BLOCKED, err, "userns-limit",
			      "too many namespaces: %s; user.max_user_namespaces is %ld here, "
			      "and each namespace around this one has a limit and a nesting "
			      "depth of 32 levels", nsr_strerror(err),
			      nsr_fact_number(LIMITS "user_namespaces", -1));
}

static int filtered(void)
{
	return nsr_fact_status("Seccomp", 0) == SECCOMP_FILTER;
}

static void say_seccomp(struct nsr_probe *out, const struct nsr_diag *diag)
{
	nsr_probe_say(out, NSR_BLOCKED, diag->err, "userns-seccomp",
		      "a seccomp filter from outside, as containers have it, refuses it (%s); "
		      "no sysctl does", diag->text);
}

static void say_clone(struct nsr_probe *out, const struct nsr_diag *diag)
{
	int err = diag->err;

	if (err == ENOSPC || err == EUSERS)
		say_limit(out, err);
	else if (!nsr_fact_number(DEBIAN, 1))
		nsr_probe_say(out, NSR_BLOCKED, err, "userns-sysctl",
			      "the sysctl kernel.unprivileged_userns_clone is 0");
	else if (filtered())
		say_seccomp(out, diag);
	else if (err == EPERM && nsr_fact_chrooted())
		nsr_probe_say(out, NSR_BLOCKED, err, "userns-chroot",
			      "the kernel makes no user namespaces in a chroot");
	else if (apparmor_restricts())
		say_apparmor(out, diag);
	else if (err == EINVAL || err == ENOSYS)
		nsr_probe_say(out, NSR_MISSING, err, "userns-kernel",
			      "this kernel has no user namespaces (clone: %s)",
			      nsr_strerror(err));
	else
		nsr_probe_say(out, NSR_BLOCKED, err, "userns-unknown",
			      "clone: %s, and neither a sysctl nor a seccomp filter says why; a "
			      "security module may (SELinux, a container's AppArmor profile)",
			      nsr_strerror(err));
}

static void say_proc(struct nsr_probe *out, const struct nsr_diag *diag)
{
	char covers[COVERS];

	nsr_fact_proc_covers(covers, sizeof(covers));
	if (*covers)
		nsr_probe_say(out, NSR_BLOCKED, diag->err, "proc-masked",
			      "the container's /proc is masked (%s), so the kernel mounts no "
			      "fresh one", covers);
	else
		nsr_probe_say(out, NSR_BLOCKED, diag->err, "proc-masked",
			      "the kernel mounts no fresh /proc (%s)", diag->text);
}

static int refused(int err)
{
	return err == EPERM || err == EACCES;
}

static void say_set_up(struct nsr_probe *out, const struct nsr_diag *diag)
{
	if (refused(diag->err) && apparmor_restricts())
		say_apparmor(out, diag);
	else if (refused(diag->err) && diag->step == NSR_STEP_PROC)
		say_proc(out, diag);
	else if (filtered() && (refused(diag->err) || diag->err == ENOSYS))
		say_seccomp(out, diag);
	else
		nsr_probe_say(out, NSR_BLOCKED, diag->err, "userns-unknown",
			      "the namespaces are made, but a step in them is refused: %s",
			      diag->text);
}

static void classify(struct nsr_probe *out, const struct nsr_diag *diag)
{
	char text[8];

	if (diag->step == NSR_STEP_EXEC && diag->err == ENOENT)
		nsr_probe_say(out, NSR_OK, 0, NULL,
			      "a sandbox of user, mount, pid, ipc, uts and net namespaces was made");
	else if (diag->step == NSR_STEP_CLONE)
		say_clone(out, diag);
	else if (nsr_fact_read("/proc/self/stat", text, sizeof(text)) < 0)
		nsr_probe_say(out, NSR_MISSING, diag->err, "proc-missing",
			      "/proc is not mounted, and namespaces are set up through it");
	else if (diag->step)
		say_set_up(out, diag);
	else
		nsr_probe_say(out, NSR_UNKNOWN, diag->err, NULL, "the probe could not be made: %s",
			      diag->text);
}

static int fill(struct nsr_plan *plan)
{
	const uint64_t unshare = NSR_CLONE_NEWUSER | NSR_CLONE_NEWPID | NSR_CLONE_NEWIPC |
				 NSR_CLONE_NEWUTS | NSR_CLONE_NEWNET;
	/* not on "/" itself: what most sandboxes need is a root of their own */
	const struct nsr_op ops[] = {
		{ .type = NSR_OP_BIND, .flags = NSR_OP_RDONLY, .fd = -1, .source = "/",
		  .dest = "/host" },
		{ .type = NSR_OP_PROC, .fd = -1, .dest = "/proc" },
		{ .type = NSR_OP_DEV, .fd = -1, .dest = "/dev" },
		{ .type = NSR_OP_TMPFS, .fd = -1, .dest = "/tmp", .perms = 0755 },
	};

	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
		if (nsr_plan_add_op(plan, &ops[i]))
			return -ENOMEM;
	return nsr_plan_add_word(plan, NSR_ARGV, "/nsrun-probe") ||
	       nsr_plan_set_string(plan, NSR_CHDIR, "/") ||
	       /* without rights, as most are: on an initramfs only such have a root of their own */
	       nsr_plan_set_number(plan, NSR_CAPS_CLEAR, -1) ||
	       nsr_plan_set_number(plan, NSR_FLAGS, NSR_UNSHARE_CGROUP_TRY |
				   NSR_DIE_WITH_PARENT | NSR_CAPS_TOUCHED) ||
	       nsr_plan_set_number(plan, NSR_UNSHARE, (int64_t)unshare) ? -ENOMEM : 0;
}

void nsr_probe_namespaces(struct nsr_probe *out)
{
	struct nsr_plan *plan = nsr_plan_new();
	struct nsr_diag diag = { .step = 0 };

	if (!plan || fill(plan)) {
		nsr_probe_say(out, NSR_UNKNOWN, ENOMEM, NULL, "out of memory");
	} else {
		nsr_attempt(plan, &diag);
		classify(out, &diag);
	}
	nsr_plan_free(plan);
}
