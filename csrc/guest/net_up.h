/* SPDX-License-Identifier: MIT */
/* net_up.h - a guest's network card gets its addresses: csrc/net/addresses.h. */
#ifndef NSR_GUEST_NET_UP_H
#define NSR_GUEST_NET_UP_H

/*
 * Find the monitor's network card by its hardware address, and set it up with both
 * routes; once, when its driver is loaded.  NULL, or what failed, with errno (ENODEV:
 * there is no such card).  A guest without IPv6 is none of the failures.
 */
const char *nsr_guest_net_up(void);

#endif
