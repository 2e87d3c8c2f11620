/* SPDX-License-Identifier: MIT */
/* prepare.c - what can be known before the clone: this machine, this caller. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "caps.h"
#include "diag.h"
#include "spawn.h"
#include "sys.h"

enum { MFD_CLOEXEC_BIT = 1 };

static int no_memory(struct nsr_diag *diag)
{
	return nsr_diag_errno(diag, ENOMEM, "Out of memory");
}

/* The number in a sysctl's file is not 0; a file that is absent doesn't say no. */
static int sysctl_allows(const char *path)
{
	char text[16] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return 1;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	return n <= 0 || strcmp(text, "0\n");
}

static int userns_there(void)
{
	return !access("/proc/self/ns/user", F_OK) &&
	       sysctl_allows("/proc/sys/user/max_user_namespaces");
}

static int decide_unshare(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const int64_t *n = ctx->plan->number;
	uint64_t unshare = (uint64_t)n[NSR_UNSHARE];
	int cgroup_there = 1;

	if (getuid() && n[NSR_USERNS_FD] == -1)
		unshare |= NSR_CLONE_NEWUSER;
	if (n[NSR_FLAGS] & NSR_UNSHARE_USER_TRY && !(unshare & NSR_CLONE_NEWUSER) &&
	    userns_there())
		unshare |= NSR_CLONE_NEWUSER;
	if (n[NSR_FLAGS] & NSR_UNSHARE_CGROUP_TRY || unshare & NSR_CLONE_NEWCGROUP)
		cgroup_there = !access("/proc/self/ns/cgroup", F_OK);
	if (unshare & NSR_CLONE_NEWCGROUP && !cgroup_there)
		return nsr_diag_set(diag, "Cannot create new cgroup namespace because the "
				    "kernel does not support it");
	if (n[NSR_FLAGS] & NSR_UNSHARE_CGROUP_TRY && cgroup_there)
		unshare |= NSR_CLONE_NEWCGROUP;
	ctx->facts.unshare = unshare;
	return 0;
}

static int has_op(const struct nsr_plan *plan, uint32_t type)
{
	for (uint32_t i = 0; i < plan->n_ops; i++)
		if (plan->ops[i].type == type)
			return 1;
	return 0;
}

static int decide_ids(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const int64_t *n = ctx->plan->number;
	struct nsr_facts *f = &ctx->facts;
	int mapped = f->unshare & NSR_CLONE_NEWUSER || n[NSR_USERNS_FD] != -1;

	f->real_uid = getuid();
	f->real_gid = getgid();
	f->uid = n[NSR_UID] == NSR_ID_UNSET ? f->real_uid : (uint32_t)n[NSR_UID];
	f->gid = n[NSR_GID] == NSR_ID_UNSET ? f->real_gid : (uint32_t)n[NSR_GID];
	if (!mapped && nsr_check_ids(ctx->plan, diag))
		return -EINVAL;
	f->setup_uid = f->uid;
	f->setup_gid = f->gid;
	if (!(f->unshare & NSR_CLONE_NEWUSER) || n[NSR_USERNS_BLOCK_FD] != -1)
		return 0;
	/* devpts wants a root to belong to: be it for the set-up, step down after */
	if (has_op(ctx->plan, NSR_OP_DEV))
		f->setup_uid = f->setup_gid = 0;
	f->second_userns = f->setup_uid != f->uid || f->setup_gid != f->gid ||
			   n[NSR_FLAGS] & NSR_DISABLE_USERNS;
	return 0;
}

static int decide_caps(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const int64_t *n = ctx->plan->number;
	struct nsr_facts *f = &ctx->facts;
	uint64_t base = 0, inheritable = 0;
	int ret = nsr_caps_read(&base, &inheritable);

	if (ret)
		return nsr_diag_errno(diag, -ret, "capget failed");
	if (f->real_uid && base)
		return nsr_diag_set(diag,
			"Unexpected capabilities but not setuid, old file caps config?");
	f->caps = (base & ~(uint64_t)n[NSR_CAPS_CLEAR]) | (uint64_t)n[NSR_CAPS_SET];
	f->keep_caps = !f->real_uid && !(n[NSR_FLAGS] & NSR_CAPS_TOUCHED);
	/* what is not inheritable can't be ambient, and a new namespace inherits nothing */
	f->raise_ambient = f->caps && (!f->keep_caps ||
		(!(f->unshare & NSR_CLONE_NEWUSER) && f->caps & inheritable));
	return 0;
}

static void map_line(char out[NSR_MAP_TEXT], uint32_t inside, uint32_t outside)
{
	snprintf(out, NSR_MAP_TEXT, "%u %u 1\n", inside, outside);
}

int nsr_prepare_facts(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const int64_t *n = ctx->plan->number;
	struct nsr_facts *f = &ctx->facts;

	if (decide_unshare(ctx, diag) || decide_ids(ctx, diag) || decide_caps(ctx, diag))
		return -EINVAL;
	map_line(ctx->uid_map, f->setup_uid, f->real_uid);
	map_line(ctx->gid_map, f->setup_gid, f->real_gid);
	map_line(ctx->uid_map2, f->uid, f->setup_uid);
	map_line(ctx->gid_map2, f->gid, f->setup_gid);
	f->with_reaper = !(n[NSR_FLAGS] & NSR_AS_PID_1) &&
			 (f->unshare & NSR_CLONE_NEWPID || ctx->plan->list[NSR_LOCK_FILES].n ||
			  n[NSR_SYNC_FD] != -1 || n[NSR_LIFE_FD] != -1 || n[NSR_TIMEOUT_MS]);
	return 0;
}

/* Fds are named to mount(2) through it, and maps written. */
static int check_proc(struct nsr_diag *diag)
{
	/* who takes it away later is told by the step that misses it */
	static atomic_bool found;

	if (!atomic_load(&found) && access("/proc/self/fd", F_OK))
		return nsr_diag_errno(diag, errno, "Can't open /proc");
	atomic_store(&found, 1);
	return 0;
}

static int prepare_seccomp(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const struct nsr_plan *plan = ctx->plan;

	if (!plan->n_seccomp && plan->number[NSR_SECCOMP_FD] == -1)
		return 0;
	ctx->fprogs = nsr_arena_alloc(ctx->arena, (plan->n_seccomp + 1) * sizeof(*ctx->fprogs));
	if (!ctx->fprogs)
		return no_memory(diag);
	for (uint32_t i = 0; i < plan->n_seccomp; i++) {
		const struct nsr_blob *blob = &plan->seccomp[i];

		if (blob->len > NSR_MAX_BPF)
			return nsr_diag_set(diag, "seccomp program of %llu bytes, the kernel "
					    "takes %d", (unsigned long long)blob->len, NSR_MAX_BPF);
		ctx->fprogs[i] = (struct nsr_sock_fprog){
			(unsigned short)(blob->len / sizeof(struct nsr_sock_filter)),
			(const struct nsr_sock_filter *)(const void *)blob->data,
		};
	}
	ctx->n_fprogs = plan->n_seccomp;
	return 0;
}

static int prepare_cgroups(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	static const char file[] = "/cgroup.procs";
	const struct nsr_words *dirs = &ctx->plan->list[NSR_CGROUPS];

	if (!dirs->n)
		return 0;
	ctx->cgroup_procs = nsr_arena_alloc(ctx->arena, (dirs->n + 1) * sizeof(*dirs->v));
	if (!ctx->cgroup_procs)
		return no_memory(diag);
	for (uint32_t i = 0; i < dirs->n; i++) {
		size_t len = strlen(dirs->v[i]);
		char *path = nsr_arena_alloc(ctx->arena, len + sizeof(file));

		if (!path)
			return no_memory(diag);
		memcpy(path, dirs->v[i], len);
		memcpy(path + len, file, sizeof(file));
		ctx->cgroup_procs[i] = path;
	}
	ctx->cgroup_procs[dirs->n] = NULL;
	return 0;
}

/* Length and bytes of each program, as the reaper and the stub read them. */
int nsr_filter_file(const struct nsr_ctx *ctx)
{
	int fd = nsr_lift((int)SYS2(SYS_memfd_create, "nsrun-seccomp", MFD_CLOEXEC_BIT));
	int ret = fd;

	for (uint32_t i = 0; ret >= 0 && i < ctx->n_fprogs; i++) {
		uint32_t len = ctx->fprogs[i].len * (uint32_t)sizeof(struct nsr_sock_filter);

		ret = nsr_write_whole(fd, &len, sizeof(len));
		if (!ret)
			ret = nsr_write_whole(fd, ctx->fprogs[i].filter, len);
	}
	if (ret < 0 && fd >= 0)
		close(fd);
	return ret < 0 ? ret : fd;
}

static void no_fds(struct nsr_ctx *ctx)
{
	int *const fds[] = { &ctx->status_r, &ctx->status_w, &ctx->go_r, &ctx->go_w,
			     &ctx->pid_sock[0], &ctx->pid_sock[1], &ctx->inner_pidfd, &ctx->stdio[0],
			     &ctx->stdio[1], &ctx->stdio[2], &ctx->life_r, &ctx->life_w,
			     &ctx->release_r, &ctx->release_w, &ctx->reaper_fd, &ctx->bpf_fd,
			     &ctx->park_r, &ctx->park_w, &ctx->stub_fd, &ctx->exec_r, &ctx->exec_w,
			     &ctx->proc_fd, &ctx->scratch_fd, &ctx->root_fd, &ctx->op };

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		*fds[i] = -1;
	memset(ctx->nodes, -1, sizeof(ctx->nodes));
}

/* ctx is all zeroes; what is prepared lives in its arena. */
int nsr_prepare(struct nsr_ctx *ctx, const struct nsr_plan *plan, const int stdio[3],
		struct nsr_diag *diag)
{
	ctx->plan = plan;
	ctx->facts.on_host = !!(plan->number[NSR_FLAGS] & NSR_ON_HOST);
	no_fds(ctx);
	for (int i = 0; stdio && i < 3; i++)
		ctx->stdio[i] = stdio[i];
	if (check_proc(diag) || nsr_prepare_facts(ctx, diag) || nsr_prepare_sources(ctx, diag) ||
	    nsr_prepare_exec(ctx, diag) || prepare_seccomp(ctx, diag) ||
	    prepare_cgroups(ctx, diag) || nsr_landlock_prepare(ctx, diag))
		return -1;
	return 0;
}

void nsr_clone_failed(const struct nsr_ctx *ctx, int err, struct nsr_diag *diag)
{
	if (ctx->facts.unshare & NSR_CLONE_NEWUSER && err == EINVAL)
		nsr_diag_set(diag, "Creating new namespace failed, likely because the kernel "
			     "does not support user namespaces.  bwrap must be installed setuid "
			     "on such systems.");
	else if (ctx->facts.unshare & NSR_CLONE_NEWUSER && err == EPERM)
		nsr_diag_set(diag, "No permissions to create a new namespace, likely because the "
			     "kernel does not allow non-privileged user namespaces. On e.g. "
			     "debian this can be enabled with 'sysctl "
			     "kernel.unprivileged_userns_clone=1'.");
	else if (err == ENOSPC)
		nsr_diag_set(diag, "Creating new namespace failed: nesting depth or "
			     "/proc/sys/user/max_*_namespaces exceeded (ENOSPC)");
	else
		nsr_diag_errno(diag, err, "Creating new namespace failed");
	diag->step = NSR_STEP_CLONE;
	diag->err = err;
}
