/* SPDX-License-Identifier: MIT */
/* reach.c - which of a guest's frames go on to the network. */
#include "reach.h"

#include <string.h>

enum { HEAD = 14, IPV4_HEAD = 20, IPV6_HEAD = 40 };
enum { TYPE_IPV4 = 0x0800, TYPE_ARP = 0x0806, TYPE_IPV6 = 0x86dd };
enum { IPV4_TO = 16, IPV6_NEXT = 6, IPV6_TO = 24 };
enum { NEXT_ICMPV6 = 58, ND_FIRST = 133, ND_LAST = 136 };

static bool reaches4(const uint8_t *packet, size_t len, bool link_local)
{
	const uint8_t *to = packet + IPV4_TO;

	if (len < IPV4_HEAD)
		return false;
	/* 0.0.0.0 is the loopback to connect(); from 224 on are multicast, reserved, broadcast */
	if (to[0] == 0 || to[0] == 127 || to[0] >= 224)
		return false;
	return link_local || to[0] != 169 || to[1] != 254;
}

static bool reaches6(const uint8_t *packet, size_t len)
{
	static const uint8_t zeroes[10];
	const uint8_t *to = packet + IPV6_TO;

	if (len < IPV6_HEAD)
		return false;
	/* "any", the loopback, and IPv4 addresses in the form of IPv6 ones */
	if (!memcmp(to, zeroes, sizeof(zeroes)))
		return false;
	/* link-local and multicast; a stack without interfaces can't say which link is meant */
	if (to[0] == 0xff || (to[0] == 0xfe && (to[1] & 0xc0) == 0x80))
		return packet[IPV6_NEXT] == NEXT_ICMPV6 && len > IPV6_HEAD &&
		       packet[IPV6_HEAD] >= ND_FIRST && packet[IPV6_HEAD] <= ND_LAST;
	return true;
}

bool nsr_net_reaches(const uint8_t *frame, size_t len, bool link_local)
{
	if (len < HEAD)
		return false;
	switch (frame[HEAD - 2] << 8 | frame[HEAD - 1]) {
	case TYPE_ARP:
		return true;
	case TYPE_IPV4:
		return reaches4(frame + HEAD, len - HEAD, link_local);
	case TYPE_IPV6:
		return reaches6(frame + HEAD, len - HEAD);
	default:
		return false;
	}
}
