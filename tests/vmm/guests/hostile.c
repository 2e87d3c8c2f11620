/* SPDX-License-Identifier: MIT */
/*
 * A driver that breaks one rule after the other.  After each, the device must say that it
 * needs a reset, and work again after one.
 */
#include "guest.h"

enum { ALL = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK };

static struct queue queue;
static uint8_t bytes[64];
static struct desc table[SIZE];
static uint64_t device;

/* The device serves a good driver. */
static bool works(void)
{
	start(device, F_VERSION_1, &queue, SIZE);
	memset(bytes, 0, 8);
	queue.desc[0] = (struct desc){ (uint64_t)bytes, 8, WRITE, 0 };
	offer(device, &queue, 0);
	return wait_used(device, &queue, 1) && *(uint64_t *)bytes;
}

/* What became of a device with these descriptors. */
static void try(const char *name, const struct desc *descs, uint16_t n, uint16_t head)
{
	bool used;

	start(device, F_VERSION_1 | F_INDIRECT, &queue, SIZE);
	memcpy(queue.desc, descs, n * sizeof(*descs));
	offer(device, &queue, head);
	used = wait_used(device, &queue, 1);
	say("%s: %s, %s", name, used ? "served" : "needs a reset", works() ? "works" : "DEAD");
}

static void try_chains(void)
{
	uint64_t at = (uint64_t)bytes;
	const struct desc loop[] = { { at, 8, WRITE | NEXT, 0 } };
	const struct desc long_loop[] = {
		{ at, 8, WRITE | NEXT, 1 }, { at, 8, WRITE | NEXT, 2 }, { at, 8, WRITE | NEXT, 1 },
	};
	const struct desc outside[] = { { 0xd0000000, 8, WRITE, 0 } };
	const struct desc end[] = { { (512ULL << 20) - 4, 8, WRITE, 0 } };
	const struct desc wrapping[] = { { UINT64_MAX - 3, 8, WRITE, 0 } };
	const struct desc huge[] = { { at, UINT32_MAX, WRITE, 0 } };
	const struct desc next[] = { { at, 8, WRITE | NEXT, SIZE } };
	const struct desc order[] = { { at, 8, WRITE | NEXT, 1 }, { at, 8, 0, 0 } };
	const struct desc empty[] = { { at, 0, WRITE | NEXT, 1 }, { at, 8, WRITE, 0 } };

	try("loop", loop, 1, 0);
	try("long loop", long_loop, 3, 0);
	try("outside", outside, 1, 0);
	try("past the end", end, 1, 0);
	try("wrapping", wrapping, 1, 0);
	try("huge", huge, 1, 0);
	try("next outside the table", next, 1, 0);
	try("head outside the table", empty, 2, SIZE);
	try("readable behind writable", order, 2, 0);
	try("empty buffer", empty, 2, 0);
}

static void try_indirect(const char *name, uint64_t at, uint32_t len, uint16_t flags)
{
	const struct desc desc = { at, len, flags, 0 };

	try(name, &desc, 1, 0);
}

static void try_tables(void)
{
	uint64_t at = (uint64_t)table;

	table[0] = (struct desc){ (uint64_t)bytes, 8, WRITE, 0 };
	try_indirect("table", at, 16, INDIRECT);
	try_indirect("table of no entry", at, 0, INDIRECT);
	try_indirect("table of half an entry", at, 24, INDIRECT);
	try_indirect("table too large", at, 16 * 1025, INDIRECT);
	try_indirect("table outside", 0xd0000000, 16, INDIRECT);
	try_indirect("table with a next", at, 16, INDIRECT | NEXT);
	table[0] = (struct desc){ at, 16, INDIRECT, 0 };
	try_indirect("table in a table", at, 16, INDIRECT);
	table[0] = (struct desc){ (uint64_t)bytes, 8, WRITE | NEXT, 0 };
	try_indirect("loop in a table", at, 32, INDIRECT);
	table[0] = (struct desc){ (uint64_t)bytes, 8, WRITE | NEXT, 1 };
	try_indirect("next outside its table", at, 16, INDIRECT);
}

static void try_index(void)
{
	bool used;

	start(device, F_VERSION_1, &queue, SIZE);
	queue.avail.idx = SIZE + 1;
	write32(device + QUEUE_NOTIFY, 0);
	used = wait_used(device, &queue, 1);
	say("index too far: %s, %s", used ? "served" : "needs a reset",
	    works() ? "works" : "DEAD");
}

static void try_queue(const char *name, uint64_t desc, uint64_t avail, uint64_t used, uint32_t size)
{
	uint32_t ready, state;

	negotiate(device, F_VERSION_1);
	set_queue(device, desc, avail, used, 0);
	write32(device + QUEUE_READY, 0);
	negotiate(device, F_VERSION_1);
	write32(device + QUEUE_NUM, size);
	set_queue(device, desc, avail, used, (uint16_t)size);
	ready = read32(device + QUEUE_READY);
	state = read32(device + STATUS);
	say("queue %s: ready %d, %s, %s", name, ready, state & NEEDS_RESET ? "needs a reset" : "fine",
	    works() ? "works" : "DEAD");
}

static void try_queues(void)
{
	uint64_t desc = (uint64_t)queue.desc, avail = (uint64_t)&queue.avail,
		 used = (uint64_t)&queue.used, far = 0xd0000000;

	try_queue("good", desc, avail, used, SIZE);
	try_queue("of none", desc, avail, used, 0);
	try_queue("of three", desc, avail, used, 3);
	try_queue("too large", desc, avail, used, 128);
	try_queue("misplaced", desc + 8, avail, used, SIZE);
	try_queue("misplaced avail", desc, avail + 1, used, SIZE);
	try_queue("misplaced used", desc, avail, used + 2, SIZE);
	try_queue("outside", far, avail, used, SIZE);
	try_queue("avail outside", desc, far, used, SIZE);
	try_queue("used outside", desc, avail, (512ULL << 20) - 16, SIZE);
	try_queue("wrapping", UINT64_MAX - 15, avail, used, SIZE);
}

static void try_status(const char *name, const uint32_t *values, uint32_t n)
{
	uint32_t state;

	write32(device + STATUS, 0);
	write32(device + DRIVER_FEATURES_SEL, 1);
	write32(device + DRIVER_FEATURES, 1);
	for (uint32_t i = 0; i < n; i++)
		write32(device + STATUS, values[i]);
	state = read32(device + STATUS);
	say("status %s: %x, %s", name, state, works() ? "works" : "DEAD");
}

static void try_sequences(void)
{
	uint32_t ready;

	try_status("at once", (uint32_t[]){ ALL }, 1);
	try_status("no acknowledge", (uint32_t[]){ DRIVER }, 1);
	try_status("ok alone", (uint32_t[]){ DRIVER_OK }, 1);
	try_status("no features", (uint32_t[]){ 1, 3, 7 }, 3);
	try_status("backwards", (uint32_t[]){ 1, 3, 11, 3 }, 4);
	try_status("unknown bits", (uint32_t[]){ 1, 3, 0xffffff30 | 3 }, 3);
	try_status("failed", (uint32_t[]){ 1, 3, 11, 128 | 11, 128 | 15 }, 5);
	try_status("own reset", (uint32_t[]){ 1, 3, 11, 64 | 11 }, 4);
	say("features of none: %x", negotiate(device, 0));
	say("features unknown: %x", negotiate(device, F_VERSION_1 | 1ULL << 40));
	negotiate(device, F_VERSION_1);
	write32(device + DRIVER_FEATURES, 0xff);
	write32(device + QUEUE_SEL, 7);
	write32(device + QUEUE_NUM, SIZE);
	write32(device + QUEUE_READY, 1);
	ready = read32(device + QUEUE_READY);
	say("no such queue: ready %d, %s", ready, works() ? "works" : "DEAD");
}

static uint64_t next_random(void)
{
	static uint64_t state = 0x9e3779b97f4a7c15;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void write_sized(uint64_t at, uint64_t value, uint32_t size)
{
	if (size == 0)
		*(volatile uint8_t *)at = (uint8_t)value;
	else if (size == 1)
		*(volatile uint16_t *)at = (uint16_t)value;
	else if (size == 2)
		*(volatile uint32_t *)at = (uint32_t)value;
	else
		*(volatile uint64_t *)at = value;
}

/* Anything to any register of any device, in any width; and what that reads as. */
static void try_garbage(uint32_t n)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t random = next_random();
		uint64_t at = slot(random % 4) + (random >> 8 & 0x1ff);
		uint64_t value = random >> 20 & 1 ? (random >> 21 & 15) : next_random();

		write_sized(at, value, random >> 30 & 3);
		sum += read32(slot(random >> 32 & 3) + (random >> 40 & 0x1fc));
	}
	say("garbage: %s%s", works() ? "works" : "DEAD", sum ? "" : ", all reads were 0");
}

/* Rings full of nonsense, at good places. */
static void try_nonsense(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t *words = (uint64_t *)&queue;

		start(device, F_VERSION_1 | F_INDIRECT | F_EVENT_IDX, &queue, SIZE);
		for (uint32_t j = 0; j < sizeof(queue) / 8; j++)
			words[j] = next_random();
		/* addresses that are memory, and flags that mean something, in half of them */
		for (uint32_t j = 0; j < SIZE; j++) {
			if (next_random() & 1)
				queue.desc[j].addr = 0x1000000 + (next_random() & 0xffffff);
			if (next_random() & 1)
				queue.desc[j].flags &= NEXT | WRITE | INDIRECT;
			queue.desc[j].next &= 15;
			queue.avail.ring[j] &= 15;
		}
		queue.avail.idx &= 15;
		write32(device + QUEUE_NOTIFY, 0);
		read32(device + STATUS);
	}
	say("nonsense: %s", works() ? "works" : "DEAD");
}

int guest_main(const uint8_t *zero_page)
{
	(void)zero_page;
	device = find(RNG);
	try_chains();
	try_tables();
	try_index();
	try_queues();
	try_sequences();
	try_garbage(20000);
	try_nonsense(500);
	return 0;
}
