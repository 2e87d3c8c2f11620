/* SPDX-License-Identifier: MIT */
/*
 * walls.h - what the kernel's Landlock and namespaces keep from the monitor.
 *
 * They hold whatever a seccomp filter lets through.  A kernel without Landlock of
 * ABI 2, or a user who may not make namespaces, has fewer of them; what there is
 * must come up.
 */
#ifndef VMM_WALLS_H
#define VMM_WALLS_H

#include <stdbool.h>
#include <stdint.h>

/* Bits of what holds, which the owner is told. */
enum vmm_wall {
	VMM_WALL_JAIL = 1 << 0,     /* seccomp, no new privileges, closed descriptors, limits */
	VMM_WALL_FILES = 1 << 1,    /* nothing is executed, no device node made; see below */
	VMM_WALL_TCP = 1 << 2,
	VMM_WALL_SCOPES = 1 << 3,   /* signals, and abstract sockets */
	VMM_WALL_NET = 1 << 4,      /* a network namespace of its own, with nothing in it */
	VMM_WALL_IPC = 1 << 5,
	VMM_WALL_UTS = 1 << 6,
};

/*
 * For all threads that are made from now on.  Without a file server no file can
 * be opened; with one, vmm_walls_rules() narrows it once it is known what to.
 * Which hold.
 */
uint32_t vmm_walls_begin(bool serves_files);

/* A set of rules by which no file may be reached; -EOPNOTSUPP: no Landlock; -errno. */
int vmm_walls_rules(void);
/* But this one, or what lies below: fd may be an O_PATH one.  0 or -errno. */
int vmm_walls_allow(int rules, int fd, bool directory, bool writable);
/* The rules for the calling thread, also in a signal's handler; 0 or -errno. */
int vmm_walls_enter(int rules);

#endif
