/* SPDX-License-Identifier: MIT */
/* refuse.c - the answer to a packet that goes nowhere. */
#include "refuse.h"

#include <arpa/inet.h>
#include <string.h>

#include "addresses.h"

enum { HEAD = 14, IP_HEAD = 20, ICMP_HEAD = 8, QUOTED = IP_HEAD + 8, MAC = 6 };
enum { AT_LENGTH = 2, AT_TTL = 8, AT_PROTOCOL = 9, AT_SUM = 10, AT_FROM = 12, AT_TO = 16 };
enum { TCP = 6, UDP = 17, ICMP = 1, UNREACHABLE = 3, PROHIBITED = 13, TTL = 64 };

/* RFC 1071; an even number of bytes. */
static void put_sum(uint8_t *at, const uint8_t *data, size_t len)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i += 2)
		sum += (uint32_t)data[i] << 8 | data[i + 1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	at[0] = (uint8_t)(~sum >> 8);
	at[1] = (uint8_t)~sum;
}

/* A whole TCP or UDP packet over IPv4 without options, to one host and not to many. */
static int is_answered(const uint8_t *frame, size_t len)
{
	const uint8_t *ip = frame + HEAD;

	return len >= HEAD + QUOTED && frame[12] == 0x08 && frame[13] == 0x00 && ip[0] == 0x45 &&
	       (ip[AT_PROTOCOL] == TCP || ip[AT_PROTOCOL] == UDP) && ip[AT_TO] < 224;
}

size_t nsr_net_refusal(const uint8_t *frame, size_t len, uint8_t answer[NSR_NET_REFUSAL])
{
	uint8_t *ip = answer + HEAD, *icmp = ip + IP_HEAD;
	const uint8_t *asked = frame + HEAD;

	if (!is_answered(frame, len))
		return 0;
	memset(answer, 0, NSR_NET_REFUSAL);
	memcpy(answer, frame + MAC, MAC);
	memcpy(answer + MAC, frame, MAC);
	answer[12] = 0x08;
	ip[0] = 0x45;
	ip[AT_LENGTH + 1] = IP_HEAD + ICMP_HEAD + QUOTED;
	ip[AT_TTL] = TTL;
	ip[AT_PROTOCOL] = ICMP;
	inet_pton(AF_INET, NSR_NET_GATEWAY4, ip + AT_FROM);
	memcpy(ip + AT_TO, asked + AT_FROM, 4);
	put_sum(ip + AT_SUM, ip, IP_HEAD);
	icmp[0] = UNREACHABLE;
	icmp[1] = PROHIBITED;
	memcpy(icmp + ICMP_HEAD, asked, QUOTED);
	put_sum(icmp + 2, icmp, ICMP_HEAD + QUOTED);
	return NSR_NET_REFUSAL;
}
