/* SPDX-License-Identifier: MIT */
/* child.c - the first process of a sandbox, from its clone to its exec; child. */
#include <fcntl.h>

#include "caps.h"
#include "spawn.h"
#include "sys.h"

static int wait_go(struct nsr_ctx *ctx)
{
	char byte;
	long n;

	if (ctx->go_r < 0)
		return 0;
	SYS1(SYS_close, ctx->go_w);
	do
		n = SYS3(SYS_read, ctx->go_r, &byte, 1);
	while (n == -EINTR);
	SYS1(SYS_close, ctx->go_r);
	if (n < 0)
		return nsr_fail(ctx, NSR_STEP_GO, n);
	/* the monitor failed or died: there is nobody to run for, or to tell */
	return n == 1 ? 0 : (int)SYS1(SYS_exit_group, 1);
}

/* The caller's own ends, which would keep its pipes open. */
static void close_monitor_fds(struct nsr_ctx *ctx)
{
	const int64_t *n = ctx->plan->number;

	SYS1(SYS_close, ctx->status_r);
	if (ctx->life_w >= 0)
		SYS1(SYS_close, ctx->life_w);
	if (ctx->park_w >= 0)
		SYS1(SYS_close, ctx->park_w);
	if (ctx->exec_r >= 0)
		SYS1(SYS_close, ctx->exec_r);
	if (n[NSR_REPORT_FD] != -1)
		SYS1(SYS_close, n[NSR_REPORT_FD]);
	if (n[NSR_INFO_FD] != -1)
		SYS1(SYS_close, n[NSR_INFO_FD]);
	if (n[NSR_JSON_STATUS_FD] != -1)
		SYS1(SYS_close, n[NSR_JSON_STATUS_FD]);
}

static int switch_id(struct nsr_ctx *ctx, long call, uint32_t from, uint32_t to,
		     enum nsr_step step)
{
	char number[16] = "";
	long ret = from == to ? 0 : SYS1(call, to);

	if (ret >= 0)
		return 0;
	nsr_number_behind(number, to);
	return nsr_fail_text(ctx, step, ret, number);
}

/* In a joined user namespace other ids may be ours to take. */
static int switch_ids(struct nsr_ctx *ctx)
{
	const struct nsr_facts *f = &ctx->facts;

	return switch_id(ctx, SYS_setuid, f->real_uid, f->uid, NSR_STEP_SETUID) ||
	       switch_id(ctx, SYS_setgid, f->real_gid, f->gid, NSR_STEP_SETGID) ? -1 : 0;
}

static int enter_namespaces(struct nsr_ctx *ctx)
{
	const int64_t *n = ctx->plan->number;

	/* not before the clone: another program may yet have to run this plan */
	long ret = SYS5(SYS_prctl, NSR_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);

	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_NO_NEW_PRIVS, ret);
	if (n[NSR_PIDNS_FD] != -1 && nsr_pidns_enter(ctx))
		return -1;
	if (wait_go(ctx) || nsr_cgroup_enter(ctx))
		return -1;
	if (n[NSR_USERNS_FD] != -1 && switch_ids(ctx))
		return -1;
	if (ctx->facts.unshare & NSR_CLONE_NEWNET && nsr_loopback_up(ctx))
		return -1;
	if (n[NSR_LISTEN_FD] != -1 && nsr_listen_inside(ctx))
		return -1;
	/* with --userns-block-fd the caller has written the maps */
	if (ctx->facts.unshare & NSR_CLONE_NEWUSER && n[NSR_USERNS_BLOCK_FD] == -1)
		return nsr_userns_maps(ctx);
	return 0;
}

/* Will the sandbox have a /proc of its own in which the second id maps can be written? */
static int comes_with_proc(const struct nsr_ctx *ctx)
{
	const struct nsr_plan *plan = ctx->plan;
	int found = 0;

	if (!(ctx->facts.unshare & NSR_CLONE_NEWPID) ||
	    plan->number[NSR_FLAGS] & NSR_DISABLE_USERNS)
		return 0;
	for (uint32_t i = 0; i < plan->n_ops; i++) {
		if (plan->ops[i].type == NSR_OP_REMOUNT_RO)
			return 0;
		found |= plan->ops[i].type == NSR_OP_PROC;
	}
	return found;
}

/*
 * The host's /proc, since the new root may have none, or show it read-only.
 * Its copy is dear: to give that up, the kernel waits for an RCU grace period.
 */
static int hold_proc(struct nsr_ctx *ctx)
{
	if (!ctx->facts.second_userns || (ctx->facts.in_place && comes_with_proc(ctx)))
		return 0;
	if (ctx->facts.in_place)
		ctx->proc_fd = nsr_mount_clone(NSR_AT_FDCWD, "/proc", NSR_OP_DEVICES);
	else
		ctx->proc_fd = (int)SYS3(SYS_openat, NSR_AT_FDCWD, "/proc", O_PATH | O_CLOEXEC);
	return ctx->proc_fd < 0 ? nsr_fail(ctx, NSR_STEP_OPEN_PROC, ctx->proc_fd) : 0;
}

static int build_mounts(struct nsr_ctx *ctx)
{
	return nsr_legacy_begin(ctx) || hold_proc(ctx) || nsr_mounts_begin(ctx) ||
	       nsr_ops_run(ctx) || nsr_mounts_pivot(ctx) ? -1 : 0;
}

/* No mounts from here on: give up what was needed for them. */
static int drop_rights(struct nsr_ctx *ctx)
{
	const struct nsr_facts *f = &ctx->facts;
	const int64_t *n = ctx->plan->number;
	long ret;

	if (n[NSR_USERNS2_FD] != -1) {
		ret = SYS2(SYS_setns, n[NSR_USERNS2_FD], NSR_CLONE_NEWUSER);
		if (ret < 0)
			return nsr_fail(ctx, NSR_STEP_USERNS2, ret);
	}
	if (f->second_userns && nsr_userns_second(ctx))
		return -1;
	if (n[NSR_FLAGS] & (NSR_DISABLE_USERNS | NSR_ASSERT_USERNS_DISABLED) &&
	    nsr_userns_assert(ctx))
		return -1;
	/* a new user namespace came with a full bounding set */
	if (f->unshare & NSR_CLONE_NEWUSER || n[NSR_USERNS_FD] != -1) {
		ret = nsr_caps_bound(f->caps);
		if (ret < 0)
			return nsr_fail(ctx, NSR_STEP_BOUNDING, ret);
	}
	if (f->keep_caps)
		return 0;
	ret = nsr_caps_write(f->caps);
	/* root may ask for more than it has: bwrap lets that pass */
	if (ret < 0 && !(ret == -EPERM && !f->real_uid))
		return nsr_fail(ctx, NSR_STEP_CAPSET, ret);
	return 0;
}

/* Host fds that no process of the sandbox may hold when the payload starts. */
static void close_build_fds(struct nsr_ctx *ctx)
{
	const int fds[] = { ctx->root_fd, ctx->scratch_fd, ctx->proc_fd };

	for (unsigned int i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			SYS1(SYS_close, fds[i]);
}

int nsr_set_up(struct nsr_ctx *ctx)
{
	close_monitor_fds(ctx);
	if (enter_namespaces(ctx))
		return -1;
	ctx->old_umask = (int)SYS1(SYS_umask, 0);
	if (build_mounts(ctx) || drop_rights(ctx))
		return -1;
	close_build_fds(ctx);
	return nsr_payload_enter(ctx);
}

int nsr_child_main(void *arg)
{
	struct nsr_ctx *ctx = arg;

	if (ctx->reaper_first)
		nsr_reaper_first(ctx);
	if (!nsr_set_up(ctx)) {
		if (ctx->facts.with_reaper)
			nsr_reaper_become(ctx);
		else
			nsr_payload_exec(ctx);
	}
	nsr_send_failure(ctx);
	SYS1(SYS_exit_group, 1);
	return 1;
}
