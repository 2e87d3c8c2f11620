/* SPDX-License-Identifier: MIT */
/* clock.h - the clock that all times of a sandbox are of: clock_gettime(2). */
#ifndef NSR_CLOCK_H
#define NSR_CLOCK_H

#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC in nanoseconds. */
static inline int64_t nsr_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

#endif
