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

#include <sys/resource.h>

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

static inline void nsr_add_usage(struct nsr_record *record, const struct rusage *usage)
{
	const int64_t micro = 1000, whole = 1000000000;
	int64_t peak = (int64_t)usage->ru_maxrss * 1024;

	record->cpu_ns += (usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * whole +
			  (usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) * micro;
	if (peak > record->peak_rss)
		record->peak_rss = peak;
}

/* What has ended by now; nothing else is left: it was the last. */
static inline void nsr_sweep(struct nsr_record *record)
{
	const int wnohang = 1;
	struct rusage usage;
	long pid;

	do {
		pid = SYS4(SYS_wait4, -1, 0, wnohang, &usage);
		if (pid > 0)
			nsr_add_usage(record, &usage);
	} while (pid > 0);
	record->alone = pid == -ECHILD;
}

/* Tell the monitor, if it asked, as soon as the payload ends; stay until all are gone. */
static inline int nsr_reap(int payload, int status_fd)
{
	struct nsr_record record = { .type = NSR_RECORD_EXIT, .op = -1 };
	int result = 1;

	for (;;) {
		struct rusage usage;
		int status;
		long pid = SYS4(SYS_wait4, -1, &status, 0, &usage);

		if (pid > 0)
			nsr_add_usage(&record, &usage);
		if (pid == payload) {
			record.value = result = nsr_exit_status(status);
			nsr_sweep(&record);
			if (status_fd >= 0)
				SYS3(SYS_write, status_fd, &record, sizeof(record));
		} else if (pid < 0 && pid != -EINTR) {
			return result;
		}
	}
}

#endif
