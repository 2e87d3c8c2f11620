/* SPDX-License-Identifier: MIT */
/*
 * jail.h - what is left to the monitor's threads once a guest runs.
 *
 * Each thread has a list of system calls by its role; any other call kills the
 * process.  In addition: no new privileges, no descriptors but those that were
 * given, no core dumps, no processes.
 */
#ifndef VMM_JAIL_H
#define VMM_JAIL_H

#include <pthread.h>
#include <stdbool.h>

enum vmm_role {
	VMM_ROLE_CPU,
	VMM_ROLE_DEVICES,           /* the main thread, once the machine runs */
	VMM_ROLE_DEVICES_FS,        /* the same where it opens what EXPORTS name */
	VMM_ROLE_DISK,
	VMM_ROLE_FS,
	VMM_ROLES,
};

/*
 * As many descriptors as may be.  In a jail: close all but these, and the
 * standard ones; no new privileges from now on.
 */
void vmm_jail_begin(bool enabled, const int *keep, int n_keep);
/* A thread, which enters its jail before it calls fn. */
pthread_t vmm_jail_thread(enum vmm_role role, const char *what, void *(*fn)(void *arg), void *arg);
/* Wait until all of them are in, and go in too. */
void vmm_jail_end(enum vmm_role role);

/* The filter of a role for the calling thread; 0 or -errno. */
int vmm_jail_enter(enum vmm_role role);

#endif
