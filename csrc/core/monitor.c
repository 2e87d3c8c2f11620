/* SPDX-License-Identifier: MIT */
/* monitor.c - the command line's process outside: starts, reports, waits. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "caps.h"
#include "diag.h"
#include "monitor.h"
#include "owner.h"
#include "reaper_loop.h"
#include "spawn.h"
#include "sys.h"

enum { JSON_MAX = 1024 };

static int open_channels(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const int64_t *n = ctx->plan->number;
	const int on = 1;
	int status[2], go[2], ret;

	/* a socket says who sent a record, and whoever reads the report wants to know */
	ret = n[NSR_REPORT_FD] == -1 ? nsr_pipe(status) : nsr_record_packets(status);
	if (ret)
		return nsr_diag_errno(diag, -ret, "Can't make a pipe");
	ctx->status_r = status[0];
	ctx->status_w = status[1];
	if (n[NSR_PIDNS_FD] != -1 &&
	    (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ctx->pid_sock) ||
	     setsockopt(ctx->pid_sock[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on))))
		return nsr_diag_errno(diag, errno, "Can't make a socket pair");
	if (n[NSR_INFO_FD] == -1 && n[NSR_JSON_STATUS_FD] == -1)
		return 0;
	ret = nsr_pipe(go);
	if (ret)
		return nsr_diag_errno(diag, -ret, "Can't make a pipe");
	ctx->go_r = go[0];
	ctx->go_w = go[1];
	return 0;
}

static int join_userns(const struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	int fd = (int)ctx->plan->number[NSR_USERNS_FD];
	long ret = fd < 0 ? 0 : SYS2(SYS_setns, fd, NSR_CLONE_NEWUSER);

	if (ret == -EINVAL)
		return nsr_diag_set(diag, "Joining the specified user namespace failed, it might "
				    "not be a descendant of the current user namespace.");
	return ret ? nsr_diag_errno(diag, (int)-ret, "Joining specified user namespace failed") : 0;
}

/* The pid of the process that came out of the pid namespace's forks. */
static int receive_pid(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	struct ucred cred;
	ssize_t n = recvmsg(ctx->pid_sock[0], &msg, 0);
	struct cmsghdr *header = n == 1 ? CMSG_FIRSTHDR(&msg) : NULL;

	close(ctx->pid_sock[0]);
	if (!header || header->cmsg_type != SCM_CREDENTIALS ||
	    header->cmsg_len != CMSG_LEN(sizeof(cred)))
		return nsr_diag_set(diag, "Unexpected short read from pid socket");
	memcpy(&cred, CMSG_DATA(header), sizeof(cred));
	return cred.pid;
}

struct json {
	char text[JSON_MAX];
	size_t len;
};

static void json_add(struct json *json, const char *fmt, const char *name, unsigned long value)
{
	int n = snprintf(json->text + json->len, sizeof(json->text) - json->len, fmt, name, value);

	if (n > 0 && (size_t)n < sizeof(json->text) - json->len)
		json->len += (size_t)n;
}

/* The inode of each namespace that is the sandbox's own. */
static void json_namespaces(struct nsr_ctx *ctx, pid_t pid, struct json *json, const char *fmt)
{
	static const struct {
		const char *file;
		uint64_t flag;
	} all[] = {
		{ "cgroup", NSR_CLONE_NEWCGROUP }, { "ipc", NSR_CLONE_NEWIPC },
		{ "mnt", NSR_CLONE_NEWNS }, { "net", NSR_CLONE_NEWNET },
		{ "pid", NSR_CLONE_NEWPID }, { "uts", NSR_CLONE_NEWUTS },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		char path[64];
		struct stat st;

		if (!((ctx->facts.unshare | NSR_CLONE_NEWNS) & all[i].flag))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)pid, all[i].file);
		if (!stat(path, &st))
			json_add(json, fmt, all[i].file, (unsigned long)st.st_ino);
	}
}

static int write_text(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		text += n;
		len -= (size_t)n;
	}
	return 0;
}

struct info {
	struct json info;           /* for --info-fd */
	struct json status;         /* the same for --json-status-fd */
};

/* While we still may look at the child. */
static void gather_info(struct nsr_ctx *ctx, pid_t pid, struct info *out)
{
	out->info.len = out->status.len = 0;
	json_add(&out->info, "{\n    \"%s\": %lu", "child-pid", (unsigned long)pid);
	json_namespaces(ctx, pid, &out->info, ",\n    \"%s-namespace\": %lu");
	json_add(&out->info, "\n}\n", "", 0);
	json_add(&out->status, "{ \"%s\": %lu", "child-pid", (unsigned long)pid);
	json_namespaces(ctx, pid, &out->status, ", \"%s-namespace\": %lu");
	json_add(&out->status, " }\n", "", 0);
}

static int write_info(struct nsr_ctx *ctx, const struct info *info, struct nsr_diag *diag)
{
	const int64_t *n = ctx->plan->number;
	int ret = 0;

	if (n[NSR_INFO_FD] != -1) {
		ret = write_text((int)n[NSR_INFO_FD], info->info.text, info->info.len);
		close((int)n[NSR_INFO_FD]);
	}
	if (!ret && n[NSR_JSON_STATUS_FD] != -1)
		ret = write_text((int)n[NSR_JSON_STATUS_FD], info->status.text, info->status.len);
	return ret ? nsr_diag_errno(diag, -ret, "Write to info_fd") : 0;
}

static void wait_userns_block(const struct nsr_ctx *ctx)
{
	int fd = (int)ctx->plan->number[NSR_USERNS_BLOCK_FD];
	char byte;

	if (fd < 0)
		return;
	while (read(fd, &byte, 1) < 0 && errno == EINTR)
		;
	close(fd);
}

/* The monitor needs no rights and no fds but those it reports by. */
static int step_back(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const int64_t *n = ctx->plan->number;
	const int keep[] = { ctx->status_r, ctx->go_w, ctx->pid_sock[0], ctx->inner_pidfd,
			     (int)n[NSR_INFO_FD], (int)n[NSR_JSON_STATUS_FD],
			     (int)n[NSR_USERNS_BLOCK_FD], (int)n[NSR_USERNS2_FD],
			     (int)n[NSR_REPORT_FD],
			     n[NSR_FLAGS] & NSR_AS_PID_1 ? (int)n[NSR_LIFE_FD] : -1 };
	int ret = nsr_close_but(keep, sizeof(keep) / sizeof(keep[0]));

	if (ret)
		return nsr_diag_errno(diag, -ret, "Can't close file descriptors");
	/* not before the clone: had that failed, a set-user-id bwrap could have been next */
	if (!ctx->may_try_others && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return nsr_diag_errno(diag, errno, "prctl(PR_SET_NO_NEW_PRIVS) failed");
	if (n[NSR_USERNS2_FD] != -1) {
		ret = (int)SYS2(SYS_setns, n[NSR_USERNS2_FD], NSR_CLONE_NEWUSER);
		if (ret)
			return nsr_diag_errno(diag, -ret, "Setting userns2 failed");
	}
	/* refused where a filter forbids it: then there is nothing to give up safely */
	nsr_caps_write(0);
	return 0;
}

int nsr_monitor_die_with(const struct nsr_ctx *ctx, pid_t parent, struct nsr_diag *diag)
{
	/* a parent-death signal follows a thread; the life line, which pid 1 has, does not */
	if (!(ctx->plan->number[NSR_FLAGS] & NSR_DIE_WITH_PARENT) ||
	    ctx->plan->number[NSR_LIFE_FD] != -1)
		return 0;
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		return nsr_diag_errno(diag, errno, "prctl(PR_SET_PDEATHSIG)");
	/* it may have died before that */
	return getppid() == parent ? 0 : nsr_diag_set(diag, "The parent process has died");
}

/*
 * Any child is waited for: the one that came out of a joined pid namespace is
 * ours only once those that it was forked over have gone.
 */
static int wait_status(pid_t pid)
{
	int status;
	pid_t got;

	do
		got = waitpid(-1, &status, 0);
	while ((got < 0 && errno == EINTR) || (got >= 0 && got != pid));
	return got < 0 ? -1 : status;
}

/* A process two pid namespaces down is never ours to wait for. */
static int wait_exit(const struct nsr_ctx *ctx, pid_t pid)
{
	int status = wait_status(pid);

	if (status >= 0)
		return nsr_exit_status(status);
	return ctx->inner_pidfd < 0 ? NSR_EXIT_UNKNOWN : nsr_pidfd_wait(ctx->inner_pidfd);
}

struct outcome {
	int failed;                 /* the set-up or the exec, see diag */
	int reported;               /* exit is what the payload ended with */
	int exit;
};

/* Nobody may be listening any more; the sandbox then ends by its life line. */
static void report(const struct nsr_ctx *ctx, const struct nsr_record *record, const char *text)
{
	const struct iovec parts[2] = { { (void *)(uintptr_t)record, sizeof(*record) },
					{ (void *)(uintptr_t)text, strlen(text) + 1 } };
	const struct msghdr msg = { .msg_iov = (struct iovec *)(uintptr_t)parts, .msg_iovlen = 2 };
	int fd = (int)ctx->plan->number[NSR_REPORT_FD];

	if (fd >= 0)
		SYS3(SYS_sendmsg, fd, &msg, MSG_NOSIGNAL);
}

void nsr_report_diag(const struct nsr_ctx *ctx, const struct nsr_diag *diag)
{
	const struct nsr_record record = { .type = NSR_RECORD_DIAG, .err = diag->err, .op = -1 };
	char *text = ctx->cold->text;

	snprintf(text, NSR_RECORD_TEXT, "%s", diag->text);
	report(ctx, &record, text);
}

int nsr_monitor_next(struct nsr_ctx *ctx, struct nsr_record *record, char *text)
{
	int ret;

	*record = (struct nsr_record){ .pid = 0 };
	text[0] = '\0';
	if (ctx->plan->number[NSR_REPORT_FD] == -1)
		return nsr_read_record(ctx->status_r, record, text);
	ret = nsr_receive_record(ctx->status_r, record, text);
	if (ret > 0)
		report(ctx, record, text);
	return ret;
}

static struct outcome listen_for_end(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	struct outcome out = { 0, 0, 1 };
	char *text = ctx->cold->text;
	struct nsr_record record;

	while (!out.reported && nsr_monitor_next(ctx, &record, text) > 0) {
		if (record.type == NSR_RECORD_EXIT) {
			out.reported = 1;
			out.exit = (int)(record.value & 0xff);
		} else if (record.type == NSR_RECORD_TIMEOUT) {
			out.reported = 1;
			out.exit = NSR_EXIT_TIMEOUT;
		} else if (record.type == NSR_RECORD_EXEC) {
			ctx->exec_seen = 1;
		} else if (record.type == NSR_RECORD_FAIL) {
			nsr_failure_text(ctx->plan, &record, text, diag);
			out.failed = 1;
		}
	}
	return out;
}

static void report_exit(const struct nsr_ctx *ctx, int status)
{
	int fd = (int)ctx->plan->number[NSR_JSON_STATUS_FD];
	struct json json = { .len = 0 };

	if (fd < 0)
		return;
	json_add(&json, "{ \"%s\": %lu }\n", "exit-code", (unsigned long)status);
	write_text(fd, json.text, json.len);
}

/*
 * The payload's end ends the monitor.  With a reaper it comes as a record, and
 * what is left inside goes on without us; else the payload is our own child.
 */
static int wait_for_end(struct nsr_ctx *ctx, pid_t pid, struct nsr_diag *diag)
{
	struct outcome out = listen_for_end(ctx, diag);

	if (!out.reported || out.failed)
		out.exit = wait_exit(ctx, pid);
	if (out.failed)
		return -1;
	if (ctx->exec_seen)
		report_exit(ctx, out.exit);
	return out.exit;
}

static pid_t clone_child(struct nsr_ctx *ctx)
{
	unsigned long flags = SIGCHLD | NSR_CLONE_NEWNS | ctx->facts.unshare;

	/* a joined pid namespace has to be entered first, and its child made there */
	if (ctx->plan->number[NSR_PIDNS_FD] != -1)
		flags &= ~(unsigned long)NSR_CLONE_NEWPID;
	/* its root is to be the plan's cgroup, which the child enters first */
	if (ctx->cgroup_procs)
		flags &= ~(unsigned long)NSR_CLONE_NEWCGROUP;
	return (pid_t)SYS5(SYS_clone, flags, 0, 0, 0, 0);
}

/* A child or reader that is gone is an error to report, not our death by SIGPIPE. */
static int tell_and_go(struct nsr_ctx *ctx, const struct info *info, struct nsr_diag *diag)
{
	const struct sigaction ignore = { .sa_handler = SIG_IGN };
	struct sigaction before;
	int ret;

	sigaction(SIGPIPE, &ignore, &before);
	ret = write_info(ctx, info, diag);
	if (!ret) {
		wait_userns_block(ctx);
		ret = write_text(ctx->go_w, "", 1);
		close(ctx->go_w);
		/* where nobody reads it any more, the child has left its failure */
		if (ret == -EPIPE)
			ret = 0;
		else if (ret)
			nsr_diag_errno(diag, -ret, "Can't release the sandbox's first process");
	}
	sigaction(SIGPIPE, &before, NULL);
	return ret;
}

void nsr_monitor_pid(const struct nsr_ctx *ctx, pid_t pid)
{
	const struct nsr_record record = { .type = NSR_RECORD_PID, .op = -1, .value = pid };

	report(ctx, &record, "");
}

/* Ours alone; a plan that was read from bytes names them open. */
int nsr_monitor_keep(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	static const enum nsr_number ours[] = {
		NSR_REPORT_FD, NSR_LIFE_FD, NSR_PARK_FD, NSR_STUB_FD, NSR_LISTEN_FD,
		NSR_EXEC_FD,
	};
	const int64_t *n = ctx->plan->number;

	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		if (n[ours[i]] != -1 && fcntl((int)n[ours[i]], F_SETFD, FD_CLOEXEC))
			return nsr_diag_errno(diag, errno, "The plan names fd %d",
					      (int)n[ours[i]]);
	ctx->park_r = (int)n[NSR_PARK_FD];
	ctx->stub_fd = (int)n[NSR_STUB_FD];
	if (!(n[NSR_FLAGS] & NSR_PARKED) != (ctx->stub_fd < 0) ||
	    (ctx->park_r < 0) != (ctx->stub_fd < 0))
		return nsr_diag_set(diag, "A parked sandbox needs its socket and its program");
	if (ctx->stub_fd >= 0 && ctx->n_fprogs) {
		ctx->bpf_fd = nsr_filter_file(ctx);
		if (ctx->bpf_fd < 0)
			return nsr_diag_errno(diag, -ctx->bpf_fd, "Can't keep the seccomp programs");
	}
	return 0;
}

/* A command that is pid 1 itself hears nobody: we listen for it, and it dies with us. */
static int watch_for_payload(const struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const int64_t *n = ctx->plan->number;
	long ret = 0;

	if (n[NSR_FLAGS] & NSR_AS_PID_1 && nsr_owner_wanted(ctx->plan))
		ret = nsr_owner_watch((int)n[NSR_LIFE_FD], NSR_OWNER_ENDS,
				      (int)n[NSR_REPORT_FD], (uint64_t)n[NSR_TIMEOUT_MS]);
	return ret < 0 ? nsr_diag_errno(diag, (int)-ret, "Can't watch the sandbox's owner") : 0;
}

/* Everything between the clone and the payload's start that the caller sees. */
static int accompany(struct nsr_ctx *ctx, pid_t *pid, pid_t parent, struct nsr_diag *diag)
{
	struct info info;
	pid_t inner;

	close(ctx->status_w);
	if (ctx->pid_sock[0] >= 0) {
		close(ctx->pid_sock[1]);
		inner = receive_pid(ctx, diag);
		ctx->pid_sock[0] = -1;
		if (inner < 0) {
			/* the child's own word says more, if it had one */
			listen_for_end(ctx, diag);
			return -1;
		}
		*pid = inner;
		ctx->inner_pidfd = (int)SYS2(SYS_pidfd_open, inner, 0);
	}
	nsr_monitor_pid(ctx, *pid);
	if (ctx->go_w >= 0)
		gather_info(ctx, *pid, &info);
	if (step_back(ctx, diag) || nsr_monitor_die_with(ctx, parent, diag) ||
	    watch_for_payload(ctx, diag))
		return -1;
	if (ctx->go_w < 0)
		return 0;
	return tell_and_go(ctx, &info, diag);
}

int nsr_run_command(struct nsr_plan *plan, struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const uint64_t sigchld = 1ULL << (SIGCHLD - 1);
	pid_t parent = getppid();
	pid_t pid;

	if (plan->number[NSR_FLAGS] & NSR_ON_HOST)
		return nsr_run_host(plan, ctx, diag);
	if (nsr_prepare(ctx, plan, NULL, diag) || nsr_monitor_keep(ctx, diag) ||
	    nsr_reserve_fds(plan, diag) || open_channels(ctx, diag) || join_userns(ctx, diag))
		return -1;
	if (plan->number[NSR_PIDNS_FD] != -1 && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		return nsr_diag_errno(diag, errno, "prctl(PR_SET_CHILD_SUBREAPER)"), -1;
	ctx->report_exec = plan->number[NSR_JSON_STATUS_FD] != -1 ||
			   plan->number[NSR_REPORT_FD] != -1;
	/* the monitor and pid 1 wait for children by wait(2) alone, whatever our caller ignores */
	nsr_default_action(SIGCHLD);
	SYS4(SYS_rt_sigprocmask, SIG_BLOCK, &sigchld, 0, sizeof(sigchld));
	pid = clone_child(ctx);
	if (pid < 0) {
		nsr_clone_failed(ctx, -pid, diag);
		return -1;
	}
	if (!pid)
		nsr_child_main(ctx);
	if (accompany(ctx, &pid, parent, diag)) {
		kill(pid, SIGKILL);
		wait_status(pid);
		return -1;
	}
	return wait_for_end(ctx, pid, diag);
}
