/* SPDX-License-Identifier: MIT */
/*
 * host.c - run a plan without namespaces: a monitor, a reaper, the payload.
 *
 * No pid namespace ends what the payload leaves running.  The reaper adopts it
 * instead (PR_SET_CHILD_SUBREAPER) and kills its children until it has none;
 * a child's pid can't become another's before it was waited for.  The monitor
 * does the same should the reaper be killed, and the reaper notices when the
 * monitor is.  From ABI 6 on Landlock keeps the payload from signalling either.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "caps.h"
#include "diag.h"
#include "host_tmp.h"
#include "monitor.h"
#include "owner.h"
#include "reaper_loop.h"
#include "spawn.h"
#include "sys.h"

enum { MAX_TREE = 1 << 15 };

/* Away from what runs in namespaces touch, as in main.c. */
static struct {
	int pids[MAX_TREE];
	int parents[MAX_TREE];
	char tmp[NSR_PATH_MAX];
} cold __attribute__((section(".cold_bss,\"aw\",@nobits#")));

/* --- what no Landlock rule can say ----------------------------------------------------- */

#define STATEMENT(code, k) { code, 0, 0, k }
#define JUMP(code, k, yes, no) { code, yes, no, k }
enum {
	BPF_LOAD = 0x20, BPF_RETURN = 0x06, BPF_EQUAL = 0x15, BPF_BITS = 0x45,
	AT_NR = 0, AT_ARCH = 4, AT_ARG0 = 16, AT_ARG2 = 32,     /* struct seccomp_data */
	NR_IO_URING_SETUP = 425, X32_BIT = 0x40000000, UNIX = 1,
	ALLOW = 0x7fff0000, ERROR = 0x00050000,
#if defined(__x86_64__)
	ARCH = (int)0xc000003e,
#else
	ARCH = (int)0xc00000b7,
#endif
};

/*
 * A Unix socket reaches services outside that act for the user (D-Bus, an
 * ssh agent, docker), io_uring makes sockets as well, and prlimit(2) changes
 * processes that only share the user.
 */
static const struct nsr_sock_filter filter[] = {
	STATEMENT(BPF_LOAD, AT_ARCH),
	JUMP(BPF_EQUAL, (uint32_t)ARCH, 1, 0),
	STATEMENT(BPF_RETURN, ERROR | ENOSYS),
	STATEMENT(BPF_LOAD, AT_NR),
	JUMP(BPF_BITS, X32_BIT, 0, 1),
	STATEMENT(BPF_RETURN, ERROR | ENOSYS),
	JUMP(BPF_EQUAL, NR_IO_URING_SETUP, 0, 1),
	STATEMENT(BPF_RETURN, ERROR | ENOSYS),
	JUMP(BPF_EQUAL, SYS_socket, 0, 3),
	STATEMENT(BPF_LOAD, AT_ARG0),
	JUMP(BPF_EQUAL, UNIX, 0, 8),
	STATEMENT(BPF_RETURN, ERROR | EACCES),
	JUMP(BPF_EQUAL, SYS_prlimit64, 0, 6),
	STATEMENT(BPF_LOAD, AT_ARG0),
	JUMP(BPF_EQUAL, 0, 4, 0),
	STATEMENT(BPF_LOAD, AT_ARG2),
	JUMP(BPF_EQUAL, 0, 0, 3),
	STATEMENT(BPF_LOAD, AT_ARG2 + 4),
	JUMP(BPF_EQUAL, 0, 0, 1),
	STATEMENT(BPF_RETURN, ALLOW),
	STATEMENT(BPF_RETURN, ERROR | EPERM),
};

/* In front of the plan's own, which may forbid to load any more. */
static int add_filter(struct nsr_plan *plan)
{
	int ret = nsr_plan_add_seccomp(plan, (const uint8_t *)filter, sizeof(filter));
	struct nsr_blob ours;

	if (ret)
		return ret;
	ours = plan->seccomp[plan->n_seccomp - 1];
	memmove(plan->seccomp + 1, plan->seccomp, (plan->n_seccomp - 1) * sizeof(ours));
	plan->seccomp[0] = ours;
	return 0;
}

/* Names of what a confined command can't reach anyway. */
static void clean_environment(struct nsr_plan *plan)
{
	static const char *const names[] = {
		"DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS", "SSH_AUTH_SOCK",
		"SSH_AGENT_PID", "GPG_AGENT_INFO", "XDG_RUNTIME_DIR", "DISPLAY",
		"WAYLAND_DISPLAY", "XAUTHORITY", "DOCKER_HOST", "PULSE_SERVER",
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		nsr_plan_unsetenv(plan, names[i]);
}

/* --- the end of a tree of processes ------------------------------------------------------ */

/* The pids in /proc/TASK/children, up to room of them; -1: it is not there. */
static int read_children(const char *path, int *pids, int room)
{
	FILE *list = fopen(path, "re");
	int n = 0;

	if (!list)
		return -1;
	while (n < room && fscanf(list, "%d", &pids[n]) == 1)
		n++;
	fclose(list);
	return n;
}

static int own_children(int *pids, int room)
{
	return read_children("/proc/thread-self/children", pids, room);
}

/* Until there are none; what they leave behind becomes ours with their end. */
static void kill_children(struct nsr_record *used)
{
	int *pids = cold.pids;
	struct timespec pause = { 0, 200000 };
	struct rusage usage;

	for (;;) {
		int n = own_children(pids, MAX_TREE);
		long pid;

		for (int i = 0; i < n; i++)
			kill(pids[i], SIGKILL);
		do {
			pid = SYS4(SYS_wait4, -1, 0, WNOHANG, &usage);
			if (pid > 0)
				nsr_add_usage(used, &usage);
		} while (pid > 0);
		if (pid == -ECHILD)
			return;
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < 10000000)
			pause.tv_nsec *= 2;
	}
}

/* By a pidfd, and to the child of that parent only: a pid may be another's by now. */
static void signal_one(int pid, int parent, int number)
{
	int fd = (int)SYS2(SYS_pidfd_open, pid, 0);

	if (fd < 0)
		return;
	if (nsr_parent_of(pid) == parent)
		SYS4(SYS_pidfd_send_signal, fd, number, 0, 0);
	close(fd);
}

/* Threads have children, each for itself. */
static int children_of(int pid, int *pids, int room)
{
	char path[64];
	int tasks[256], n = 0, found = 0;
	DIR *dir;
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return 0;
	while (n < 256 && (entry = readdir(dir)))
		if (atoi(entry->d_name) > 0)
			tasks[n++] = atoi(entry->d_name);
	closedir(dir);
	for (int i = 0; i < n; i++) {
		int more;

		snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, tasks[i]);
		more = read_children(path, pids + found, room - found);
		found += more > 0 ? more : 0;
	}
	return found;
}

static void signal_all(int number)
{
	int *pids = cold.pids, *parents = cold.parents;
	int self = getpid(), n = own_children(pids, MAX_TREE);

	for (int i = 0; i < n; i++)
		parents[i] = self;
	for (int i = 0; i < n; i++) {
		int more = children_of(pids[i], pids + n, MAX_TREE - n);

		for (int j = 0; j < more; j++)
			parents[n + j] = pids[i];
		n += more;
		signal_one(pids[i], parents[i], number);
	}
}

/* --- the reaper ----------------------------------------------------------------------------- */

struct reaper {
	struct nsr_ctx *ctx;
	const char *tmp;            /* to be removed at the end; "": none */
	int payload;
	int signals;                /* signalfd(2) */
	int64_t deadline_ms;        /* by CLOCK_MONOTONIC; 0: none */
	struct nsr_record end;
	int ended;
};

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static _Noreturn void finish(struct reaper *r, int status)
{
	kill_children(&r->end);
	if (*r->tmp)
		nsr_host_tmp_remove(r->tmp);
	if (r->ended)
		SYS3(SYS_write, r->ctx->status_w, &r->end, sizeof(r->end));
	_exit(status);
}

static void reap(struct reaper *r)
{
	struct signalfd_siginfo info;
	struct rusage usage;
	int status;
	long pid;

	while (read(r->signals, &info, sizeof(info)) > 0)
		;
	while ((pid = SYS4(SYS_wait4, -1, &status, WNOHANG, &usage)) > 0) {
		nsr_add_usage(&r->end, &usage);
		if (pid != r->payload)
			continue;
		r->ended = 1;
		r->end.value = nsr_exit_status(status);
	}
	if (r->ended)
		finish(r, (int)r->end.value);
}

static void obey(struct reaper *r)
{
	union nsr_order order;
	ssize_t n = read((int)r->ctx->plan->number[NSR_LIFE_FD], &order, sizeof(order));

	if (!n || (n < 0 && errno != EAGAIN && errno != EINTR))
		finish(r, NSR_EXIT_KILLED);
	if (n == 1)
		signal_all(order.signal_number);
	else if (n == sizeof(order))
		r->deadline_ms = now_ms() + (int64_t)order.milliseconds;
}

static void out_of_time(struct reaper *r)
{
	r->ended = 1;
	r->end.type = NSR_RECORD_TIMEOUT;
	finish(r, NSR_EXIT_TIMEOUT);
}

static _Noreturn void watch(struct reaper *r)
{
	const int64_t *n = r->ctx->plan->number;
	struct pollfd ends[] = {
		{ .fd = r->signals, .events = POLLIN },
		{ .fd = (int)n[NSR_LIFE_FD], .events = POLLIN },
		{ .fd = r->ctx->status_w },
	};

	for (;;) {
		int64_t left = r->deadline_ms ? r->deadline_ms - now_ms() : -1;

		if (r->deadline_ms && left <= 0)
			out_of_time(r);
		if (poll(ends, 3, left > INT32_MAX ? INT32_MAX : (int)left) <= 0)
			continue;
		/* nobody reads it any more: the monitor is gone */
		if (ends[2].revents & (POLLERR | POLLHUP))
			finish(r, NSR_EXIT_KILLED);
		if (ends[1].revents)
			obey(r);
		if (ends[0].revents)
			reap(r);
	}
}

/* Between fork and exec: as in a sandbox, with nothing to enter but the cgroup. */
static _Noreturn void payload_main(struct nsr_ctx *ctx)
{
	const struct nsr_facts *f = &ctx->facts;
	long ret = SYS5(SYS_prctl, NSR_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);

	if (ret < 0) {
		nsr_fail(ctx, NSR_STEP_NO_NEW_PRIVS, ret);
	} else if (!nsr_cgroup_enter(ctx)) {
		if (!f->keep_caps) {
			ret = nsr_caps_bound(f->caps);
			if (!ret)
				ret = nsr_caps_write(f->caps);
		}
		if (ret < 0)
			nsr_fail(ctx, NSR_STEP_CAPSET, ret);
		else if (!nsr_payload_enter(ctx))
			nsr_payload_exec(ctx);
	}
	nsr_send_failure(ctx);
	/*
	 * Until we are killed, once the monitor has passed that on: our copy of
	 * NSR_EXEC_FD must not end before.
	 */
	for (;;)
		SYS5(SYS_ppoll, 0, 0, 0, 0, 0);
}

static void fail_reaper(struct nsr_ctx *ctx, enum nsr_step step, int err)
{
	nsr_fail(ctx, step, -err);
	nsr_send_failure(ctx);
	_exit(1);
}

static _Noreturn void reaper_main(struct nsr_ctx *ctx, const char *tmp)
{
	struct reaper r = { .ctx = ctx, .tmp = tmp,
			    .end = { .type = NSR_RECORD_EXIT, .op = -1 } };
	const int64_t *n = ctx->plan->number;
	int keep[] = { -1, ctx->status_w, (int)n[NSR_SYNC_FD], (int)n[NSR_LIFE_FD] };
	sigset_t chld;
	int ret;

	close(ctx->status_r);
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	r.signals = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
	/* the terminal's signals are for the monitor, whose end is then ours */
	if (r.signals < 0 || setsid() < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		fail_reaper(ctx, NSR_STEP_REAPER, errno);
	ctx->reaper_pid = getpid();
	r.payload = fork();
	if (r.payload < 0)
		fail_reaper(ctx, NSR_STEP_FORK, errno);
	if (!r.payload)
		payload_main(ctx);
	keep[0] = r.signals;
	ret = nsr_close_but(keep, sizeof(keep) / sizeof(keep[0]));
	if (ret)
		fail_reaper(ctx, NSR_STEP_CLOSE_FDS, -ret);
	if (n[NSR_TIMEOUT_MS])
		r.deadline_ms = now_ms() + n[NSR_TIMEOUT_MS];
	nsr_caps_write(0);
	/* what ended before the signal could be had */
	reap(&r);
	watch(&r);
}

/* --- the monitor ------------------------------------------------------------------------------ */

static int open_status(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	int status[2];
	int ret = ctx->plan->number[NSR_REPORT_FD] == -1 ? nsr_pipe(status) :
							   nsr_record_packets(status);

	if (ret)
		return nsr_diag_errno(diag, -ret, "Can't make a pipe");
	ctx->status_r = status[0];
	ctx->status_w = status[1];
	return 0;
}

/* 0: the end, or the reaper is gone and has left nothing to read. */
static int next_record(struct nsr_ctx *ctx, int reaper, struct nsr_record *record)
{
	struct pollfd ends[] = { { .fd = ctx->status_r, .events = POLLIN },
				 { .fd = reaper, .events = POLLIN } };

	while (poll(ends, 2, -1) < 0 && errno == EINTR)
		;
	if (!(ends[0].revents & POLLIN))
		return 0;
	return nsr_monitor_next(ctx, record, ctx->cold->text) > 0;
}

static int hear_end(struct nsr_ctx *ctx, int reaper, struct nsr_diag *diag)
{
	struct nsr_record record;
	int status = NSR_EXIT_KILLED;

	while (next_record(ctx, reaper, &record)) {
		if (record.type == NSR_RECORD_EXIT)
			status = (int)(record.value & 0xff);
		else if (record.type == NSR_RECORD_TIMEOUT)
			status = NSR_EXIT_TIMEOUT;
		else if (record.type == NSR_RECORD_FAIL) {
			nsr_failure_text(ctx->plan, &record, ctx->cold->text, diag);
			status = -1;
			break;
		}
	}
	return status;
}

/* From here on nothing of ours is left when this returns. */
static int accompany(struct nsr_ctx *ctx, pid_t reaper, pid_t parent, const char *tmp,
		     struct nsr_diag *diag)
{
	struct nsr_record used = { .cpu_ns = 0 };
	int pidfd = (int)SYS2(SYS_pidfd_open, reaper, 0);
	const int keep[] = { ctx->status_r, pidfd, (int)ctx->plan->number[NSR_REPORT_FD] };
	int ret = pidfd < 0 ? pidfd : 0, status = -1;

	if (!ret)
		ret = nsr_close_but(keep, sizeof(keep) / sizeof(keep[0]));
	nsr_caps_write(0);
	nsr_monitor_pid(ctx, reaper);
	if (ret)
		nsr_diag_errno(diag, -ret, "Can't watch the reaper");
	else if (!nsr_monitor_die_with(ctx, parent, diag))
		status = hear_end(ctx, pidfd, diag);
	/* the reaper ends by itself once it has no children; if it was not made to, we see to it */
	if (status < 0)
		kill(reaper, SIGKILL);
	while (waitpid(reaper, NULL, 0) < 0 && errno == EINTR)
		;
	kill_children(&used);
	if (*tmp)
		ret = nsr_host_tmp_remove(tmp);
	if (*tmp && ret && status >= 0) {
		nsr_diag_errno(diag, -ret, "Can't remove the temporary directory %s", tmp);
		status = -1;
	}
	return status;
}

/* The plan in the shape that it has to have here. */
static int adapt(struct nsr_plan *plan, char tmp[NSR_PATH_MAX], struct nsr_diag *diag)
{
	int64_t *flags = &plan->number[NSR_FLAGS];

	if (!(*flags & NSR_TERMINAL))
		*flags |= NSR_NEW_SESSION;
	if (nsr_host_confined(plan)) {
		/* an open file is a right that no rule can take back */
		*flags |= NSR_CLOSE_FDS;
		clean_environment(plan);
		if (add_filter(plan))
			return nsr_diag_errno(diag, ENOMEM, "Out of memory");
	}
	return *flags & NSR_PRIVATE_TMP ? nsr_host_tmp_make(plan, tmp, diag) : 0;
}

/* Found out before anything runs that could not be ended. */
static int can_end_trees(struct nsr_diag *diag)
{
	int fd = (int)SYS2(SYS_pidfd_open, getpid(), 0);
	int pid;

	if (fd < 0)
		return nsr_diag_errno(diag, -fd, "Can't watch the reaper: pidfd_open");
	close(fd);
	if (own_children(&pid, 1) >= 0)
		return 0;
	return nsr_diag_errno(diag, errno, "--backend host needs /proc/thread-self/children "
			      "(CONFIG_PROC_CHILDREN) to find what a command left running");
}

static int start(struct nsr_plan *plan, struct nsr_ctx *ctx, const char *tmp,
		 struct nsr_diag *diag)
{
	const uint64_t sigchld = 1ULL << (SIGCHLD - 1);
	pid_t pid;

	if (nsr_prepare(ctx, plan, NULL, diag) || nsr_monitor_keep(ctx, diag) ||
	    nsr_reserve_fds(plan, diag) || open_status(ctx, diag))
		return -1;
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		return nsr_diag_errno(diag, errno, "prctl(PR_SET_CHILD_SUBREAPER)");
	ctx->report_exec = plan->number[NSR_REPORT_FD] != -1;
	ctx->old_umask = (int)umask(0);
	umask((mode_t)ctx->old_umask);
	ctx->facts.unshare = 0;
	if (nsr_host_confined(plan)) {
		ctx->facts.caps = 0;
		ctx->facts.keep_caps = ctx->facts.raise_ambient = 0;
	}
	SYS4(SYS_rt_sigprocmask, SIG_BLOCK, &sigchld, 0, sizeof(sigchld));
	pid = fork();
	if (!pid)
		reaper_main(ctx, tmp);
	if (pid < 0)
		return nsr_diag_errno(diag, errno, "Can't fork for the reaper");
	close(ctx->status_w);
	return pid;
}

int nsr_run_host(struct nsr_plan *plan, struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	char *tmp = cold.tmp;
	pid_t parent = getppid();
	pid_t pid = -1;

	/* it may have become a plan for the host after it was checked */
	if (!nsr_plan_check(plan, diag) && !can_end_trees(diag) && !adapt(plan, tmp, diag))
		pid = start(plan, ctx, tmp, diag);
	if (pid > 0)
		return accompany(ctx, pid, parent, tmp, diag);
	if (*tmp)
		nsr_host_tmp_remove(tmp);
	return -1;
}
