/* SPDX-License-Identifier: MIT */
/*
 * Two processors count, each in a word of its own; the first says both counts for
 * ever, and asks the random number device between.
 */
#include "guest.h"

#define ICR_LOW 0xfee00300ULL
#define ICR_HIGH 0xfee00310ULL
enum { INIT = 0x4500, SIPI = 0x4600, TRAMPOLINE = 0x10000, WORD = 0x10100, BYTES = 32 };

static void start_second(void)
{
	/* incw %cs:0x100; jmp back: 16-bit code at 1000:0 */
	static const uint8_t code[] = { 0x2e, 0xff, 0x06, 0x00, 0x01, 0xeb, 0xf9 };

	*(volatile uint16_t *)WORD = 0;
	memcpy((void *)TRAMPOLINE, code, sizeof(code));
	write32(0xfee000f0, 0x1ff);
	write32(ICR_HIGH, 1 << 24);
	write32(ICR_LOW, INIT);
	write32(ICR_HIGH, 1 << 24);
	write32(ICR_LOW, SIPI | TRAMPOLINE >> 12);
}

int guest_main(const uint8_t *zero_page)
{
	static struct queue queue;
	static uint8_t bytes[BYTES];
	uint64_t device = find(RNG);
	uint16_t n = 0;

	(void)zero_page;
	start_second();
	start(device, F_VERSION_1, &queue, SIZE);
	queue.desc[0] = (struct desc){ .addr = (uint64_t)bytes, .len = BYTES, .flags = WRITE };
	for (;;) {
		offer(device, &queue, 0);
		if (!wait_used(device, &queue, ++n))
			crash();
		say("%d %d %lx", n, *(volatile uint16_t *)WORD, *(volatile uint64_t *)bytes);
	}
}
