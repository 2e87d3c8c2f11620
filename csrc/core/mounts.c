/* SPDX-License-Identifier: MIT */
/*
 * mounts.c - the new root, binds into it, and the old one's end.
 *
 * The process keeps the old root as its "/" until the pivot, so sources are
 * opened by the caller's own paths, while everything new is reached through
 * fds.  The new root is stacked on "/": opening "/.." gives the topmost mount
 * there.  The copy of the mount tree is a slave at least, so nothing of this
 * reaches the host.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include "spawn.h"
#include "sys.h"

static char *put_number(char *at, uint64_t n, unsigned int base)
{
	char digits[24];
	int i = 0;

	do {
		digits[i++] = (char)('0' + n % base);
		n /= base;
	} while (n);
	while (i)
		*at++ = digits[--i];
	return at;
}

void nsr_number_behind(char *text, uint64_t n)
{
	*put_number(text + strlen(text), n, 10) = '\0';
}

void nsr_fd_path(char out[NSR_FD_PATH], int fd)
{
	static const char prefix[] = "/proc/self/fd/";

	memcpy(out, prefix, sizeof(prefix) - 1);
	*put_number(out + sizeof(prefix) - 1, (uint64_t)fd, 10) = '\0';
}

void nsr_tmpfs_options(char out[NSR_TMPFS_OPTIONS], const struct nsr_op *op)
{
	static const char mode[] = "mode=0", size[] = ",size=";
	char *at = out;

	memcpy(at, mode, sizeof(mode) - 1);
	at = put_number(at + sizeof(mode) - 1, op->perms, 8);
	if (op->size) {
		memcpy(at, size, sizeof(size) - 1);
		at = put_number(at + sizeof(size) - 1, op->size, 10);
	}
	*at = '\0';
}

/*
 * mount(2) takes paths only.  By way of the cwd an fd has a short one, and a
 * kernel that is busy with it makes no entries below /proc.
 */
int nsr_mount_new(const char *type, int dir, const char *name, unsigned long flags,
		  const char *options)
{
	long ret = SYS1(SYS_fchdir, dir);

	return ret < 0 ? (int)ret : (int)SYS5(SYS_mount, type, name, type, flags, options);
}

/* The id of the mount that fd is the root of; 0: it is not the root of one. */
uint64_t nsr_mount_root_id(int fd)
{
	struct nsr_statx st;
	long ret = SYS5(SYS_statx, fd, "", NSR_AT_EMPTY_PATH, NSR_STATX_MNT_ID, &st);

	return ret >= 0 && st.attributes & NSR_STATX_ATTR_MOUNT_ROOT ? st.mnt_id : 0;
}

int nsr_open_root(struct nsr_ctx *ctx)
{
	long fd = SYS3(SYS_openat, NSR_AT_FDCWD, "/..", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return nsr_fail(ctx, NSR_STEP_ROOT_OPEN, fd);
	if (ctx->root_fd >= 0)
		SYS1(SYS_close, ctx->root_fd);
	ctx->root_fd = (int)fd;
	ctx->root_id = nsr_mount_root_id((int)fd);
	return 0;
}

/* A tmpfs that ends up below the new root, where nobody can see it. */
static int mount_hidden(struct nsr_ctx *ctx)
{
	long ret = SYS5(SYS_mount, "tmpfs", "/", "tmpfs", NSR_MS_NODEV | NSR_MS_NOSUID, 0);

	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_SCRATCH, ret);
	ctx->stacked++;
	return 0;
}

/* A recursive bind of "/" must not take the new root along: below this it won't. */
static int mount_shield(struct nsr_ctx *ctx)
{
	long ret;

	if (mount_hidden(ctx))
		return -1;
	ret = SYS5(SYS_mount, 0, "/..", 0, NSR_MS_UNBINDABLE, 0);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_SCRATCH, ret) : 0;
}

/* Files that are bound, and layers of overlays, need a place to lie in. */
static int mount_scratch(struct nsr_ctx *ctx)
{
	if (mount_hidden(ctx) || nsr_open_root(ctx))
		return -1;
	ctx->scratch_fd = ctx->root_fd;
	ctx->root_fd = -1;
	return 0;
}

static uint64_t bind_attr(uint32_t flags)
{
	uint64_t attr = NSR_MOUNT_ATTR_NOSUID;

	if (!(flags & NSR_OP_DEVICES))
		attr |= NSR_MOUNT_ATTR_NODEV;
	if (flags & NSR_OP_RDONLY)
		attr |= NSR_MOUNT_ATTR_RDONLY;
	return attr;
}

/* A detached copy of the mounts at source, already with the bind's flags. */
int nsr_mount_clone(int dir, const char *source, uint32_t flags)
{
	const unsigned int how = NSR_OPEN_TREE_CLONE | NSR_OPEN_TREE_CLOEXEC |
				 NSR_AT_RECURSIVE | (*source ? 0 : NSR_AT_EMPTY_PATH);
	struct nsr_mount_attr attr = { .attr_set = bind_attr(flags) };
	long tree, ret;

	tree = SYS5(SYS_open_tree_attr, dir, source, how, &attr, sizeof(attr));
	if (tree != -ENOSYS && tree != -EPERM)
		return (int)tree;
	/* before Linux 6.15 in two steps */
	tree = SYS3(SYS_open_tree, dir, source, how);
	if (tree < 0)
		return (int)tree;
	ret = SYS5(SYS_mount_setattr, tree, "", NSR_AT_EMPTY_PATH | NSR_AT_RECURSIVE, &attr,
		   sizeof(attr));
	if (ret >= 0)
		return (int)tree;
	SYS1(SYS_close, tree);
	return (int)ret;
}

/* Whether something stacked on "/" is where it belongs already. */
static int is_place(const struct nsr_ctx *ctx, int target_dir, const char *target)
{
	return target_dir < 0 || (!*target && ctx->root_id &&
				  nsr_mount_root_id(target_dir) == ctx->root_id);
}

static int move_by_path(int fd, int target_dir, const char *target)
{
	int to = *target ? (int)SYS3(SYS_openat, target_dir, target, O_PATH | O_CLOEXEC) :
			   target_dir;
	char from[NSR_FD_PATH], path[NSR_FD_PATH];
	int ret;

	if (to < 0)
		return to;
	nsr_fd_path(from, fd);
	nsr_fd_path(path, to);
	ret = (int)SYS5(SYS_mount, from, path, 0, NSR_MS_MOVE, 0);
	if (to != target_dir)
		SYS1(SYS_close, to);
	return ret;
}

/* target "": on target_dir itself. */
int nsr_mount_attach(int tree, int target_dir, const char *target)
{
	const unsigned int how = NSR_MOVE_MOUNT_F_EMPTY_PATH |
				 (*target ? 0 : NSR_MOVE_MOUNT_T_EMPTY_PATH);

	return (int)SYS5(SYS_move_mount, tree, "", target_dir, target, how);
}

/*
 * Bring a mount to its place: a detached one, or one that was built on top of
 * "/", where nobody else could reach it and no name had to be looked up twice.
 * target_dir -1 means "/" itself.
 */
static int place(struct nsr_ctx *ctx, int fd, int stacked, int target_dir, const char *target)
{
	if (stacked && is_place(ctx, target_dir, target))
		return 0;
	if (ctx->legacy_mounts)
		return move_by_path(fd, target_dir, target);
	return target_dir < 0 ? nsr_mount_attach(fd, NSR_AT_FDCWD, "/..") :
				nsr_mount_attach(fd, target_dir, target);
}

static int open_topmost(void)
{
	return (int)SYS3(SYS_openat, NSR_AT_FDCWD, "/..", O_PATH | O_CLOEXEC);
}

static int place_or_close(struct nsr_ctx *ctx, int tree, int stacked, int target_dir,
			  const char *target)
{
	int ret = tree < 0 ? tree : place(ctx, tree, stacked, target_dir, target);

	if (tree < 0 || ret >= 0)
		return tree;
	SYS1(SYS_close, tree);
	return ret;
}

/* Mount on target and keep hold of the mount's root. */
int nsr_mount_held(struct nsr_ctx *ctx, const char *type, int target, unsigned long flags,
		   const char *options)
{
	int ret = (int)SYS5(SYS_mount, type, "/", type, flags, options);

	return ret < 0 ? ret : place_or_close(ctx, open_topmost(), 1, target, "");
}

static int legacy_tree(struct nsr_ctx *ctx, int dir, const char *source, uint32_t flags)
{
	int from, ret;

	if (!*source)
		return nsr_legacy_bind(ctx, dir, flags);
	from = (int)SYS3(SYS_openat, dir, source, O_PATH | O_CLOEXEC);
	if (from < 0)
		return from;
	ret = nsr_legacy_bind(ctx, from, flags);
	SYS1(SYS_close, from);
	return ret;
}

/* A copy of the mounts at source that nobody can reach yet. */
static int bind_tree(struct nsr_ctx *ctx, int dir, const char *source, uint32_t flags)
{
	return ctx->legacy_mounts ? legacy_tree(ctx, dir, source, flags) :
				    nsr_mount_clone(dir, source, flags);
}

/* Bind a path of the host's and keep hold of the mount's root. */
int nsr_mount_bind_held(struct nsr_ctx *ctx, const char *source, int target, uint32_t flags)
{
	return place_or_close(ctx, bind_tree(ctx, NSR_AT_FDCWD, source, flags),
			      ctx->legacy_mounts, target, "");
}

int nsr_mount_bind(struct nsr_ctx *ctx, int source_dir, const char *source, int target_dir,
		   const char *target, uint32_t flags)
{
	int tree = place_or_close(ctx, bind_tree(ctx, source_dir, source, flags),
				  ctx->legacy_mounts, target_dir, target);

	if (tree < 0)
		return tree;
	SYS1(SYS_close, tree);
	return 0;
}

static int same(int fd, const struct nsr_source *source)
{
	struct nsr_statx st;
	long ret = SYS5(SYS_statx, fd, "", NSR_AT_EMPTY_PATH, NSR_STATX_TYPE | NSR_STATX_INO,
			&st);

	return ret >= 0 && st.ino == source->ino && st.dev_major == source->dev_major &&
	       st.dev_minor == source->dev_minor && (st.mode & S_IFMT) == source->type;
}

/*
 * A link of /proc on the way leads into the caller's mount namespace, where
 * nothing may be cloned: go by the name that it stands for.
 */
static int tree_by_real_name(struct nsr_ctx *ctx, const struct nsr_op *op,
			     const struct nsr_source *source)
{
	int fd = (int)SYS3(SYS_openat, NSR_AT_FDCWD, source->path, O_PATH | O_CLOEXEC);
	char link[NSR_FD_PATH];
	long n;

	if (fd < 0)
		return fd;
	nsr_fd_path(link, fd);
	n = SYS4(SYS_readlinkat, NSR_AT_FDCWD, link, ctx->cold->path[1], NSR_PATH_MAX - 1);
	SYS1(SYS_close, fd);
	if (n < 0)
		return (int)n;
	ctx->cold->path[1][n] = '\0';
	return bind_tree(ctx, NSR_AT_FDCWD, ctx->cold->path[1], op->flags);
}

/*
 * Clone, then compare: the clone is ours alone, so what it shows can't be
 * exchanged between the look and the mount.
 */
static int checked_tree(struct nsr_ctx *ctx, const struct nsr_op *op,
			const struct nsr_source *source)
{
	int tree = bind_tree(ctx, NSR_AT_FDCWD, source->path, op->flags);

	if (tree == -EINVAL)
		tree = tree_by_real_name(ctx, op, source);
	if (tree < 0)
		return nsr_fail(ctx, tree == -ENOENT || tree == -EACCES ? NSR_STEP_SOURCE :
				NSR_STEP_BIND, tree);
	if (!same(tree, source))
		return nsr_fail(ctx, op->flags & NSR_OP_SOURCE_FD ? NSR_STEP_SOURCE_RACE :
				NSR_STEP_SOURCE_CHANGED, 0);
	return tree;
}

int nsr_mount_bind_op(struct nsr_ctx *ctx, const struct nsr_op *op,
		      const struct nsr_source *source, int target)
{
	int tree = ctx->in_place ? ctx->trees[ctx->op] : checked_tree(ctx, op, source);
	int ret;

	if (tree < 0)
		return -1;
	ret = place(ctx, tree, ctx->legacy_mounts, target, "");
	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_BIND, ret);
	SYS1(SYS_close, tree);
	return 0;
}

/* What the operations will show is cloned as the host has it, before that changes. */
static int clone_trees(struct nsr_ctx *ctx)
{
	const struct nsr_plan *plan = ctx->plan;

	for (uint32_t i = 1; i < plan->n_ops; i++) {
		const struct nsr_op *op = &plan->ops[i];

		ctx->op = (int)i;
		if (op->type == NSR_OP_DEV && nsr_dev_clone_nodes(ctx))
			return -1;
		if (op->type != NSR_OP_BIND || !ctx->sources[i].type)
			continue;
		ctx->trees[i] = checked_tree(ctx, op, &ctx->sources[i]);
		if (ctx->trees[i] < 0)
			return -1;
	}
	ctx->op = -1;
	return 0;
}

static int restrict_in_place(struct nsr_ctx *ctx)
{
	struct nsr_mount_attr attr = { .attr_set = bind_attr(ctx->plan->ops->flags) };
	long ret;

	if (clone_trees(ctx))
		return -1;
	ret = SYS5(SYS_mount_setattr, NSR_AT_FDCWD, "/", NSR_AT_RECURSIVE, &attr, sizeof(attr));
	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_ROOT, ret);
	ctx->in_place = 1;
	return nsr_open_root(ctx);
}

/* Another mount on "/" is the root from now on. */
int nsr_new_root(struct nsr_ctx *ctx)
{
	ctx->stacked++;
	return nsr_open_root(ctx);
}

static int mount_root_tmpfs(struct nsr_ctx *ctx)
{
	char options[NSR_TMPFS_OPTIONS];
	long ret;

	if (ctx->facts.root_op)
		nsr_tmpfs_options(options, ctx->plan->ops);
	ret = SYS5(SYS_mount, "tmpfs", "/", "tmpfs", NSR_MS_NODEV | NSR_MS_NOSUID,
		   ctx->facts.root_op ? options : NULL);
	/* by hand: an option would show in the sandbox's mount table */
	if (ret >= 0 && !ctx->facts.root_op)
		ret = SYS3(SYS_fchmodat, NSR_AT_FDCWD, "/..", 0755);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_ROOT, ret) : 0;
}

/* The first operation puts something on "/": it is the root, no tmpfs below it. */
static int mount_root_bind(struct nsr_ctx *ctx)
{
	int ret;

	ctx->op = 0;
	ret = nsr_mount_bind_op(ctx, ctx->plan->ops, &ctx->sources[0], -1);
	ctx->op = -1;
	return ret;
}

int nsr_mounts_begin(struct nsr_ctx *ctx)
{
	long ret;

	if (ctx->facts.in_place)
		return restrict_in_place(ctx);
	/* a new user namespace made the copy of the tree a slave already */
	if (!(ctx->facts.unshare & NSR_CLONE_NEWUSER)) {
		ret = SYS5(SYS_mount, 0, "/", 0, NSR_MS_SILENT | NSR_MS_SLAVE | NSR_MS_REC, 0);
		if (ret < 0)
			return nsr_fail(ctx, NSR_STEP_SLAVE, ret);
	}
	/* mount(2) alone needs a place to build on, which no bind of "/" may take along */
	if (((ctx->facts.shield || ctx->legacy_mounts) && mount_shield(ctx)) ||
	    ((ctx->facts.scratch || ctx->legacy_mounts) && mount_scratch(ctx)))
		return -1;
	if (ctx->facts.root_op && ctx->plan->ops->type == NSR_OP_BIND)
		ret = mount_root_bind(ctx);
	else
		ret = mount_root_tmpfs(ctx);
	return ret ? -1 : nsr_new_root(ctx);
}

/* "/" is the root of a ramfs or tmpfs mount, as the first one of a boot is. */
static int is_rootfs(void)
{
	const long ramfs = 0x858458f6, tmpfs = 0x01021994;
	int fd = (int)SYS3(SYS_openat, NSR_AT_FDCWD, "/", O_PATH | O_CLOEXEC);
	struct statfs fs;
	int yes;

	if (fd < 0)
		return 0;
	yes = nsr_mount_root_id(fd) && !SYS2(SYS_fstatfs, fd, &fs) &&
	      ((long)fs.f_type == ramfs || (long)fs.f_type == tmpfs);
	SYS1(SYS_close, fd);
	return yes;
}

/*
 * Where "/" is the kernel's own rootfs, as in an initramfs, it can't be pivoted
 * away.  The new root lies on top of it, so chroot(2) hides it as well; but
 * only from a payload that has no right to undo that.
 */
static int chroot_on_rootfs(struct nsr_ctx *ctx, long err)
{
	const uint64_t undo = 1ULL << NSR_CAP_SYS_CHROOT | 1ULL << NSR_CAP_SYS_ADMIN;
	long ret;

	if (err != -EINVAL || !is_rootfs() || ctx->facts.caps & undo)
		return nsr_fail(ctx, NSR_STEP_PIVOT, err);
	ret = SYS1(SYS_chroot, ".");
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_PIVOT, ret) : 0;
}

/*
 * The old root ends up stacked on the new one, "." climbs to what is topmost
 * there, and all of it goes at once: see NOTES in pivot_root(2).  What was
 * stacked on the old root below the new one is still on top of it, and goes
 * first.
 */
int nsr_mounts_pivot(struct nsr_ctx *ctx)
{
	long ret = SYS1(SYS_fchdir, ctx->root_fd);

	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_PIVOT_CHDIR, ret);
	/* unless a later operation put another root on top */
	if (ctx->in_place && !ctx->stacked)
		return 0;
	ret = SYS2(SYS_pivot_root, ".", ".");
	if (ret < 0)
		return chroot_on_rootfs(ctx, ret);
	for (int i = 0; ret >= 0 && i < ctx->stacked; i++)
		ret = SYS2(SYS_umount2, ".", NSR_MNT_DETACH);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_UMOUNT, ret) : 0;
}
