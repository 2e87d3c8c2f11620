/* SPDX-License-Identifier: MIT */
/*
 * vsock: the device with a hostile driver and a fickle host, by bytes that say
 * who does what next.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../tests/vmm/vsock_driver.h"

enum { FDS = 8, PORTS = 8, ROUNDS = 400, PORT = 1000 };

enum action {
	PACKET, RAW, CONNECT, SEND, RECEIVE, SHUT, CLOSE, POST, TAKE, LISTEN, UNLISTEN, RESTART,
	TRANSPORT_RESET, SPOIL, SETTLE, ACTIONS,
};

struct input {
	const uint8_t *at;
	size_t left;
};

static int host[FDS];
static uint32_t peer[PORTS];   /* ports of the host's that the guest has seen */

static uint32_t take_bytes(struct input *in, uint32_t n)
{
	uint32_t value = 0;

	while (n-- && in->left) {
		value = value << 8 | *in->at++;
		in->left--;
	}
	return value;
}

/* Small, or at an edge, or anything. */
static uint32_t number(struct input *in)
{
	uint32_t value = take_bytes(in, 1);

	switch (value >> 6) {
	case 0:
		return value;
	case 1:
		return 0u - (value & 63);
	case 2:
		return 1u << (value & 31);
	default:
		return take_bytes(in, 4);
	}
}

static void keep(int fd)
{
	for (int i = 0; i < FDS; i++)
		if (host[i] < 0) {
			host[i] = fd;
			return;
		}
	close(fd);
}

static void keep_accepted(void)
{
	for (uint32_t i = 0; i < driver.n_events; i++)
		if (driver.event[i].call == DRIVER_ACCEPTED)
			keep(driver.event[i].fd);
	driver.n_events = 0;
}

static void send_packet(struct input *in)
{
	static const uint8_t zeros[DRIVER_TX_SIZE];
	struct vsock_header header = { .src_cid = DRIVER_CID, .dst_cid = VSOCK_HOST_CID };
	uint32_t how = take_bytes(in, 1), data;

	header.op = how & 15;
	header.type = how & 16 ? (uint16_t)number(in) : VSOCK_TYPE_STREAM;
	if (how & 32)
		header.dst_cid = number(in);
	header.src_port = PORT + take_bytes(in, 1) % PORTS;
	header.dst_port = how & 64 ? number(in) : peer[take_bytes(in, 1) % PORTS];
	header.flags = take_bytes(in, 1);
	header.buf_alloc = number(in);
	header.fwd_cnt = number(in);
	data = number(in) % DRIVER_TX_SIZE;
	header.len = how & 128 ? number(in) : data;
	driver_send(&header, zeros, data);
}

static void send_raw(struct input *in)
{
	uint32_t len = take_bytes(in, 1) % 64;

	if (len > in->left)
		len = (uint32_t)in->left;
	if (len)
		driver_send_raw(in->at, len);
	in->at += len;
	in->left -= len;
}

static void connect_one(struct input *in)
{
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
		abort();
	keep(fds[1]);
	vmm_vsock_connect(driver.device, PORT + take_bytes(in, 1) % PORTS, 1, fds[0]);
}

static void use_socket(enum action action, struct input *in)
{
	static char bytes[1 << 18];
	int *fd = &host[take_bytes(in, 1) % FDS];
	uint32_t len = number(in) % sizeof(bytes);

	if (*fd < 0)
		return;
	if (action == SEND)
		(void)!send(*fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	else if (action == RECEIVE)
		(void)!recv(*fd, bytes, len, MSG_DONTWAIT);
	else if (action == SHUT)
		shutdown(*fd, (int)(len % 3));
	if (action == CLOSE) {
		close(*fd);
		*fd = -1;
	}
}

static void take_all(void)
{
	struct driver_packet packet;
	uint32_t event;

	for (int i = 0; i < ROUNDS && driver_take(&packet); i++)
		peer[packet.header.dst_port % PORTS] = packet.header.src_port;
	driver_take_event(&event);
}

/* Two bytes of a ring, which are the driver's to spoil. */
static void spoil(struct input *in)
{
	struct driver_ring *ring = &driver.ring[take_bytes(in, 1) % 3];
	uint32_t at = take_bytes(in, 2) % (3 * 0x4000);
	uint16_t value = (uint16_t)number(in);

	memcpy(driver.memory.region[0].host + ring->desc_at + at, &value, sizeof(value));
}

static void act(enum action action, struct input *in)
{
	switch (action) {
	case PACKET:
		send_packet(in);
		break;
	case RAW:
		send_raw(in);
		break;
	case CONNECT:
		connect_one(in);
		break;
	case POST:
		driver_post(take_bytes(in, 1));
		break;
	case TAKE:
		take_all();
		break;
	case LISTEN:
		vmm_vsock_listen(driver.device, peer[take_bytes(in, 1) % PORTS]);
		break;
	case UNLISTEN:
		vmm_vsock_unlisten(driver.device, peer[take_bytes(in, 1) % PORTS]);
		break;
	case RESTART:
		driver_reset();
		driver_start(take_bytes(in, 1) & 1, 8);
		break;
	case TRANSPORT_RESET:
		vmm_vsock_transport_reset(driver.device);
		driver_post_event();
		break;
	case SPOIL:
		spoil(in);
		break;
	case SETTLE:
	case ACTIONS:
		break;
	default:
		use_socket(action, in);
	}
}

/* No descriptor may be left: the lowest free one is the same as before. */
static int lowest(void)
{
	int fd = dup(2);

	close(fd);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	int before = lowest();

	driver_new();
	driver.lenient = true;
	driver_start(size & 1, 8);
	for (int i = 0; i < FDS; i++)
		host[i] = -1;
	memset(peer, 0, sizeof(peer));
	for (int i = 0; i < ROUNDS && in.left; i++) {
		uint32_t what = take_bytes(&in, 1);

		act(what % ACTIONS, &in);
		/* half of them at once, before the device saw the one before */
		if (what & 0x80)
			driver_settle();
		keep_accepted();
	}
	driver_settle();
	keep_accepted();
	for (int i = 0; i < FDS; i++)
		if (host[i] >= 0)
			close(host[i]);
	driver_settle();
	driver_free();
	if (lowest() != before)
		abort();
	return 0;
}
