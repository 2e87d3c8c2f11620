/* SPDX-License-Identifier: MIT */
/* sources.c - bind sources and overlay layers, resolved before the clone. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "diag.h"
#include "spawn.h"
#include "sys.h"

static int stat_path(const char *path, struct nsr_statx *st)
{
	return (int)SYS5(SYS_statx, NSR_AT_FDCWD, path, 0, NSR_STATX_TYPE | NSR_STATX_INO, st);
}

static int stat_fd(int fd, struct nsr_statx *st)
{
	return (int)SYS5(SYS_statx, fd, "", NSR_AT_EMPTY_PATH, NSR_STATX_TYPE | NSR_STATX_INO,
			 st);
}

static int missing(struct nsr_diag *diag, int err, const char *path)
{
	return nsr_diag_errno(diag, err, "Can't find source path %s", path);
}

static const char *real(struct nsr_ctx *ctx, const char *path)
{
	char *name = realpath(path, NULL);
	char *copy = name ? nsr_arena_str(ctx->arena, name) : NULL;

	free(name);
	return copy;
}

/* The child's cwd changes while it mounts: names must not depend on it. */
static const char *absolute(struct nsr_ctx *ctx, const char *path)
{
	char cwd[NSR_PATH_MAX];
	char *out;
	size_t len;

	if (*path == '/')
		return path;
	if (!getcwd(cwd, sizeof(cwd)))
		return NULL;
	len = strlen(cwd) + strlen(path) + 2;
	out = nsr_arena_alloc(ctx->arena, len);
	if (out)
		snprintf(out, len, "%s/%s", cwd, path);
	return out;
}

/*
 * Links of /proc lead to other mount namespaces or other processes in the
 * child: a name that passes through there is replaced by what it means here.
 */
static int through_proc(const char *path, const struct nsr_statx *st)
{
	struct nsr_statx proc;

	if (!strncmp(path, "/proc/", 6) || !strncmp(path, "/dev/", 5))
		return 1;
	return !st->dev_major && !stat_path("/proc", &proc) && !proc.dev_major &&
	       proc.dev_minor == st->dev_minor;
}

static void keep_identity(struct nsr_source *source, const struct nsr_statx *st)
{
	source->ino = st->ino;
	source->dev_major = st->dev_major;
	source->dev_minor = st->dev_minor;
	source->type = st->mode & S_IFMT;
}

static int resolve_fd(struct nsr_ctx *ctx, const struct nsr_op *op, struct nsr_source *source,
		      struct nsr_diag *diag)
{
	char link[NSR_FD_PATH];
	struct nsr_statx st;
	int ret;

	nsr_fd_path(link, op->fd);
	source->path = real(ctx, link);
	if (!source->path)
		return missing(diag, errno, link);
	ret = stat_fd(op->fd, &st);
	if (ret)
		return nsr_diag_errno(diag, -ret, "Can't stat fd %d", op->fd);
	keep_identity(source, &st);
	return 0;
}

static int resolve(struct nsr_ctx *ctx, const struct nsr_op *op, struct nsr_source *source,
		   struct nsr_diag *diag)
{
	struct nsr_statx st;
	int ret;

	if (op->flags & NSR_OP_SOURCE_FD)
		return resolve_fd(ctx, op, source, diag);
	ret = stat_path(op->source, &st);
	if (ret == -ENOENT && op->flags & NSR_OP_TRY)
		return 0;
	if (ret)
		return missing(diag, -ret, op->source);
	source->path = through_proc(op->source, &st) ? real(ctx, op->source) :
						       absolute(ctx, op->source);
	if (!source->path)
		return missing(diag, errno, op->source);
	keep_identity(source, &st);
	return 0;
}

/* Where the layers of an overlay stop, as overlayfs takes them apart. */
static char *escape(char *at, const char *path)
{
	for (; *path; path++) {
		if (strchr("\\,:", *path))
			*at++ = '\\';
		*at++ = *path;
	}
	return at;
}

static char *append(char *at, const char *text)
{
	size_t len = strlen(text);

	memcpy(at, text, len);
	return at + len;
}

struct overlay {
	const char **layers;        /* real paths, bottom first */
	const char *upper;
	const char *work;
	char names[2][40];          /* upper and work on the hidden tmpfs */
	size_t len;
};

static int resolve_layer(struct nsr_ctx *ctx, const char *path, const char **out,
			 struct overlay *o, struct nsr_diag *diag)
{
	*out = real(ctx, path);
	if (!*out)
		return missing(diag, errno, path);
	o->len += 2 * strlen(*out) + 1;
	return 0;
}

static int resolve_overlay(struct nsr_ctx *ctx, const struct nsr_op *op, uint32_t index,
			   struct overlay *o, struct nsr_diag *diag)
{
	o->len = sizeof("lowerdir=,upperdir=,workdir=,userxattr") + sizeof(o->names);
	o->layers = nsr_arena_alloc(ctx->arena, op->n_layers * sizeof(*o->layers));
	if (!o->layers)
		return nsr_diag_errno(diag, ENOMEM, "Out of memory");
	for (uint32_t i = 0; i < op->n_layers; i++)
		if (resolve_layer(ctx, op->layers[i], &o->layers[i], o, diag))
			return -EINVAL;
	if (op->type == NSR_OP_TMP_OVERLAY) {
		snprintf(o->names[0], sizeof(o->names[0]), NSR_UPPER_NAME "%u", index);
		snprintf(o->names[1], sizeof(o->names[1]), NSR_WORK_NAME "%u", index);
		o->upper = o->names[0];
		o->work = o->names[1];
	}
	if (op->type != NSR_OP_OVERLAY)
		return 0;
	return resolve_layer(ctx, op->source, &o->upper, o, diag) ||
	       resolve_layer(ctx, op->work, &o->work, o, diag) ? -EINVAL : 0;
}

static int overlay_options(struct nsr_ctx *ctx, const struct nsr_op *op, uint32_t index,
			   struct nsr_diag *diag)
{
	struct overlay o = { .upper = NULL };
	char *out, *at;

	if (resolve_overlay(ctx, op, index, &o, diag))
		return -EINVAL;
	out = nsr_arena_alloc(ctx->arena, o.len);
	if (!out)
		return nsr_diag_errno(diag, ENOMEM, "Out of memory");
	at = out;
	if (o.upper) {
		at = escape(append(at, "upperdir="), o.upper);
		at = escape(append(at, ",workdir="), o.work);
		*at++ = ',';
	}
	at = append(at, "lowerdir=");
	for (uint32_t i = op->n_layers; i-- > 0;) {
		at = escape(at, o.layers[i]);
		if (i)
			*at++ = ':';
	}
	at = append(at, ",userxattr");
	*at = '\0';
	/* mount(2) would cut them off there without a word, and layers with them */
	if (at - out >= NSR_MAX_MOUNT_OPTIONS)
		return nsr_diag_set(diag, "The names of the overlay's layers on %s take %zu bytes, "
				    "the kernel reads %d", op->dest, (size_t)(at - out),
				    NSR_MAX_MOUNT_OPTIONS - 1);
	ctx->overlay_options[index] = out;
	return 0;
}

/* Sandboxes that were made some time ago: replaced files are another thing. */
int nsr_sources_fresh(const struct nsr_ctx *ctx)
{
	for (uint32_t i = 0; i < ctx->plan->n_ops; i++) {
		const struct nsr_op *op = &ctx->plan->ops[i];
		const struct nsr_source *old = &ctx->sources[i];
		struct nsr_statx st;
		int ret;

		if (op->type != NSR_OP_BIND || op->flags & NSR_OP_SOURCE_FD)
			continue;
		ret = stat_path(op->source, &st);
		if (ret == -ENOENT && !old->type)
			continue;
		if (ret || !old->type || old->ino != st.ino || old->dev_major != st.dev_major ||
		    old->dev_minor != st.dev_minor)
			return 0;
	}
	return 1;
}

static int names_root(const char *path)
{
	return path[strspn(path, "/")] == '\0';
}

static int is_root_op(const struct nsr_ctx *ctx)
{
	const struct nsr_op *op = ctx->plan->ops;

	if (!ctx->plan->n_ops || !op->dest || !names_root(op->dest))
		return 0;
	if (op->type == NSR_OP_TMPFS)
		return 1;
	return op->type == NSR_OP_BIND && !(op->flags & NSR_OP_SOURCE_FD) &&
	       ctx->sources[0].type == S_IFDIR;
}

/* A recursive bind of "/" once the new root is stacked there. */
static int binds_root(const struct nsr_source *source, const struct nsr_statx *root)
{
	return source->type == S_IFDIR && source->ino == root->ino &&
	       source->dev_major == root->dev_major && source->dev_minor == root->dev_minor;
}

static int needs_scratch(const struct nsr_plan *plan)
{
	for (uint32_t i = 0; i < plan->n_ops; i++)
		if (plan->ops[i].type == NSR_OP_BIND_DATA ||
		    plan->ops[i].type == NSR_OP_TMP_OVERLAY)
			return 1;
	return 0;
}

static int needs_shield(const struct nsr_ctx *ctx, const struct nsr_statx *root)
{
	for (uint32_t i = ctx->facts.root_op ? 1 : 0; i < ctx->plan->n_ops; i++)
		if (ctx->plan->ops[i].type == NSR_OP_BIND && binds_root(&ctx->sources[i], root))
			return 1;
	return 0;
}

static int in_place_op(const struct nsr_ctx *ctx, const struct nsr_op *op, int *devs)
{
	/* what names the host's files while the sandbox already covers some of them */
	if (op->n_layers)
		return 0;
	if (op->type == NSR_OP_PROC)
		return !!(ctx->facts.unshare & NSR_CLONE_NEWPID);
	return op->type != NSR_OP_DEV || ++*devs == 1;
}

/*
 * "--ro-bind / /" first, in a mount namespace that belongs to a new user
 * namespace: its copy of the tree is ours to restrict, so it needn't be cloned,
 * attached, pivoted to and its twin unmounted.
 */
static int can_stay_in_place(const struct nsr_ctx *ctx, const struct nsr_statx *root)
{
	const struct nsr_plan *plan = ctx->plan;
	int devs = 0;

	if (!ctx->facts.root_op || plan->ops->type != NSR_OP_BIND || ctx->facts.scratch ||
	    !(ctx->facts.unshare & NSR_CLONE_NEWUSER) || plan->n_ops > NSR_MAX_IN_PLACE ||
	    !binds_root(&ctx->sources[0], root))
		return 0;
	for (uint32_t i = 1; i < plan->n_ops; i++)
		if (!in_place_op(ctx, &plan->ops[i], &devs))
			return 0;
	return 1;
}

static int alloc_trees(struct nsr_ctx *ctx)
{
	size_t size = ctx->plan->n_ops * sizeof(*ctx->trees);

	ctx->trees = nsr_arena_alloc(ctx->arena, size);
	if (ctx->trees)
		memset(ctx->trees, -1, size);
	return ctx->trees ? 0 : -ENOMEM;
}

int nsr_prepare_sources(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const struct nsr_plan *plan = ctx->plan;
	size_t n = plan->n_ops + 1;
	struct nsr_statx root;
	int err;

	ctx->sources = nsr_arena_alloc(ctx->arena, n * sizeof(*ctx->sources));
	ctx->overlay_options = nsr_arena_alloc(ctx->arena, n * sizeof(*ctx->overlay_options));
	if (!ctx->sources || !ctx->overlay_options)
		return nsr_diag_errno(diag, ENOMEM, "Out of memory");
	memset(ctx->sources, 0, n * sizeof(*ctx->sources));
	for (uint32_t i = 0; i < plan->n_ops; i++) {
		const struct nsr_op *op = &plan->ops[i];
		int ret = 0;

		if (op->type == NSR_OP_BIND)
			ret = resolve(ctx, op, &ctx->sources[i], diag);
		else if (op->n_layers)
			ret = overlay_options(ctx, op, i, diag);
		if (ret)
			return ret;
	}
	ctx->facts.root_op = is_root_op(ctx);
	ctx->facts.scratch = needs_scratch(plan);
	err = stat_path("/", &root);
	if (err)
		return missing(diag, -err, "/");
	ctx->facts.shield = needs_shield(ctx, &root);
	ctx->facts.in_place = can_stay_in_place(ctx, &root);
	if (ctx->facts.in_place && alloc_trees(ctx))
		return nsr_diag_errno(diag, ENOMEM, "Out of memory");
	return 0;
}
