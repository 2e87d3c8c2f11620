/* SPDX-License-Identifier: MIT */
/* payload.c - from a finished sandbox to the payload's exec; child. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>

#include "caps.h"
#include "exec_loop.h"
#include "spawn.h"
#include "sys.h"
#include "terminal.h"

enum { CLOSE_RANGE_CLOEXEC_BIT = 4, SIGSET_BYTES = 8 };

/* parent: our parent's pid, or 0 where it is in another pid namespace. */
int nsr_parent_death(struct nsr_ctx *ctx, int parent)
{
	struct pollfd status = { .fd = ctx->status_w };
	const struct timespec at_once = { 0, 0 };
	long ret;

	if (!(ctx->plan->number[NSR_FLAGS] & NSR_DIE_WITH_PARENT))
		return 0;
	ret = SYS5(SYS_prctl, NSR_PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_PDEATHSIG, ret);
	/*
	 * The parent may have died before that call took effect.  getppid(2) is
	 * 0 in a new pid namespace, but a dead monitor reads no status.
	 */
	if (parent)
		return SYS0(SYS_getppid) == parent ? 0 : (int)SYS1(SYS_exit_group, 1);
	ret = SYS5(SYS_ppoll, &status, 1, &at_once, 0, 0);
	return ret > 0 && status.revents & (POLLERR | POLLHUP) ? (int)SYS1(SYS_exit_group, 1) : 0;
}

int nsr_seccomp_read(struct nsr_ctx *ctx)
{
	int fd = (int)ctx->plan->number[NSR_SECCOMP_FD];

	if (fd < 0)
		return 0;
	while (ctx->bpf_len < sizeof(ctx->cold->bpf)) {
		long n = SYS3(SYS_read, fd, ctx->cold->bpf + ctx->bpf_len,
			      sizeof(ctx->cold->bpf) - ctx->bpf_len);

		if (n == -EINTR)
			continue;
		if (n < 0)
			return nsr_fail(ctx, NSR_STEP_SECCOMP_READ, n);
		if (!n)
			break;
		ctx->bpf_len += (uint64_t)n;
	}
	SYS1(SYS_close, fd);
	if (ctx->bpf_len > NSR_MAX_BPF)
		return nsr_fail(ctx, NSR_STEP_SECCOMP_EINVAL, 0);
	if (ctx->bpf_len % sizeof(struct nsr_sock_filter))
		return nsr_fail(ctx, NSR_STEP_SECCOMP_SIZE, 0);
	/* there is room for it behind those of the plan */
	ctx->fprogs[ctx->n_fprogs++] = (struct nsr_sock_fprog){
		(unsigned short)(ctx->bpf_len / sizeof(struct nsr_sock_filter)),
		(const struct nsr_sock_filter *)(const void *)ctx->cold->bpf,
	};
	return 0;
}

int nsr_seccomp_load(struct nsr_ctx *ctx)
{
	for (uint32_t i = 0; i < ctx->n_fprogs; i++) {
		long ret = SYS5(SYS_prctl, NSR_PR_SET_SECCOMP, NSR_SECCOMP_MODE_FILTER,
				&ctx->fprogs[i], 0, 0);

		if (ret < 0)
			return nsr_fail(ctx, ret == -EINVAL ? NSR_STEP_SECCOMP_EINVAL :
					NSR_STEP_SECCOMP, ret);
	}
	return 0;
}

static int wait_block_fd(struct nsr_ctx *ctx)
{
	int fd = (int)ctx->plan->number[NSR_BLOCK_FD];
	char byte;

	if (fd < 0)
		return 0;
	/* the end of the file counts too, as does an error */
	while (SYS3(SYS_read, fd, &byte, 1) == -EINTR)
		;
	SYS1(SYS_close, fd);
	return 0;
}

/* The directory to start in, and the PWD that goes with it. */
static int enter_cwd(struct nsr_ctx *ctx)
{
	const char *dir = ctx->plan->string[NSR_CHDIR];

	if (dir) {
		long ret = SYS1(SYS_chdir, dir);

		*ctx->pwd_slot = ctx->pwd_chdir;
		return ret < 0 ? nsr_fail_text(ctx, NSR_STEP_CHDIR, ret, dir) : 0;
	}
	if (ctx->old_cwd && SYS1(SYS_chdir, ctx->old_cwd) == 0)
		*ctx->pwd_slot = ctx->pwd_cwd;
	else if (ctx->home && SYS1(SYS_chdir, ctx->home) == 0)
		*ctx->pwd_slot = ctx->pwd_home;
	return 0;
}

int nsr_payload_enter(struct nsr_ctx *ctx)
{
	long ret;

	if (wait_block_fd(ctx) || nsr_seccomp_read(ctx))
		return -1;
	SYS1(SYS_umask, ctx->old_umask);
	if (enter_cwd(ctx))
		return -1;
	/* of a reaper that came first it is the session */
	if (ctx->plan->number[NSR_FLAGS] & NSR_NEW_SESSION && !ctx->reaper_first) {
		ret = SYS0(SYS_setsid);
		if (ret < 0)
			return nsr_fail(ctx, NSR_STEP_SETSID, ret);
	}
	return 0;
}

long nsr_place_fd(int fd, int at)
{
	return fd == at ? SYS3(SYS_fcntl, fd, F_SETFD, 0) : SYS3(SYS_dup3, fd, at, 0);
}

static int move_stdio(struct nsr_ctx *ctx)
{
	for (int i = 0; i < 3; i++) {
		long ret;

		if (ctx->stdio[i] < 0)
			continue;
		/* the others lie above 2, so none is overwritten before its turn */
		ret = nsr_place_fd(ctx->stdio[i], i);
		if (ret < 0)
			return nsr_fail(ctx, NSR_STEP_STDIO, ret);
	}
	return 0;
}

void nsr_default_action(int signal_number)
{
	/* the kernel's struct sigaction: handler (0 is SIG_DFL), flags, restorer, mask */
	const unsigned long action[4] = { 0 };

	SYS4(SYS_rt_sigaction, signal_number, action, 0, SIGSET_BYTES);
}

static void reset_signals(struct nsr_ctx *ctx)
{
	nsr_default_action(SIGCHLD);
	if (ctx->plan->number[NSR_FLAGS] & NSR_DEFAULT_SIGNALS) {
		nsr_default_action(SIGPIPE);
		nsr_default_action(SIGXFSZ);
	}
	SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &ctx->sigmask, 0, SIGSET_BYTES);
}

static int wait_release(struct nsr_ctx *ctx)
{
	uint64_t word;
	long n;

	if (ctx->release_r < 0)
		return 0;
	do
		n = SYS3(SYS_read, ctx->release_r, &word, sizeof(word));
	while (n == -EINTR);
	/* the reaper is gone: nothing may run without it */
	return n == sizeof(word) ? 0 : (int)SYS1(SYS_exit_group, 1);
}

static int close_for_payload(struct nsr_ctx *ctx)
{
	const int64_t *n = ctx->plan->number;
	long ret;

	if (n[NSR_SYNC_FD] != -1 && !(n[NSR_FLAGS] & NSR_AS_PID_1))
		SYS1(SYS_close, n[NSR_SYNC_FD]);
	if (n[NSR_LIFE_FD] != -1)
		SYS1(SYS_close, n[NSR_LIFE_FD]);
	if (!(n[NSR_FLAGS] & NSR_CLOSE_FDS))
		return 0;
	ret = SYS3(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC_BIT);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_CLOSE_FDS, ret) : 0;
}

static int take_terminal(struct nsr_ctx *ctx)
{
	long ret = 0;

	if (ctx->plan->number[NSR_FLAGS] & NSR_TERMINAL)
		ret = nsr_terminal_take();
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_TERMINAL, ret) : 0;
}

static int set_rlimits(struct nsr_ctx *ctx)
{
	for (uint32_t i = 0; i < ctx->plan->n_rlimits; i++) {
		const struct nsr_rlimit *limit = &ctx->plan->rlimits[i];
		long ret = SYS4(SYS_prlimit64, 0, limit->resource, &limit->soft, 0);

		if (ret < 0)
			return nsr_fail_text(ctx, NSR_STEP_RLIMIT, ret,
					     nsr_rlimit_name(limit->resource));
	}
	return 0;
}

/* Wait for the command in a program that has nothing of our memory. */
static int become_stub(struct nsr_ctx *ctx)
{
	const int values[] = { ctx->park_r, ctx->status_w, ctx->bpf_fd };
	enum { N = sizeof(values) / sizeof(values[0]) };
	const char *argv[N + 2] = { "nsrun-stub" };
	char numbers[N][16];
	long ret;

	for (int i = 0; i < N; i++) {
		numbers[i][0] = '\0';
		if (values[i] >= 0) {
			nsr_number_behind(numbers[i], (uint64_t)values[i]);
			SYS3(SYS_fcntl, values[i], F_SETFD, 0);
		}
		argv[i + 1] = numbers[i];
	}
	argv[N + 1] = NULL;
	ret = SYS5(SYS_execveat, ctx->stub_fd, "", argv, ctx->envp, NSR_AT_EMPTY_PATH);
	return nsr_fail(ctx, NSR_STEP_STUB, ret);
}

/* Returns only if the exec failed. */
int nsr_payload_exec(struct nsr_ctx *ctx)
{
	long ret;

	if (close_for_payload(ctx) || move_stdio(ctx) || take_terminal(ctx))
		return -1;
	reset_signals(ctx);
	if (nsr_parent_death(ctx, ctx->reaper_pid))
		return -1;
	if (ctx->facts.raise_ambient)
		nsr_caps_raise_ambient(ctx->facts.caps);
	if (wait_release(ctx))
		return -1;
	if (nsr_landlock_apply(ctx))
		return -1;
	if (ctx->stub_fd >= 0)
		return become_stub(ctx);
	if (set_rlimits(ctx) || nsr_seccomp_load(ctx))
		return -1;
	nsr_send_exec(ctx);
	ret = nsr_exec_programs(ctx->programs, ctx->argv, ctx->sh_argv, ctx->envp);
	return nsr_fail_text(ctx, NSR_STEP_EXEC, ret, ctx->plan->list[NSR_ARGV].v[0]);
}
