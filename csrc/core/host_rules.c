/* SPDX-License-Identifier: MIT */
/* host_rules.c - by which rules a plan is kept on the host itself. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "diag.h"
#include "spawn.h"
#include "sys.h"

void nsr_host_describe(const struct nsr_plan *plan, char *out, size_t len)
{
	int abi = nsr_landlock_abi();
	const char *signals = abi < 6 ? "; signals to the user's processes are not held back" : "";

	if (nsr_host_confined(plan))
		snprintf(out, len, "host, confined by Landlock ABI %d and seccomp%s", abi, signals);
	else
		snprintf(out, len, "host, not confined");
}

/* Read-only within something writable, as a mount can be and a rule can't. */
static int check_takes_back(const struct nsr_ctx *ctx, const char *const *real, uint32_t i,
			    struct nsr_diag *diag)
{
	const struct nsr_op *ops = ctx->plan->ops;

	for (uint32_t j = 0; j < i; j++)
		if (real[j] && !(ops[j].flags & NSR_OP_RDONLY) && nsr_path_below(real[i], real[j]))
			return nsr_diag_set(diag, "--ro-bind %s can't be had with --backend host: "
					    "it lies in %s, which is writable, and Landlock can't "
					    "take that back", ops[i].dest, ops[j].dest);
	return 0;
}

/* Everything below "/" but what --dev and --proc stand for. */
static int root_walls(struct nsr_ctx *ctx, uint64_t access)
{
	DIR *root = opendir("/");
	struct dirent *entry;
	int ret = root ? 0 : -errno;

	while (!ret && (entry = readdir(root))) {
		size_t len = strlen(entry->d_name);
		char *path;

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
		    !strcmp(entry->d_name, "dev") || !strcmp(entry->d_name, "proc"))
			continue;
		path = nsr_arena_alloc(ctx->arena, len + 2);
		if (!path) {
			ret = -ENOMEM;
			break;
		}
		*path = '/';
		memcpy(path + 1, entry->d_name, len + 1);
		ret = nsr_wall_add(ctx, path, NULL, access);
	}
	if (root)
		closedir(root);
	return ret;
}

static int bind_walls(struct nsr_ctx *ctx, uint32_t i, const char *real)
{
	const struct nsr_op *op = &ctx->plan->ops[i];
	uint64_t access = NSR_WALL_READ;

	if (!(op->flags & NSR_OP_RDONLY))
		access |= NSR_WALL_WRITE;
	if (op->flags & NSR_OP_DEVICES)
		access |= NSR_LANDLOCK_IOCTL_DEV;
	else if (!strcmp(real, "/"))
		return root_walls(ctx, access);
	return nsr_wall_add(ctx, real, &ctx->sources[i], access);
}

/* No terminals of others, no memory shared with them. */
static int dev_walls(struct nsr_ctx *ctx)
{
	static const char *const nodes[] = { "/dev/null", "/dev/zero", "/dev/full", "/dev/random",
					     "/dev/urandom", "/dev/tty" };
	int ret = 0;

	for (size_t i = 0; !ret && i < sizeof(nodes) / sizeof(nodes[0]); i++)
		ret = nsr_wall_add(ctx, nodes[i], NULL, NSR_LANDLOCK_READ_FILE |
				   NSR_LANDLOCK_WRITE_FILE | NSR_LANDLOCK_IOCTL_DEV);
	return ret;
}

static int op_walls(struct nsr_ctx *ctx, const char **real, uint32_t i, struct nsr_diag *diag)
{
	const struct nsr_op *op = &ctx->plan->ops[i];
	/* a descriptor's identity is compared with what is found by the path, as a source's is */
	const char *path = op->flags & NSR_OP_SOURCE_FD ? op->dest : op->source;
	char *name;

	if (op->type == NSR_OP_PROC)
		return nsr_wall_add(ctx, "/proc", NULL, NSR_WALL_READ);
	if (op->type == NSR_OP_DEV)
		return dev_walls(ctx);
	if (!ctx->sources[i].type)
		return 0;
	name = realpath(path, NULL);
	real[i] = name ? nsr_arena_str(ctx->arena, name) : NULL;
	free(name);
	if (!real[i])
		return nsr_diag_errno(diag, errno, "Can't find source path %s", path);
	if (op->flags & NSR_OP_RDONLY && check_takes_back(ctx, real, i, diag))
		return -EINVAL;
	return bind_walls(ctx, i, real[i]);
}

int nsr_host_walls(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const char **real = nsr_arena_alloc(ctx->arena, (ctx->plan->n_ops + 1) * sizeof(*real));
	int ret = real ? 0 : -ENOMEM;

	if (real)
		memset(real, 0, (ctx->plan->n_ops + 1) * sizeof(*real));
	for (uint32_t i = 0; !ret && i < ctx->plan->n_ops; i++)
		ret = op_walls(ctx, real, i, diag);
	return ret;
}
