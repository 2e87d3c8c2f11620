/* SPDX-License-Identifier: MIT */
/* net_up.c - a guest's network card gets its addresses. */
#include "net_up.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "addresses.h"

enum { MAC = 6, ADDRESS_MAX = 16, MESSAGE = 256 };

struct request {
	struct nlmsghdr head;
	union {
		struct ifinfomsg link;
		struct ifaddrmsg address;
		struct rtmsg route;
		uint8_t room[MESSAGE];
	};
};

/* An address family's part of the settings. */
struct family {
	int family;
	uint8_t len;                /* bytes of an address */
	uint8_t prefix;
	const char *guest, *gateway;
};

static int is_ours(int socket, const char *name)
{
	static const uint8_t ours[MAC] = NSR_NET_MAC;
	struct ifreq ask = { .ifr_flags = 0 };

	snprintf(ask.ifr_name, sizeof(ask.ifr_name), "%s", name);
	return ioctl(socket, SIOCGIFHWADDR, &ask) == 0 &&
	       !memcmp(ask.ifr_hwaddr.sa_data, ours, sizeof(ours));
}

/* The card's index and name; 0 with errno. */
static unsigned int find_card(char name[IF_NAMESIZE])
{
	int socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct if_nameindex *all = if_nameindex();
	unsigned int found = 0;

	for (struct if_nameindex *one = all; one && one->if_index && !found; one++) {
		if (socket_fd < 0 || !is_ours(socket_fd, one->if_name))
			continue;
		found = one->if_index;
		snprintf(name, IF_NAMESIZE, "%s", one->if_name);
	}
	if (all)
		if_freenameindex(all);
	if (socket_fd >= 0)
		close(socket_fd);
	errno = ENODEV;
	return found;
}

static void begin(struct request *request, uint16_t type, uint16_t flags, size_t body)
{
	memset(request, 0, sizeof(*request));
	request->head.nlmsg_type = type;
	request->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	request->head.nlmsg_len = (uint32_t)NLMSG_LENGTH(body);
}

/* Requests are a few dozen bytes long. */
static void add(struct request *request, uint16_t type, const void *data, size_t len)
{
	struct rtattr *attr = (void *)((uint8_t *)request + NLMSG_ALIGN(request->head.nlmsg_len));

	attr->rta_type = type;
	attr->rta_len = (uint16_t)RTA_LENGTH(len);
	memcpy(RTA_DATA(attr), data, len);
	request->head.nlmsg_len = (uint32_t)(NLMSG_ALIGN(request->head.nlmsg_len) +
					     RTA_ALIGN(attr->rta_len));
}

/* Send it and take the answer; 0, or -1 with errno. */
static int ask(int netlink, const struct request *request)
{
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		uint8_t rest[MESSAGE + sizeof(struct nlmsghdr)];
	} answer;
	ssize_t n;

	if (send(netlink, request, request->head.nlmsg_len, 0) < 0)
		return -1;
	n = recv(netlink, &answer, sizeof(answer), 0);
	if (n < 0)
		return -1;
	if ((size_t)n < NLMSG_LENGTH(sizeof(answer.error)) || answer.head.nlmsg_type != NLMSG_ERROR) {
		errno = EPROTO;
		return -1;
	}
	errno = -answer.error.error;
	return errno ? -1 : 0;
}

static int set_link_up(int netlink, unsigned int card)
{
	struct request request;

	begin(&request, RTM_NEWLINK, 0, sizeof(request.link));
	request.link.ifi_index = (int)card;
	request.link.ifi_flags = request.link.ifi_change = IFF_UP;
	return ask(netlink, &request);
}

static int set_address(int netlink, unsigned int card, const struct family *family)
{
	uint8_t address[ADDRESS_MAX];
	struct request request;

	inet_pton(family->family, family->guest, address);
	begin(&request, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof(request.address));
	request.address.ifa_family = (uint8_t)family->family;
	request.address.ifa_prefixlen = family->prefix;
	/* nobody else can have it */
	request.address.ifa_flags = family->family == AF_INET6 ? IFA_F_NODAD : 0;
	request.address.ifa_index = card;
	add(&request, IFA_LOCAL, address, family->len);
	add(&request, IFA_ADDRESS, address, family->len);
	return ask(netlink, &request);
}

static int set_route(int netlink, unsigned int card, const struct family *family)
{
	uint8_t gateway[ADDRESS_MAX];
	struct request request;

	inet_pton(family->family, family->gateway, gateway);
	begin(&request, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof(request.route));
	request.route.rtm_family = (uint8_t)family->family;
	request.route.rtm_table = RT_TABLE_MAIN;
	request.route.rtm_protocol = RTPROT_BOOT;
	request.route.rtm_type = RTN_UNICAST;
	add(&request, RTA_GATEWAY, gateway, family->len);
	add(&request, RTA_OIF, &card, sizeof(card));
	return ask(netlink, &request);
}

/* What a router would tell is set here already. */
static void ignore_routers(const char *card)
{
	char path[64 + IF_NAMESIZE];
	int fd;

	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/accept_ra", card);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	/* an address more does no harm */
	(void)!write(fd, "0", 1);
	close(fd);
}

static const char *set_up(int netlink, unsigned int card)
{
	static const struct family ipv4 = {
		AF_INET, 4, NSR_NET_PREFIX4_LEN, NSR_NET_GUEST4, NSR_NET_GATEWAY4,
	}, ipv6 = {
		AF_INET6, 16, NSR_NET_PREFIX6_LEN, NSR_NET_GUEST6, NSR_NET_GATEWAY6,
	};

	if (set_link_up(netlink, card) < 0)
		return "the network card";
	if (set_address(netlink, card, &ipv4) < 0)
		return "the network card's address " NSR_NET_GUEST4;
	if (set_route(netlink, card, &ipv4) < 0)
		return "the route by " NSR_NET_GATEWAY4;
	/* a kernel without IPv6, or where it is disabled: EACCES since 5.x, before EOPNOTSUPP */
	if (set_address(netlink, card, &ipv6) < 0)
		return errno == EACCES || errno == EOPNOTSUPP || errno == EAFNOSUPPORT
			       ? NULL : "the network card's address " NSR_NET_GUEST6;
	if (set_route(netlink, card, &ipv6) < 0)
		return "the route by " NSR_NET_GATEWAY6;
	return NULL;
}

const char *nsr_guest_net_up(void)
{
	char name[IF_NAMESIZE];
	unsigned int card = find_card(name);
	const char *failed;
	int netlink, err;

	if (!card)
		return "the network card";
	ignore_routers(name);
	netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (netlink < 0)
		return "a netlink socket";
	failed = set_up(netlink, card);
	err = errno;
	close(netlink);
	errno = err;
	return failed;
}
