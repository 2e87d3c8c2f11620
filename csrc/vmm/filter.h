/* SPDX-License-Identifier: MIT */
/* filter.h - the system calls of each role, as a seccomp filter; any other call kills. */
#ifndef VMM_FILTER_H
#define VMM_FILTER_H

#include "jail.h"

/* The filter of a role for the calling thread; 0 or -errno. */
int vmm_filter_enter(enum vmm_role role);

#endif
