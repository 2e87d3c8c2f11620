/* SPDX-License-Identifier: MIT */
/* ops.c - the filesystem operations of a plan, one after the other. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "spawn.h"
#include "sys.h"

/* Whether target is the new root itself, by whatever name it was found. */
static int is_root(const struct nsr_ctx *ctx, const struct nsr_op *op, int target)
{
	if (!ctx->root_id)
		return op->dest[strspn(op->dest, "/")] == '\0';
	return nsr_mount_root_id(target) == ctx->root_id;
}

/* Something was mounted on target: if that was the root, it is the new one. */
int nsr_mounted(struct nsr_ctx *ctx, const struct nsr_op *op, int target)
{
	int root = !ctx->made && is_root(ctx, op, target);

	SYS1(SYS_close, target);
	return root ? nsr_new_root(ctx) : 0;
}

/* A plan that names an fd twice finds it closed the second time, as with bwrap. */
static int check_source_fd(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	struct nsr_statx st;
	char number[16] = "";
	long ret;

	if (!(op->flags & NSR_OP_SOURCE_FD))
		return 0;
	ret = SYS5(SYS_statx, op->fd, "", NSR_AT_EMPTY_PATH, NSR_STATX_TYPE, &st);
	if (ret >= 0)
		return (int)SYS1(SYS_close, op->fd);
	nsr_number_behind(number, (uint64_t)op->fd);
	return nsr_fail_text(ctx, NSR_STEP_SOURCE_FD, ret, number);
}

static int op_bind(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	const struct nsr_source *source = &ctx->sources[ctx->op];
	int target;

	if (!source->type)
		return 0;
	target = source->type == S_IFDIR ? nsr_dest_dir(ctx, op, NSR_STEP_BIND) :
					   nsr_dest_file(ctx, op);
	if (target < 0 || nsr_mount_bind_op(ctx, op, source, target) ||
	    check_source_fd(ctx, op))
		return -1;
	return nsr_mounted(ctx, op, target);
}

/* A new filesystem on a directory. */
static int op_mount(struct nsr_ctx *ctx, const struct nsr_op *op, const char *type,
		    unsigned long flags, const char *options, enum nsr_step step)
{
	int target = nsr_dest_dir(ctx, op, step);
	int ret;

	if (target < 0)
		return -1;
	ret = nsr_mount_new(type, target, ".", flags, options);
	return ret < 0 ? nsr_fail(ctx, step, ret) : nsr_mounted(ctx, op, target);
}

static int op_tmpfs(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	char options[NSR_TMPFS_OPTIONS];

	nsr_tmpfs_options(options, op);
	return op_mount(ctx, op, "tmpfs", NSR_MS_NOSUID | NSR_MS_NODEV, options,
			NSR_STEP_TMPFS);
}

static int overlay_failed(struct nsr_ctx *ctx, long err)
{
	/* the kernel's word for layers that lie within each other */
	return nsr_fail_text(ctx, err == -ELOOP ? NSR_STEP_OVERLAY_LOOP : NSR_STEP_OVERLAY, err,
			     ctx->overlay_options[ctx->op]);
}

/* upper and work of a --tmp-overlay: directories that nobody can name */
static int make_layers(struct nsr_ctx *ctx)
{
	char names[2][40] = { NSR_UPPER_NAME, NSR_WORK_NAME };
	long ret;

	for (int i = 0; i < 2; i++) {
		nsr_number_behind(names[i], (uint64_t)ctx->op);
		ret = SYS3(SYS_mkdirat, ctx->scratch_fd, names[i], 0755);
		if (ret < 0)
			return nsr_fail(ctx, NSR_STEP_OVERLAY_DIR, ret);
	}
	return 0;
}

/* Layers named relative to the scratch directory need it as the cwd. */
static int op_overlay(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	int target = nsr_dest_dir(ctx, op, NSR_STEP_OVERLAY);
	char path[NSR_FD_PATH];
	long ret;

	if (target < 0)
		return -1;
	if (op->type == NSR_OP_TMP_OVERLAY && make_layers(ctx))
		return -1;
	nsr_fd_path(path, target);
	ret = nsr_mount_new("overlay", op->type == NSR_OP_TMP_OVERLAY ? ctx->scratch_fd : target,
			    path, 0, ctx->overlay_options[ctx->op]);
	return ret < 0 ? overlay_failed(ctx, ret) : nsr_mounted(ctx, op, target);
}

/* bwrap makes the parents of what it then doesn't find; so do we. */
static int remount_absent(struct nsr_ctx *ctx, const struct nsr_op *op, int err)
{
	const char *last;
	int dir = nsr_dest_parent(ctx, op->dest, nsr_parents_mode(op), &last);

	/* the process ends with this: nothing needs to be closed */
	return dir < 0 ? nsr_fail_parents(ctx, dir, NSR_STEP_REMOUNT_ABSENT) :
			 nsr_fail(ctx, NSR_STEP_REMOUNT_ABSENT, err);
}

static int op_remount(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	struct nsr_mount_attr attr = {
		.attr_set = NSR_MOUNT_ATTR_RDONLY | NSR_MOUNT_ATTR_NOSUID | NSR_MOUNT_ATTR_NODEV,
	};
	struct nsr_statx st;
	int target = nsr_dest_open(ctx, op->dest, 0);
	long ret;

	if (target < 0)
		return remount_absent(ctx, op, target);
	ret = SYS5(SYS_statx, target, "", NSR_AT_EMPTY_PATH, NSR_STATX_TYPE, &st);
	if (ret >= 0 && !(st.attributes & NSR_STATX_ATTR_MOUNT_ROOT) && st.attributes_mask &
	    NSR_STATX_ATTR_MOUNT_ROOT)
		return nsr_fail(ctx, NSR_STEP_REMOUNT_NONE, 0);
	if (ctx->legacy_mounts)
		ret = nsr_legacy_remount(target, NSR_OP_RDONLY);
	else
		ret = SYS5(SYS_mount_setattr, target, "", NSR_AT_EMPTY_PATH, &attr, sizeof(attr));
	SYS1(SYS_close, target);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_REMOUNT, ret) : 0;
}

/* What is there is mounted on itself, so that no name above it leads elsewhere. */
static int op_guard(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	int target = nsr_dest_open(ctx, op->dest, 0);
	int ret;

	if (target < 0)
		return nsr_fail(ctx, NSR_STEP_GUARD, target);
	ctx->made = 0;
	ret = nsr_mount_bind(ctx, target, "", target, "", op->flags);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_GUARD, ret) : nsr_mounted(ctx, op, target);
}

static int op_chmod(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	int fd = nsr_dest_open(ctx, op->dest, 0);
	char path[NSR_FD_PATH];
	long ret;

	if (fd < 0)
		return nsr_fail(ctx, NSR_STEP_CHMOD, fd);
	nsr_fd_path(path, fd);
	ret = SYS3(SYS_fchmodat, NSR_AT_FDCWD, path, op->perms);
	SYS1(SYS_close, fd);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_CHMOD, ret) : 0;
}

/* There is something already: fine if it is the same link. */
static int symlink_exists(struct nsr_ctx *ctx, const struct nsr_op *op, int dir,
			  const char *last)
{
	char *there = ctx->cold->path[1];
	long n = SYS4(SYS_readlinkat, dir, last, there, NSR_PATH_MAX - 1);

	if (n == -EINVAL)
		return nsr_fail(ctx, NSR_STEP_SYMLINK_NONE, 0);
	if (n < 0)
		return nsr_fail(ctx, NSR_STEP_SYMLINK, n);
	there[n] = '\0';
	if (!strcmp(there, op->source))
		return 0;
	return nsr_fail_text(ctx, NSR_STEP_SYMLINK_OTHER, 0, there);
}

static int op_symlink(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	const char *last;
	int dir = nsr_dest_parent(ctx, op->dest, 0700, &last);
	int ret;

	if (dir < 0)
		return nsr_fail_parents(ctx, dir, NSR_STEP_SYMLINK);
	ret = (int)SYS3(SYS_symlinkat, op->source, dir, last);
	if (last[strcspn(last, "/")])   /* "x/" names a directory, which bwrap makes */
		ret = nsr_fail(ctx, NSR_STEP_SYMLINK_NONE, 0);
	else if (ret == -EEXIST)
		ret = symlink_exists(ctx, op, dir, last);
	else if (ret < 0)
		ret = nsr_fail(ctx, NSR_STEP_SYMLINK, ret);
	nsr_dest_close(ctx, dir);
	return ret;
}

static int op_hostname(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	long ret = SYS2(SYS_sethostname, op->source, strlen(op->source));

	return ret < 0 ? nsr_fail(ctx, NSR_STEP_HOSTNAME, ret) : 0;
}

static int run_op(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	switch (op->type) {
	case NSR_OP_BIND:
		return op_bind(ctx, op);
	case NSR_OP_REMOUNT_RO:
		return op_remount(ctx, op);
	case NSR_OP_PROC:
		return nsr_op_proc(ctx, op);
	case NSR_OP_DEV:
		return nsr_op_dev(ctx, op);
	case NSR_OP_TMPFS:
		return op_tmpfs(ctx, op);
	case NSR_OP_MQUEUE:
		return op_mount(ctx, op, "mqueue", 0, NULL, NSR_STEP_MQUEUE);
	case NSR_OP_DIR:
		return nsr_dest_make_dir(ctx, op);
	case NSR_OP_FILE:
		return nsr_op_file(ctx, op);
	case NSR_OP_BIND_DATA:
		return nsr_op_bind_data(ctx, op);
	case NSR_OP_SYMLINK:
		return op_symlink(ctx, op);
	case NSR_OP_CHMOD:
		return op_chmod(ctx, op);
	case NSR_OP_HOSTNAME:
		return op_hostname(ctx, op);
	case NSR_OP_GUARD:
		return op_guard(ctx, op);
	default:
		return op_overlay(ctx, op);
	}
}

int nsr_ops_run(struct nsr_ctx *ctx)
{
	const struct nsr_plan *plan = ctx->plan;

	for (uint32_t i = ctx->facts.root_op ? 1 : 0; i < plan->n_ops; i++) {
		ctx->op = (int)i;
		if (run_op(ctx, &plan->ops[i]))
			return -1;
	}
	ctx->op = -1;
	return 0;
}
