/* SPDX-License-Identifier: MIT */
/* plan.h - the plan's inside: one value over one arena. */
#ifndef NSR_PLAN_H
#define NSR_PLAN_H

#include "nsrun.h"

struct nsr_block;

/* Memory that is given back all at once. */
struct nsr_arena {
	struct nsr_block *head;
	size_t left;
	char *next;
};

void *nsr_arena_alloc(struct nsr_arena *arena, size_t size);
void *nsr_arena_copy(struct nsr_arena *arena, const void *data, size_t size);
char *nsr_arena_str(struct nsr_arena *arena, const char *s);
void nsr_arena_free(struct nsr_arena *arena);
/* Use this memory first; it is not freed. */
void nsr_arena_give(struct nsr_arena *arena, char *memory, size_t size);

/* A growing list of words; v always ends with NULL once it has an element. */
struct nsr_words {
	const char **v;
	uint32_t n;
	uint32_t cap;
};

struct nsr_blob {
	const uint8_t *data;
	uint64_t len;
};

/* How the command line wants a plan to be run; no part of the plan itself. */
struct nsr_choice {
	const char *backend;        /* --backend, NULL: not given */
	int quiet;                  /* --quiet */
	int probe;                  /* --probe */
	int allow_host;             /* --allow-host */
	uint32_t words;             /* that these options took */
};

struct nsr_plan {
	int64_t number[NSR_NUMBER_END];
	const char *string[NSR_STRING_END];
	struct nsr_words list[NSR_LIST_END];
	struct nsr_op *ops;
	uint32_t n_ops;
	uint32_t cap_ops;
	struct nsr_blob *seccomp;
	uint32_t n_seccomp;
	uint32_t cap_seccomp;
	struct nsr_rlimit *rlimits;
	uint32_t n_rlimits;
	uint32_t cap_rlimits;
	struct nsr_choice choice;
	struct nsr_arena arena;
};

/* Make an empty plan of zeroed memory. */
void nsr_plan_init(struct nsr_plan *plan);

/* Grow an array in the arena to hold one more element; NULL: no memory. */
void *nsr_plan_grow(struct nsr_plan *plan, void *array, uint32_t n, uint32_t *cap,
		    size_t size);

/* The same as the public functions without copying what outlives the plan. */
int nsr_plan_keep_word(struct nsr_plan *plan, enum nsr_list which, const char *value);
/* Whether all programs are built-in profiles, which leave pid 1 what it needs. */
int nsr_plan_seccomp_is_ours(const struct nsr_plan *plan);
/* In front of whatever programs there are already. */
int nsr_plan_set_seccomp_profile(struct nsr_plan *plan, const struct nsr_seccomp_profile *profile);
struct nsr_op *nsr_plan_new_op(struct nsr_plan *plan, uint32_t type);

/*
 * nsr_plan_check for a plan out of bytes: who reads it may become another user
 * before it runs, as in a guest, so that its ids are looked at then.
 */
int nsr_plan_check_read(const struct nsr_plan *plan, struct nsr_diag *diag);

/* Without a user namespace the caller's ids are the only ones there are. */
int nsr_check_ids(const struct nsr_plan *plan, struct nsr_diag *diag);

/* The option that makes such an operation. */
const char *nsr_op_option(const struct nsr_op *op);

/* A TCP port from 1 on; 0: "none"; -1: neither. */
int nsr_port_number(const char *word);

/* RLIMIT_* by the name without that, in any case; -1: none. */
int nsr_rlimit_number(const char *name, size_t len);
const char *nsr_rlimit_name(uint32_t resource);

/* setenv(3), unsetenv(3) and getenv(3) on the plan's own environment. */
int nsr_plan_setenv(struct nsr_plan *plan, const char *name, const char *value);
int nsr_plan_unsetenv(struct nsr_plan *plan, const char *name);
const char *nsr_plan_getenv(const struct nsr_plan *plan, const char *name);

#endif
