/* SPDX-License-Identifier: MIT */
/* refuse.h - the answer to a packet that goes nowhere. */
#ifndef NSR_NET_REFUSE_H
#define NSR_NET_REFUSE_H

#include <stddef.h>
#include <stdint.h>

enum { NSR_NET_REFUSAL = 14 + 20 + 8 + 28 };

/*
 * Make the frame by which a router says "administratively prohibited" (RFC 1812,
 * 5.2.7.1), so that who sent this one need not wait for a time-out.  Returns its
 * length; 0: such a frame is answered by nothing.
 */
size_t nsr_net_refusal(const uint8_t *frame, size_t len, uint8_t answer[NSR_NET_REFUSAL]);

#endif
