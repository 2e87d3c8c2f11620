/* SPDX-License-Identifier: MIT */
/* dev.c - a minimal /dev and a /proc; child. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "spawn.h"
#include "sys.h"

enum { W_OK_BIT = 2 };

static const char *const nodes[] = { "/dev/null", "/dev/zero", "/dev/full", "/dev/random",
				     "/dev/urandom", "/dev/tty" };
enum { N_NODES = sizeof(nodes) / sizeof(nodes[0]), CONSOLE = N_NODES };
_Static_assert(N_NODES + 1 == NSR_DEV_NODES, "one place for each node and the console");

static const char *node_source(const struct nsr_ctx *ctx, int node)
{
	return node == CONSOLE ? ctx->console : nodes[node];
}

static const char *node_name(int node)
{
	return node == CONSOLE ? "console" : nodes[node] + sizeof("/dev/") - 1;
}

int nsr_dev_clone_nodes(struct nsr_ctx *ctx)
{
	for (int i = 0; i < NSR_DEV_NODES; i++) {
		if (!node_source(ctx, i))
			continue;
		ctx->nodes[i] = nsr_mount_clone(NSR_AT_FDCWD, node_source(ctx, i), NSR_OP_DEVICES);
		if (ctx->nodes[i] < 0)
			return nsr_fail_text(ctx, NSR_STEP_DEV_BIND, ctx->nodes[i], node_name(i));
	}
	return 0;
}

/* On a fresh tmpfs: an empty file, and a node of the host's bound over it. */
static int bind_node(struct nsr_ctx *ctx, int dev, int node)
{
	const char *name = node_name(node);
	long ret = SYS4(SYS_mknodat, dev, name, S_IFREG | 0444, 0);

	if (ret < 0)
		return nsr_fail_text(ctx, NSR_STEP_DEV_NODE, ret, name);
	if (ctx->in_place)
		ret = nsr_mount_attach(ctx->nodes[node], dev, name);
	else
		ret = nsr_mount_bind(ctx, NSR_AT_FDCWD, node_source(ctx, node), dev, name,
				     NSR_OP_DEVICES);
	return ret < 0 ? nsr_fail_text(ctx, NSR_STEP_DEV_BIND, ret, name) : 0;
}

static int bind_nodes(struct nsr_ctx *ctx, int dev)
{
	for (int i = 0; i < N_NODES; i++)
		if (bind_node(ctx, dev, i))
			return -1;
	return 0;
}

static int make_links(struct nsr_ctx *ctx, int dev)
{
	static const char *const links[][2] = {
		{ "stdin", "/proc/self/fd/0" },
		{ "stdout", "/proc/self/fd/1" },
		{ "stderr", "/proc/self/fd/2" },
		{ "fd", "/proc/self/fd" },
		{ "core", "/proc/kcore" },
		{ "ptmx", "pts/ptmx" },
	};

	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
		long ret = SYS3(SYS_symlinkat, links[i][1], dev, links[i][0]);

		if (ret < 0)
			return nsr_fail_text(ctx, NSR_STEP_DEV_LINK, ret, links[i][0]);
	}
	return 0;
}

static int make_dirs(struct nsr_ctx *ctx, int dev)
{
	static const char *const dirs[] = { "shm", "pts" };

	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		long ret = SYS3(SYS_mkdirat, dev, dirs[i], 0755);

		if (ret < 0)
			return nsr_fail_text(ctx, NSR_STEP_DEV_DIR, ret, dirs[i]);
	}
	return 0;
}

static int mount_pts(struct nsr_ctx *ctx, int dev)
{
	int ret = nsr_mount_new("devpts", dev, "pts", NSR_MS_NOSUID | NSR_MS_NOEXEC,
				"newinstance,ptmxmode=0666,mode=620");

	return ret < 0 ? nsr_fail(ctx, NSR_STEP_DEVPTS, ret) : 0;
}

/* The terminal on stdout is in the sandbox's hands anyway: let ttyname(3) find it. */
static int bind_console(struct nsr_ctx *ctx, int dev)
{
	return ctx->console ? bind_node(ctx, dev, CONSOLE) : 0;
}

int nsr_op_dev(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	static const struct nsr_op dir = { .perms = 0755 };
	char options[NSR_TMPFS_OPTIONS];
	int target = nsr_dest_dir(ctx, op, NSR_STEP_TMPFS);
	int dev;

	if (target < 0)
		return -1;
	nsr_tmpfs_options(options, &dir);
	dev = nsr_mount_held(ctx, "tmpfs", target, NSR_MS_NOSUID | NSR_MS_NODEV, options);
	if (dev < 0)
		return nsr_fail(ctx, NSR_STEP_TMPFS, dev);
	if (bind_nodes(ctx, dev) || make_links(ctx, dev) || make_dirs(ctx, dev) ||
	    mount_pts(ctx, dev) || bind_console(ctx, dev))
		return -1;
	SYS1(SYS_close, dev);
	return nsr_mounted(ctx, op, target);
}

/*
 * In a user namespace of ours one id is mapped.  What is another's than that is not writable:
 * no file there is so for everybody, and capabilities are good for mapped owners alone
 * (user_namespaces(7)).  Each name that is not looked up spares the kernel a dentry and an inode.
 */
static int proc_is_foreign(const struct nsr_ctx *ctx, int proc)
{
	struct nsr_statx st;

	if (!(ctx->facts.unshare & NSR_CLONE_NEWUSER) ||
	    ctx->plan->number[NSR_USERNS_BLOCK_FD] != -1)
		return 0;
	return SYS5(SYS_statx, proc, "", NSR_AT_EMPTY_PATH, NSR_STATX_UID, &st) >= 0 &&
	       st.mask & NSR_STATX_UID && st.uid != ctx->facts.setup_uid;
}

/* What could harm the machine is read-only, should it be writable at all. */
static int cover_proc(struct nsr_ctx *ctx, int proc)
{
	static const char *const names[] = { "sys", "sysrq-trigger", "irq", "bus" };

	if (proc_is_foreign(ctx, proc))
		return 0;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		long ret = SYS3(SYS_faccessat, proc, names[i], W_OK_BIT);

		if (ret == -EACCES || ret == -ENOENT || ret == -EROFS)
			continue;
		if (!ret)
			ret = nsr_mount_bind(ctx, proc, names[i], proc, names[i], NSR_OP_RDONLY);
		if (ret < 0)
			return nsr_fail_text(ctx, NSR_STEP_PROC_COVER, ret, names[i]);
	}
	return 0;
}

/* The host's /proc, where the sandbox shares its pid namespace. */
static int bind_proc(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	int target = nsr_dest_dir(ctx, op, NSR_STEP_PROC_BIND);
	int proc;

	if (target < 0)
		return -1;
	proc = nsr_mount_bind_held(ctx, "/proc", target, 0);
	if (proc < 0)
		return nsr_fail(ctx, NSR_STEP_PROC_BIND, proc);
	if (cover_proc(ctx, proc))
		return -1;
	SYS1(SYS_close, proc);
	return nsr_mounted(ctx, op, target);
}

static int new_proc(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	int target = nsr_dest_dir(ctx, op, NSR_STEP_PROC);
	int proc;

	if (target < 0)
		return -1;
	proc = nsr_mount_held(ctx, "proc", target,
			      NSR_MS_NOSUID | NSR_MS_NOEXEC | NSR_MS_NODEV, NULL);
	if (proc < 0)
		return nsr_fail(ctx, NSR_STEP_PROC, proc);
	if (cover_proc(ctx, proc))
		return -1;
	/* for the second id maps, where nothing else is held for them */
	if (ctx->facts.second_userns && ctx->proc_fd < 0)
		ctx->proc_fd = proc;
	else
		SYS1(SYS_close, proc);
	return nsr_mounted(ctx, op, target);
}

int nsr_op_proc(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	int own = ctx->facts.unshare & NSR_CLONE_NEWPID ||
		  ctx->plan->number[NSR_PIDNS_FD] != -1;

	return own ? new_proc(ctx, op) : bind_proc(ctx, op);
}
