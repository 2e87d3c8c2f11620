/* SPDX-License-Identifier: MIT */
/*
 * net.c - virtio-net.
 *
 * Nothing waits: a frame that the socket does not take now stays in the guest's
 * ring, and one that the guest has no buffers for stays in the socket, but for
 * one.  So whoever is slow slows the other.
 */
#include "net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "addresses.h"
#include "device.h"
#include "loop.h"

enum { NET_ID = 1, NET_RX = 0, NET_TX = 1, NET_QUEUE = 256 };
enum { ETHERNET = 14, FRAME_MAX = ETHERNET + VMM_NET_MTU_MAX };
/* Frames in one go: others share the thread and the lock. */
enum { BATCH = 64 };
enum { LINK_UP = 1 };
#define F_MTU (1ULL << 3)
#define F_MAC (1ULL << 5)
#define F_MRG_RXBUF (1ULL << 15)
#define F_STATUS (1ULL << 16)

/* Before each frame; without offloads only the count of buffers is more than zeroes. */
struct header {
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset;
	uint16_t num_buffers;
};

struct config {
	uint8_t mac[6];
	uint16_t status;
	uint16_t max_queue_pairs;
	uint16_t mtu;
};

/* As it lies in the guest's buffers. */
struct packet {
	struct header header;
	uint8_t frame[FRAME_MAX];
};

struct net {
	struct vmm_device device;
	struct vmm_loop *loop;
	struct vmm_event event;     /* fd -1: the other side is gone */
	struct config config;
	bool blocked;               /* the guest's frames wait for the socket */
	bool starved;               /* the socket's frames wait for the guest's buffers */
	uint32_t held;              /* bytes of the frame in packet; 0: none */
	struct packet packet;
	struct vmm_chain chain, more;
	struct vmm_done done[NET_QUEUE];
};

static struct net *net_of(struct vmm_device *device)
{
	return (struct net *)device;
}

/* Wait for what can be gone on with; the other side's end is always told. */
static void wait_for(struct net *net)
{
	uint32_t events = 0;

	if (net->event.fd < 0)
		return;
	if (net->device.running && !net->starved)
		events |= EPOLLIN;
	if (net->device.running && net->blocked)
		events |= EPOLLOUT;
	/* it can only be refused for a descriptor that isn't there */
	(void)vmm_loop_change(net->loop, &net->event, events);
}

/* The link is down for good; the driver sees that, and what it still gives is left with it. */
static void gone(struct net *net)
{
	if (net->event.fd < 0)
		return;
	vmm_loop_remove(net->loop, &net->event);
	close(net->event.fd);
	net->event.fd = -1;
	net->config.status &= (uint16_t)~LINK_UP;
	vmm_device_config_changed(&net->device);
}

/* --- from the guest --------------------------------------------------------------------------- */

/* Send what lies behind the header; len is more than the header's. */
static void point_at_frame(struct msghdr *message, struct vmm_chain *chain)
{
	size_t left = sizeof(struct header);
	uint16_t at = 0;

	while (left >= chain->out[at].iov_len)
		left -= chain->out[at++].iov_len;
	message->msg_iov = &chain->out[at];
	message->msg_iov->iov_base = (uint8_t *)message->msg_iov->iov_base + left;
	message->msg_iov->iov_len -= left;
	message->msg_iovlen = chain->n_out - at;
}

/* 0: it is done with; -EAGAIN: not now; -EINVAL: it is none. */
static int send_frame(struct net *net)
{
	uint64_t len = net->chain.out_bytes - sizeof(struct header);
	struct msghdr message = { .msg_name = NULL };

	if (net->chain.out_bytes < sizeof(struct header))
		return -EINVAL;
	if (len < ETHERNET || len > ETHERNET + (uint64_t)net->config.mtu)
		return 0;
	point_at_frame(&message, &net->chain);
	if (sendmsg(net->event.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return 0;
	if (errno == EAGAIN)
		return -EAGAIN;
	if (errno == EPIPE || errno == ECONNRESET)
		gone(net);
	/* an Ethernet may lose what it can't carry */
	return 0;
}

static void transmit(struct net *net)
{
	struct vmm_queue *queue = &net->device.queue[NET_TX];
	uint32_t n;
	int ret = 0;

	for (n = 0; n < BATCH && net->event.fd >= 0; n++) {
		ret = vmm_queue_pop(queue, &net->chain);
		if (ret <= 0)
			break;
		ret = send_frame(net);
		if (ret < 0)
			break;
		vmm_queue_push(queue, net->chain.head, 0);
	}
	if (ret == -EAGAIN)
		vmm_queue_unpop(queue);
	else if (ret < 0)
		vmm_device_broken(&net->device, "a frame's descriptors");
	/* after a whole batch there may be more, and others have had no turn */
	net->blocked = ret == -EAGAIN || n == BATCH;
	vmm_device_signal(&net->device, NET_TX);
}

/* --- to the guest ------------------------------------------------------------------------------ */

/* The next frame of the socket; whether there may be one now. */
static bool fetch(struct net *net)
{
	ssize_t n = recv(net->event.fd, net->packet.frame, sizeof(net->packet.frame),
			 MSG_DONTWAIT | MSG_TRUNC);

	if (!n || (n < 0 && errno != EAGAIN && errno != EINTR))
		gone(net);
	if (n <= 0)
		return false;
	if (n >= ETHERNET && n <= ETHERNET + net->config.mtu)
		net->held = (uint32_t)n;
	return true;
}

static void unpop(struct vmm_queue *queue, uint16_t n)
{
	while (n--)
		vmm_queue_unpop(queue);
}

/*
 * Put the held frame into as many buffers as it takes, or into none.  1: done,
 * or it fits into nothing that this driver will give; 0: no buffers now.
 */
static int deliver(struct net *net)
{
	struct vmm_queue *queue = &net->device.queue[NET_RX];
	uint32_t len = (uint32_t)sizeof(struct header) + net->held, at = 0, part;
	uint16_t most = net->device.acked & F_MRG_RXBUF ? queue->size : 1, n = 0;
	struct vmm_chain *chain;
	int ret;

	for (; at < len; at += part) {
		chain = n ? &net->more : &net->chain;
		ret = n < most ? vmm_queue_pop(queue, chain) : 1;
		if (ret <= 0 || n == most) {
			unpop(queue, n);
			return ret;
		}
		if (chain->in_bytes < (n ? 1 : sizeof(struct header)))
			return -EINVAL;
		part = (uint32_t)vmm_chain_write(chain, 0, (uint8_t *)&net->packet + at, len - at);
		net->done[n++] = (struct vmm_done){ .head = chain->head, .written = part };
	}
	net->packet.header.num_buffers = n;
	vmm_chain_write(&net->chain, 0, &net->packet.header, sizeof(struct header));
	vmm_queue_push_all(queue, net->done, n);
	return 1;
}

static void receive(struct net *net)
{
	int ret = 1;

	for (uint32_t n = 0; n < BATCH && ret > 0; n++) {
		if (!net->held && !fetch(net))
			break;
		if (net->held)
			ret = deliver(net);
		if (ret)
			net->held = 0;
	}
	net->starved = !ret;
	if (ret < 0)
		vmm_device_broken(&net->device, "the buffers for a frame");
	vmm_device_signal(&net->device, NET_RX);
}

/* --- the device -------------------------------------------------------------------------------- */

static void ready(struct vmm_event *event, uint32_t events)
{
	struct net *net = (void *)((char *)event - offsetof(struct net, event));

	if (events & (EPOLLHUP | EPOLLERR))
		gone(net);
	if (events & EPOLLIN && net->device.running && net->event.fd >= 0)
		receive(net);
	if (events & EPOLLOUT && net->device.running)
		transmit(net);
	wait_for(net);
}

static void notify(struct vmm_device *device, uint32_t queue)
{
	struct net *net = net_of(device);

	/* the socket may be empty by now, so the frame that waits goes on here */
	if (queue == NET_RX && net->starved)
		receive(net);
	else if (queue == NET_TX && !net->blocked)
		transmit(net);
	wait_for(net);
}

static void start(struct vmm_device *device)
{
	wait_for(net_of(device));
}

static void reset(struct vmm_device *device)
{
	struct net *net = net_of(device);

	net->blocked = net->starved = false;
	net->held = 0;
	wait_for(net);
}

static void config_read(struct vmm_device *device, uint32_t offset, void *data, uint32_t len)
{
	memcpy(data, (uint8_t *)&net_of(device)->config + offset, len);
}

/* A frame that waits is lost, as on any cable. */
static const char *save(struct vmm_device *device, struct vmm_own_state *own)
{
	struct net *net = net_of(device);

	if (net->event.fd < 0)
		return "its other side is gone";
	own->len = sizeof(net->config);
	memcpy(own->data, &net->config, sizeof(net->config));
	return NULL;
}

static const char *load(struct vmm_device *device, const struct vmm_own_state *own)
{
	struct net *net = net_of(device);

	if (own->len != sizeof(net->config) || memcmp(own->data, &net->config, own->len))
		return "the card that was saved had another address or MTU";
	/* frames may lie in the ring that were kicked for before */
	net->blocked = true;
	wait_for(net);
	return NULL;
}

static bool carries_frames(int fd)
{
	int domain = 0, type = 0;
	socklen_t len = sizeof(int);

	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) && domain == AF_UNIX &&
	       !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) && type == SOCK_SEQPACKET;
}

struct vmm_device *vmm_net_new(struct vmm_loop *loop, int fd, uint32_t mtu)
{
	static const struct vmm_device_ops ops = {
		.name = "net", .id = NET_ID, .n_queues = 2, .queue_max = { NET_QUEUE, NET_QUEUE },
		.features = F_MTU | F_MAC | F_MRG_RXBUF | F_STATUS,
		.config_size = sizeof(struct config), .config_read = config_read,
		.start = start, .notify = notify, .reset = reset, .save = save, .load = load,
	};
	struct net *net;
	int ret;

	if (!carries_frames(fd)) {
		errno = EINVAL;
		return NULL;
	}
	net = calloc(1, sizeof(*net));
	if (!net)
		return NULL;
	net->device.ops = &ops;
	net->loop = loop;
	net->config = (struct config){
		.mac = NSR_NET_MAC, .status = LINK_UP,
		.max_queue_pairs = 1, .mtu = (uint16_t)mtu,
	};
	net->event = (struct vmm_event){ .fd = fd, .ready = ready };
	ret = vmm_loop_add(loop, &net->event);
	if (!ret)
		return &net->device;
	free(net);
	errno = -ret;
	return NULL;
}

void vmm_net_free(struct vmm_device *device)
{
	gone(net_of(device));
	free(device);
}
