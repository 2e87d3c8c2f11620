/* SPDX-License-Identifier: MIT */
/*
 * host_check.c - what of a plan can be had on the host itself.
 *
 * Paths are the host's own and cannot mean anything else, Landlock can only
 * allow and not take back, and nothing is private.  Whatever a plan asks for
 * beyond that is refused by its name.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "diag.h"
#include "spawn.h"

int nsr_port_number(const char *word)
{
	char *end;
	unsigned long port = strtoul(word, &end, 10);

	if (!strcmp(word, "none"))
		return 0;
	return word[0] >= '0' && word[0] <= '9' && !*end && port && port <= UINT16_MAX ?
		(int)port : -1;
}

/* Past slashes and names of the directory itself. */
static const char *next_name(const char *path)
{
	for (;;) {
		path += strspn(path, "/");
		if (path[0] != '.' || (path[1] && path[1] != '/'))
			return path;
		path++;
	}
}

int nsr_path_below(const char *path, const char *dir)
{
	for (;;) {
		size_t len;

		path = next_name(path);
		dir = next_name(dir);
		if (!*dir)
			return 1;
		len = strcspn(dir, "/");
		if (strncmp(path, dir, len) || (path[len] && path[len] != '/'))
			return 0;
		path += len;
		dir += len;
	}
}

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

	/* its destination says which path; that the descriptor is of it is seen to later */
	if (!(op->flags & NSR_OP_SOURCE_FD) && (*op->source != '/' || !nsr_path_below(op->source, op->dest) ||
	    !nsr_path_below(op->dest, op->source)))
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
