/* SPDX-License-Identifier: MIT */
#include "guest.h"

volatile uint32_t n_interrupts;

_Noreturn void power_off(void)
{
	for (;;)
		outb(SLEEP_CONTROL, POWER_OFF);
}

_Noreturn void crash(void)
{
	const struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) none = { 0, 0 };

	__asm__ volatile("lidt %0; ud2" : : "m"(none));
	__builtin_unreachable();
}

void *memset(void *to, int value, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((volatile uint8_t *)to)[i] = (uint8_t)value;
	return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((volatile uint8_t *)to)[i] = ((const uint8_t *)from)[i];
	return to;
}

static void put(const char *text)
{
	while (*text)
		outb(SERIAL, (uint8_t)*text++);
}

static void put_number(uint64_t value, uint32_t base)
{
	char digits[24];
	char *at = digits + sizeof(digits) - 1;

	*at = 0;
	do
		*--at = "0123456789abcdef"[value % base];
	while (value /= base);
	put(at);
}

void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	for (; *format; format++) {
		bool is_long;

		if (*format != '%') {
			outb(SERIAL, (uint8_t)*format);
			continue;
		}
		is_long = *++format == 'l';
		format += is_long;
		if (*format == 's')
			put(va_arg(args, const char *));
		else
			put_number(is_long ? va_arg(args, uint64_t) : va_arg(args, uint32_t),
				   *format == 'x' ? 16 : 10);
	}
	va_end(args);
	outb(SERIAL, '\n');
}

uint64_t find(uint32_t device_id)
{
	for (uint32_t i = 0; i < 16; i++)
		if (read32(slot(i) + DEVICE_ID) == device_id)
			return slot(i);
	say("no device %d", device_id);
	power_off();
}

uint32_t negotiate(uint64_t device, uint64_t features)
{
	write32(device + STATUS, 0);
	write32(device + STATUS, ACKNOWLEDGE);
	write32(device + STATUS, ACKNOWLEDGE | DRIVER);
	for (uint32_t i = 0; i < 2; i++) {
		write32(device + DRIVER_FEATURES_SEL, i);
		write32(device + DRIVER_FEATURES, (uint32_t)(features >> 32 * i));
	}
	write32(device + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	return read32(device + STATUS);
}

static void write64(uint64_t at, uint64_t value)
{
	write32(at, (uint32_t)value);
	write32(at + 4, (uint32_t)(value >> 32));
}

void set_queue(uint64_t device, uint64_t desc, uint64_t avail, uint64_t used, uint16_t size)
{
	write32(device + QUEUE_SEL, 0);
	write32(device + QUEUE_NUM, size);
	write64(device + QUEUE_DESC, desc);
	write64(device + QUEUE_AVAIL, avail);
	write64(device + QUEUE_USED, used);
	write32(device + QUEUE_READY, 1);
}

uint32_t start(uint64_t device, uint64_t features, struct queue *queue, uint16_t size)
{
	negotiate(device, features);
	memset(queue, 0, sizeof(*queue));
	set_queue(device, (uint64_t)queue->desc, (uint64_t)&queue->avail, (uint64_t)&queue->used,
		  size);
	write32(device + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	return read32(device + STATUS);
}

void offer(uint64_t device, struct queue *queue, uint16_t head)
{
	volatile uint16_t *idx = &queue->avail.idx;

	queue->avail.ring[*idx % SIZE] = head;
	__asm__ volatile("" : : : "memory");
	*idx = *idx + 1;
	write32(device + QUEUE_NOTIFY, 0);
}

bool wait_used(uint64_t device, struct queue *queue, uint16_t n)
{
	volatile uint16_t *idx = &queue->used.idx;

	while (*idx != n)
		if (read32(device + STATUS) & NEEDS_RESET)
			return *idx == n;
	return true;
}

void count_interrupt(void);
void interrupted(void);

enum { VECTOR = 0x40 };
#define IOAPIC 0xfec00000ULL
#define LAPIC 0xfee00000ULL
enum { LAPIC_EOI = 0xb0, LAPIC_SPURIOUS = 0xf0, LAPIC_ON = 0x1ff };

void count_interrupt(void)
{
	n_interrupts = n_interrupts + 1;
	write32(LAPIC + LAPIC_EOI, 0);
}

void take_interrupts(uint32_t gsi)
{
	static struct {
		uint16_t low, selector, type, middle;
		uint32_t high, zero;
	} idt[256];
	const struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) place = { sizeof(idt) - 1, (uint64_t)idt };
	uint64_t at = (uint64_t)interrupted;

	idt[VECTOR].low = (uint16_t)at;
	idt[VECTOR].selector = 0x10;
	idt[VECTOR].type = 0x8e00;
	idt[VECTOR].middle = (uint16_t)(at >> 16);
	idt[VECTOR].high = (uint32_t)(at >> 32);
	/* the old interrupt controller is there too, and has every line as well */
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	__asm__ volatile("lidt %0" : : "m"(place) : "memory");
	write32(LAPIC + LAPIC_SPURIOUS, LAPIC_ON);
	write32(IOAPIC, 0x10 + 2 * gsi);
	write32(IOAPIC + 0x10, VECTOR);
	write32(IOAPIC, 0x11 + 2 * gsi);
	write32(IOAPIC + 0x10, 0);
	__asm__ volatile("sti" : : : "memory");
}
