#define _GNU_SOURCE
#include "network.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct dump {
    const char *key;
    int request;
    size_t header;
    void (*fields)(struct json *out, const void *header);
};

static void link_fields(struct json *out, const void *header)
{
    const struct ifinfomsg *link = header;

    json_number(out, "type", link->ifi_type);
    json_number(out, "index", link->ifi_index);
    json_hex(out, "flags", link->ifi_flags);
}

static void address_fields(struct json *out, const void *header)
{
    const struct ifaddrmsg *address = header;

    json_number(out, "family", address->ifa_family);
    json_number(out, "prefix", address->ifa_prefixlen);
    json_number(out, "scope", address->ifa_scope);
    json_hex(out, "flags", address->ifa_flags);
    json_number(out, "index", (long long)address->ifa_index);
}

static void route_fields(struct json *out, const void *header)
{
    const struct rtmsg *route = header;

    json_number(out, "family", route->rtm_family);
    json_number(out, "prefix", route->rtm_dst_len);
    json_number(out, "table", route->rtm_table);
    json_number(out, "protocol", route->rtm_protocol);
    json_number(out, "scope", route->rtm_scope);
    json_number(out, "type", route->rtm_type);
}

/* Addresses and names are short; statistics, timers and nested ones are not
 * set up by anybody. */
static int worth_telling(int request, unsigned short type)
{
    switch (request) {
    case RTM_GETLINK: return type == IFLA_IFNAME || type == IFLA_MTU;
    case RTM_GETADDR: return type == IFA_ADDRESS || type == IFA_LOCAL || type == IFA_LABEL || type == IFA_BROADCAST;
    default: return type == RTA_DST || type == RTA_PREFSRC || type == RTA_GATEWAY || type == RTA_OIF;
    }
}

static void attributes(struct json *out, const struct dump *dump, const struct nlmsghdr *message)
{
    const char *start = (const char *)NLMSG_DATA(message) + NLMSG_ALIGN(dump->header);
    int left = (int)(message->nlmsg_len - NLMSG_SPACE(dump->header));

    for (const struct rtattr *one = (const void *)start; RTA_OK(one, left); one = RTA_NEXT(one, left)) {
        char key[16], hex[65] = "";
        const unsigned char *bytes = RTA_DATA(one);
        if (!worth_telling(dump->request, one->rta_type)) {
            continue;
        }
        for (size_t i = 0; i < RTA_PAYLOAD(one) && i < 32; i++) {
            snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
        }
        snprintf(key, sizeof key, "a%u", one->rta_type);
        json_string(out, key, hex);
    }
}

static int one_packet(struct json *out, const struct dump *dump, const void *packet, size_t length)
{
    size_t left = length;

    for (const struct nlmsghdr *message = packet; NLMSG_OK(message, left); message = NLMSG_NEXT(message, left)) {
        if (message->nlmsg_type == NLMSG_DONE || message->nlmsg_type == NLMSG_ERROR) {
            return 0;
        }
        json_open(out, NULL, '{');
        dump->fields(out, NLMSG_DATA(message));
        attributes(out, dump, message);
        json_close(out, '}');
    }
    return 1;
}

static void run_dump(struct json *out, int fd, const struct dump *dump)
{
    struct {
        struct nlmsghdr header;
        struct rtgenmsg body;
    } ask = {
        .header = {.nlmsg_len = sizeof ask, .nlmsg_type = (__u16)dump->request, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .body = {.rtgen_family = AF_UNSPEC},
    };
    _Alignas(8) char packet[1 << 16];
    ssize_t length = send(fd, &ask, sizeof ask, 0);

    json_open(out, dump->key, '[');
    do {
        length = length < 0 ? length : recv(fd, packet, sizeof packet, 0);
    } while (length > 0 && one_packet(out, dump, packet, (size_t)length));
    json_close(out, ']');
}

void network(struct json *out)
{
    static const struct dump dumps[] = {
        {"links", RTM_GETLINK, sizeof(struct ifinfomsg), link_fields},
        {"addresses", RTM_GETADDR, sizeof(struct ifaddrmsg), address_fields},
        {"routes", RTM_GETROUTE, sizeof(struct rtmsg), route_fields},
    };
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    json_open(out, "net", '{');
    if (fd < 0) {
        json_number(out, "error", errno);
    }
    for (size_t i = 0; fd >= 0 && i < sizeof dumps / sizeof dumps[0]; i++) {
        run_dump(out, fd, &dumps[i]);
    }
    json_close(out, '}');
    close(fd);
}
