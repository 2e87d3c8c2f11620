/* SPDX-License-Identifier: MIT */
/* Starts the second processor, as INIT and SIPI do, and waits for its word, for ever by "wait". */
#include "guest.h"

#define ICR_LOW 0xfee00300ULL
#define ICR_HIGH 0xfee00310ULL
enum { INIT = 0x4500, SIPI = 0x4600, TRAMPOLINE = 0x10000, WORD = 0x10100, MANY = 100000, CMDLINE = 0x228 };

int guest_main(const uint8_t *zero_page)
{
	/* mov $0x5a, %al; mov %al, %cs:0x100; hlt, and again: 16-bit code at 1000:0 */
	static const uint8_t code[] = { 0xb0, 0x5a, 0x2e, 0xa2, 0x00, 0x01, 0xf4, 0xeb, 0xfd };
	volatile uint8_t *word = (volatile uint8_t *)WORD;

	bool wait = *(const char *)(uint64_t)*(const uint32_t *)(zero_page + CMDLINE) == 'w';

	*word = 0;
	memcpy((void *)TRAMPOLINE, code, sizeof(code));
	write32(0xfee000f0, 0x1ff);
	write32(ICR_HIGH, 1 << 24);
	write32(ICR_LOW, INIT);
	write32(ICR_HIGH, 1 << 24);
	write32(ICR_LOW, SIPI | TRAMPOLINE >> 12);
	for (uint32_t i = 0; (wait || i < MANY) && !*word; i++)
		;
	say("the second processor says %x", *word);
	return 0;
}
