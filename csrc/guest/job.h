/* SPDX-License-Identifier: MIT */
/*
 * job.h - what the agent hands to a command's warden: the agent's own program,
 * executed anew, so that nothing of the agent's memory is in what runs a plan.
 */
#ifndef NSR_GUEST_JOB_H
#define NSR_GUEST_JOB_H

#include <sys/resource.h>

#include "agent.h"

/* The descriptors that a warden begins with, beside the command's stdio. */
enum {
	NSR_JOB_LINE = 3,           /* to the agent, one packet each way at a time */
	NSR_JOB_FILE = 4,           /* struct nsr_job, and the plan at NSR_JOB_PLAN */
	NSR_JOB_OUTLET = 5,         /* if has_outlet: the plan's NSR_LISTEN_FD */
	NSR_JOB_END,
	NSR_JOB_PLAN = 20480,
};
#define NSR_WARDEN_OPTION "--warden"
/* Below the command's cgroup: the root of a cgroup namespace, with the limits above it. */
#define NSR_LIMITS_INNER "inner"

struct nsr_job {
	uint64_t plan_length;
	int32_t guest;              /* all is ours, see mount_proc() */
	int32_t own_userns;         /* it was made for the right to make the others */
	int32_t has_outlet;
	struct rlimit nofile;       /* what the command gets */
	char limits[NSR_LIMITS_PATH];
	struct nsr_host_settings settings;
};
_Static_assert(sizeof(struct nsr_job) <= NSR_JOB_PLAN, "the plan lies behind it");

/*
 * The agent sends numbers of signals (uint32_t).  It gets frames as the host
 * does: STARTED, EXITED, FAILED.
 */
union nsr_line_message {
	struct {
		struct nsr_frame frame;
		struct nsr_exited exited;
	} exit;
	struct nsr_frame frame;
	uint8_t bytes[NSR_FAILED_FRAME_MAX];
};

int nsr_warden_main(void);

#endif
