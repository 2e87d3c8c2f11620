/* SPDX-License-Identifier: MIT */
/* readfd.c - what an inherited fd holds. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "readfd.h"

enum { FIRST_SIZE = 4096 };

int nsr_read_fd(struct nsr_plan *plan, int fd, struct nsr_blob *out)
{
	size_t cap = FIRST_SIZE, len = 0;
	uint8_t *data = nsr_arena_alloc(&plan->arena, cap);

	while (data) {
		ssize_t n = read(fd, data + len, cap - 1 - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		len += (size_t)n;
		if (len > NSR_MAX_PLAN_BYTES)
			return -EFBIG;
		if (len == cap - 1) {
			uint8_t *grown = nsr_arena_alloc(&plan->arena, cap * 2);

			if (grown)
				memcpy(grown, data, len);
			data = grown;
			cap *= 2;
		}
	}
	if (!data)
		return -ENOMEM;
	data[len] = '\0';
	close(fd);
	*out = (struct nsr_blob){ data, len };
	return 0;
}
