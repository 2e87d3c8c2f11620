/* SPDX-License-Identifier: MIT */
/*
 * jail.h - what is left to the monitor's threads once a guest runs.
 *
 * Each thread has a list of system calls by its role; any other call kills the
 * process.  In addition: no new privileges, no descriptors but those that were
 * given, no core dumps, no processes, and walls.h.
 */
#ifndef VMM_JAIL_H
#define VMM_JAIL_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

enum vmm_role {
	VMM_ROLE_CPU,
	VMM_ROLE_DEVICES,           /* the main thread, once the machine runs */
	VMM_ROLE_DEVICES_FS,        /* the same where it opens what EXPORTS name */
	VMM_ROLE_DISK,
	VMM_ROLE_FS,
	VMM_ROLES,
};

/* Signals from the main thread to another: stop, and go into the walls. */
enum { VMM_KICK = SIGUSR1, VMM_SHUT = SIGUSR2 };

/*
 * As many descriptors as may be.  In a jail: close all but these, and the
 * standard ones; no new privileges from now on.
 */
void vmm_jail_begin(bool enabled, const int *keep, int n_keep);
/* When every file that the monitor itself needs is open; no thread has been made. */
void vmm_jail_walls(bool serves_files);
/* Those that hold: enum vmm_wall. */
uint32_t vmm_jail_holds(void);
/* A thread, which enters its jail before it calls fn; its number. */
uint32_t vmm_jail_thread(enum vmm_role role, const char *what, void *(*fn)(void *arg), void *arg);
/* Wait until all of them are in, and go in too. */
void vmm_jail_end(enum vmm_role role);
/* A signal to a thread that is in. */
void vmm_jail_signal(uint32_t thread, int signal);
/* All threads get these rules of vmm_walls_rules(), which are closed.  The main thread, unlocked. */
void vmm_jail_shut(int rules);

#endif
