/* SPDX-License-Identifier: MIT */
/* Says its command line and what it was given, then powers off; "crash" on it does that instead. */
#include "guest.h"

enum { E820_ENTRIES = 0x1e8, INITRD = 0x218, INITRD_SIZE = 0x21c, CMDLINE = 0x228, E820 = 0x2d0 };

static uint32_t field(const uint8_t *zero_page, uint32_t at)
{
	return *(const uint32_t *)(zero_page + at);
}

int guest_main(const uint8_t *zero_page)
{
	const char *cmdline = (const char *)(uint64_t)field(zero_page, CMDLINE);
	const char *initrd = (const char *)(uint64_t)field(zero_page, INITRD);

	say("cmdline %s", cmdline);
	if (field(zero_page, INITRD_SIZE))
		say("initrd %d bytes, first %x", field(zero_page, INITRD_SIZE), initrd[0]);
	for (uint32_t i = 0; i < zero_page[E820_ENTRIES]; i++) {
		const uint8_t *entry = zero_page + E820 + 20 * i;

		say("e820 %lx %lx %d", *(const uint64_t *)entry, *(const uint64_t *)(entry + 8),
		    field(entry, 16));
	}
	if (*cmdline == 'c')
		crash();
	if (*cmdline == 'r')
		outb(0x602, 1);
	while (*cmdline == 'l')
		;
	return 0;
}
