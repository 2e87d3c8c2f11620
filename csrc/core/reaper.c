/* SPDX-License-Identifier: MIT */
/*
 * reaper.c - pid 1 of the sandbox; child.
 *
 * The payload is cloned first, since it needs the fds and capabilities that a
 * reaper must not keep, but it waits until the reaper has given them up.  Where
 * the memory is a foreign program's, the reaper is a program of its own and
 * lets the payload go by a pipe; else it is this copy of nsrun and lets it go
 * by a word in their common memory, for which no call is needed that a seccomp
 * filter could deny.
 *
 * The program of its own needs nothing of the finished sandbox.  So where it can,
 * pid 1 execs it at once, and the payload's process makes the sandbox meanwhile.
 */
#include <fcntl.h>
#include <signal.h>

#include "caps.h"
#include "owner.h"
#include "reaper_loop.h"
#include "spawn.h"
#include "sys.h"

static int lock_files(struct nsr_ctx *ctx)
{
	const struct nsr_words *files = &ctx->plan->list[NSR_LOCK_FILES];
	struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET };

	for (uint32_t i = 0; i < files->n; i++) {
		/* kept open for good, also by the reaper that is exec'd */
		long fd = SYS3(SYS_openat, NSR_AT_FDCWD, files->v[i], O_RDONLY);
		long ret;

		if (fd < 0)
			return nsr_fail_text(ctx, NSR_STEP_LOCK_OPEN, fd, files->v[i]);
		ret = SYS3(SYS_fcntl, fd, F_SETLK, &lock);
		if (ret < 0)
			return nsr_fail_text(ctx, NSR_STEP_LOCK, ret, files->v[i]);
	}
	return 0;
}

static void wait_for_reaper(struct nsr_ctx *ctx)
{
	while (!__atomic_load_n(&ctx->released, __ATOMIC_ACQUIRE)) {
		if (SYS0(SYS_getppid) != ctx->reaper_pid)
			SYS1(SYS_exit_group, 1);
		SYS0(SYS_sched_yield);
	}
}

static int payload_main(void *arg)
{
	struct nsr_ctx *ctx = arg;

	if (!ctx->share_vm)
		wait_for_reaper(ctx);
	else if (ctx->release_w != ctx->release_r)
		SYS1(SYS_close, ctx->release_w);
	if (!ctx->reaper_first || !nsr_set_up(ctx))
		nsr_payload_exec(ctx);
	nsr_send_failure(ctx);
	SYS1(SYS_exit_group, 1);
	return 1;
}

/* Only what pid 1 needs stays open, beside stdin, stdout and stderr. */
static int close_fds(struct nsr_ctx *ctx)
{
	const int keep[] = { ctx->status_w, (int)ctx->plan->number[NSR_SYNC_FD], ctx->release_w,
			     ctx->reaper_fd, ctx->share_vm ? ctx->bpf_fd : -1,
			     (int)ctx->plan->number[NSR_LIFE_FD] };

	return nsr_close_but(keep, sizeof(keep) / sizeof(keep[0]));
}

static int give_up_rights(struct nsr_ctx *ctx)
{
	const int64_t *n = ctx->plan->number;
	/* where the payload has none they are given up already */
	int ret = ctx->facts.caps || ctx->facts.keep_caps ? nsr_caps_write(0) : 0;

	/* a filter around all of this may forbid capset(2) to root, as bwrap knows */
	if (ret < 0 && !(ret == -EPERM && !ctx->facts.real_uid))
		return nsr_fail(ctx, NSR_STEP_CAPSET, ret);
	if (nsr_parent_death(ctx, 0))
		return -1;
	if (nsr_owner_wanted(ctx->plan))
		ret = (int)nsr_owner_watch((int)n[NSR_LIFE_FD], nsr_owner_flags(ctx->plan),
					   ctx->status_w, (uint64_t)n[NSR_TIMEOUT_MS]);
	else
		ret = 0;
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_REAPER, ret) : nsr_seccomp_load(ctx);
}

/* The reaper's own program; it replaces this process, memory and all.  -errno. */
static long exec_reaper(struct nsr_ctx *ctx, int payload)
{
	const int values[] = { payload, ctx->status_w, ctx->release_w, ctx->bpf_fd,
			       nsr_owner_flags(ctx->plan),
			       (int)ctx->plan->number[NSR_TIMEOUT_MS] };
	enum { FIRST_FD = 1, LAST_FD = 3 };
	enum { N = sizeof(values) / sizeof(values[0]) };
	const char *const envp[1] = { NULL };
	const char *argv[N + 2] = { "nsrun-reaper" };
	char numbers[N][16];

	for (int i = 0; i < N; i++) {
		numbers[i][0] = '\0';
		if (values[i] >= 0)
			nsr_number_behind(numbers[i], (uint64_t)values[i]);
		if (i >= FIRST_FD && i <= LAST_FD && values[i] >= 0)
			SYS3(SYS_fcntl, values[i], F_SETFD, 0);
		argv[i + 1] = numbers[i];
	}
	argv[N + 1] = NULL;
	return SYS5(SYS_execveat, ctx->reaper_fd, "", argv, envp, NSR_AT_EMPTY_PATH);
}

static long clone_payload(struct nsr_ctx *ctx)
{
	uint32_t *word = &ctx->clear_tid[1];
	const unsigned long flags = NSR_CLONE_VM | NSR_CLONE_PARENT_SETTID |
				    NSR_CLONE_CHILD_CLEARTID | SIGCHLD;

	/* set by the kernel once there is a child: we may be killed before or within the call */
	return nsr_clone(payload_main,
			 ctx->cold->payload_stack + sizeof(ctx->cold->payload_stack), flags, ctx,
			 word, word);
}

/*
 * Without a pid namespace the monitor waits for the whole sandbox, as bwrap's
 * does, and takes the status from our exit.
 */
static int reports_end(const struct nsr_ctx *ctx)
{
	return ctx->facts.unshare & NSR_CLONE_NEWPID ||
	       ctx->plan->number[NSR_REPORT_FD] != -1;
}

/* Ends with the sandbox, or with -1 if it could not be finished. */
int nsr_reaper_become(struct nsr_ctx *ctx)
{
	int payload, ret;

	ctx->reaper_pid = (int)SYS0(SYS_getpid);
	/* where the caller ignores it, nobody would learn how the payload ended */
	nsr_default_action(SIGCHLD);
	payload = (int)clone_payload(ctx);
	if (payload < 0)
		return nsr_fail(ctx, NSR_STEP_FORK, payload);
	ret = close_fds(ctx);
	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_CLOSE_FDS, ret);
	if (lock_files(ctx))
		return -1;
	if (ctx->share_vm)
		return nsr_fail(ctx, NSR_STEP_REAPER, exec_reaper(ctx, payload));
	if (give_up_rights(ctx))
		return -1;
	__atomic_store_n(&ctx->released, 1, __ATOMIC_RELEASE);
	SYS1(SYS_exit_group, nsr_reap(payload, reports_end(ctx) ? ctx->status_w : -1));
	return 0;
}

/* Not in ctx->failure: the payload's process may have something to say at the same time. */
static _Noreturn void fail_first(const struct nsr_ctx *ctx, enum nsr_step step, long err)
{
	const struct nsr_record record = { .type = NSR_RECORD_FAIL, .step = step,
					   .err = (int32_t)-err, .op = -1 };

	SYS3(SYS_write, ctx->status_w, &record, sizeof(record));
	for (;;)
		SYS1(SYS_exit_group, 1);
}

/* What the set-up does to a process that becomes the reaper after it. */
static void prepare_first(struct nsr_ctx *ctx)
{
	long ret = SYS5(SYS_prctl, NSR_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);

	if (ret < 0)
		fail_first(ctx, NSR_STEP_NO_NEW_PRIVS, ret);
	/* no directory of the host; the pivot takes "/" along: pivot_root(2) */
	ret = SYS1(SYS_chdir, "/");
	if (ret < 0)
		fail_first(ctx, NSR_STEP_REAPER, ret);
	if (ctx->plan->number[NSR_FLAGS] & NSR_NEW_SESSION)
		ret = SYS0(SYS_setsid);
	if (ret < 0)
		fail_first(ctx, NSR_STEP_SETSID, ret);
}

/* Pid 1, from its clone to its exec: the payload's process makes the sandbox. */
_Noreturn void nsr_reaper_first(struct nsr_ctx *ctx)
{
	long ret;
	int payload;

	ctx->reaper_pid = (int)SYS0(SYS_getpid);
	nsr_default_action(SIGCHLD);
	prepare_first(ctx);
	payload = (int)clone_payload(ctx);
	if (payload < 0)
		fail_first(ctx, NSR_STEP_FORK, payload);
	ret = close_fds(ctx);
	if (ret < 0)
		fail_first(ctx, NSR_STEP_CLOSE_FDS, ret);
	if (ctx->facts.unshare & NSR_CLONE_NEWUSER)
		ret = nsr_caps_no_root();
	if (ret < 0 && ret != -EPERM)
		fail_first(ctx, NSR_STEP_BOUNDING, ret);
	fail_first(ctx, NSR_STEP_REAPER, exec_reaper(ctx, payload));
}
