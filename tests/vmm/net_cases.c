/* SPDX-License-Identifier: MIT */
/*
 * net_cases.c - the network device, driven through its queues.
 *   net_cases --list    the cases' names
 *   net_cases CASE      0: good; else it says on stderr what is wrong
 * Each runs with and without VIRTIO_F_EVENT_IDX.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net_driver.h"

enum {
	MTU = 65520,
	FRAME = 14 + MTU,
	BUFFER = 1536,              /* what drivers give for a merged part */
	LARGE = DRIVER_HEAD + FRAME,
	BATCH = 64,                 /* of the device */
};

#define CHECK(condition) \
	((condition) ? (void)0 : driver_fail("%s:%d: not so: %s", __func__, __LINE__, #condition))

static bool event_idx;
static uint8_t frame[LARGE + 1], got[LARGE + 1];

/* The bytes of frame number n; no two are alike. */
static void make_frame(uint32_t n, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++)
		frame[i] = (uint8_t)(n * 31 + i * 7 + (i >> 8));
}

static void restart(bool merge, uint16_t size)
{
	driver_reset();
	driver_start(event_idx, merge, size);
}

static uint64_t place(uint32_t queue, uint32_t n, uint32_t len)
{
	return driver.ring[queue].buffers + (uint64_t)n * len;
}

/* --- from the guest --------------------------------------------------------------------------- */

/* Buffer n of the queue holds the frame behind a head; one descriptor. */
static void send_frame(uint16_t n, uint32_t len)
{
	uint64_t at = place(DRIVER_TX, n, BUFFER);

	memset(driver_at(at), 0, DRIVER_HEAD);
	memcpy((uint8_t *)driver_at(at) + DRIVER_HEAD, frame, len);
	*driver_desc(DRIVER_TX, n) = (struct driver_desc){ at, DRIVER_HEAD + len, 0, 0 };
	driver_publish(DRIVER_TX, n);
}

static bool host_gets(uint32_t len)
{
	ssize_t n = recv(driver.host, got, sizeof(got), MSG_DONTWAIT);

	return n == (ssize_t)len && !memcmp(got, frame, len);
}

static bool host_gets_nothing(void)
{
	return recv(driver.host, got, sizeof(got), MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

static bool is_done(uint32_t queue, uint32_t head)
{
	uint32_t id, written;

	return driver_used(queue, &id, &written) && id == head && !written;
}

static bool nothing_used(uint32_t queue)
{
	uint32_t id, written;

	return !driver_used(queue, &id, &written);
}

static void case_sent(void)
{
	for (uint16_t n = 0; n < 1000; n++) {
		uint32_t len = 14 + n;

		make_frame(n, len);
		send_frame(n % DRIVER_QUEUE, len);
		driver_settle();
		CHECK(host_gets(len) && host_gets_nothing());
		CHECK(is_done(DRIVER_TX, n % DRIVER_QUEUE) && nothing_used(DRIVER_TX));
	}
	CHECK(driver.ring[DRIVER_TX].interrupts == 1000);
}

/* A head and a frame in as many parts as can be, through an indirect table. */
static void case_sent_in_parts(void)
{
	struct driver_desc *table = driver_at(DRIVER_ROOM + DRIVER_BUFFERS);
	uint64_t at = place(DRIVER_TX, 0, 0);
	const uint16_t parts = VMM_QUEUE_MAX;

	make_frame(1, parts - DRIVER_HEAD);
	memcpy((uint8_t *)driver_at(at) + DRIVER_HEAD, frame, parts - DRIVER_HEAD);
	for (uint16_t i = 0; i < parts; i++)
		table[i] = (struct driver_desc){
			at + i, 1, i + 1 < parts ? DRIVER_NEXT : 0, (uint16_t)(i + 1),
		};
	*driver_desc(DRIVER_TX, 5) = (struct driver_desc){
		DRIVER_ROOM + DRIVER_BUFFERS, (uint32_t)(parts * sizeof(*table)), DRIVER_INDIRECT, 0,
	};
	driver_publish(DRIVER_TX, 5);
	driver_settle();
	CHECK(host_gets(parts - DRIVER_HEAD) && is_done(DRIVER_TX, 5));
	/* the head's end within a descriptor, and on its edge */
	for (uint32_t first = DRIVER_HEAD - 1; first <= DRIVER_HEAD + 1; first++) {
		*driver_desc(DRIVER_TX, 0) = (struct driver_desc){ at, first, DRIVER_NEXT, 1 };
		*driver_desc(DRIVER_TX, 1) = (struct driver_desc){ at + first, 80 - first, 0, 0 };
		driver_publish(DRIVER_TX, 0);
		driver_settle();
		CHECK(host_gets(80 - DRIVER_HEAD) && is_done(DRIVER_TX, 0));
	}
}

/* Each one is done with, but no card would send it. */
static void case_lengths_that_are_no_frames(void)
{
	const uint32_t lengths[] = { 0, 1, 13, FRAME + 1, FRAME + 1000, 1 << 20 };

	for (uint32_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		*driver_desc(DRIVER_TX, 0) = (struct driver_desc){
			place(DRIVER_TX, 0, 0), DRIVER_HEAD + lengths[i], 0, 0,
		};
		driver_publish(DRIVER_TX, 0);
		driver_settle();
		CHECK(host_gets_nothing() && is_done(DRIVER_TX, 0) && !driver.broken);
	}
	/* while the largest is one */
	make_frame(3, FRAME);
	memcpy(driver_at(place(DRIVER_TX, 0, 0) + DRIVER_HEAD), frame, FRAME);
	driver_desc(DRIVER_TX, 0)->len = LARGE;
	driver_publish(DRIVER_TX, 0);
	driver_settle();
	CHECK(host_gets(FRAME) && is_done(DRIVER_TX, 0));
}

static void case_no_room_for_a_head(void)
{
	for (uint32_t len = 0; len < DRIVER_HEAD; len++) {
		restart(true, DRIVER_QUEUE);
		*driver_desc(DRIVER_TX, 0) = (struct driver_desc){ place(DRIVER_TX, 0, 0), len, 0, 0 };
		driver_publish(DRIVER_TX, 0);
		driver_settle();
		CHECK(driver.broken == len + 1 && nothing_used(DRIVER_TX) && host_gets_nothing());
	}
	restart(true, DRIVER_QUEUE);
	make_frame(1, 100);
	send_frame(0, 100);
	driver_settle();
	CHECK(host_gets(100) && is_done(DRIVER_TX, 0));
}

/* What the socket does not take stays in the ring, and none is lost or changes places. */
static void case_host_is_slow(void)
{
	uint16_t sent = 0, taken = 0;
	uint32_t steps;

	while (sent < DRIVER_QUEUE) {
		make_frame(sent, 1400);
		send_frame(sent++, 1400);
	}
	driver_settle();
	steps = driver.steps;
	driver_settle();
	CHECK(driver.steps == steps);
	while (is_done(DRIVER_TX, taken))
		taken++;
	CHECK(taken > 10 && taken < DRIVER_QUEUE);
	for (uint16_t n = 0; n < DRIVER_QUEUE; n++) {
		make_frame(n, 1400);
		CHECK(host_gets(1400));
		driver_settle();
	}
	while (taken < DRIVER_QUEUE)
		CHECK(is_done(DRIVER_TX, taken++));
	CHECK(host_gets_nothing());
	/* and a kick is asked for again */
	make_frame(7, 500);
	send_frame(7, 500);
	driver_settle();
	CHECK(host_gets(500));
}

/* More than one batch, after a single kick; between batches others have their turn. */
static void case_many_at_once(void)
{
	uint16_t *avail = driver_at(driver.ring[DRIVER_TX].base + 0x4000);
	uint32_t steps = driver.steps;

	make_frame(9, 60);
	for (uint16_t n = 0; n < DRIVER_QUEUE; n++) {
		uint64_t at = place(DRIVER_TX, n, BUFFER);

		memcpy((uint8_t *)driver_at(at) + DRIVER_HEAD, frame, 60);
		*driver_desc(DRIVER_TX, n) = (struct driver_desc){ at, DRIVER_HEAD + 60, 0, 0 };
		avail[2 + n] = n;
	}
	avail[1] = DRIVER_QUEUE;
	driver_kick(DRIVER_TX);
	driver_kick(DRIVER_TX);
	for (uint32_t n = 0; n < DRIVER_QUEUE; n++) {
		CHECK(host_gets(60));
		if (n % BATCH == BATCH - 1)
			driver_settle();
	}
	CHECK(driver.steps - steps >= DRIVER_QUEUE / BATCH - 1);
	for (uint16_t n = 0; n < DRIVER_QUEUE; n++)
		CHECK(is_done(DRIVER_TX, n));
}

/* --- to the guest ----------------------------------------------------------------------------- */

static void post(uint16_t n, uint32_t len)
{
	*driver_desc(DRIVER_RX, n) = (struct driver_desc){
		place(DRIVER_RX, n, len), len, DRIVER_WRITE, 0,
	};
	driver_publish(DRIVER_RX, n);
}

static bool host_sends(uint32_t len)
{
	return send(driver.host, frame, len, MSG_DONTWAIT) == (ssize_t)len;
}

/* The next frame, out of buffers of that size, which begin with number first. */
static bool guest_gets(uint32_t len, uint16_t first, uint32_t room)
{
	uint32_t id, written, at = 0, n = 0;
	uint16_t said;

	while (at < DRIVER_HEAD + len) {
		if (!driver_used(DRIVER_RX, &id, &written))
			return false;
		CHECK(id == (first + n) % driver.ring[DRIVER_RX].size && written <= room);
		memcpy(got + at, driver_at(place(DRIVER_RX, id, room)), written);
		at += written;
		n++;
	}
	memcpy(&said, got + 10, sizeof(said));
	for (uint32_t i = 0; i < 10; i++)
		CHECK(!got[i]);
	return at == DRIVER_HEAD + len && said == n && !memcmp(got + DRIVER_HEAD, frame, len);
}

static void case_received(void)
{
	for (uint16_t n = 0; n < 1000; n++) {
		post(n % DRIVER_QUEUE, BUFFER);
		make_frame(n, 14 + n);
		CHECK(host_sends(14 + n));
		driver_settle();
		CHECK(guest_gets(14 + n, n % DRIVER_QUEUE, BUFFER) && nothing_used(DRIVER_RX));
	}
	CHECK(driver.ring[DRIVER_RX].interrupts == 1000);
}

static void case_received_in_parts(void)
{
	const uint32_t rooms[] = { DRIVER_HEAD, DRIVER_HEAD + 1, 300, BUFFER, 4096, LARGE };

	for (uint32_t i = 0; i < sizeof(rooms) / sizeof(rooms[0]); i++) {
		uint32_t room = rooms[i], len = room < 300 ? room * 255 - DRIVER_HEAD : FRAME;
		uint16_t need = (uint16_t)((len + DRIVER_HEAD + room - 1) / room);

		restart(true, DRIVER_QUEUE);
		make_frame(i, len);
		CHECK(host_sends(len));
		for (uint16_t n = 0; n < need; n++) {
			driver_settle();
			/* none is used before there are enough */
			CHECK(nothing_used(DRIVER_RX));
			post(n, room);
		}
		driver_settle();
		CHECK(guest_gets(len, 0, room) && nothing_used(DRIVER_RX));
	}
}

/* A driver that takes no merged buffers: one for a frame, or the frame is lost. */
static void case_received_unmerged(void)
{
	restart(false, DRIVER_QUEUE);
	post(0, BUFFER);
	make_frame(1, BUFFER - DRIVER_HEAD + 1);
	CHECK(host_sends(BUFFER - DRIVER_HEAD + 1));
	driver_settle();
	CHECK(nothing_used(DRIVER_RX));
	make_frame(2, BUFFER - DRIVER_HEAD);
	CHECK(host_sends(BUFFER - DRIVER_HEAD));
	driver_settle();
	CHECK(guest_gets(BUFFER - DRIVER_HEAD, 0, BUFFER) && !driver.broken);
}

/* All the buffers that such a ring can hold are too few: the frame is lost, the next is not. */
static void case_larger_than_the_ring(void)
{
	restart(true, 4);
	for (uint16_t n = 0; n < 4; n++)
		post(n, BUFFER);
	make_frame(1, 4 * BUFFER - DRIVER_HEAD + 1);
	CHECK(host_sends(4 * BUFFER - DRIVER_HEAD + 1));
	driver_settle();
	CHECK(nothing_used(DRIVER_RX) && !driver.broken);
	make_frame(2, 4 * BUFFER - DRIVER_HEAD);
	CHECK(host_sends(4 * BUFFER - DRIVER_HEAD));
	driver_settle();
	CHECK(guest_gets(4 * BUFFER - DRIVER_HEAD, 0, BUFFER));
}

/* The frames wait in the socket, then their sender does. */
static void case_guest_is_slow(void)
{
	uint16_t sent = 0;
	uint32_t steps;

	make_frame(0, 1000);
	while (host_sends(1000)) {
		make_frame(++sent, 1000);
		driver_settle();
	}
	CHECK(sent > 10 && errno == EAGAIN);
	steps = driver.steps;
	driver_settle();
	CHECK(driver.steps == steps);
	for (uint16_t n = 0; n < sent; n++) {
		CHECK(nothing_used(DRIVER_RX));
		post(n % DRIVER_QUEUE, BUFFER);
		driver_settle();
		make_frame(n, 1000);
		CHECK(guest_gets(1000, n % DRIVER_QUEUE, BUFFER));
	}
	post(sent % DRIVER_QUEUE, BUFFER);
	driver_settle();
	CHECK(nothing_used(DRIVER_RX));
	CHECK(host_sends(1000));
	driver_settle();
	CHECK(guest_gets(1000, sent % DRIVER_QUEUE, BUFFER));
}

static void case_frames_before_the_driver(void)
{
	driver_reset();
	make_frame(4, 400);
	CHECK(host_sends(400));
	driver_settle();
	driver_start(event_idx, true, DRIVER_QUEUE);
	driver_settle();
	post(0, BUFFER);
	driver_settle();
	CHECK(guest_gets(400, 0, BUFFER));
}

static void case_lengths_that_no_link_has(void)
{
	const uint32_t lengths[] = { 1, 13, FRAME + 1, LARGE + 1 };

	for (uint32_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
		CHECK(host_sends(lengths[i]));
	post(0, LARGE);
	driver_settle();
	CHECK(nothing_used(DRIVER_RX));
	make_frame(1, FRAME);
	CHECK(host_sends(FRAME));
	driver_settle();
	CHECK(guest_gets(FRAME, 0, LARGE));
}

static void breaks_with(struct driver_desc first, struct driver_desc second)
{
	uint32_t before = driver.broken;

	restart(true, DRIVER_QUEUE);
	*driver_desc(DRIVER_RX, 0) = first;
	*driver_desc(DRIVER_RX, 1) = second;
	/* for those who go on there: without an end */
	*driver_desc(DRIVER_RX, 5) = (struct driver_desc){
		DRIVER_BUFFERS, 1, DRIVER_WRITE | DRIVER_NEXT, 5,
	};
	make_frame(1, 100);
	CHECK(host_sends(100));
	driver_publish(DRIVER_RX, 0);
	driver_publish(DRIVER_RX, 1);
	driver_settle();
	CHECK(driver.broken == before + 1 && nothing_used(DRIVER_RX));
	/* it is told once, and nothing goes on */
	driver_publish(DRIVER_RX, 0);
	driver_settle();
	CHECK(driver.broken == before + 1 && nothing_used(DRIVER_RX));
}

static void case_buffers_that_are_none(void)
{
	const struct driver_desc good = { DRIVER_BUFFERS, 64, DRIVER_WRITE, 0 };
	const struct driver_desc bad[] = {
		{ DRIVER_BUFFERS, DRIVER_HEAD - 1, DRIVER_WRITE, 0 },
		{ DRIVER_BUFFERS, 0, DRIVER_WRITE, 0 },
		{ DRIVER_BUFFERS, 64, 0, 0 },
		{ DRIVER_MEMORY - 10, 64, DRIVER_WRITE, 0 },
		{ UINT64_MAX - 10, 64, DRIVER_WRITE, 0 },
		{ DRIVER_BUFFERS, 64, DRIVER_WRITE | DRIVER_NEXT, 9999 },
		{ DRIVER_BUFFERS, 64, DRIVER_WRITE | DRIVER_NEXT, 5 },
	};

	for (uint32_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		breaks_with(bad[i], good);
		/* as a second part, a short one is as good as any */
		if (i)
			breaks_with(good, bad[i]);
	}
	restart(true, DRIVER_QUEUE);
	post(0, BUFFER);
	make_frame(1, 100);
	CHECK(host_sends(100));
	driver_settle();
	CHECK(guest_gets(100, 0, BUFFER));
}

/* --- both -------------------------------------------------------------------------------------- */

static void case_spoilt_index(void)
{
	for (uint32_t queue = 0; queue < 2; queue++) {
		uint16_t *avail = driver_at(driver.ring[queue].base + 0x4000);

		restart(true, DRIVER_QUEUE);
		avail[1] = DRIVER_QUEUE + 1;
		make_frame(1, 100);
		CHECK(host_sends(100));
		driver_kick(queue);
		driver_settle();
		CHECK(driver.broken == queue + 1);
	}
}

static uint16_t link_status(void)
{
	uint16_t status;

	driver.device->ops->config_read(driver.device, 6, &status, sizeof(status));
	return status;
}

static void host_leaves(void)
{
	close(driver.host);
	driver.host = -1;
	driver_settle();
	CHECK(driver.config_changes == 1 && !link_status() && !driver.event && !driver.broken);
}

static void case_host_is_gone(void)
{
	CHECK(link_status() == 1);
	post(0, BUFFER);
	host_leaves();
	make_frame(1, 100);
	send_frame(0, 100);
	driver_settle();
	CHECK(nothing_used(DRIVER_TX) && nothing_used(DRIVER_RX));
	restart(true, DRIVER_QUEUE);
	send_frame(0, 100);
	post(0, BUFFER);
	driver_settle();
	CHECK(!link_status() && !driver.broken);
}

/* Seen by the device as it sends, before the loop tells. */
static void case_host_goes_while_it_is_sent_to(void)
{
	close(driver.host);
	driver.host = -1;
	make_frame(1, 100);
	send_frame(0, 100);
	CHECK(driver.config_changes == 1 && !link_status() && is_done(DRIVER_TX, 0));
	driver_settle();
}

static void case_host_is_gone_with_frames_waiting(void)
{
	for (uint16_t n = 0; n < DRIVER_QUEUE; n++)
		send_frame(n, 1400);
	driver_settle();
	make_frame(1, 100);
	CHECK(host_sends(100));
	driver_settle();
	host_leaves();
}

/* A frame that waits for buffers, and frames that wait for the socket, end with a reset. */
static void case_reset(void)
{
	for (uint16_t n = 0; n < DRIVER_QUEUE; n++)
		send_frame(n, 1400);
	make_frame(1, 100);
	CHECK(host_sends(100));
	driver_settle();
	restart(true, DRIVER_QUEUE);
	while (recv(driver.host, got, sizeof(got), MSG_DONTWAIT) > 0)
		;
	driver_settle();
	CHECK(host_gets_nothing() && nothing_used(DRIVER_TX));
	post(0, BUFFER);
	driver_settle();
	CHECK(nothing_used(DRIVER_RX));
	make_frame(2, 200);
	CHECK(host_sends(200));
	send_frame(0, 200);
	driver_settle();
	CHECK(guest_gets(200, 0, BUFFER) && host_gets(200));
}

/* Frames that were kicked for before, and a frame that waited for buffers, which is lost. */
static void case_restored(void)
{
	uint16_t taken = 0;

	for (uint16_t n = 0; n < DRIVER_QUEUE; n++) {
		make_frame(n, 1400);
		send_frame(n, 1400);
	}
	CHECK(host_sends(1000));
	driver_settle();
	CHECK(!driver_restore(MTU));
	driver_settle();
	while (is_done(DRIVER_TX, taken))
		taken++;
	CHECK(taken > 10 && taken < DRIVER_QUEUE);
	while (recv(driver.host, got, sizeof(got), MSG_DONTWAIT) > 0)
		driver_settle();
	while (taken < DRIVER_QUEUE)
		CHECK(is_done(DRIVER_TX, taken++));
	post(0, BUFFER);
	make_frame(5, 500);
	CHECK(host_sends(500));
	send_frame(0, 500);
	driver_settle();
	CHECK(guest_gets(500, 0, BUFFER) && host_gets(500) && !driver.config_changes);
}

static void case_restored_otherwise(void)
{
	CHECK(driver_restore(MTU - 1));
	driver_reset();
	driver_start(event_idx, true, DRIVER_QUEUE);
	host_leaves();
	CHECK(driver_restore(MTU - 1));
}

static void case_configuration(void)
{
	const uint8_t expected[12] = { 2, 'n', 's', 'r', 'u', 'n', 1, 0, 1, 0, MTU & 255, MTU >> 8 };
	uint8_t all[12], part[3];

	CHECK(driver.device->ops->config_size == sizeof(all));
	driver.device->ops->config_read(driver.device, 0, all, sizeof(all));
	CHECK(!memcmp(all, expected, sizeof(all)));
	driver.device->ops->config_read(driver.device, 9, part, sizeof(part));
	CHECK(!memcmp(part, expected + 9, sizeof(part)));
}

static void case_sockets_of_another_kind(void)
{
	const int types[] = { SOCK_STREAM, SOCK_DGRAM };
	int fds[2];

	for (int i = 0; i < 2; i++) {
		CHECK(!socketpair(AF_UNIX, types[i], 0, fds));
		CHECK(!vmm_net_new(NULL, fds[0], MTU) && errno == EINVAL);
		close(fds[0]);
		close(fds[1]);
	}
	CHECK(!vmm_net_new(NULL, fds[0], MTU) && errno == EINVAL);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "buffers-that-are-none", case_buffers_that_are_none },
	{ "configuration", case_configuration },
	{ "frames-before-the-driver", case_frames_before_the_driver },
	{ "guest-is-slow", case_guest_is_slow },
	{ "host-goes-while-it-is-sent-to", case_host_goes_while_it_is_sent_to },
	{ "host-is-gone", case_host_is_gone },
	{ "host-is-gone-with-frames-waiting", case_host_is_gone_with_frames_waiting },
	{ "host-is-slow", case_host_is_slow },
	{ "larger-than-the-ring", case_larger_than_the_ring },
	{ "lengths-that-are-no-frames", case_lengths_that_are_no_frames },
	{ "lengths-that-no-link-has", case_lengths_that_no_link_has },
	{ "many-at-once", case_many_at_once },
	{ "no-room-for-a-head", case_no_room_for_a_head },
	{ "received", case_received },
	{ "received-in-parts", case_received_in_parts },
	{ "received-unmerged", case_received_unmerged },
	{ "reset", case_reset },
	{ "restored", case_restored },
	{ "restored-otherwise", case_restored_otherwise },
	{ "sent", case_sent },
	{ "sent-in-parts", case_sent_in_parts },
	{ "sockets-of-another-kind", case_sockets_of_another_kind },
	{ "spoilt-index", case_spoilt_index },
};

static void run(void (*one)(void), bool events)
{
	event_idx = events;
	driver_new(MTU);
	driver_start(events, true, DRIVER_QUEUE);
	one();
	driver_settle();
	driver_free();
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--list")) {
		for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
			puts(cases[i].name);
		return 0;
	}
	for (size_t i = 0; argc == 2 && i < sizeof(cases) / sizeof(cases[0]); i++)
		if (!strcmp(argv[1], cases[i].name)) {
			run(cases[i].run, true);
			run(cases[i].run, false);
			return 0;
		}
	fputs("usage: net_cases --list | CASE\n", stderr);
	return 2;
}
