/* SPDX-License-Identifier: MIT */
/*
 * host_rules.c - a plan on the host itself: what can be had there, and by which rules.
 *
 * Paths are the host's own and cannot mean anything else, Landlock can only
 * allow and not take back, and nothing is private.  Whatever a plan asks for
 * beyond that is refused by its name.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "diag.h"
#include "spawn.h"
#include "sys.h"

int nsr_host_confined(const struct nsr_plan *plan)
{
	return (plan->number[NSR_FLAGS] & (NSR_ON_HOST | NSR_UNCONFINED)) == NSR_ON_HOST;
}

static int refuse(struct nsr_diag *diag, const char *option, const char *why)
{
	return nsr_diag_set(diag, "%s can't be had with --backend host: %s", option, why);
}

static int check_namespaces(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	static const struct {
		uint64_t flag;
		const char *option, *why;
	} all[] = {
		{ NSR_CLONE_NEWUSER, "--unshare-user", "the command keeps the caller's ids" },
		{ NSR_CLONE_NEWPID, "--unshare-pid", "the host's processes stay visible" },
		{ NSR_CLONE_NEWNET, "--unshare-net", "the host's network stays; TCP alone can be "
		  "limited, by --tcp-connect and --tcp-bind" },
		{ NSR_CLONE_NEWIPC, "--unshare-ipc", "System V and POSIX IPC are shared" },
		{ NSR_CLONE_NEWUTS, "--unshare-uts", "the host's name stays" },
		{ NSR_CLONE_NEWCGROUP, "--unshare-cgroup", "the host's cgroups stay visible" },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if ((uint64_t)plan->number[NSR_UNSHARE] & all[i].flag)
			return refuse(diag, all[i].option, all[i].why);
	return 0;
}

static int check_numbers(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	static const struct {
		enum nsr_number number;
		const char *option;
	} fds[] = {
		{ NSR_USERNS_FD, "--userns" }, { NSR_USERNS2_FD, "--userns2" },
		{ NSR_PIDNS_FD, "--pidns" }, { NSR_USERNS_BLOCK_FD, "--userns-block-fd" },
		{ NSR_INFO_FD, "--info-fd" }, { NSR_JSON_STATUS_FD, "--json-status-fd" },
		{ NSR_LISTEN_FD, "--listen-fd" },
	};
	const int64_t flags = plan->number[NSR_FLAGS];

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (plan->number[fds[i].number] != -1)
			return refuse(diag, fds[i].option, "there are no namespaces");
	if (flags & NSR_ASSERT_USERNS_DISABLED)
		return refuse(diag, "--assert-userns-disabled", "a seccomp profile can forbid them");
	if (flags & NSR_PARKED)
		return refuse(diag, "A parked sandbox", "there is nothing to set up beforehand");
	if (plan->number[NSR_CAPS_SET] && nsr_host_confined(plan))
		return refuse(diag, "--cap-add", "a confined command has no capabilities");
	if (plan->list[NSR_LOCK_FILES].n)
		return refuse(diag, "--lock-file", "lock the file before");
	return nsr_check_ids(plan, diag);
}

static int check_bind(const struct nsr_op *op, struct nsr_diag *diag)
{
	const char *option = op->flags & NSR_OP_RDONLY ? "--ro-bind" : nsr_op_option(op);

	if (op->flags & NSR_OP_SOURCE_FD)
		return refuse(diag, op->flags & NSR_OP_RDONLY ? "--ro-bind-fd" : "--bind-fd",
			      "name the path, which stays what it is");
	if (*op->source != '/' || !nsr_path_below(op->source, op->dest) ||
	    !nsr_path_below(op->dest, op->source))
		return nsr_diag_set(diag, "%s %s %s can't be had with --backend host: paths there "
				    "are the host's own; bind %s to its own absolute path", option,
				    op->source, op->dest, op->source);
	if (!(op->flags & NSR_OP_DEVICES) && nsr_path_below(op->dest, "/dev"))
		return nsr_diag_set(diag, "%s %s can't be had with --backend host: its device nodes "
				    "would stay usable; use --dev /dev or --dev-bind", option,
				    op->dest);
	return 0;
}

static int check_op(const struct nsr_op *op, struct nsr_diag *diag)
{
	switch (op->type) {
	case NSR_OP_BIND:
		return check_bind(op, diag);
	case NSR_OP_PROC:
		if (!strcmp(op->dest, "/proc"))
			return 0;
		return refuse(diag, "--proc", "the host's is at /proc and nowhere else");
	case NSR_OP_DEV:
		if (!strcmp(op->dest, "/dev"))
			return 0;
		return refuse(diag, "--dev", "the host's is at /dev and nowhere else");
	case NSR_OP_TMPFS:
		return refuse(diag, nsr_op_option(op), "nothing can be hidden by something else; "
			      "--private-tmp gives a directory of its own, named by TMPDIR");
	case NSR_OP_HOSTNAME:
		return refuse(diag, nsr_op_option(op), "the host's name stays");
	default:
		return refuse(diag, nsr_op_option(op), "nothing is made or mounted there");
	}
}

int nsr_host_check(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	if (check_namespaces(plan, diag) || check_numbers(plan, diag))
		return -EINVAL;
	for (uint32_t i = 0; i < plan->n_ops; i++)
		if (check_op(&plan->ops[i], diag))
			return -EINVAL;
	return 0;
}

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
					    "take that back", ops[i].source, ops[j].source);
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
	char *name;

	if (op->type == NSR_OP_PROC)
		return nsr_wall_add(ctx, "/proc", NULL, NSR_WALL_READ);
	if (op->type == NSR_OP_DEV)
		return dev_walls(ctx);
	if (!ctx->sources[i].type)
		return 0;
	name = realpath(op->source, NULL);
	real[i] = name ? nsr_arena_str(ctx->arena, name) : NULL;
	free(name);
	if (!real[i])
		return nsr_diag_errno(diag, errno, "Can't find source path %s", op->source);
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
