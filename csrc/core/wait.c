/* SPDX-License-Identifier: MIT */
/* wait.c - a child of our own, started and ended without a word to anybody. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"
#include "sys.h"
#include "uapi.h"

int nsr_fork(int *pidfd)
{
	pid_t parent = getpid();
	long pid = SYS5(SYS_clone, NSR_CLONE_PIDFD | SIGCHLD, 0, pidfd, 0, 0);

	if (pid)
		return (int)pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (getppid() != parent)
		_exit(EXIT_FAILURE);
	return 0;
}

int nsr_wait_bounded(int pid, int pidfd, int timeout_ms)
{
	struct pollfd end = { .fd = pidfd, .events = POLLIN };
	int status = -1, ret;

	do
		ret = poll(&end, 1, timeout_ms);
	while (ret < 0 && errno == EINTR);
	if (ret != 1)
		SYS4(SYS_pidfd_send_signal, pidfd, SIGKILL, 0, 0);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	close(pidfd);
	return ret == 1 ? status : -1;
}
