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
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "diag.h"
#include "reaper_loop.h"
#include "spawn.h"
#include "sys.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U        /* since Linux 6.3 */
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

enum { SIGSET_BYTES = 8 };

extern const uint8_t nsr_reaper_elf[];
extern const uint8_t nsr_reaper_elf_end[];

/* What the caller and the child have in common; untouched pages cost nothing. */
struct shared {
	struct nsr_cold cold;       /* first: munmap(2) finds the whole by it */
	struct nsr_ctx ctx;
};

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int needs_program(const struct nsr_plan *plan)
{
	static const enum nsr_number not_here[] = {
		NSR_USERNS_FD, NSR_USERNS2_FD, NSR_PIDNS_FD, NSR_USERNS_BLOCK_FD,
		NSR_INFO_FD, NSR_JSON_STATUS_FD,
	};

	for (size_t i = 0; i < sizeof(not_here) / sizeof(not_here[0]); i++)
		if (plan->number[not_here[i]] != -1)
			return 1;
	return 0;
}

static int write_whole(int fd, const void *data, size_t len)
{
	const uint8_t *at = data;

	while (len) {
		ssize_t n = write(fd, at, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

/* An fd above stdio, where the child's dup3(2) can't hit it. */
static int lift(int fd)
{
	int moved;

	if (fd < 0 || fd > 2)
		return fd;
	moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	close(fd);
	return moved;
}

/* The reaper's program in a file that nobody can change: memfd_create(2). */
static int reaper_file(void)
{
	const int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	int fd = memfd_create("nsrun-reaper", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create("nsrun-reaper", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	fd = lift(fd);
	if (fd < 0)
		return -errno;
	if (write_whole(fd, nsr_reaper_elf, (size_t)(nsr_reaper_elf_end - nsr_reaper_elf)) ||
	    fcntl(fd, F_ADD_SEALS, seals)) {
		close(fd);
		return -EIO;
	}
	return fd;
}

/* Length and bytes of each program, as the reaper reads them. */
static int filter_file(const struct nsr_ctx *ctx)
{
	int fd = lift(memfd_create("nsrun-seccomp", MFD_CLOEXEC));

	if (fd < 0)
		return -errno;
	for (uint32_t i = 0; i < ctx->n_fprogs; i++) {
		uint32_t len = ctx->fprogs[i].len * (uint32_t)sizeof(struct nsr_sock_filter);

		if (write_whole(fd, &len, sizeof(len)) ||
		    write_whole(fd, ctx->fprogs[i].filter, len)) {
			close(fd);
			return -EIO;
		}
	}
	if (lseek(fd, 0, SEEK_SET)) {
		close(fd);
		return -EIO;
	}
	return fd;
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

static int open_reaper(struct nsr_ctx *ctx)
{
	int ret;

	if (ctx->plan->number[NSR_FLAGS] & NSR_DIE_WITH_PARENT) {
		ret = open_pipe(&ctx->life_r, &ctx->life_w);
		if (ret)
			return ret;
	}
	ret = open_pipe(&ctx->release_r, &ctx->release_w);
	if (ret)
		return ret;
	ctx->reaper_fd = reaper_file();
	if (ctx->reaper_fd < 0)
		return ctx->reaper_fd;
	if (ctx->n_fprogs) {
		ctx->bpf_fd = filter_file(ctx);
		if (ctx->bpf_fd < 0)
			return ctx->bpf_fd;
	}
	return 0;
}

static int open_channels(struct nsr_ctx *ctx)
{
	int ret = open_pipe(&ctx->status_r, &ctx->status_w);

	if (ret)
		return ret;
	if (fcntl(ctx->status_r, F_SETFL, O_NONBLOCK))
		return -errno;
	for (int i = 0; i < 3; i++) {
		if (ctx->stdio[i] < 0 || ctx->stdio[i] > 2)
			continue;
		/* the caller's own: copied, not moved */
		ctx->stdio[i] = ctx->lifted[i] = fcntl(ctx->stdio[i], F_DUPFD_CLOEXEC, 3);
		if (ctx->stdio[i] < 0)
			return -errno;
	}
	return ctx->facts.with_reaper ? open_reaper(ctx) : 0;
}

/* Close, but don't mark as closed: the child reads these fields for itself. */
static void close_child_ends(const struct nsr_ctx *ctx)
{
	const int ends[] = { ctx->status_w, ctx->life_r, ctx->release_r, ctx->release_w,
			     ctx->reaper_fd, ctx->bpf_fd, ctx->lifted[0], ctx->lifted[1],
			     ctx->lifted[2] };

	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		if (ends[i] >= 0)
			close(ends[i]);
}

/* Nobody else uses ctx any more. */
static void free_ctx(struct nsr_ctx *ctx)
{
	if (ctx->status_r >= 0)
		close(ctx->status_r);
	if (ctx->life_w >= 0)
		close(ctx->life_w);
	nsr_arena_free(&ctx->own_arena);
	munmap(ctx->cold, sizeof(struct shared));
}

static int clone_shared(struct nsr_ctx *ctx, int *pidfd)
{
	const uint64_t all = ~0ULL;
	const int flags = NSR_CLONE_VM | NSR_CLONE_PIDFD | NSR_CLONE_CHILD_CLEARTID |
			  NSR_CLONE_NEWNS | (int)ctx->facts.unshare | SIGCHLD;
	uint64_t before;
	int pid, err;

	/* a handler of the caller's must not run on the child's stack */
	SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, SIGSET_BYTES);
	ctx->clear_tid[0] = 1;
	pid = clone(nsr_child_main, ctx->cold->child_stack + sizeof(ctx->cold->child_stack), flags, ctx,
		    pidfd, NULL, &ctx->clear_tid[0]);
	err = errno;
	if (pid < 0)
		ctx->clear_tid[0] = 0;
	SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, SIGSET_BYTES);
	return pid < 0 ? -err : pid;
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

static int start(struct nsr_ctx *ctx, const struct nsr_plan *plan, const int stdio[3],
		 struct nsr_child *child, struct nsr_diag *diag)
{
	int ret;

	if (nsr_prepare(ctx, plan, stdio, diag))
		return diag->err ? -diag->err : -EINVAL;
	ctx->share_vm = ctx->report_exec = 1;
	/* a parent-death signal would follow a thread; a reaper can watch a pipe */
	if (ctx->plan->number[NSR_FLAGS] & NSR_DIE_WITH_PARENT &&
	    !(ctx->plan->number[NSR_FLAGS] & NSR_AS_PID_1))
		ctx->facts.with_reaper = 1;
	if (ctx->facts.with_reaper && ctx->plan->number[NSR_SECCOMP_FD] != -1)
		return -ENOTSUP;
	if (check_fds(plan, diag))
		return -EBADF;
	ret = open_channels(ctx);
	if (ret)
		return nsr_diag_errno(diag, -ret, "Can't open the channels to the sandbox");
	child->start_ns = now();
	ret = clone_shared(ctx, &child->pidfd);
	if (ret < 0) {
		nsr_clone_failed(ctx, -ret, diag);
		return ret;
	}
	child->pid = ret;
	return 0;
}

int nsr_spawn(const struct nsr_plan *plan, const int stdio[3], struct nsr_child *child,
	      struct nsr_diag *diag)
{
	int saved_errno = errno;
	struct shared *shared;
	struct nsr_ctx *ctx;
	int ret;

	*child = (struct nsr_child){ .pidfd = -1, .status_fd = -1, .life_fd = -1,
				     .exit_status = -1 };
	if (needs_program(plan)) {
		nsr_diag_set(diag, "The plan joins namespaces or reports to fds");
		return -ENOTSUP;
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED)
		return nsr_diag_errno(diag, errno, "Can't allocate the sandbox's stacks");
	ctx = &shared->ctx;
	ctx->cold = &shared->cold;
	ctx->arena = &ctx->own_arena;
	memset(ctx->lifted, -1, sizeof(ctx->lifted));
	ret = start(ctx, plan, stdio, child, diag);
	close_child_ends(ctx);
	if (ret) {
		free_ctx(ctx);
	} else {
		child->shared = ctx;
		child->status_fd = ctx->status_r;
		child->life_fd = ctx->life_w;
	}
	errno = saved_errno;
	return ret;
}

/* The first process's own end; 1: it has ended. */
static int wait_process(struct nsr_child *child, int options)
{
	siginfo_t info = { .si_pid = 0 };
	int ret;

	do
		ret = waitid(P_PIDFD, (id_t)child->pidfd, &info, WEXITED | options);
	while (ret && errno == EINTR);
	if (ret) {
		/* somebody else's wait(2) was faster */
		if (child->exit_status < 0)
			child->exit_status = nsr_pidfd_wait(child->pidfd);
		return 1;
	}
	if (!info.si_pid)
		return 0;
	if (child->exit_status < 0)
		child->exit_status = info.si_code == CLD_EXITED ? info.si_status :
								  128 + info.si_status;
	return 1;
}

/* Without a reaper, or without a living one, the process itself tells its end. */
static int read_process(struct nsr_child *child)
{
	struct pollfd end = { .fd = child->pidfd, .events = POLLIN };

	child->status_fd = child->pidfd;
	if (poll(&end, 1, 0) != 1 || !wait_process(child, WNOHANG))
		return 0;
	child->exit_ns = now();
	return 1;
}

static int take(struct nsr_child *child, struct nsr_ctx *ctx, struct nsr_record *record,
		struct nsr_diag *diag)
{
	switch (record->type) {
	case NSR_RECORD_EXEC:
		child->exec_ns = record->value;
		return 0;
	case NSR_RECORD_EXIT:
		child->exit_status = (int)(record->value & 0xff);
		child->exit_ns = now();
		return 1;
	default:
		nsr_failure_text(ctx->plan, record, ctx->cold->text, diag);
		return record->err ? -record->err : -EPROTO;
	}
}

int nsr_child_read(struct nsr_child *child, struct nsr_diag *diag)
{
	struct nsr_ctx *ctx = child->shared;
	int saved_errno = errno;
	char *text = ctx->cold->text;
	struct nsr_record record;
	int ret = 0;

	if (child->exit_ns)
		return 1;
	while (!ret) {
		int got = child->status_fd == ctx->status_r ?
			  nsr_read_record(ctx->status_r, &record, text) : 0;

		if (got == -EAGAIN)
			break;
		if (got > 0) {
			ret = take(child, ctx, &record, diag);
			continue;
		}
		ret = read_process(child);
		break;
	}
	errno = saved_errno;
	return ret;
}

/* The kernel clears the word, and wakes us, when a child is done with this memory. */
static void wait_memory(uint32_t *word)
{
	uint32_t value;

	while ((value = __atomic_load_n(word, __ATOMIC_ACQUIRE)))
		SYS4(SYS_futex, word, FUTEX_WAIT, value, 0);
}

void nsr_child_close(struct nsr_child *child)
{
	struct nsr_ctx *ctx = child->shared;
	int saved_errno = errno;

	if (!ctx)
		return;
	SYS4(SYS_pidfd_send_signal, child->pidfd, SIGKILL, 0, 0);
	wait_process(child, 0);
	wait_memory(&ctx->clear_tid[0]);
	wait_memory(&ctx->clear_tid[1]);
	close(child->pidfd);
	free_ctx(ctx);
	child->shared = NULL;
	child->pidfd = child->status_fd = child->life_fd = -1;
	errno = saved_errno;
}
