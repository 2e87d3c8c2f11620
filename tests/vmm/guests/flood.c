/* SPDX-License-Identifier: MIT */
/* Prints more than a pipe holds, then powers off. */
#include "guest.h"

int guest_main(const uint8_t *zero_page)
{
	(void)zero_page;
	for (uint32_t i = 0; i < 1200; i++)
		say("line %d of more bytes than a pipe takes when nobody reads them", i);
	return 0;
}
