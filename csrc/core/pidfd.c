/* SPDX-License-Identifier: MIT */
/* pidfd.c - how a process ended, also one that is not ours to wait for. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "reaper_loop.h"
#include "spawn.h"
#include "sys.h"

/* linux/pidfd.h; the first 64 bytes, which every kernel that answers knows. */
struct pidfd_info {
	uint64_t mask;
	uint64_t cgroupid;
	uint32_t ids[11];
	int32_t exit_code;
};
_Static_assert(sizeof(struct pidfd_info) == 64, "PIDFD_INFO_SIZE_VER0");
#define PIDFD_INFO_EXIT (1ULL << 3)
#define PIDFD_GET_INFO _IOWR(0xff, 11, struct pidfd_info)

/*
 * Wait for the process's end.  Its status as a shell has it, or
 * NSR_EXIT_UNKNOWN where the kernel (before Linux 6.15) tells only parents.
 */
int nsr_pidfd_wait(int pidfd)
{
	struct pollfd end = { .fd = pidfd, .events = POLLIN };
	struct pidfd_info info = { .mask = PIDFD_INFO_EXIT };

	while (SYS5(SYS_ppoll, &end, 1, 0, 0, 0) == -EINTR)
		;
	if (SYS3(SYS_ioctl, pidfd, PIDFD_GET_INFO, &info) < 0 || !(info.mask & PIDFD_INFO_EXIT))
		return NSR_EXIT_UNKNOWN;
	return nsr_exit_status(info.exit_code);
}

/* The field behind a process's name in /proc/PID/stat: its parent. -1: it is gone. */
int nsr_parent_of(int pid)
{
	char path[40], text[512];
	const char *at;
	int fd, parent = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = '\0';
	at = strrchr(text, ')');
	if (!at || sscanf(at, ") %*c %d", &parent) != 1)
		return -1;
	return parent;
}
