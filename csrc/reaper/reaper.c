/* SPDX-License-Identifier: MIT */
/*
 * reaper.c - pid 1 of a sandbox that was started in process.
 *
 *   nsrun-reaper PAYLOAD STATUS RELEASE SECCOMP OWNER MILLISECONDS
 *
 * A pid, fds, enum nsr_owner_flag, the time that there is; an empty word stands
 * for "none", 0 for no end of time.  The process that execs this shared its
 * memory with the program that wanted the sandbox: from here on there is nothing
 * of that program in it.  No libc: it is embedded in the library and started for
 * each sandbox.
 */
#include "owner.h"
#include "reaper_loop.h"
#include "small.h"

enum { ARGC = 7 };

/* It hears the end where it reports it: the socket goes both ways. */
static void watch_owner(int flags, int status_fd, int milliseconds)
{
	long ret = nsr_owner_watch(status_fd, flags, status_fd, (uint64_t)milliseconds);

	if (ret < 0)
		nsr_small_fail(status_fd, NSR_STEP_REAPER, ret, "");
}

static int has_caps(void)
{
	struct nsr_cap_header header = { NSR_CAP_VERSION_3, 0 };
	struct nsr_cap_data has[2];

	return SYS2(SYS_capget, &header, has) < 0 ||
	       has[0].permitted | has[0].inheritable | has[1].permitted | has[1].inheritable;
}

/* To ask is cheaper than to change: in a user namespace of ours the exec has left none. */
static void drop_caps(int status_fd)
{
	struct nsr_cap_header header = { NSR_CAP_VERSION_3, 0 };
	static const struct nsr_cap_data none[2];
	long ret = has_caps() ? SYS2(SYS_capset, &header, none) : 0;

	if (ret < 0 && ret != -EPERM)
		nsr_small_fail(status_fd, NSR_STEP_CAPSET, ret, "");
}

_Noreturn void nsr_reaper_main(long argc, const char *const *argv)
{
	const uint64_t word = 1;        /* as eventfd(2) takes it */
	int payload, status_fd, release;

	/* nobody inside may look into this process, from its first instruction on */
	if (argc != ARGC || SYS5(SYS_prctl, NSR_PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		nsr_small_leave(1);
	payload = nsr_small_number(argv[1]);
	status_fd = nsr_small_number(argv[2]);
	release = nsr_small_number(argv[3]);
	drop_caps(status_fd);
	watch_owner(nsr_small_number(argv[5]), status_fd, nsr_small_number(argv[6]));
	/* the payload loads the same; without them here it could borrow our rights */
	nsr_small_load_filters(nsr_small_number(argv[4]), status_fd);
	if (SYS3(SYS_write, release, &word, sizeof(word)) != sizeof(word))
		nsr_small_fail(status_fd, NSR_STEP_REAPER, -EPIPE, "");
	SYS1(SYS_close, release);
	nsr_small_leave(nsr_reap(payload, status_fd));
}
