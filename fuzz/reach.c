/* SPDX-License-Identifier: MIT */
/* reach: a guest's frames, as nsrun-slirp looks at them before libslirp does. */
#include <stdlib.h>
#include <string.h>

#include "reach.h"
#include "refuse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* of its own, so that a byte too far is seen */
	uint8_t *frame = malloc(size), answer[NSR_NET_REFUSAL];

	if (!frame)
		return 0;
	memcpy(frame, data, size);
	/* who may go nowhere link-local may go nowhere that others may not */
	if (nsr_net_reaches(frame, size, false) && !nsr_net_reaches(frame, size, true))
		abort();
	nsr_net_refusal(frame, size, answer);
	free(frame);
	return 0;
}
