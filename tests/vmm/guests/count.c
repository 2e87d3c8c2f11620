/* SPDX-License-Identifier: MIT */
/*
 * It counts on its console, for ever; where memory or a register did not keep
 * what was in it, it says so.
 */
#include "guest.h"

enum { WORDS = 4096 };

static uint32_t pattern[WORDS];

static bool kept(uint32_t n)
{
	for (uint32_t i = 0; i < WORDS; i += 97) {
		if (pattern[i] != n * 2654435761u + i)
			return false;
		pattern[i] = (n + 1) * 2654435761u + i;
	}
	return true;
}

int guest_main(const uint8_t *zero_page)
{
	(void)zero_page;
	for (uint32_t i = 0; i < WORDS; i++)
		pattern[i] = i;
	for (uint32_t n = 0;; n++) {
		say("%d", n);
		if (!kept(n))
			say("lost at %d", n);
	}
}
