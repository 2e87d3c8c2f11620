/* SPDX-License-Identifier: MIT */
/* Prints lines for ever. */
#include "guest.h"

int guest_main(const uint8_t *zero_page)
{
	(void)zero_page;
	for (uint32_t i = 0;; i++)
		say("tick %d", i);
}
