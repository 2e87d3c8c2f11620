/* SPDX-License-Identifier: MIT */
/*
 * spawn.c - start a plan from inside another program, and hear how it ended.
 *
 * The child shares the caller's memory until it execs, so that a spawn costs
 * the same from a program of any size.  It makes no change that is as wide as
 * that memory: no uid or gid change (that would make the caller undumpable),
 * no cgroup.  Plans that need one are left to the nsrun program.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "child_handle.h"
#include "clock.h"
#include "diag.h"
#include "spawn.h"
#include "sys.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U        /* since Linux 6.3 */
#endif

enum { SIGSET_BYTES = 8, CLOSE_RANGE_CLOEXEC_BIT = 4 };

extern const uint8_t nsr_reaper_elf[];
extern const uint8_t nsr_reaper_elf_end[];

static int needs_program(const struct nsr_plan *plan)
{
	static const enum nsr_number not_here[] = {
		NSR_USERNS_FD, NSR_USERNS2_FD, NSR_PIDNS_FD, NSR_USERNS_BLOCK_FD,
		NSR_INFO_FD, NSR_JSON_STATUS_FD, NSR_REPORT_FD, NSR_LIFE_FD,
	};
	const int64_t flags = plan->number[NSR_FLAGS], alone = NSR_AS_PID_1 | NSR_DIE_WITH_PARENT;

	/* without a reaper only a parent-death signal is left, and that follows a thread */
	if (plan->list[NSR_CGROUPS].n || flags & NSR_ON_HOST || (flags & alone) == alone ||
	    (flags & NSR_AS_PID_1 && plan->number[NSR_TIMEOUT_MS]))
		return 1;
	for (size_t i = 0; i < sizeof(not_here) / sizeof(not_here[0]); i++)
		if (plan->number[not_here[i]] != -1)
			return 1;
	return 0;
}

/* The reaper's program in a file that nobody can change: memfd_create(2). */
static int new_reaper_file(void)
{
	const int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	int fd = memfd_create("nsrun-reaper", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create("nsrun-reaper", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	fd = nsr_lift(fd);
	if (fd < 0)
		return -errno;
	if (nsr_write_whole(fd, nsr_reaper_elf, (size_t)(nsr_reaper_elf_end - nsr_reaper_elf)) ||
	    fcntl(fd, F_ADD_SEALS, seals)) {
		close(fd);
		return -EIO;
	}
	return fd;
}

/* Which file that is, for whoever may have closed its fd since. */
struct reaper_file {
	int fd;
	dev_t dev;
	ino_t ino;
};

/* One file serves all sandboxes of a program, those of its forked copies too. */
static struct reaper_file *_Atomic reaper_file_made;

static int still_there(const struct reaper_file *file)
{
	struct stat now_there;

	return file && !fstat(file->fd, &now_there) && now_there.st_dev == file->dev &&
	       now_there.st_ino == file->ino;
}

/* The program's own, not to be closed; or -errno. */
static int reaper_file(void)
{
	struct reaper_file *old = atomic_load(&reaper_file_made);
	struct reaper_file *made;
	struct stat there;

	if (still_there(old))
		return old->fd;
	made = malloc(sizeof(*made));
	if (!made)
		return -ENOMEM;
	made->fd = new_reaper_file();
	if (made->fd < 0 || fstat(made->fd, &there)) {
		int ret = made->fd < 0 ? made->fd : -errno;

		free(made);
		return ret;
	}
	made->dev = there.st_dev;
	made->ino = there.st_ino;
	/* another thread was faster: its file does as well; what was lost may be in use, and stays */
	if (!atomic_compare_exchange_strong(&reaper_file_made, &old, made)) {
		close(made->fd);
		free(made);
		return old->fd;
	}
	return made->fd;
}

static int open_pipe(int *r, int *w)
{
	int fds[2];
	int ret = nsr_pipe(fds);

	if (ret)
		return ret;
	*r = fds[0];
	*w = fds[1];
	return 0;
}

/* A socket, since a write to it can be kept from raising SIGPIPE. */
static int open_life(struct nsr_ctx *ctx)
{
	int ends[2];
	int ret = nsr_packets(ends);

	if (ret)
		return ret;
	ctx->life_w = ends[0];
	ctx->life_r = ends[1];
	return 0;
}

/*
 * What the payload waits on.  Pid 1 of a namespace of its own takes it along when it dies;
 * any other reaper has to be heard to be gone, by the end of a pipe.
 */
static int open_release(struct nsr_ctx *ctx)
{
	int fd;

	if (!ctx->reaper_first)
		return open_pipe(&ctx->release_r, &ctx->release_w);
	fd = nsr_lift(eventfd(0, EFD_CLOEXEC));
	if (fd < 0)
		return -errno;
	ctx->release_r = ctx->release_w = fd;
	return 0;
}

static int open_reaper(struct nsr_ctx *ctx)
{
	int ret = open_release(ctx);

	if (ret)
		return ret;
	if (ctx->reaper_fd < 0)
		ctx->reaper_fd = reaper_file();
	return ctx->reaper_fd < 0 ? ctx->reaper_fd : 0;
}

static int open_park(struct nsr_ctx *ctx)
{
	int ends[2];
	int ret = nsr_packets(ends);

	if (ret)
		return ret;
	ctx->park_w = ends[0];
	ctx->park_r = ends[1];
	/* one program, two faces: small.c */
	ctx->stub_fd = ctx->reaper_fd = reaper_file();
	return ctx->stub_fd < 0 ? ctx->stub_fd : 0;
}

static int open_channels(struct nsr_ctx *ctx)
{
	int ends[2];
	int ret = nsr_record_packets(ends);

	if (ret)
		return ret;
	ctx->status_r = ends[0];
	ctx->status_w = ends[1];
	if (fcntl(ctx->status_r, F_SETFL, O_NONBLOCK))
		return -errno;
	if (ctx->plan->number[NSR_FLAGS] & NSR_TELL_EXEC) {
		ret = open_pipe(&ctx->exec_r, &ctx->exec_w);
		if (ret)
			return ret;
	}
	if (ctx->plan->number[NSR_FLAGS] & NSR_PARKED) {
		ret = open_park(ctx);
		if (ret)
			return ret;
	}
	if (ctx->n_fprogs && (ctx->facts.with_reaper || ctx->stub_fd >= 0)) {
		ctx->bpf_fd = nsr_filter_file(ctx);
		if (ctx->bpf_fd < 0)
			return ctx->bpf_fd;
	}
	for (int i = 0; i < 3; i++) {
		/* one that is where it belongs may stay there: payload.c */
		if (ctx->stdio[i] < 0 || ctx->stdio[i] > 2 || ctx->stdio[i] == i)
			continue;
		/* the caller's own: copied, not moved */
		ctx->stdio[i] = ctx->lifted[i] = fcntl(ctx->stdio[i], F_DUPFD_CLOEXEC, 3);
		if (ctx->stdio[i] < 0)
			return -errno;
	}
	return 0;
}

/* Close, but don't mark as closed: the child reads these fields for itself. */
static void close_child_ends(const struct nsr_ctx *ctx)
{
	const int ends[] = { ctx->status_w, ctx->life_r, ctx->release_r,
			     ctx->release_w == ctx->release_r ? -1 : ctx->release_w,
			     ctx->bpf_fd, ctx->park_r, ctx->exec_w,
			     ctx->lifted[0], ctx->lifted[1], ctx->lifted[2] };

	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		if (ends[i] >= 0)
			close(ends[i]);
}

/* Where the caller's stdio is closed, the kernel puts it there; without a free place it stays. */
static void lift_pidfd(int *pidfd)
{
	int moved = *pidfd > 2 ? -1 : fcntl(*pidfd, F_DUPFD_CLOEXEC, 3);

	if (moved < 0)
		return;
	close(*pidfd);
	*pidfd = moved;
}

static int clone_shared(struct nsr_ctx *ctx, int *pidfd)
{
	const uint64_t all = ~0ULL;
	const int flags = NSR_CLONE_VM | NSR_CLONE_PIDFD | NSR_CLONE_CHILD_CLEARTID |
			  NSR_CLONE_NEWNS | (int)ctx->facts.unshare | SIGCHLD;
	uint64_t before;
	int pid;

	/* a handler of the caller's must not run on the child's stack */
	SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, SIGSET_BYTES);
	ctx->clear_tid[0] = 1;
	pid = (int)nsr_clone(nsr_child_main,
			     ctx->cold->child_stack + sizeof(ctx->cold->child_stack),
			     (unsigned long)flags, ctx, pidfd, &ctx->clear_tid[0]);
	if (pid < 0)
		ctx->clear_tid[0] = 0;
	SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, SIGSET_BYTES);
	return pid;
}

static int not_open(int64_t fd, struct nsr_diag *diag)
{
	if (fd < 0 || fcntl((int)fd, F_GETFD) >= 0)
		return 0;
	return nsr_diag_errno(diag, EBADF, "The plan names fd %d", (int)fd);
}

/* A number that is not open now would be one of our own fds in a moment. */
static int check_fds(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	for (int i = NSR_USERNS_FD; i < NSR_NUMBER_END; i++)
		if (not_open(plan->number[i], diag))
			return -1;
	for (uint32_t i = 0; i < plan->n_ops; i++)
		if (not_open(plan->ops[i].fd, diag))
			return -1;
	return 0;
}

static int64_t own_peak(void)
{
	struct rusage usage = { .ru_maxrss = 0 };

	getrusage(RUSAGE_SELF, &usage);
	return (int64_t)usage.ru_maxrss * 1024;
}

/* As an initramfs is, which may be hidden by chroot(2) alone: that would leave pid 1 outside. */
static int root_may_be_rootfs(void)
{
	const long ramfs = 0x858458f6, tmpfs = 0x01021994;
	struct statfs fs;

	return statfs("/", &fs) || (long)fs.f_type == ramfs || (long)fs.f_type == tmpfs;
}

/* Pid 1 needs nothing of the finished sandbox, and its clock may start with itself. */
static int reaper_can_be_first(const struct nsr_ctx *ctx)
{
	const struct nsr_plan *plan = ctx->plan;

	return ctx->facts.with_reaper && ctx->facts.unshare & NSR_CLONE_NEWPID &&
	       !plan->list[NSR_LOCK_FILES].n && !plan->number[NSR_TIMEOUT_MS] &&
	       plan->number[NSR_BLOCK_FD] == -1 && !root_may_be_rootfs();
}

static int start(struct nsr_ctx *ctx, const struct nsr_plan *plan, const int stdio[3],
		 struct nsr_child *child, struct nsr_diag *diag)
{
	int ret;

	if (nsr_prepare(ctx, plan, stdio, diag))
		return diag->err ? -diag->err : -EINVAL;
	ctx->share_vm = 1;
	ctx->report_exec = !!(plan->number[NSR_FLAGS] & NSR_TELL_EXEC);
	/* a parent-death signal would follow a thread; a reaper can watch a pipe */
	if (ctx->plan->number[NSR_FLAGS] & NSR_DIE_WITH_PARENT &&
	    !(ctx->plan->number[NSR_FLAGS] & NSR_AS_PID_1))
		ctx->facts.with_reaper = 1;
	if (ctx->facts.with_reaper && ctx->plan->number[NSR_SECCOMP_FD] != -1)
		return -ENOTSUP;
	if (check_fds(plan, diag))
		return -EBADF;
	ctx->reaper_first = reaper_can_be_first(ctx);
	ret = open_channels(ctx);
	if (!ret && ctx->facts.with_reaper)
		ret = open_reaper(ctx);
	if (ret)
		return nsr_diag_errno(diag, -ret, "Can't open the channels to the sandbox");
	child->floor_rss = own_peak();
	child->start_ns = nsr_now();
	ret = clone_shared(ctx, &child->pidfd);
	if (ret < 0) {
		nsr_clone_failed(ctx, -ret, diag);
		return ret;
	}
	child->pid = ret;
	lift_pidfd(&child->pidfd);
	return 0;
}

static struct nsr_ctx *new_ctx(struct nsr_diag *diag)
{
	struct nsr_ctx *ctx = nsr_shared_new();

	if (!ctx) {
		nsr_diag_errno(diag, errno, "Can't allocate the sandbox's stacks");
		return NULL;
	}
	ctx->arena = &ctx->own_arena;
	memset(ctx->lifted, -1, sizeof(ctx->lifted));
	return ctx;
}

/* After a start, good or not: the ends that the other side has are closed here. */
static int finish(struct nsr_ctx *ctx, int ret, int saved_errno, struct nsr_child *child)
{
	if (ctx)
		close_child_ends(ctx);
	if (ctx && ret)
		nsr_child_free(ctx);
	if (!ret) {
		child->shared = ctx;
		child->status_fd = ctx->status_r;
		/* a reaper of ours listens where it reports */
		child->life_fd = ctx->share_vm && ctx->facts.with_reaper ? ctx->status_r :
								   ctx->life_w;
		child->park_fd = ctx->park_w;
		child->exec_fd = ctx->exec_r;
	}
	errno = saved_errno;
	return ret;
}

static const struct nsr_child nobody = { .pidfd = -1, .inner_pidfd = -1, .status_fd = -1,
					 .life_fd = -1, .park_fd = -1, .exec_fd = -1,
					 .exit_status = -1 };

int nsr_spawn(const struct nsr_plan *plan, const int stdio[3], struct nsr_child *child,
	      struct nsr_diag *diag)
{
	int saved_errno = errno;
	struct nsr_ctx *ctx;
	int ret = -ENOMEM;

	*child = nobody;
	if (needs_program(plan)) {
		nsr_diag_set(diag, "The plan joins namespaces, enters cgroups or reports to fds");
		return -ENOTSUP;
	}
	ctx = new_ctx(diag);
	if (ctx)
		ret = start(ctx, plan, stdio, child, diag);
	return finish(ctx, ret, saved_errno, child);
}

/* --- by the nsrun program -------------------------------------------------------------- */

/* What the program gets beside stdio: it finds the numbers in the plan. */
struct program {
	const char *path;
	int stdio[3];
	int plan_fd;
	int status_w;
	const struct nsr_plan *plan;    /* with those numbers */
	uint64_t sigmask;
	char number[16];
};

/* "3 and above, but these": the caller's other fds are none of the program's. */
static long keep_program_fds(const struct program *p)
{
	const int64_t *n = p->plan->number;
	long ret = 0;

	if (n[NSR_FLAGS] & NSR_CLOSE_FDS)
		ret = SYS3(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC_BIT);
	for (int i = NSR_USERNS_FD; ret >= 0 && i < NSR_NUMBER_END; i++)
		if (n[i] != -1)
			ret = SYS3(SYS_fcntl, n[i], F_SETFD, 0);
	for (uint32_t i = 0; ret >= 0 && i < p->plan->n_ops; i++)
		if (p->plan->ops[i].fd >= 0)
			ret = SYS3(SYS_fcntl, p->plan->ops[i].fd, F_SETFD, 0);
	return ret < 0 ? ret : SYS3(SYS_fcntl, p->plan_fd, F_SETFD, 0);
}

/* Between clone and exec, in the caller's memory. */
static int program_main(void *arg)
{
	struct program *p = arg;
	const char *argv[] = { "nsrun", "--plan", p->number, NULL };
	const char *envp[] = { NULL };
	struct nsr_record record = { .type = NSR_RECORD_FAIL, .step = NSR_STEP_PROGRAM, .op = -1 };
	struct iovec parts[2] = { { &record, sizeof(record) },
				  { (void *)(uintptr_t)p->path, strlen(p->path) + 1 } };
	long ret = 0;

	for (int i = 0; i < 3 && ret >= 0; i++)
		ret = nsr_place_fd(p->stdio[i], i);
	if (ret >= 0)
		ret = keep_program_fds(p);
	if (ret >= 0) {
		SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &p->sigmask, 0, SIGSET_BYTES);
		ret = SYS3(SYS_execve, p->path, argv, envp);
	}
	record.err = (int32_t)-ret;
	SYS3(SYS_writev, p->status_w, parts, 2);
	SYS1(SYS_exit_group, 1);
	return 1;
}

/* The plan with our ends in it, in a file that the program reads. */
static int plan_file(const struct nsr_plan *plan)
{
	int64_t len = nsr_plan_write(plan, NULL, 0);
	uint8_t *bytes = malloc((size_t)len);
	int fd = bytes ? nsr_lift(memfd_create("nsrun-plan", MFD_CLOEXEC)) : -1;
	int ret = fd < 0 ? -errno : 0;

	if (!ret) {
		nsr_plan_write(plan, bytes, (uint64_t)len);
		ret = nsr_write_whole(fd, bytes, (size_t)len);
	}
	if (!ret && lseek(fd, 0, SEEK_SET))
		ret = -errno;
	free(bytes);
	if (ret && fd >= 0)
		close(fd);
	return ret ? ret : fd;
}

static int open_program_channels(struct nsr_ctx *ctx, struct nsr_plan *copy)
{
	int ret = open_channels(ctx);

	if (!ret)
		ret = open_life(ctx);
	if (ret)
		return ret;
	copy->number[NSR_REPORT_FD] = ctx->status_w;
	copy->number[NSR_LIFE_FD] = ctx->life_r;
	copy->number[NSR_PARK_FD] = ctx->park_r;
	copy->number[NSR_STUB_FD] = ctx->stub_fd;
	copy->number[NSR_EXEC_FD] = ctx->exec_w;
	return 0;
}

static int clone_program(struct nsr_ctx *ctx, struct program *p, struct nsr_child *child)
{
	const uint64_t all = ~0ULL;

	SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &all, &p->sigmask, SIGSET_BYTES);
	/* the program execs at once: no harm in waiting, and its words may lie on our stack */
	child->pid = (int)nsr_clone(program_main,
				    ctx->cold->child_stack + sizeof(ctx->cold->child_stack),
				    NSR_CLONE_VM | NSR_CLONE_VFORK | NSR_CLONE_PIDFD | SIGCHLD, p,
				    &child->pidfd, NULL);
	SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &p->sigmask, 0, SIGSET_BYTES);
	if (child->pid < 0)
		return child->pid;
	lift_pidfd(&child->pidfd);
	return 0;
}

static int start_program_with(struct nsr_ctx *ctx, const struct nsr_plan *plan, const char *path,
			      const int stdio[3], struct nsr_child *child, struct nsr_diag *diag)
{
	struct nsr_plan copy = *plan;
	struct program p = { .path = path, .plan = &copy };
	int ret;

	if (nsr_prepare(ctx, plan, stdio, diag))
		return diag->err ? -diag->err : -EINVAL;
	ctx->facts.with_reaper = !(plan->number[NSR_FLAGS] & NSR_AS_PID_1);
	if (check_fds(plan, diag))
		return -EBADF;
	ret = open_program_channels(ctx, &copy);
	if (!ret)
		ret = p.plan_fd = plan_file(&copy);
	if (ret < 0)
		return nsr_diag_errno(diag, -ret, "Can't open the channels to the nsrun program");
	nsr_number_behind(p.number, (uint64_t)p.plan_fd);
	memcpy(p.stdio, ctx->stdio, sizeof(p.stdio));
	p.status_w = ctx->status_w;
	child->start_ns = nsr_now();
	ret = clone_program(ctx, &p, child);
	close(p.plan_fd);
	return ret ? nsr_diag_errno(diag, -ret, "Can't start the nsrun program %s", path) : 0;
}

int nsr_spawn_program(const struct nsr_plan *plan, const char *program, const int stdio[3],
		      struct nsr_child *child, struct nsr_diag *diag)
{
	int saved_errno = errno;
	struct nsr_ctx *ctx = new_ctx(diag);
	int ret = -ENOMEM;

	*child = nobody;
	if (ctx)
		ret = start_program_with(ctx, plan, program, stdio, child, diag);
	return finish(ctx, ret, saved_errno, child);
}
