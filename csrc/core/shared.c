/* SPDX-License-Identifier: MIT */
/*
 * shared.c - the memory that a caller and its sandbox have in common until the exec.
 *
 * Of those that are done with, a few are kept for the next sandboxes: their pages are
 * there, which for a new one the kernel would have to find, clear and take back.
 */
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "child_handle.h"

enum { SPARES = 8 };

/* Taken and put back in one step: for any thread, and for forked copies of the program. */
static struct nsr_shared *_Atomic spares[SPARES];

static struct nsr_shared *take_spare(void)
{
	struct nsr_shared *found = NULL;

	for (int i = 0; !found && i < SPARES; i++)
		found = atomic_exchange(&spares[i], NULL);
	return found;
}

struct nsr_ctx *nsr_shared_new(void)
{
	struct nsr_shared *shared = take_spare();

	if (!shared) {
		shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (shared == MAP_FAILED)
			return NULL;
	}
	memset(&shared->ctx, 0, sizeof(shared->ctx));
	/* a record without a text leaves this one as it is */
	shared->cold.text[0] = '\0';
	shared->ctx.cold = &shared->cold;
	return &shared->ctx;
}

void nsr_shared_free(struct nsr_ctx *ctx)
{
	struct nsr_shared *shared = (struct nsr_shared *)(void *)ctx->cold;

	for (int i = 0; i < SPARES; i++) {
		struct nsr_shared *none = NULL;

		if (atomic_compare_exchange_strong(&spares[i], &none, shared))
			return;
	}
	munmap(shared, sizeof(*shared));
}
