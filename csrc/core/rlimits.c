/* SPDX-License-Identifier: MIT */
/* rlimits.c - resource limits by name: getrlimit(2). */
#include <string.h>
#include <strings.h>
#include <sys/resource.h>

#include "plan.h"

static const char *const names[] = {
	[RLIMIT_CPU] = "cpu", [RLIMIT_FSIZE] = "fsize", [RLIMIT_DATA] = "data",
	[RLIMIT_STACK] = "stack", [RLIMIT_CORE] = "core", [RLIMIT_RSS] = "rss",
	[RLIMIT_NPROC] = "nproc", [RLIMIT_NOFILE] = "nofile", [RLIMIT_MEMLOCK] = "memlock",
	[RLIMIT_AS] = "as", [RLIMIT_LOCKS] = "locks", [RLIMIT_SIGPENDING] = "sigpending",
	[RLIMIT_MSGQUEUE] = "msgqueue", [RLIMIT_NICE] = "nice", [RLIMIT_RTPRIO] = "rtprio",
	[RLIMIT_RTTIME] = "rttime",
};
enum { COUNT = sizeof(names) / sizeof(names[0]) };

int nsr_rlimit_number(const char *name, size_t len)
{
	for (int i = 0; i < COUNT; i++)
		if (strlen(names[i]) == len && !strncasecmp(names[i], name, len))
			return i;
	return -1;
}

const char *nsr_rlimit_name(uint32_t resource)
{
	return resource < COUNT ? names[resource] : NULL;
}
