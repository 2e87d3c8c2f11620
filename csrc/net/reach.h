/* SPDX-License-Identifier: MIT */
/* reach.h - which of a guest's frames go on to the network. */
#ifndef NSR_NET_REACH_H
#define NSR_NET_REACH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Whether the user-mode stack may see this frame.  It would connect to whatever
 * address a guest writes, its own host's loopback included, which no network card
 * would.  Those, multicast and broadcast are refused, link-local ones unless that
 * is allowed; but what finds neighbours on the guest's own link is needed.
 */
bool nsr_net_reaches(const uint8_t *frame, size_t len, bool link_local);

#endif
