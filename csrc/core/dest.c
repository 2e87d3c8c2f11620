/* SPDX-License-Identifier: MIT */
/*
 * dest.c - names below the new root; child.
 *
 * Destinations are resolved with openat2(RESOLVE_IN_ROOT): a symlink in a bind
 * source or in a directory that somebody else can write never leads outside.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "spawn.h"
#include "sys.h"

/*
 * RESOLVE_IN_ROOT answers EAGAIN when a mount or rename anywhere on the machine
 * crossed its "..": ask again, but not for ever.
 */
enum { MAX_TRIES = 1 << 16 };

static int no_links(const struct nsr_ctx *ctx)
{
	return ctx->op >= 0 && ctx->plan->ops[ctx->op].flags & NSR_OP_NO_LINKS;
}

static int open_in(const struct nsr_ctx *ctx, const char *path, int flags, uint32_t mode)
{
	const struct nsr_open_how how = {
		.flags = (uint64_t)(flags | O_CLOEXEC),
		.mode = mode,
		.resolve = NSR_RESOLVE_IN_ROOT | NSR_RESOLVE_NO_MAGICLINKS |
			   (no_links(ctx) ? NSR_RESOLVE_NO_SYMLINKS : 0),
	};
	long fd = -EAGAIN;

	for (int i = 0; fd == -EAGAIN && i < MAX_TRIES; i++)
		fd = SYS4(SYS_openat2, ctx->root_fd, path, &how, sizeof(how));
	return (int)fd;
}

int nsr_dest_open(struct nsr_ctx *ctx, const char *path, int flags)
{
	return open_in(ctx, path, O_PATH | flags, 0);
}

/* The directory part goes to dir; what follows, slashes at its end too, is *last. */
static int split(char *dir, const char *path, const char **last)
{
	size_t name = strlen(path);

	if (name >= NSR_PATH_MAX)
		return -ENAMETOOLONG;
	while (name && path[name - 1] == '/')
		name--;
	while (name && path[name - 1] != '/')
		name--;
	memcpy(dir, path, name);
	dir[name] = '\0';
	*last = path[name] && path[name] != '/' ? path + name : ".";
	return 0;
}

void nsr_dest_close(const struct nsr_ctx *ctx, int dir)
{
	if (dir != ctx->root_fd)
		SYS1(SYS_close, dir);
}

/* Open path as a directory, making it in dir if it is missing. */
static int make_dir(struct nsr_ctx *ctx, int dir, const char *path, const char *name,
		    uint32_t mode)
{
	int fd = nsr_dest_open(ctx, path, O_DIRECTORY);
	long ret;

	if (fd != -ENOENT)
		return fd;
	ret = SYS3(SYS_mkdirat, dir, name, mode);
	return ret < 0 ? (int)ret : nsr_dest_open(ctx, path, O_DIRECTORY);
}

/* mkdir -p: one name after the other, cutting path off behind it. */
static int make_dirs(struct nsr_ctx *ctx, char *path, uint32_t mode)
{
	int dir = ctx->root_fd;
	char *at = path;

	while (dir >= 0) {
		char *name = at + strspn(at, "/");
		char *end = name + strcspn(name, "/");
		char after = *end;
		int next;

		if (name == end)
			break;
		*end = '\0';
		next = make_dir(ctx, dir, path, name, mode);
		nsr_dest_close(ctx, dir);
		dir = next;
		*end = after;
		at = end;
	}
	return dir;
}

/*
 * An fd on the directory that path's last name lies in, for nsr_dest_close();
 * the name is left in *last.  Missing directories are made with this mode.
 */
int nsr_dest_parent(struct nsr_ctx *ctx, const char *path, uint32_t mode, const char **last)
{
	char *dir = ctx->cold->path[0];
	int ret = split(dir, path, last);
	int fd;

	if (ret)
		return ret;
	if (!dir[strspn(dir, "/")])
		return ctx->root_fd;
	fd = nsr_dest_open(ctx, dir, O_DIRECTORY);
	return fd == -ENOENT ? make_dirs(ctx, dir, mode) : fd;
}

uint32_t nsr_parents_mode(const struct nsr_op *op)
{
	uint32_t mode = 0755;

	if (!(op->perms & 0070))
		mode &= ~0050u;
	if (!(op->perms & 0007))
		mode &= ~0005u;
	return mode;
}

/* bwrap takes a link to itself for a directory until it needs what lies in there. */
int nsr_fail_parents(struct nsr_ctx *ctx, int err, enum nsr_step step)
{
	return nsr_fail(ctx, err == -ELOOP ? step : NSR_STEP_PARENTS, err);
}

/* bwrap looks at the parents first, so their failure is the one that counts. */
static int fail_dir(struct nsr_ctx *ctx, int parent, long err)
{
	return parent < 0 ? nsr_fail_parents(ctx, parent, NSR_STEP_MKDIR) :
			    nsr_fail(ctx, NSR_STEP_MKDIR, err);
}

/* Make the directory op->dest; 0, -EEXIST where something has that name, or -1. */
static int make_last(struct nsr_ctx *ctx, const struct nsr_op *op, uint32_t mode, int found)
{
	const char *last;
	int parent = nsr_dest_parent(ctx, op->dest, nsr_parents_mode(op), &last);
	long err = found;

	if (parent < 0 || found == -ENOTDIR)
		return fail_dir(ctx, parent, err);
	err = SYS3(SYS_mkdirat, parent, last, mode);
	nsr_dest_close(ctx, parent);
	return err >= 0 || err == -EEXIST ? (int)err : fail_dir(ctx, 0, err);
}

/* A directory to mount on; mounting on a link that dangles fails at step. */
int nsr_dest_dir(struct nsr_ctx *ctx, const struct nsr_op *op, enum nsr_step step)
{
	int fd = nsr_dest_open(ctx, op->dest, O_DIRECTORY);
	int ret;

	ctx->made = 0;
	if (fd >= 0)
		return fd;
	ret = make_last(ctx, op, 0755, fd);
	if (ret == -1)
		return -1;
	ctx->made = !ret;
	fd = nsr_dest_open(ctx, op->dest, O_DIRECTORY);
	return fd < 0 ? nsr_fail(ctx, ret ? step : NSR_STEP_MKDIR, fd) : fd;
}

int nsr_dest_make_dir(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	int fd = nsr_dest_open(ctx, op->dest, O_DIRECTORY);

	if (fd < 0)
		return make_last(ctx, op, op->perms, fd) == -1 ? -1 : 0;
	SYS1(SYS_close, fd);
	return 0;
}

/* creat(2) below the new root; flags say what to do with what is there. */
int nsr_dest_create(struct nsr_ctx *ctx, const struct nsr_op *op, int flags, uint32_t mode,
		    enum nsr_step step)
{
	int fd = open_in(ctx, op->dest, O_CREAT | O_WRONLY | flags, mode);
	const char *last;
	int parent;

	if (fd >= 0)
		return fd;
	parent = nsr_dest_parent(ctx, op->dest, nsr_parents_mode(op), &last);
	if (parent < 0)
		return nsr_fail_parents(ctx, parent, step);
	nsr_dest_close(ctx, parent);
	if (fd == -ENOENT)
		fd = open_in(ctx, op->dest, O_CREAT | O_WRONLY | flags, mode);
	return fd < 0 ? nsr_fail(ctx, step, fd) : fd;
}

static int is_dir(int fd)
{
	struct nsr_statx st;
	long ret = SYS5(SYS_statx, fd, "", NSR_AT_EMPTY_PATH, NSR_STATX_TYPE, &st);

	return ret < 0 ? (int)ret : S_ISDIR(st.mode);
}

/* A file to mount on: any that is there but a directory, else an empty one. */
int nsr_dest_file(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	int fd = nsr_dest_open(ctx, op->dest, 0);

	ctx->made = fd < 0;
	if (fd < 0)
		return nsr_dest_create(ctx, op, 0, 0444, NSR_STEP_CREATE);
	return is_dir(fd) ? nsr_fail(ctx, NSR_STEP_CREATE, -EISDIR) : fd;
}
