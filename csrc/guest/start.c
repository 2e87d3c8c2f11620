/* SPDX-License-Identifier: MIT */
/* start.c - a command's first process. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "caps.h"
#include "diag.h"
#include "job.h"
#include "sys.h"
#include "uapi.h"

enum { STACK_BYTES = 16384, MAP_TEXT = 48 };

static int write_job(const struct nsr_command *command, int own_userns)
{
	static struct nsr_job job;

	job = (struct nsr_job){
		.plan_length = command->plan_length,
		.guest = nsr_agent.pid_1,
		.own_userns = own_userns,
		.has_outlet = !!(command->settings->head.flags & NSR_SETTINGS_OUTLET),
		.nofile = nsr_agent.nofile,
		.settings = *command->settings,
	};
	memcpy(job.limits, command->limits, sizeof(job.limits));
	return pwrite(command->job, &job, sizeof(job), 0) == (ssize_t)sizeof(job) ? 0 : -EIO;
}

/* Between clone and exec, in our own memory: system calls alone. */
struct exec {
	int from[NSR_JOB_END];      /* what becomes descriptor 0, 1, ...; -1: nothing */
	int program;
	int own_userns;
	char uid_map[MAP_TEXT];
	char gid_map[MAP_TEXT];
	long err;
};

static long put(const char *path, const char *text)
{
	long fd = SYS3(SYS_openat, NSR_AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
	long ret = fd;

	if (fd >= 0) {
		ret = SYS3(SYS_write, fd, text, strlen(text));
		SYS1(SYS_close, fd);
	}
	return ret;
}

/* A user of the agent's own id, who has the rights of the new namespace also after the exec. */
static long own_user(const struct exec *exec)
{
	uint64_t caps = 0, inheritable = 0;
	long ret = put("/proc/self/setgroups", "deny");

	if (ret >= 0)
		ret = put("/proc/self/uid_map", exec->uid_map);
	if (ret >= 0)
		ret = put("/proc/self/gid_map", exec->gid_map);
	if (ret >= 0)
		ret = nsr_caps_read(&caps, &inheritable);
	if (ret >= 0)
		ret = nsr_caps_write(caps);
	if (ret >= 0)
		nsr_caps_raise_ambient(caps);
	return ret;
}

static int exec_warden(void *arg)
{
	static const char *const argv[] = { "nsrun-agent", NSR_WARDEN_OPTION, NULL };
	static const char *const envp[] = { NULL };
	struct exec *exec = arg;
	long ret = exec->own_userns ? own_user(exec) : 0;

	for (int i = 0; ret >= 0 && i < NSR_JOB_END; i++)
		if (exec->from[i] >= 0)
			ret = SYS3(SYS_dup3, exec->from[i], i, 0);
	if (ret >= 0)
		ret = SYS5(SYS_execveat, exec->program, "", argv, envp, NSR_AT_EMPTY_PATH);
	exec->err = -ret;
	SYS1(SYS_exit_group, 1);
	return 1;
}

/* In namespaces of its own from its first moment on: their end is the end of all in them. */
static int clone_warden(struct exec *exec, pid_t *pid)
{
	static _Alignas(16) char stack[STACK_BYTES];
	const int flags = CLONE_VM | CLONE_VFORK | CLONE_NEWPID | CLONE_NEWNS | SIGCHLD |
			  (exec->own_userns ? CLONE_NEWUSER : 0);

	*pid = clone(exec_warden, stack + sizeof(stack), flags, exec);
	if (*pid < 0) {
		*pid = 0;
		return -errno;
	}
	/* what has failed to exec is waited for as any other child, and known to nobody */
	if (exec->err)
		*pid = 0;
	return (int)-exec->err;
}

/* What the plan's NSR_LISTEN_FD will be; -1: it has none.  -errno with diag filled. */
static int open_outlet(struct nsr_command *command, int *fd, struct nsr_diag *diag)
{
	*fd = -1;
	if (!(command->settings->head.flags & NSR_SETTINGS_OUTLET))
		return 0;
	*fd = nsr_outlet_open(&command->outlet);
	return *fd < 0 ? nsr_diag_errno(diag, -*fd, "Can't make the command's way out") : 0;
}

static int launch(struct nsr_command *command, const struct nsr_stdio *stdio, int own_userns,
		  struct nsr_diag *diag)
{
	struct exec exec = { .program = nsr_agent.program, .own_userns = own_userns };
	int line[2], ret;

	ret = write_job(command, own_userns);
	if (ret)
		return nsr_diag_errno(diag, -ret, "Can't write down the command's job");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, line))
		return nsr_diag_errno(diag, errno, "Can't make a line to the command");
	ret = open_outlet(command, &exec.from[NSR_JOB_OUTLET], diag);
	if (ret) {
		close(line[0]);
		close(line[1]);
		return ret;
	}
	memcpy(exec.from, stdio->theirs, sizeof(stdio->theirs));
	exec.from[NSR_JOB_LINE] = line[1];
	exec.from[NSR_JOB_FILE] = command->job;
	snprintf(exec.uid_map, sizeof(exec.uid_map), "%u %u 1", geteuid(), geteuid());
	snprintf(exec.gid_map, sizeof(exec.gid_map), "%u %u 1", getegid(), getegid());
	ret = clone_warden(&exec, &command->warden);
	close(line[1]);
	if (exec.from[NSR_JOB_OUTLET] >= 0)
		close(exec.from[NSR_JOB_OUTLET]);
	command->line.fd = line[0];
	if (!ret && fcntl(line[0], F_SETFL, O_NONBLOCK))
		ret = -errno;
	if (!ret)
		ret = nsr_loop_add(&command->line);
	return ret ? nsr_diag_errno(diag, -ret, "Can't start the command's first process") : 0;
}

static int check_ids(const struct nsr_settings *settings, int own_userns, struct nsr_diag *diag)
{
	if (!own_userns || (settings->uid == geteuid() && settings->gid == getegid()))
		return 0;
	return nsr_diag_errno(diag, EPERM, "The agent is not root and can't run a plan as %u:%u",
			      settings->uid, settings->gid);
}

int nsr_command_start(struct nsr_command *command, struct nsr_diag *diag)
{
	int own_userns = geteuid() != 0, ret;
	struct nsr_stdio stdio;

	ret = check_ids(&command->settings->head, own_userns, diag);
	if (ret)
		return ret;
	ret = nsr_stdio_open(command, &stdio, diag);
	if (!ret)
		ret = nsr_limits_make(command, diag);
	if (!ret)
		ret = launch(command, &stdio, own_userns, diag);
	if (!ret)
		ret = nsr_stdio_join(command, &stdio, diag);
	nsr_stdio_close(&stdio);
	close(command->job);
	command->job = -1;
	if (ret)
		nsr_command_kill(command);
	return ret;
}
