/* SPDX-License-Identifier: MIT */
/* child_handle.h - what a started sandbox keeps in its caller, for spawn.c and handle.c. */
#ifndef NSR_CHILD_HANDLE_H
#define NSR_CHILD_HANDLE_H

#include "spawn.h"

/* What the caller and the child have in common; untouched pages cost nothing. */
struct nsr_shared {
	struct nsr_cold cold;       /* first: nsr_shared_free finds the whole by it */
	struct nsr_ctx ctx;
};

/* shared.c: ctx is all zeroes, and knows its cold part; NULL and errno. */
struct nsr_ctx *nsr_shared_new(void);
/* Nobody uses ctx any more. */
void nsr_shared_free(struct nsr_ctx *ctx);

/* The same, and what ctx holds: fds and memory. */
void nsr_child_free(struct nsr_ctx *ctx);

#endif
