/* SPDX-License-Identifier: MIT */
/* zygote.c - a process that forks monitors of a saved machine. */
#include "zygote.h"

#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "control.h"
#include "end.h"
#include "options.h"

enum { CONTROL, CONSOLE, MESSAGES, FDS };

union fds_message {
	struct cmsghdr header;
	char space[CMSG_SPACE(FDS * sizeof(int))];
};

/* One FORK; false at the socket's end. */
static bool take(int socket, struct vmm_record *record, int fds[FDS])
{
	struct iovec iov = { .iov_base = record, .iov_len = sizeof(*record) };
	union fds_message room;
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &room, .msg_controllen = sizeof(room.space),
	};
	struct cmsghdr *header;
	ssize_t n;

	do
		n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno != ECONNRESET)
		vmm_fail(errno, "zygote: recvmsg");
	if (n <= 0)
		return false;
	header = CMSG_FIRSTHDR(&message);
	if (n != sizeof(*record) || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ||
	    record->type != VMM_FORK || !header || header->cmsg_level != SOL_SOCKET ||
	    header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(FDS * sizeof(int)))
		vmm_fail(0, "zygote: something other than FORK with %d descriptors", FDS);
	memcpy(fds, CMSG_DATA(header), FDS * sizeof(int));
	return true;
}

static void answer(int socket, const struct vmm_record *record, int fd)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)record, .iov_len = sizeof(*record) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} room = { .header = { .cmsg_len = CMSG_LEN(sizeof(fd)), .cmsg_level = SOL_SOCKET,
			       .cmsg_type = SCM_RIGHTS } };

	if (fd >= 0) {
		memcpy(CMSG_DATA(&room.header), &fd, sizeof(fd));
		message.msg_control = &room;
		message.msg_controllen = sizeof(room.space);
	}
	/* an owner that is gone is seen at the next FORK */
	(void)!sendmsg(socket, &message, MSG_NOSIGNAL);
}

/* As fork(), with a pidfd, or -errno; there is no other thread whose locks would matter. */
static long fork_with(int *pidfd)
{
	struct clone_args args = {
		.flags = CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)pidfd, .exit_signal = SIGCHLD,
	};

	long pid = syscall(SYS_clone3, &args, sizeof(args));

	return pid < 0 ? -errno : pid;
}

/* The new monitor's options. */
static void become(struct vmm_options *options, const struct vmm_record *record, const int fds[FDS])
{
	close(options->zygote);
	if (dup2(fds[MESSAGES], STDERR_FILENO) < 0)
		_exit(VMM_ERROR);
	close(fds[MESSAGES]);
	options->control = fds[CONTROL];
	options->console = fds[CONSOLE];
	if (record->port)
		options->cid = record->port;
}

void vmm_zygote(struct vmm_options *options)
{
	struct sigaction forget = { .sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT };
	struct vmm_record record;
	int fds[FDS];

	sigaction(SIGCHLD, &forget, NULL);
	while (take(options->zygote, &record, fds)) {
		int pidfd = -1;
		long pid = fork_with(&pidfd);

		if (!pid) {
			become(options, &record, fds);
			return;
		}
		for (int i = 0; i < FDS; i++)
			close(fds[i]);
		record.type = pid > 0 ? VMM_FORKED : VMM_NOT_FORKED;
		record.port = pid > 0 ? (uint32_t)pid : (uint32_t)-pid;
		answer(options->zygote, &record, pidfd);
		if (pidfd >= 0)
			close(pidfd);
	}
	_exit(VMM_OVER);
}
