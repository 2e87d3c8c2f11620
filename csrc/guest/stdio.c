/* SPDX-License-Identifier: MIT */
/* stdio.c - what a command has for its standard streams: pipes, a terminal, /dev/null. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"
#include "diag.h"
#include "uapi.h"

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

enum { TERMINAL_MODE = 0620 };

static void close_all(const int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* It belongs to who runs the plan, so that /dev/stdout can be opened there. */
static int give(const struct nsr_settings *to, int fd)
{
	return to->uid != geteuid() && fchown(fd, to->uid, to->gid) ? -errno : 0;
}

static int open_pipe(struct nsr_stdio *stdio, enum nsr_role role, const struct nsr_settings *settings)
{
	const int in = role == NSR_ROLE_STDIN;
	int fds[2];

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	stdio->ours[role] = fds[in];
	stdio->theirs[role - NSR_ROLE_STDIN] = fds[!in];
	/* theirs may block: it is a description of its own */
	if (fcntl(fds[in], F_SETFL, O_NONBLOCK))
		return -errno;
	return give(settings, fds[in]);
}

static int open_null(struct nsr_stdio *stdio, enum nsr_role role)
{
	int *fd = &stdio->theirs[role - NSR_ROLE_STDIN];

	*fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	return *fd < 0 ? -errno : 0;
}

static int open_terminal(struct nsr_stdio *stdio, const struct nsr_settings *settings)
{
	const struct winsize window = { .ws_row = (unsigned short)settings->rows,
					.ws_col = (unsigned short)settings->columns };
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	int unlocked = 0, slave;

	if (master < 0)
		return -errno;
	stdio->ours[NSR_ROLE_TERMINAL] = master;
	if (ioctl(master, TIOCSPTLCK, &unlocked) ||
	    (settings->rows && ioctl(master, TIOCSWINSZ, &window)))
		return -errno;
	/* O_CLOEXEC would stay among the flags of the open file, which the command sees */
	slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
	if (slave < 0)
		return -errno;
	stdio->theirs[0] = slave;
	if (fcntl(slave, F_SETFD, FD_CLOEXEC))
		return -errno;
	for (int i = 1; i < 3; i++) {
		stdio->theirs[i] = fcntl(slave, F_DUPFD_CLOEXEC, 0);
		if (stdio->theirs[i] < 0)
			return -errno;
	}
	return fchmod(slave, TERMINAL_MODE) ? -errno : give(settings, slave);
}

static int open_streams(struct nsr_command *command, struct nsr_stdio *stdio)
{
	const struct nsr_settings *settings = &command->settings->head;
	int role = NSR_ROLE_STDIN, ret = 0;

	memset(stdio, -1, sizeof(*stdio));
	if (settings->flags & NSR_SETTINGS_WARM &&
	    (nsr_stream_there(&command->stream[NSR_ROLE_TERMINAL]) ||
	     nsr_stream_there(&command->stream[NSR_ROLE_STDIN])))
		return -EINVAL;
	if (nsr_stream_there(&command->stream[NSR_ROLE_TERMINAL]))
		return open_terminal(stdio, settings);
	if (settings->flags & NSR_SETTINGS_WARM) {
		ret = stdio->theirs[0] = nsr_warm_open(&command->warm);
		ret = ret < 0 ? ret : 0;
		role++;
	}
	for (; !ret && role <= NSR_ROLE_STDERR; role++)
		ret = nsr_stream_there(&command->stream[role]) ?
		      open_pipe(stdio, role, settings) : open_null(stdio, role);
	return ret;
}

int nsr_stdio_open(struct nsr_command *command, struct nsr_stdio *stdio, struct nsr_diag *diag)
{
	int ret = open_streams(command, stdio);

	return ret ? nsr_diag_errno(diag, -ret, "Can't make the command's stdio") : 0;
}

int nsr_stdio_join(struct nsr_command *command, struct nsr_stdio *stdio, struct nsr_diag *diag)
{
	for (int role = 0; role < NSR_ROLE_END; role++) {
		int ret = 0;

		if (stdio->ours[role] >= 0)
			ret = nsr_stream_join(&command->stream[role], stdio->ours[role]);
		if (ret)
			return nsr_diag_errno(diag, -ret, "Can't watch the command's streams");
		stdio->ours[role] = -1;
	}
	return 0;
}

void nsr_stdio_close(struct nsr_stdio *stdio)
{
	close_all(stdio->theirs, 3);
	close_all(stdio->ours, NSR_ROLE_END);
}
