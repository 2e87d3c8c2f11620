/* SPDX-License-Identifier: MIT */
/*
 * net: the network device with a driver and a host that do anything, by bytes
 * that say who does what next.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../tests/vmm/net_driver.h"

enum { MTU = 9000, TAKE_MOST = 300 };

enum action {
	DESCRIBE, PUBLISH, SPOIL, KICK, SETTLE, TAKE, SEND, RECEIVE, LEAVE, RESTART, CONFIG, ACTIONS,
};

struct input {
	const uint8_t *at;
	size_t left;
};

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
		return take_bytes(in, 2);
	}
}

/* Descriptors of a few places, so that they meet; indirect tables lie among the buffers. */
static void describe(struct input *in)
{
	uint32_t how = take_bytes(in, 1);
	uint64_t addr = how & 2 ? number(in) : DRIVER_BUFFERS + take_bytes(in, 1) * 64;
	struct driver_desc desc = { .addr = how & 4 ? UINT64_MAX - addr : addr };

	desc.len = number(in);
	desc.flags = how >> 3 & 7;
	desc.next = (uint16_t)take_bytes(in, 1);

	if (how & 64)
		memcpy(driver_at(DRIVER_BUFFERS + take_bytes(in, 1) * 64), &desc, sizeof(desc));
	else
		*driver_desc(how & 1, (uint16_t)take_bytes(in, 1)) = desc;
}

static void publish(struct input *in)
{
	uint32_t queue = take_bytes(in, 1) & 1;

	driver_publish(queue, (uint16_t)number(in));
}

/* Two bytes of the rings, which are the driver's to spoil. */
static void spoil(struct input *in)
{
	uint64_t at = driver.ring[take_bytes(in, 1) & 1].base + take_bytes(in, 2);
	uint16_t value = (uint16_t)number(in);

	memcpy(driver_at(at), &value, sizeof(value));
}

static void send_frame(struct input *in)
{
	static uint8_t frame[1 << 17];

	if (driver.host >= 0)
		(void)!send(driver.host, frame, number(in) % sizeof(frame), MSG_NOSIGNAL);
}

static void receive_frames(void)
{
	uint8_t frame[14 + MTU + 1];
	ssize_t n;

	while (driver.host >= 0 && (n = recv(driver.host, frame, sizeof(frame), 0)) > 0)
		if (n < 14 || n > 14 + MTU)
			abort();
}

static void take_used(void)
{
	uint32_t head, written;

	for (uint32_t queue = 0; queue < 2; queue++)
		for (int i = 0; i < TAKE_MOST && driver_used(queue, &head, &written); i++)
			;
}

static void restart(struct input *in)
{
	uint32_t how = take_bytes(in, 1);

	driver_reset();
	driver_start(how & 1, how & 2, (uint16_t)(1u << (how >> 2) % 9));
}

static void read_config(struct input *in)
{
	uint8_t data[12];
	uint32_t at = take_bytes(in, 1) % sizeof(data);

	driver.device->ops->config_read(driver.device, at, data, (uint32_t)sizeof(data) - at);
}

static void act(enum action action, struct input *in)
{
	switch (action) {
	case DESCRIBE:
		describe(in);
		break;
	case PUBLISH:
		publish(in);
		break;
	case SPOIL:
		spoil(in);
		break;
	case KICK:
		driver_kick(take_bytes(in, 1) & 1);
		break;
	case SETTLE:
		driver_settle();
		break;
	case TAKE:
		take_used();
		break;
	case SEND:
		send_frame(in);
		break;
	case RECEIVE:
		receive_frames();
		break;
	case LEAVE:
		if (driver.host >= 0)
			close(driver.host);
		driver.host = -1;
		break;
	case RESTART:
		restart(in);
		break;
	case CONFIG:
		read_config(in);
		break;
	case ACTIONS:
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { .at = data, .left = size };
	uint32_t how = take_bytes(&in, 1);

	driver_new(MTU);
	driver_start(how & 1, how & 2, DRIVER_QUEUE);
	while (in.left)
		act(take_bytes(&in, 1) % ACTIONS, &in);
	driver_settle();
	driver_free();
	return 0;
}
