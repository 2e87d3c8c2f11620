/* SPDX-License-Identifier: MIT */
/*
 * A driver of virtio-fs.  Its command line says what it does: "each", "long 1", "long 2", "lock",
 * "reset", "stop" or "wait".
 */
#include "guest.h"

#include "../../../csrc/vmm/fs/fuse.h"

enum {
	FS = 26, REQUESTS = 1, CMDLINE = 0x228, GSI = 5, STATUS_OK = 15,
	BODY = 128, REPLY = 256, AT_ONCE = SIZE / 2, TIMES = 100, RESETS = 50, PAUSE = 256,
	WRITE_LOCK = 1, READ_WRITE = 2,
	/* words */
	HEAD = sizeof(struct fuse_out_header) / sizeof(uint64_t),
};

struct request {
	struct fuse_in_header head;
	uint8_t body[BODY];
};

static struct queue queue;
static struct request request[AT_ONCE];
static uint64_t reply[AT_ONCE][REPLY / sizeof(uint64_t)];
static uint64_t device;
static uint16_t n_asked, n_seen;
static bool done[AT_ONCE];
static bool events;                 /* VIRTIO_RING_F_EVENT_IDX */

static void bring_up(uint64_t features)
{
	const uint64_t at[] = { (uint64_t)queue.desc, (uint64_t)&queue.avail, (uint64_t)&queue.used };
	const uint32_t registers[] = { QUEUE_DESC, QUEUE_AVAIL, QUEUE_USED };

	negotiate(device, features);
	memset(&queue, 0, sizeof(queue));
	n_asked = n_seen = 0;
	events = features & F_EVENT_IDX;
	write32(device + QUEUE_SEL, REQUESTS);
	write32(device + QUEUE_NUM, SIZE);
	for (uint32_t i = 0; i < 3; i++) {
		write32(device + registers[i], (uint32_t)at[i]);
		write32(device + registers[i] + 4, 0);
	}
	write32(device + QUEUE_READY, 1);
	write32(device + STATUS, STATUS_OK);
}

/* Write a request down, and where its reply goes; it is chain number i of those at once. */
static void write_down(uint32_t i, uint32_t opcode, uint64_t node, const void *body, uint32_t len)
{
	request[i].head = (struct fuse_in_header){
		.len = sizeof(request[i].head) + len, .opcode = opcode, .unique = 100 + i,
		.nodeid = node,
	};
	memcpy(request[i].body, body, len);
	memset(reply[i], 0, sizeof(reply[i]));
	done[i] = false;
	queue.desc[2 * i] = (struct desc){ (uint64_t)&request[i], request[i].head.len, NEXT,
					   (uint16_t)(2 * i + 1) };
	queue.desc[2 * i + 1] = (struct desc){ (uint64_t)reply[i], REPLY, WRITE, 0 };
	queue.avail.ring[n_asked++ % SIZE] = (uint16_t)(2 * i);
}

/* Offer what was written down, with a kick if the device wants one. */
static void kick(void)
{
	volatile uint16_t *idx = &queue.avail.idx, *event = &queue.used.event;
	uint16_t before = *idx;

	__asm__ volatile("" : : : "memory");
	*idx = n_asked;
	__asm__ volatile("mfence" : : : "memory");
	if (!events || (uint16_t)(n_asked - *event - 1) < (uint16_t)(n_asked - before))
		write32(device + QUEUE_NOTIFY, REQUESTS);
}

/* Take one chain that was used, if there is one; its number, or AT_ONCE. */
static uint32_t take_used(void)
{
	uint32_t i;

	if (n_seen == *(volatile uint16_t *)&queue.used.idx)
		return AT_ONCE;
	__asm__ volatile("" : : : "memory");
	i = queue.used.ring[n_seen++ % SIZE].id / 2;
	done[i] = true;
	return i;
}

static void wait_for(uint32_t i)
{
	while (!done[i])
		if (take_used() == AT_ONCE)
			__asm__ volatile("pause" : : : "memory");
}

/* Until the device has taken all that was offered, and wants a kick for the next. */
static void wait_taken(void)
{
	while (*(volatile uint16_t *)&queue.used.event != n_asked)
		__asm__ volatile("pause" : : : "memory");
}

/* Whether the reply to chain number i is its own, and no error. */
static bool good(uint32_t i)
{
	const struct fuse_out_header *head = (const void *)reply[i];

	return head->unique == 100 + i && !head->error && head->len >= sizeof(*head);
}

static void ask(uint32_t opcode, uint64_t node, const void *body, uint32_t len)
{
	write_down(0, opcode, node, body, len);
	kick();
	wait_for(0);
	if (!good(0)) {
		say("operation %d: error %d", opcode,
		    (uint32_t)-((const struct fuse_out_header *)reply[0])->error);
		power_off();
	}
}

static void begin(uint64_t features)
{
	const struct fuse_init_in init = { .major = FUSE_MAJOR, .minor = FUSE_MINOR };

	bring_up(features);
	ask(FUSE_INIT, 0, &init, sizeof(init));
}

static const struct fuse_getattr_in getattr;

/* Of the last request, which was asked for by what is now before n_interrupts. */
static void take_interrupt(uint32_t before)
{
	while (n_interrupts == before)
		__asm__ volatile("pause" : : : "memory");
	write32(device + INTERRUPT_ACK, 3);
}

/* One after the other with an interrupt each, then several by one kick and without any. */
static void each(uint64_t features, const char *how)
{
	uint32_t first = n_interrupts, before, n_good = 0;

	begin(features);
	take_interrupt(first);
	first = n_interrupts;
	for (uint32_t i = 0; i < TIMES; i++) {
		before = n_interrupts;
		queue.avail.event = n_asked;
		ask(FUSE_GETATTR, FUSE_ROOT_ID, &getattr, sizeof(getattr));
		take_interrupt(before);
	}
	queue.avail.flags = 1;
	for (uint32_t i = 0; i < TIMES; i++) {
		for (uint32_t j = 0; j < AT_ONCE; j++)
			write_down(j, FUSE_GETATTR, FUSE_ROOT_ID, &getattr, sizeof(getattr));
		kick();
		for (uint32_t j = 0; j < AT_ONCE; j++) {
			wait_for(j);
			n_good += good(j);
		}
	}
	say("%s: %d alone, %d times %d at once of which %d good, %d interrupts, pending %x", how,
	    TIMES, TIMES, AT_ONCE, n_good, n_interrupts - first,
	    read32(device + INTERRUPT_STATUS));
}

/* The first look is at a file of the host's, where the test holds it; the other is not. */
static void try_long(bool one_kick)
{
	uint32_t first;

	begin(F_VERSION_1 | F_EVENT_IDX);
	write_down(0, FUSE_LOOKUP, FUSE_ROOT_ID, "0", 2);
	if (!one_kick) {
		kick();
		wait_taken();
	}
	write_down(1, FUSE_GETATTR, FUSE_ROOT_ID, &getattr, sizeof(getattr));
	kick();
	do
		first = take_used();
	while (first == AT_ONCE);
	say("first came %d", first);
	wait_for(0);
	wait_for(1);
	say("both %s", good(0) && good(1) ? "good" : "bad");
}

/* A lock that another has, with much to do besides. */
static void try_lock(void)
{
	const struct fuse_open_in open = { .flags = READ_WRITE };
	struct fuse_lk_in lock = { .owner = 1, .lk = { .end = INT64_MAX, .type = WRITE_LOCK,
						       .pid = 1 } };
	uint64_t node;
	uint32_t n = 0;

	begin(F_VERSION_1 | F_EVENT_IDX);
	ask(FUSE_LOOKUP, FUSE_ROOT_ID, "0", 2);
	node = ((const struct fuse_entry_out *)(reply[0] + HEAD))->nodeid;
	ask(FUSE_OPEN, node, &open, sizeof(open));
	lock.fh = ((const struct fuse_open_out *)(reply[0] + HEAD))->fh;
	write_down(1, FUSE_SETLKW, node, &lock, sizeof(lock));
	kick();
	for (; !done[1]; n++) {
		ask(FUSE_GETATTR, FUSE_ROOT_ID, &getattr, sizeof(getattr));
		if (n == TIMES)
			say("asked");
	}
	say("lock %s", !good(1) ? "bad" : n < TIMES ? "too soon" : "good");
}

static void wait(uint32_t turns)
{
	while (turns--)
		__asm__ volatile("pause" : : : "memory");
}

/* Take the replies' place back; to be changed by nobody from now on. */
static void stop(void)
{
	write32(device + STATUS, 0);
	memset(reply, 0xaa, sizeof(reply));
}

static uint32_t count_changed(void)
{
	const volatile uint64_t *word = reply[0];
	uint32_t n = 0;

	wait(PAUSE);
	for (uint32_t i = 0; i < sizeof(reply) / sizeof(*word); i++)
		n += word[i] != UINT64_MAX / 3 * 2;
	return n;
}

static void reset(void)
{
	uint32_t n_changed = 0;

	for (uint32_t i = 0; i < RESETS; i++) {
		begin(i % 2 ? F_VERSION_1 : F_VERSION_1 | F_EVENT_IDX);
		for (uint32_t j = 0; j < AT_ONCE; j++)
			write_down(j, FUSE_LOOKUP, FUSE_ROOT_ID, "0", 2);
		kick();
		wait(i * 16);
		stop();
		n_changed += count_changed();
	}
	begin(F_VERSION_1);
	say("%d resets, %d words changed after them", RESETS, n_changed);
}

/* One reset, while the test holds what was asked for. */
static void stop_long(void)
{
	begin(F_VERSION_1 | F_EVENT_IDX);
	write_down(0, FUSE_LOOKUP, FUSE_ROOT_ID, "0", 2);
	kick();
	wait_taken();
	stop();
	say("stopped");
	say("%d words changed", count_changed());
}

/* Whatever becomes of the machine between the two. */
static void ask_and_wait(void)
{
	const struct fuse_init_in init = { .major = FUSE_MAJOR, .minor = FUSE_MINOR };

	bring_up(F_VERSION_1 | F_EVENT_IDX);
	write_down(0, FUSE_INIT, 0, &init, sizeof(init));
	kick();
	say("asked");
	wait_for(0);
	say("answered %s", good(0) ? "well" : "badly");
}

int guest_main(const uint8_t *zero_page)
{
	const char *what = (const char *)(uint64_t)*(const uint32_t *)(zero_page + CMDLINE);

	device = find(FS);
	take_interrupts(GSI);
	switch (what[0]) {
	case 'e':
		each(F_VERSION_1, "plain");
		each(F_VERSION_1 | F_EVENT_IDX, "events");
		break;
	case 'l':
		if (what[2] == 'c')
			try_lock();
		else
			try_long(what[5] == '1');
		break;
	case 's':
		stop_long();
		break;
	case 'w':
		ask_and_wait();
		break;
	default:
		reset();
	}
	return 0;
}
