/* SPDX-License-Identifier: MIT */
/*
 * reaper_loop.h - what pid 1 does once the payload runs: wait(2), nothing else.
 *
 * Shared by the reaper that is a copy of nsrun and by the one that is a
 * program of its own.  A seccomp filter may be loaded: only wait4, write and
 * exit_group are used from here on, as by bwrap's pid 1.
 */
#ifndef NSR_REAPER_LOOP_H
#define NSR_REAPER_LOOP_H

#include "spawn.h"
#include "sys.h"

/* A shell's number for how a process ended. */
static inline int nsr_exit_status(int status)
{
	int signal_number = status & 0x7f;

	if (!signal_number)
		return status >> 8 & 0xff;
	return signal_number != 0x7f ? 128 + signal_number : NSR_EXIT_UNKNOWN;
}

/* Tell the monitor, if it asked, as soon as the payload ends; stay until all are gone. */
static inline int nsr_reap(int payload, int status_fd)
{
	int result = 1;

	for (;;) {
		int status;
		long pid = SYS4(SYS_wait4, -1, &status, 0, 0);

		if (pid == payload) {
			struct nsr_record record = { .type = NSR_RECORD_EXIT, .op = -1 };

			record.value = result = nsr_exit_status(status);
			if (status_fd >= 0)
				SYS3(SYS_write, status_fd, &record, sizeof(record));
		} else if (pid < 0 && pid != -EINTR) {
			return result;
		}
	}
}

#endif
