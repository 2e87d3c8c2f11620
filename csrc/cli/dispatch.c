/* SPDX-License-Identifier: MIT */
/*
 * dispatch.c - run a plan by the backend that is to run it.
 *
 * The attempt in our own namespaces is the run itself: nothing is probed first,
 * but where AppArmor is known to take rights away after the clone, when a plan
 * could no longer be handed on.
 */
#include "dispatch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "bwrap.h"
#include "diag.h"
#include "python.h"
#include "select.h"

struct dispatch {
	struct nsr_plan *plan;
	struct nsr_ctx *ctx;
	struct nsr_diag *diag;
	struct nsr_request request;
	int as_bwrap;
	nsr_warn_fn say;
	void *say_arg;
};

/* Static: large, and touched only when something is refused. */
static struct nsr_probes probes NSR_COLD;
static struct nsr_selection selection NSR_COLD;

/* The kernel made no namespaces at all; nothing has happened yet. */
static int refused(const struct nsr_diag *diag)
{
	static const int errors[] = { EPERM, EACCES, EINVAL, ENOSYS, ENOSPC, EUSERS };

	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (diag->step == NSR_STEP_CLONE && diag->err == errors[i])
			return 1;
	return 0;
}

/* The namespaces were made, and then what is done in every one of them was refused. */
static int refused_later(const struct nsr_diag *diag)
{
	static const int steps[] = { NSR_STEP_UID_MAP, NSR_STEP_SETGROUPS, NSR_STEP_GID_MAP,
				     NSR_STEP_SLAVE, NSR_STEP_SCRATCH, NSR_STEP_ROOT,
				     NSR_STEP_PROC, NSR_STEP_TMPFS };

	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
		if (diag->step == steps[i])
			return diag->err == EPERM || diag->err == EACCES;
	return 0;
}

/* The Python package has made its choice, and listens for what bwrap doesn't say. */
static int chosen_outside(const struct nsr_plan *plan)
{
	return plan->number[NSR_REPORT_FD] != -1;
}

static int may_fall_back(const struct dispatch *d)
{
	if (d->request.wish == NSR_WISH_NAMESPACES || getenv(NSR_FALLBACK_MARK))
		return 0;
	/* we are in that namespace by now, and can't leave it */
	if (d->plan->number[NSR_USERNS_FD] != -1 || chosen_outside(d->plan))
		return 0;
	return d->request.word || !d->as_bwrap || nsr_conf_bwrap_fallback();
}

static int run_bwrap(const struct dispatch *d, int tell)
{
	char line[NSR_DIAG_TEXT];

	if (tell && !d->plan->choice.quiet) {
		snprintf(line, sizeof(line), "own namespaces are refused (%s); run by %s",
			 nsr_probe(&probes, NSR_PROBE_NAMESPACES)->evidence, probes.bwrap);
		d->say(d->say_arg, line);
	}
	nsr_bwrap_exec(d->plan, probes.bwrap, d->diag);
	return -1;
}

/* A bwrap that makes most sandboxes may yet be refused what this one asks for. */
static int bwrap_fits(const struct dispatch *d)
{
	const uint64_t special = NSR_CLONE_NEWUSER | NSR_CLONE_NEWCGROUP;
	uint64_t unshare = (uint64_t)d->plan->number[NSR_UNSHARE];

	if (!(unshare & special))
		return 1;
	nsr_probe_bwrap_for(&probes.probe[NSR_PROBE_BWRAP], probes.bwrap, unshare);
	return probes.probe[NSR_PROBE_BWRAP].verdict == NSR_OK;
}

/* An open memory file with the plan's bytes, or -errno. */
static int plan_file(const struct dispatch *d)
{
	int64_t size = nsr_plan_write(d->plan, NULL, 0);
	uint8_t *bytes = malloc((size_t)size);
	int fd = bytes ? memfd_create("nsrun-plan", 0) : -1;
	int ret;

	/* where the caller left stdio closed, Python is to find it closed */
	if (fd >= 0 && fd <= STDERR_FILENO) {
		int moved = fcntl(fd, F_DUPFD, STDERR_FILENO + 1);

		close(fd);
		fd = moved;
	}
	ret = fd < 0 ? -errno : fd;
	if (fd >= 0) {
		nsr_plan_write(d->plan, bytes, (uint64_t)size);
		if (write(fd, bytes, (size_t)size) != size || lseek(fd, 0, SEEK_SET))
			ret = -EIO;
	}
	free(bytes);
	return ret;
}

/* Python's part boots the machine, in this very process: what dies with us dies with it. */
static int run_kvm(const struct dispatch *d, int tell)
{
	char number[16];
	char bwrap[] = "bwrap", nsrun[] = "nsrun";
	char *words[] = { number, d->as_bwrap ? bwrap : nsrun, NULL };
	pid_t parent = getppid();
	sigset_t sigchld;
	int fd;

	if (tell && !d->plan->choice.quiet)
		d->say(d->say_arg, "namespaces are refused, see 'nsrun doctor'; run in a microVM");
	fd = plan_file(d);
	if (fd < 0)
		return nsr_diag_errno(d->diag, -fd, "Can't write the plan for the microVM");
	if (d->plan->number[NSR_FLAGS] & NSR_DIE_WITH_PARENT &&
	    (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent))
		return nsr_diag_errno(d->diag, errno, "Can't die with the parent");
	/* our attempt may have blocked it */
	sigemptyset(&sigchld);
	sigaddset(&sigchld, SIGCHLD);
	sigprocmask(SIG_UNBLOCK, &sigchld, NULL);
	snprintf(number, sizeof(number), "%d", fd);
	return nsr_python("cowork_nsrun.guest.start", "--backend kvm", words);
}

static void add(struct nsr_diag *diag, const char *text)
{
	size_t len = strlen(diag->text);

	snprintf(diag->text + len, sizeof(diag->text) - len, "; %s", text);
}

static void add_remedy(struct nsr_diag *diag)
{
	const char *text = nsr_remedy_text(selection.remedy);

	if (text)
		add(diag, text);
	add(diag, "see 'nsrun doctor'");
}

/* The error stays the first one, with what else there is not. */
static int nothing_else(const struct dispatch *d)
{
	if (!*d->diag->text) {
		nsr_diag_set(d->diag, "%s", selection.reason);
		add_remedy(d->diag);
	} else if (!d->as_bwrap) {
		add(d->diag, nsr_probe(&probes, NSR_PROBE_BWRAP)->evidence);
		add_remedy(d->diag);
	}
	return -1;
}

/* Our own namespaces are out of the question: what is at least as strong? */
static int fall_back(const struct dispatch *d)
{
	nsr_select(&probes, &d->request, &selection);
	if (selection.backend == NSR_BACKEND_BWRAP && bwrap_fits(d))
		return run_bwrap(d, 1);
	if (selection.backend == NSR_BACKEND_KVM)
		return run_kvm(d, 1);
	if (selection.backend == NSR_BACKEND_NAMESPACES) {
		/* this plan is refused what others are not, such as one more namespace */
		if (!d->as_bwrap)
			add(d->diag, "other sandboxes can be made here, see 'nsrun doctor'");
		return -1;
	}
	return nothing_else(d);
}

/*
 * By now the sandbox has read from the caller's fds, and the monitor has closed
 * them: no other backend can be given the same plan.  It can be asked for.
 */
static int name_another(const struct dispatch *d)
{
	char text[NSR_PROBE_PATH + 64];

	if (d->as_bwrap)
		return -1;
	nsr_select(&probes, &d->request, &selection);
	if (selection.backend == NSR_BACKEND_NAMESPACES)
		return -1;
	if (selection.backend == NSR_BACKEND_KVM)
		snprintf(text, sizeof(text), "with '--backend kvm' a microVM would run it");
	else if (selection.backend == NSR_BACKEND_BWRAP)
		snprintf(text, sizeof(text), "with '--backend bwrap' %s would run it",
			 probes.bwrap);
	else
		return nothing_else(d);
	add(d->diag, text);
	return -1;
}

static int run_namespaces(const struct dispatch *d)
{
	int status;

	if (nsr_apparmor_suspect() && may_fall_back(d) &&
	    nsr_probe(&probes, NSR_PROBE_NAMESPACES)->verdict != NSR_OK) {
		d->diag->text[0] = '\0';
		return fall_back(d);
	}
	d->ctx->may_try_others = !d->as_bwrap;
	status = nsr_run_command(d->plan, d->ctx, d->diag);
	if (status < 0 && refused(d->diag) && may_fall_back(d))
		return fall_back(d);
	if (status < 0 && refused_later(d->diag) && may_fall_back(d))
		return name_another(d);
	return status;
}

/* Never silently: who sees no word of it has namespaces. */
static int run_host(const struct dispatch *d)
{
	char text[256];

	nsr_host_describe(d->plan, text, sizeof(text));
	if (d->plan->number[NSR_REPORT_FD] == -1 && !d->plan->choice.quiet)
		d->say(d->say_arg, text);
	return nsr_run_command(d->plan, d->ctx, d->diag);
}

/* Nothing that anybody asked for by name is tried before it was found to work. */
static int run_selected(const struct dispatch *d)
{
	nsr_select(&probes, &d->request, &selection);
	if (selection.backend == NSR_BACKEND_BWRAP)
		return run_bwrap(d, 0);
	if (selection.backend == NSR_BACKEND_KVM)
		return run_kvm(d, 0);
	if (selection.backend == NSR_BACKEND_HOST) {
		/* the variable, whose contract has the host as its last resort */
		d->plan->number[NSR_FLAGS] |= NSR_ON_HOST;
		if (nsr_probe(&probes, NSR_PROBE_LANDLOCK)->verdict != NSR_OK)
			d->plan->number[NSR_FLAGS] |= NSR_UNCONFINED;
		return run_host(d);
	}
	nsr_diag_set(d->diag, "%s", selection.reason);
	add_remedy(d->diag);
	return -1;
}

int nsr_dispatch(struct nsr_plan *plan, struct nsr_ctx *ctx, int as_bwrap, nsr_warn_fn say,
		 void *say_arg, struct nsr_diag *diag)
{
	struct dispatch d = { .plan = plan, .ctx = ctx, .diag = diag, .as_bwrap = as_bwrap,
			      .say = say, .say_arg = say_arg };
	const char *variable = as_bwrap || chosen_outside(plan) ? NULL :
			       getenv(NSR_BACKEND_VARIABLE);

	if (nsr_request_read(&d.request, plan->choice.backend, variable, diag))
		return -1;
	if (plan->number[NSR_FLAGS] & NSR_ON_HOST)
		return run_host(&d);
	switch (d.request.wish) {
	case NSR_WISH_AUTO:
	case NSR_WISH_ANY_NAMESPACES:
	case NSR_WISH_NAMESPACES:
		return run_namespaces(&d);
	default:
		return run_selected(&d);
	}
}
