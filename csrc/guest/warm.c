/* SPDX-License-Identifier: MIT */
/*
 * warm.c - a program that does its start, is saved with the machine, and goes on in a clone.
 *
 * What it was started with is the plan's: namespaces, ids, mounts, its cgroup.
 * What makes it another command in each clone comes by one message: arguments,
 * environment and directory as bytes that are nothing to the agent, and the
 * standard streams.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "diag.h"

static void line_ready(struct nsr_watch *watch, uint32_t events)
{
	struct nsr_warm *warm = (struct nsr_warm *)(void *)watch;
	char said[64];
	ssize_t n = 1;

	(void)events;
	while (n > 0 || (n < 0 && errno == EINTR)) {
		n = recv(watch->fd, said, sizeof(said), 0);
		if (n > 0 && !warm->ready++)
			nsr_control_send(warm->control, NSR_FRAME_WARM, NULL, 0);
	}
	if (!n)
		nsr_loop_close(watch);
}
_Static_assert(offsetof(struct nsr_warm, line) == 0, "its watch is its beginning");

void nsr_warm_init(struct nsr_warm *warm, struct nsr_control *control)
{
	*warm = (struct nsr_warm){
		.line = { .fd = -1, .ready = line_ready }, .control = control,
	};
}

int nsr_warm_open(struct nsr_warm *warm)
{
	int line[2], ret;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, line))
		return -errno;
	warm->line.fd = line[0];
	ret = fcntl(line[0], F_SETFL, O_NONBLOCK) ? -errno : nsr_loop_add(&warm->line);
	if (!ret)
		return line[1];
	warm->line.fd = -1;
	close(line[0]);
	close(line[1]);
	return ret;
}

void nsr_warm_close(struct nsr_warm *warm)
{
	nsr_loop_close(&warm->line);
}

void nsr_warm_keep(struct nsr_command *command)
{
	command->deadline_ms = -1;
	for (int role = 0; role < NSR_ROLE_END; role++)
		nsr_stream_close(&command->stream[role]);
}

/* Its processes are who they are. */
static int check_caller(const struct nsr_host_settings *now, const struct nsr_host_settings *then,
			struct nsr_diag *diag)
{
	const struct nsr_settings *a = &now->head, *b = &then->head;

	if (a->uid == b->uid && a->gid == b->gid && a->umask == b->umask &&
	    a->bounding == b->bounding && a->n_groups == b->n_groups &&
	    !memcmp(now->groups, then->groups, a->n_groups * sizeof(now->groups[0])) &&
	    !(a->flags & (NSR_SETTINGS_WARM | NSR_SETTINGS_OUTLET)))
		return 0;
	return nsr_diag_errno(diag, EPERM, "The program that was warmed is another caller's");
}

/* Everything of it but its streams. */
static int take_over(struct nsr_command *command, struct nsr_command *kept, struct nsr_diag *diag)
{
	struct nsr_exited until = { .cpu_ns = 0 };
	int ret;

	command->line.fd = nsr_loop_leave(&kept->line);
	command->warden = kept->warden;
	kept->warden = 0;
	memcpy(command->limits, kept->limits, sizeof(command->limits));
	kept->limits[0] = '\0';
	nsr_limits_usage(command, &until);
	command->warm.before_ns = until.cpu_ns;
	ret = nsr_loop_add(&command->line);
	return ret ? nsr_diag_errno(diag, -ret, "Can't watch the program that was warmed") : 0;
}

/* The message and its streams; then nothing is said any more. */
static int hand(struct nsr_warm *warm, const int theirs[3], const void *message, size_t length,
		struct nsr_diag *diag)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(3 * sizeof(int))];
	} fds = { .head = { .cmsg_len = CMSG_LEN(3 * sizeof(int)), .cmsg_level = SOL_SOCKET,
			    .cmsg_type = SCM_RIGHTS } };
	struct iovec iov = { (void *)(uintptr_t)message, length };
	const struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &fds,
				    .msg_controllen = sizeof(fds.space) };
	ssize_t n;

	memcpy(CMSG_DATA(&fds.head), theirs, 3 * sizeof(int));
	do
		n = sendmsg(warm->line.fd, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		nsr_diag_errno(diag, errno, "The program that was warmed can't be told to go on");
	nsr_loop_close(&warm->line);
	return n < 0 ? -EIO : 0;
}

static int go_on(struct nsr_command *command, struct nsr_command *kept, const void *message,
		 size_t length, struct nsr_diag *diag)
{
	const struct nsr_started started = { .pid = (uint32_t)kept->warden };
	struct nsr_stdio stdio;
	int ret = take_over(command, kept, diag);

	if (ret)
		return ret;
	ret = nsr_stdio_open(command, &stdio, diag);
	if (!ret)
		ret = nsr_limits_set(command, diag);
	if (!ret)
		ret = hand(&kept->warm, stdio.theirs, message, length, diag);
	if (!ret)
		ret = nsr_stdio_join(command, &stdio, diag);
	if (!ret)
		nsr_control_send(&command->control, NSR_FRAME_STARTED, &started, sizeof(started));
	nsr_stdio_close(&stdio);
	return ret;
}

int nsr_warm_continue(struct nsr_command *command, struct nsr_command *kept, const void *message,
		      size_t length, struct nsr_diag *diag)
{
	int ret;

	if (!kept)
		return nsr_diag_errno(diag, ESRCH, "No program was warmed that could go on");
	if (nsr_stream_there(&command->stream[NSR_ROLE_TERMINAL]))
		return nsr_diag_errno(diag, ENOTTY, "A program that was warmed gets no terminal");
	ret = check_caller(command->settings, kept->settings, diag);
	if (!ret)
		ret = go_on(command, kept, message, length, diag);
	if (ret)
		nsr_command_kill(command);
	return ret;
}
