/* SPDX-License-Identifier: MIT */
/*
 * warden.c - the process that all of a command's others descend from.
 *
 * It is pid 1 of a pid namespace of its own: whatever the command does, its
 * processes end with the warden, and none of them sees or signals anything
 * outside, be it root.  It is the agent's program executed anew, so neither it
 * nor its copies have anything of the agent's or of other commands in memory.
 * It reads the plan, forks the monitor that runs it, and tells the agent.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "caps.h"
#include "diag.h"
#include "job.h"
#include "reaper_loop.h"
#include "spawn.h"
#include "sys.h"

static struct {
	struct nsr_plan plan;
	struct nsr_ctx ctx;
	struct nsr_cold cold;
	struct nsr_diag diag;
} run;

static struct {
	pid_t monitor;
	pid_t payload;              /* 0: not yet */
	int ended;                  /* it is no more */
	uint64_t early;             /* signals that it gets when it is there, a bit each */
	int report;                 /* records of the monitor's; -1: at its end */
	int life;                   /* to the sandbox's pid 1, for signals */
	int failed;                 /* run.diag says why */
	struct nsr_record usage;
	struct nsr_exited exited;
} warden = { .report = -1, .life = -1 };

/* --- to the agent ----------------------------------------------------------------------------- */

static void say(const void *message, size_t length)
{
	/* it may be gone, and we are then too */
	while (send(NSR_JOB_LINE, message, length, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

static void say_failed(const struct nsr_diag *diag)
{
	static uint8_t frame[NSR_FAILED_FRAME_MAX];

	say(frame, nsr_failed_write(frame, diag));
}

static void say_started(void)
{
	const struct nsr_frame frame = { .type = NSR_FRAME_STARTED };

	say(&frame, sizeof(frame));
}

static void say_exited(void)
{
	union nsr_line_message message = { .exit = {
		.frame = { NSR_FRAME_EXITED, sizeof(warden.exited) },
		.exited = warden.exited,
	} };

	say(&message, sizeof(message.exit));
}

static _Noreturn void give_up(const struct nsr_diag *diag)
{
	say_failed(diag);
	_exit(EXIT_FAILURE);
}

/* --- the monitor: runs the plan as the nsrun program does -------------------------------------- */

static int put_at_path(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;
	int ret;

	if (fd < 0)
		return -errno;
	n = write(fd, text, strlen(text));
	ret = n < 0 ? -errno : 0;
	close(fd);
	return ret;
}

static int enter_limits(const struct nsr_job *job)
{
	char path[NSR_LIMITS_PATH + 32];
	int ret;

	if (!job->limits[0])
		return 0;
	snprintf(path, sizeof(path), "%s/" NSR_LIMITS_INNER "/cgroup.procs", job->limits);
	ret = put_at_path(path, "0");
	return ret ? nsr_diag_errno(&run.diag, -ret, "Can't enter the cgroup %s", job->limits) : 0;
}

static int take_ids(const struct nsr_job *job)
{
	const struct nsr_settings *head = &job->settings.head;
	int ret = nsr_caps_bound(head->bounding);

	if (ret)
		return ret;
	/* the one user that this namespace has, with no more rights than a user has */
	if (job->own_userns)
		return nsr_caps_write(0);
	if (setgroups(head->n_groups, (const gid_t *)job->settings.groups) ||
	    setresgid(head->gid, head->gid, head->gid) ||
	    setresuid(head->uid, head->uid, head->uid))
		return -errno;
	/* as for a program that the caller executes */
	ret = nsr_caps_limit(head->bounding);
	if (ret)
		return ret;
	/* lost by that; id maps are written through our own /proc entry */
	return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) ? -errno : 0;
}

static int become_caller(const struct nsr_job *job)
{
	int ret = enter_limits(job);

	if (ret)
		return ret;
	ret = take_ids(job);
	if (ret)
		return nsr_diag_errno(&run.diag, -ret, "Can't run as %u:%u",
				      job->settings.head.uid, job->settings.head.gid);
	if (setsid() < 0 || chdir("/"))
		return nsr_diag_errno(&run.diag, errno, "Can't begin a session in /");
	umask(job->settings.head.umask);
	return 0;
}

static _Noreturn void be_monitor(const struct nsr_job *job)
{
	int status = -1;

	run.ctx.plan = &run.plan;
	run.ctx.arena = &run.plan.arena;
	run.ctx.cold = &run.cold;
	if (!become_caller(job))
		status = nsr_run_command(&run.plan, &run.ctx, &run.diag);
	if (status < 0)
		nsr_report_diag(&run.ctx, &run.diag);
	_exit(status < 0 ? EXIT_FAILURE : status);
}

/* --- before it ---------------------------------------------------------------------------------- */

static const struct nsr_job *read_job(size_t *size)
{
	const struct nsr_job *job;
	struct stat file;

	if (fstat(NSR_JOB_FILE, &file) || file.st_size <= NSR_JOB_PLAN)
		_exit(EXIT_FAILURE);
	*size = (size_t)file.st_size;
	job = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, NSR_JOB_FILE, 0);
	close(NSR_JOB_FILE);
	if (job == MAP_FAILED || job->plan_length != *size - NSR_JOB_PLAN)
		_exit(EXIT_FAILURE);
	return job;
}

/* The agent ignores and blocks some; a command begins as any program does. */
static void reset_signals(void)
{
	sigset_t none;

	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/*
 * The command sees the processes of its own pid namespace.  In a guest the one
 * with the agent in it goes, which else a payload that is root could lay bare.
 * A user may not be allowed to mount it where parts of /proc are covered: then
 * it stays as it is.
 */
static void mount_proc(const struct nsr_job *job)
{
	const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    (job->guest && umount2("/proc", MNT_DETACH)) ||
	    (mount("proc", "/proc", "proc", flags, NULL) && !job->own_userns)) {
		nsr_diag_errno(&run.diag, errno, "Can't mount /proc");
		give_up(&run.diag);
	}
}

static void refuse_fd(const char *option, int fd)
{
	nsr_diag_set(&run.diag, "%s: the plan names fd %d, and a guest has none of the host's",
		     option, fd);
	give_up(&run.diag);
}

/* What only the process that made the plan could give. */
static void check_plan(void)
{
	const struct nsr_plan *plan = &run.plan;

	for (int i = NSR_USERNS_FD; i < NSR_NUMBER_END; i++)
		if (plan->number[i] != -1)
			refuse_fd("fds", (int)plan->number[i]);
	for (uint32_t i = 0; i < plan->n_ops; i++)
		if (plan->ops[i].fd >= 0)
			refuse_fd(nsr_op_option(&plan->ops[i]), plan->ops[i].fd);
	if (!(plan->number[NSR_FLAGS] & (NSR_PARKED | NSR_ON_HOST)))
		return;
	nsr_diag_set(&run.diag, "The plan is one that no guest runs: parked, or without namespaces");
	give_up(&run.diag);
}

static void read_plan(const struct nsr_job *job)
{
	const uint8_t *bytes = (const uint8_t *)job + NSR_JOB_PLAN;

	nsr_plan_init(&run.plan);
	if (nsr_plan_read(&run.plan, bytes, job->plan_length, &run.diag))
		give_up(&run.diag);
	check_plan();
}

/* In a network that others share, the proxy's ports would be everybody's. */
static void give_outlet(void)
{
	run.plan.number[NSR_LISTEN_FD] = NSR_JOB_OUTLET;
	if (run.plan.number[NSR_UNSHARE] & NSR_CLONE_NEWNET)
		return;
	nsr_diag_set(&run.diag, "A plan with a way out to a proxy needs a network of its own");
	give_up(&run.diag);
}

static void open_channels(void)
{
	int report[2], life[2];
	int ret = nsr_record_packets(report);

	if (!ret)
		ret = nsr_packets(life);
	if (!ret && fcntl(report[0], F_SETFL, O_NONBLOCK))
		ret = -errno;
	if (ret) {
		nsr_diag_errno(&run.diag, -ret, "Can't make the channels to the sandbox");
		give_up(&run.diag);
	}
	warden.report = report[0];
	warden.life = life[0];
	run.plan.number[NSR_REPORT_FD] = report[1];
	run.plan.number[NSR_LIFE_FD] = life[1];
}

/* Only the command's processes hold its stdio. */
static void close_theirs(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int fd = 0; fd < 3; fd++) {
		if (null < 0)
			close(fd);
		else
			dup2(null, fd);
	}
	if (null > 2)
		close(null);
	close((int)run.plan.number[NSR_REPORT_FD]);
	close((int)run.plan.number[NSR_LIFE_FD]);
	if (run.plan.number[NSR_LISTEN_FD] != -1)
		close((int)run.plan.number[NSR_LISTEN_FD]);
}

static void fork_monitor(const struct nsr_job *job)
{
	warden.monitor = fork();
	if (warden.monitor < 0) {
		nsr_diag_errno(&run.diag, errno, "Can't fork");
		give_up(&run.diag);
	}
	if (!warden.monitor) {
		close(NSR_JOB_LINE);
		close(warden.report);
		close(warden.life);
		be_monitor(job);
	}
	close_theirs();
}

/* --- while it runs ---------------------------------------------------------------------------- */

static void pass_early(void)
{
	for (int number = 1; warden.early; number++, warden.early >>= 1)
		if (warden.early & 1)
			kill(warden.payload, number);
}

static void take_record(const struct nsr_record *record, const char *text)
{
	switch (record->type) {
	case NSR_RECORD_EXEC:
		warden.payload = record->pid;
		pass_early();
		say_started();
		break;
	case NSR_RECORD_TIMEOUT:
		warden.exited.flags |= NSR_EXITED_TIMED_OUT;
		warden.ended = 1;
		break;
	case NSR_RECORD_EXIT:
		warden.usage.cpu_ns = record->cpu_ns;
		warden.usage.peak_rss = record->peak_rss;
		warden.ended = 1;
		break;
	case NSR_RECORD_FAIL:
		if (!warden.failed++)
			nsr_failure_text(&run.plan, record, text, &run.diag);
		break;
	case NSR_RECORD_DIAG:
		if (warden.failed++)
			break;
		nsr_diag_set(&run.diag, "%s", text);
		run.diag.err = record->err;
		break;
	default:
		break;
	}
}

static void hear_monitor(void)
{
	static char text[NSR_RECORD_TEXT];
	int got = 1;

	while (warden.report >= 0 && got > 0) {
		struct nsr_record record = { .pid = 0 };

		text[0] = '\0';
		got = nsr_receive_record(warden.report, &record, text);
		if (got > 0)
			take_record(&record, text);
	}
	if (got == -EAGAIN || warden.report < 0)
		return;
	close(warden.report);
	warden.report = -1;
}

/* As nsr_child_signal: pid 1 sends it to all, or we send it to the payload alone. */
static void pass_signal(uint32_t number)
{
	const int64_t *n = run.plan.number;
	const uint8_t order = (uint8_t)number;

	if (n[NSR_UNSHARE] & NSR_CLONE_NEWPID && !(n[NSR_FLAGS] & NSR_AS_PID_1) &&
	    nsr_plan_seccomp_is_ours(&run.plan))
		send(warden.life, &order, sizeof(order), MSG_NOSIGNAL | MSG_DONTWAIT);
	else if (!warden.payload)
		warden.early |= 1ULL << (number - 1);
	else if (!warden.ended)
		kill(warden.payload, (int)number);
}

static void hear_agent(void)
{
	uint32_t number;
	ssize_t n = recv(NSR_JOB_LINE, &number, sizeof(number), MSG_DONTWAIT);

	/* without the agent there is nobody to run for */
	if (!n || (n < 0 && errno != EAGAIN && errno != EINTR))
		_exit(EXIT_FAILURE);
	if (n == (ssize_t)sizeof(number) && number && number <= 64)
		pass_signal(number);
}

static void tell_end(int status, const struct rusage *usage)
{
	struct nsr_record used = { .cpu_ns = 0 };

	hear_monitor();
	warden.ended = 1;
	if (warden.failed) {
		say_failed(&run.diag);
		return;
	}
	nsr_add_usage(&used, usage);
	warden.exited.status = (uint32_t)nsr_exit_status(status);
	/* pid 1 inside may have told, or have been waited for: never both */
	warden.exited.cpu_ns = (uint64_t)(used.cpu_ns + warden.usage.cpu_ns);
	warden.exited.peak = (uint64_t)(used.peak_rss > warden.usage.peak_rss ? used.peak_rss :
					warden.usage.peak_rss);
	say_exited();
}

/* 0: there are no processes left. */
static int reap(void)
{
	for (;;) {
		struct rusage usage;
		int status;
		pid_t pid = wait4(-1, &status, WNOHANG, &usage);

		if (pid == warden.monitor)
			tell_end(status, &usage);
		if (pid <= 0)
			return pid == 0 || errno != ECHILD;
	}
}

static void wake(int number)
{
	(void)number;
}

int nsr_warden_main(void)
{
	const struct sigaction on_child = { .sa_handler = wake };
	sigset_t child, before;
	struct pollfd from[2] = { { .fd = NSR_JOB_LINE, .events = POLLIN } };
	const struct nsr_job *job;
	size_t size;

	if (fcntl(NSR_JOB_LINE, F_SETFD, FD_CLOEXEC))
		return EXIT_FAILURE;
	reset_signals();
	job = read_job(&size);
	if (job->has_outlet && fcntl(NSR_JOB_OUTLET, F_SETFD, FD_CLOEXEC))
		return EXIT_FAILURE;
	mount_proc(job);
	read_plan(job);
	if (job->has_outlet)
		give_outlet();
	if (setrlimit(RLIMIT_NOFILE, &job->nofile)) {
		nsr_diag_errno(&run.diag, errno, "Can't set the limit nofile");
		give_up(&run.diag);
	}
	open_channels();
	fork_monitor(job);
	munmap((void *)(uintptr_t)job, size);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, &before);
	sigaction(SIGCHLD, &on_child, NULL);
	while (reap()) {
		from[1] = (struct pollfd){ .fd = warden.report, .events = POLLIN };
		if (ppoll(from, 2, NULL, &before) < 0)
			continue;
		if (from[1].revents)
			hear_monitor();
		if (from[0].revents)
			hear_agent();
	}
	return EXIT_SUCCESS;
}
