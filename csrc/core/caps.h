/* SPDX-License-Identifier: MIT */
/* caps.h - capability sets. */
#ifndef NSR_CAPS_H
#define NSR_CAPS_H

#include <stdint.h>

/* Number of a capability by its name ("cap_sys_admin", any case) or digits; -1: unknown. */
int nsr_cap_by_name(const char *name);

/* capget(2) of this process; -errno on failure. */
int nsr_caps_read(uint64_t *effective, uint64_t *inheritable);

/* permitted = effective = inheritable = caps. */
int nsr_caps_write(uint64_t caps);

/* Take what is not in keep from the bounding set. */
int nsr_caps_bound(uint64_t keep);

/*
 * From now on no exec(2) gives any, not even to uid 0: for a program that gives up its own,
 * and runs none that should have some.  It is one call, where nsr_caps_bound makes 41 that
 * copy the credentials each.
 */
int nsr_caps_no_root(void);

/* Take it from the permitted, effective and inheritable sets, too. */
int nsr_caps_limit(uint64_t keep);

/* Raise all of caps in the ambient set; what the kernel refuses stays down. */
void nsr_caps_raise_ambient(uint64_t caps);

#endif
