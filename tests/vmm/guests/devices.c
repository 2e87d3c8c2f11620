/* SPDX-License-Identifier: MIT */
/* A driver that does everything right: rng, and a disk. */
#include "guest.h"

enum { SECTOR = 512, T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8 };

static struct queue queue;
static uint8_t bytes[8 * SECTOR], status;
static struct {
	uint32_t type, reserved;
	uint64_t sector;
} head;
static struct desc table[4];

static void say_device(uint64_t device)
{
	uint64_t features = 0;

	for (uint32_t i = 0; i < 2; i++) {
		write32(device + DEVICE_FEATURES_SEL, i);
		features |= (uint64_t)read32(device + DEVICE_FEATURES) << 32 * i;
	}
	write32(device + QUEUE_SEL, 1);
	say("device %d: magic %x version %d features %lx no queue %d shm %x",
	    read32(device + DEVICE_ID), read32(device + MAGIC), read32(device + VERSION), features,
	    read32(device + QUEUE_NUM_MAX), read32(device + SHM_LEN));
}

/* Two requests for random bytes, which differ; how many interrupts came of it. */
static void try_rng(uint64_t features, const char *how)
{
	uint64_t device = find(RNG), *values = (uint64_t *)bytes;
	uint32_t before, state = start(device, features, &queue, SIZE);
	bool indirect = features & F_INDIRECT;

	queue.desc[0] = (struct desc){ (uint64_t)bytes, 8, WRITE, 0 };
	queue.desc[1] = (struct desc){ (uint64_t)(bytes + 8), 8, WRITE, 0 };
	if (indirect) {
		memcpy(table, queue.desc, sizeof(table[0]));
		queue.desc[0] = (struct desc){ (uint64_t)table, sizeof(table[0]), INDIRECT, 0 };
	}
	memset(bytes, 0, 16);
	before = n_interrupts;
	offer(device, &queue, 0);
	wait_used(device, &queue, 1);
	/* KVM brings it by a worker of its own */
	for (uint32_t i = 0; i < 30000000 && n_interrupts == before; i++)
		;
	write32(device + INTERRUPT_ACK, 3);
	/* with an event far away, or the flag, the second one comes without */
	queue.avail.flags = 1;
	queue.avail.event = 1000;
	offer(device, &queue, 1);
	wait_used(device, &queue, 2);
	say("rng %s: state %x, %s, chain %d of %d bytes, %d interrupts, pending %x", how, state,
	    values[0] && values[1] && values[0] != values[1] ? "random" : "not random",
	    queue.used.ring[1].id, queue.used.ring[1].len, n_interrupts - before,
	    read32(device + INTERRUPT_STATUS));
}

static uint32_t request(uint64_t device, uint32_t type, uint64_t sector, uint32_t len)
{
	uint16_t n = queue.used.idx + 1;
	uint16_t direction = type == T_OUT ? 0 : WRITE;

	head.type = type;
	head.sector = sector;
	status = 0xee;
	queue.desc[0] = (struct desc){ (uint64_t)&head, sizeof(head), NEXT, len ? 1 : 3 };
	/* in two pieces, of which the first is no whole sector */
	queue.desc[1] = (struct desc){ (uint64_t)bytes, 100, direction | NEXT, 2 };
	queue.desc[2] = (struct desc){ (uint64_t)(bytes + 100), len - 100, direction | NEXT, 3 };
	queue.desc[3] = (struct desc){ (uint64_t)&status, 1, WRITE, 0 };
	offer(device, &queue, 0);
	if (!wait_used(device, &queue, n))
		return 0xbb;
	return status;
}

static void try_disk(uint64_t device)
{
	uint64_t sectors = read32(device + CONFIG) | (uint64_t)read32(device + CONFIG + 4) << 32;
	uint32_t first, written;

	say_device(device);
	start(device, F_VERSION_1 | F_INDIRECT | F_EVENT_IDX, &queue, SIZE);
	first = request(device, T_IN, 1, 2 * SECTOR);
	say("disk of %ld sectors: read %x: %x %x", sectors, first, bytes[0], bytes[2 * SECTOR - 1]);
	memset(bytes, 'A', sizeof(bytes));
	written = request(device, T_OUT, 2, SECTOR);
	memset(bytes, 0, sizeof(bytes));
	first = request(device, T_IN, 1, 3 * SECTOR);
	say("write %x, read %x: %x %x %x, flush %x", written, first, bytes[0], bytes[SECTOR],
	    bytes[2 * SECTOR], request(device, T_FLUSH, 0, 0));
	first = request(device, T_GET_ID, 0, 120);
	say("id %x: %s", first, bytes);
	say("last %x, behind %x, far %x, wrapping %x, odd %x, unknown %x",
	    request(device, T_IN, sectors - 1, SECTOR), request(device, T_IN, sectors, SECTOR),
	    request(device, T_OUT, sectors - 1, 2 * SECTOR),
	    request(device, T_IN, UINT64_MAX, 2 * SECTOR), request(device, T_IN, 0, 700),
	    request(device, 77, 0, SECTOR));
}

int guest_main(const uint8_t *zero_page)
{
	(void)zero_page;
	take_interrupts(5);
	say_device(find(RNG));
	try_rng(F_VERSION_1, "plain");
	try_rng(F_VERSION_1 | F_EVENT_IDX, "events");
	try_rng(F_VERSION_1 | F_INDIRECT, "indirect");
	for (uint32_t i = 0; i < 16; i++)
		if (read32(slot(i) + DEVICE_ID) == BLK)
			try_disk(slot(i));
	return 0;
}
