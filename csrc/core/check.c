/* SPDX-License-Identifier: MIT */
/* check.c - what no plan may ask for, whoever built it. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "diag.h"
#include "plan.h"
#include "spawn.h"
#include "uapi.h"

static const struct op_shape {
	const char *option;
	unsigned char source;       /* needs one (1), may have one (2), has none (0) */
	unsigned char dest;
	unsigned char layers;       /* how many at least */
} shapes[NSR_OP_TYPE_END] = {
	[NSR_OP_BIND] = { "--bind", 2, 1, 0 },
	[NSR_OP_REMOUNT_RO] = { "--remount-ro", 0, 1, 0 },
	[NSR_OP_PROC] = { "--proc", 0, 1, 0 },
	[NSR_OP_DEV] = { "--dev", 0, 1, 0 },
	[NSR_OP_TMPFS] = { "--tmpfs", 0, 1, 0 },
	[NSR_OP_MQUEUE] = { "--mqueue", 0, 1, 0 },
	[NSR_OP_DIR] = { "--dir", 0, 1, 0 },
	[NSR_OP_FILE] = { "--file", 0, 1, 0 },
	[NSR_OP_BIND_DATA] = { "--bind-data", 0, 1, 0 },
	[NSR_OP_SYMLINK] = { "--symlink", 1, 1, 0 },
	[NSR_OP_CHMOD] = { "--chmod", 0, 1, 0 },
	[NSR_OP_OVERLAY] = { "--overlay", 1, 1, 1 },
	[NSR_OP_TMP_OVERLAY] = { "--tmp-overlay", 0, 1, 1 },
	[NSR_OP_RO_OVERLAY] = { "--ro-overlay", 0, 1, 2 },
	[NSR_OP_HOSTNAME] = { "--hostname", 1, 0, 0 },
	[NSR_OP_GUARD] = { "A guard", 0, 1, 0 },
};

const char *nsr_op_option(const struct nsr_op *op)
{
	return shapes[op->type].option;
}

static int check_path(const char *option, const char *path, struct nsr_diag *diag)
{
	if (!*path)
		return nsr_diag_set(diag, "%s: a path must not be empty", option);
	if (strlen(path) >= sizeof(diag->path))
		return nsr_diag_errno(diag, ENAMETOOLONG, "%s: path of %zu bytes", option,
				      strlen(path));
	return 0;
}

static int check_data(const struct op_shape *shape, const struct nsr_op *op,
		      struct nsr_diag *diag)
{
	int wants = op->type == NSR_OP_FILE || op->type == NSR_OP_BIND_DATA;
	int fd_source = op->type == NSR_OP_BIND && op->flags & NSR_OP_SOURCE_FD;

	if ((wants && (op->fd < 0) == !op->data) || (!wants && op->data))
		return nsr_diag_set(diag, "%s: needs one of fd and data", shape->option);
	if (!wants && (op->fd >= 0) != fd_source)
		return nsr_diag_set(diag, "%s: fd without use", shape->option);
	if (op->type == NSR_OP_BIND && !op->source == !fd_source)
		return nsr_diag_set(diag, "%s: needs one of fd and source", shape->option);
	return 0;
}

static int check_op_paths(const struct op_shape *shape, const struct nsr_op *op,
			  struct nsr_diag *diag)
{
	/* a host name and a link's text are words, not paths that are opened */
	int source_is_path = op->type == NSR_OP_BIND || op->type == NSR_OP_OVERLAY;

	if ((op->source && source_is_path && check_path(shape->option, op->source, diag)) ||
	    (op->dest && check_path(shape->option, op->dest, diag)) ||
	    (op->work && check_path(shape->option, op->work, diag)))
		return -EINVAL;
	for (uint32_t i = 0; i < op->n_layers; i++)
		if (check_path("--overlay-src", op->layers[i], diag))
			return -EINVAL;
	return 0;
}

static int check_op(const struct nsr_op *op, struct nsr_diag *diag)
{
	const struct op_shape *shape;

	if (!op->type || op->type >= NSR_OP_TYPE_END)
		return nsr_diag_set(diag, "Unknown operation %u", op->type);
	shape = &shapes[op->type];
	if ((shape->source == 1 && !op->source) || (!shape->source && op->source) ||
	    !op->dest != !shape->dest || !op->work != (op->type != NSR_OP_OVERLAY))
		return nsr_diag_set(diag, "%s: a path is missing or too many", shape->option);
	if (op->n_layers < shape->layers || (op->n_layers && !shape->layers))
		return nsr_diag_set(diag, "%s: wrong number of layers", shape->option);
	if (op->flags & ~(uint32_t)NSR_OP_FLAG_ALL || op->perms > 07777 ||
	    op->size > SIZE_MAX / 2 || op->fd < -1)
		return nsr_diag_set(diag, "%s: value out of range", shape->option);
	if (check_data(shape, op, diag))
		return -EINVAL;
	return check_op_paths(shape, op, diag);
}

static int check_numbers(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	const int64_t unshare = NSR_CLONE_NEWUSER | NSR_CLONE_NEWIPC | NSR_CLONE_NEWPID |
				NSR_CLONE_NEWNET | NSR_CLONE_NEWUTS | NSR_CLONE_NEWCGROUP;

	if (plan->number[NSR_FLAGS] & ~(int64_t)NSR_PLAN_FLAG_ALL ||
	    plan->number[NSR_UNSHARE] & ~unshare)
		return nsr_diag_set(diag, "Unknown flag in plan");
	if (plan->number[NSR_TIMEOUT_MS] < 0 || plan->number[NSR_TIMEOUT_MS] > NSR_MAX_TIMEOUT_MS)
		return nsr_diag_set(diag, "--timeout: longer than the kernel can wait");
	for (int i = NSR_UID; i < NSR_NUMBER_END; i++)
		if (plan->number[i] < -1 || plan->number[i] > INT32_MAX)
			return nsr_diag_set(diag, "Number %d of the plan is out of range", i);
	return 0;
}

/* In the order in which bwrap complains. */
static int check_userns(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	const int64_t *n = plan->number;
	int unshare = !!(n[NSR_UNSHARE] & NSR_CLONE_NEWUSER);

	if (n[NSR_USERNS_BLOCK_FD] != -1 && !unshare)
		return nsr_diag_set(diag, "--userns-block-fd requires --unshare-user");
	if (n[NSR_USERNS_BLOCK_FD] != -1 && n[NSR_INFO_FD] == -1)
		return nsr_diag_set(diag, "--userns-block-fd requires --info-fd");
	if (n[NSR_USERNS_FD] != -1 && unshare)
		return nsr_diag_set(diag, "--userns not compatible --unshare-user");
	if (n[NSR_USERNS_FD] != -1 && n[NSR_FLAGS] & NSR_UNSHARE_USER_TRY)
		return nsr_diag_set(diag, "--userns not compatible --unshare-user-try");
	if (n[NSR_FLAGS] & NSR_DISABLE_USERNS && !unshare)
		return nsr_diag_set(diag, "--disable-userns requires --unshare-user");
	if (n[NSR_FLAGS] & NSR_DISABLE_USERNS && n[NSR_USERNS_BLOCK_FD] != -1)
		return nsr_diag_set(diag,
			"--disable-userns is not compatible with  --userns-block-fd");
	return 0;
}

int nsr_check_ids(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	const int64_t *n = plan->number;

	if (n[NSR_UID] != NSR_ID_UNSET && n[NSR_UID] != getuid())
		return nsr_diag_set(diag, "Specifying --uid requires --unshare-user or --userns");
	if (n[NSR_GID] != NSR_ID_UNSET && n[NSR_GID] != getgid())
		return nsr_diag_set(diag, "Specifying --gid requires --unshare-user or --userns");
	return 0;
}

/* Here, before other complaints, only where no user namespace can come from anywhere. */
static int check_unmapped_ids(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	const int64_t *n = plan->number;

	if (n[NSR_UNSHARE] & NSR_CLONE_NEWUSER || n[NSR_FLAGS] & NSR_UNSHARE_USER_TRY ||
	    n[NSR_USERNS_FD] != -1 || getuid())
		return 0;
	return nsr_check_ids(plan, diag);
}

static int check_rlimits(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	for (uint32_t i = 0; i < plan->n_rlimits; i++) {
		const char *name = nsr_rlimit_name(plan->rlimits[i].resource);

		if (!name)
			return nsr_diag_set(diag, "--rlimit: there is no limit number %u",
					    plan->rlimits[i].resource);
		if (plan->rlimits[i].soft > plan->rlimits[i].hard)
			return nsr_diag_set(diag, "--rlimit: the soft limit of %s is above the hard one",
					    name);
	}
	return 0;
}

static int check_ports(const struct nsr_plan *plan, enum nsr_list which, const char *option,
		       struct nsr_diag *diag)
{
	const struct nsr_words *words = &plan->list[which];
	int64_t flags = plan->number[NSR_FLAGS];

	if (words->n && (!(flags & (NSR_LANDLOCK | NSR_ON_HOST)) || flags & NSR_UNCONFINED))
		return nsr_diag_set(diag, "%s requires --landlock or the confined host", option);
	for (uint32_t i = 0; i < words->n; i++)
		if (nsr_port_number(words->v[i]) < 0)
			return nsr_diag_set(diag, "%s: %s is neither a port nor none", option,
					    words->v[i]);
	return 0;
}

static int check_walls(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	int64_t flags = plan->number[NSR_FLAGS];

	if (flags & (NSR_UNCONFINED | NSR_PRIVATE_TMP) && !(flags & NSR_ON_HOST))
		return nsr_diag_set(diag, "%s requires --backend host", flags & NSR_UNCONFINED ?
				    "--unconfined" : "--private-tmp");
	if (flags & NSR_UNCONFINED && flags & NSR_LANDLOCK)
		return nsr_diag_set(diag, "--landlock is not compatible with --unconfined");
	if (check_ports(plan, NSR_TCP_CONNECT, "--tcp-connect", diag) ||
	    check_ports(plan, NSR_TCP_BIND, "--tcp-bind", diag))
		return -EINVAL;
	return flags & NSR_ON_HOST ? nsr_host_check(plan, diag) : 0;
}

/* What only nsrun has, and what it rests on. */
static int check_ours(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	const int64_t *n = plan->number;

	if (n[NSR_LISTEN_FD] != -1 && !(n[NSR_UNSHARE] & NSR_CLONE_NEWNET))
		return nsr_diag_set(diag, "--listen-fd requires --unshare-net");
	if (n[NSR_TIMEOUT_MS] && !(n[NSR_UNSHARE] & NSR_CLONE_NEWPID) &&
	    !(n[NSR_FLAGS] & NSR_ON_HOST))
		return nsr_diag_set(diag, "--timeout requires --unshare-pid");
	if (n[NSR_FLAGS] & NSR_PARKED && n[NSR_SECCOMP_FD] != -1)
		return nsr_diag_set(diag, "--seccomp can't be read by a parked sandbox");
	for (uint32_t i = 0; i < plan->list[NSR_CGROUPS].n; i++)
		if (plan->list[NSR_CGROUPS].v[i][0] != '/')
			return nsr_diag_set(diag, "--cgroup takes an absolute path, not %s",
					    plan->list[NSR_CGROUPS].v[i]);
	return check_rlimits(plan, diag) || check_walls(plan, diag) ? -EINVAL : 0;
}

static int check_process(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	const int64_t *n = plan->number;

	if (plan->string[NSR_HOSTNAME] && !(n[NSR_UNSHARE] & NSR_CLONE_NEWUTS))
		return nsr_diag_set(diag, "Specifying --hostname requires --unshare-uts");
	if (n[NSR_FLAGS] & NSR_AS_PID_1 && !(n[NSR_UNSHARE] & NSR_CLONE_NEWPID))
		return nsr_diag_set(diag, "Specifying --as-pid-1 requires --unshare-pid");
	if (n[NSR_FLAGS] & NSR_AS_PID_1 && plan->list[NSR_LOCK_FILES].n)
		return nsr_diag_set(diag, "Specifying --as-pid-1 and --lock-file is not permitted");
	for (uint32_t i = 0; i < plan->n_seccomp; i++)
		if (plan->seccomp[i].len % sizeof(struct nsr_sock_filter))
			return nsr_diag_set(diag, "Invalid seccomp data, must be multiple of 8");
	return 0;
}

static int check_ops(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	for (uint32_t i = 0; i < plan->n_ops; i++)
		if (check_op(&plan->ops[i], diag))
			return -EINVAL;
	return 0;
}

/* A hostname operation without the flag would rename the host. */
static int check_hostname_ops(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	for (uint32_t i = 0; i < plan->n_ops; i++)
		if (plan->ops[i].type == NSR_OP_HOSTNAME &&
		    !(plan->number[NSR_UNSHARE] & NSR_CLONE_NEWUTS))
			return nsr_diag_set(diag, "Specifying --hostname requires --unshare-uts");
	return 0;
}

static int check(const struct nsr_plan *plan, int runs_here, struct nsr_diag *diag)
{
	if (check_numbers(plan, diag) || check_userns(plan, diag) ||
	    (runs_here && check_unmapped_ids(plan, diag)) || check_process(plan, diag) ||
	    check_ops(plan, diag) || check_hostname_ops(plan, diag) || check_ours(plan, diag))
		return -EINVAL;
	return 0;
}

int nsr_plan_check(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	return check(plan, 1, diag);
}

int nsr_plan_check_read(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	return check(plan, 0, diag);
}
