/* SPDX-License-Identifier: MIT */
/* arena.c - memory of one plan, given back all at once. */
#include <stdlib.h>
#include <string.h>

#include "plan.h"

enum { BLOCK_SIZE = 16384, ALIGN = 16 };

struct nsr_block {
	struct nsr_block *next;
	/* keeps what follows aligned for any type */
	_Alignas(ALIGN) char data[];
};

static int add_block(struct nsr_arena *arena, size_t size)
{
	struct nsr_block *block;

	if (size > SIZE_MAX - sizeof(*block))
		return -1;
	block = malloc(sizeof(*block) + size);
	if (!block)
		return -1;
	block->next = arena->head;
	arena->head = block;
	arena->next = block->data;
	arena->left = size;
	return 0;
}

void *nsr_arena_alloc(struct nsr_arena *arena, size_t size)
{
	void *out;

	if (size > SIZE_MAX - ALIGN)
		return NULL;
	/* no size at all still is a place of its own */
	size = ((size ? size : 1) + ALIGN - 1) & ~(size_t)(ALIGN - 1);
	if (size > arena->left && add_block(arena, size > BLOCK_SIZE ? size : BLOCK_SIZE))
		return NULL;
	out = arena->next;
	arena->next += size;
	arena->left -= size;
	return out;
}

void *nsr_arena_copy(struct nsr_arena *arena, const void *data, size_t size)
{
	void *out = nsr_arena_alloc(arena, size);

	if (out && size)
		memcpy(out, data, size);
	return out;
}

char *nsr_arena_str(struct nsr_arena *arena, const char *s)
{
	return nsr_arena_copy(arena, s, strlen(s) + 1);
}

void nsr_arena_give(struct nsr_arena *arena, char *memory, size_t size)
{
	arena->next = memory;
	arena->left = size;
}

void nsr_arena_free(struct nsr_arena *arena)
{
	while (arena->head) {
		struct nsr_block *next = arena->head->next;

		free(arena->head);
		arena->head = next;
	}
	arena->next = NULL;
	arena->left = 0;
}
