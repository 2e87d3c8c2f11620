/* SPDX-License-Identifier: MIT */
/* guest.h - what the tests' guests have instead of a kernel. */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SLEEP_CONTROL = 0x600, POWER_OFF = 0x34, SERIAL = 0x3f8 };
#define SLOTS 0xd0000000ULL
enum { SLOT = 0x1000 };

/* registers of virtio-mmio */
enum {
	MAGIC = 0x000, VERSION = 0x004, DEVICE_ID = 0x008, DEVICE_FEATURES = 0x010,
	DEVICE_FEATURES_SEL = 0x014, DRIVER_FEATURES = 0x020, DRIVER_FEATURES_SEL = 0x024,
	QUEUE_SEL = 0x030, QUEUE_NUM_MAX = 0x034, QUEUE_NUM = 0x038, QUEUE_READY = 0x044,
	QUEUE_NOTIFY = 0x050, INTERRUPT_STATUS = 0x060, INTERRUPT_ACK = 0x064, STATUS = 0x070,
	QUEUE_DESC = 0x080, QUEUE_AVAIL = 0x090, QUEUE_USED = 0x0a0, SHM_LEN = 0x0b0,
	CONFIG = 0x100,
};
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
enum { RNG = 4, BLK = 2 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
#define F_INDIRECT (1ULL << 28)
#define F_EVENT_IDX (1ULL << 29)
#define F_VERSION_1 (1ULL << 32)

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

enum { SIZE = 8 };

struct queue {
	struct desc desc[SIZE];
	struct {
		uint16_t flags, idx, ring[SIZE], event;
	} avail;
	struct {
		uint16_t flags, idx;
		struct {
			uint32_t id, len;
		} ring[SIZE];
		uint16_t event;
	} used __attribute__((aligned(4)));
} __attribute__((aligned(16)));

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline void write32(uint64_t at, uint32_t value)
{
	__asm__ volatile("movl %0, (%1)" : : "r"(value), "r"(at) : "memory");
}

static inline uint32_t read32(uint64_t at)
{
	uint32_t value;

	__asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(at) : "memory");
	return value;
}

static inline uint64_t slot(uint32_t n)
{
	return SLOTS + (uint64_t)n * SLOT;
}

_Noreturn void power_off(void);
_Noreturn void crash(void);
/* %s, %x (unsigned, hexadecimal) and %d (unsigned, decimal); 64-bit with l before it. */
void say(const char *format, ...);
void *memset(void *to, int value, size_t n);
void *memcpy(void *to, const void *from, size_t n);

/* The first slot with a device of that kind; says so and powers off without one. */
uint64_t find(uint32_t device_id);
/* Reset it, and bring it up with these features and one queue; its status. */
uint32_t start(uint64_t device, uint64_t features, struct queue *queue, uint16_t size);
/* As far as FEATURES_OK; its status. */
uint32_t negotiate(uint64_t device, uint64_t features);
void set_queue(uint64_t device, uint64_t desc, uint64_t avail, uint64_t used, uint16_t size);
/* Offer a chain and ring the bell. */
void offer(uint64_t device, struct queue *queue, uint16_t head);
/* Until so many chains were used, or the device needs a reset; whether they were. */
bool wait_used(uint64_t device, struct queue *queue, uint16_t n);

/* Interrupts of that GSI come to the handler, which counts them; they are on from then. */
void take_interrupts(uint32_t gsi);
extern volatile uint32_t n_interrupts;

/* the test's own */
int guest_main(const uint8_t *zero_page);

#endif
