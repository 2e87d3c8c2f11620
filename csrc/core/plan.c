/* SPDX-License-Identifier: MIT */
/* plan.c - build a plan field by field. */
#include <stdlib.h>
#include <string.h>

#include "diag.h"
#include "plan.h"
#include "sys.h"

void nsr_plan_init(struct nsr_plan *plan)
{
	for (int i = NSR_USERNS_FD; i < NSR_NUMBER_END; i++)
		plan->number[i] = -1;
	plan->number[NSR_UID] = NSR_ID_UNSET;
	plan->number[NSR_GID] = NSR_ID_UNSET;
}

struct nsr_plan *nsr_plan_new(void)
{
	struct nsr_plan *plan = calloc(1, sizeof(*plan));

	if (plan)
		nsr_plan_init(plan);
	return plan;
}

/* Without room in any array, so that whatever is added goes to a copy of it. */
struct nsr_plan *nsr_plan_derive(const struct nsr_plan *base)
{
	struct nsr_plan *plan = malloc(sizeof(*plan));

	if (!plan)
		return NULL;
	*plan = *base;
	plan->arena = (struct nsr_arena){ .head = NULL };
	for (int i = 0; i < NSR_LIST_END; i++)
		plan->list[i].cap = plan->list[i].v ? plan->list[i].n + 1 : 0;
	plan->cap_ops = plan->n_ops;
	plan->cap_seccomp = plan->n_seccomp;
	plan->cap_rlimits = plan->n_rlimits;
	return plan;
}

void nsr_plan_free(struct nsr_plan *plan)
{
	if (!plan)
		return;
	nsr_arena_free(&plan->arena);
	free(plan);
}

void *nsr_plan_grow(struct nsr_plan *plan, void *array, uint32_t n, uint32_t *cap, size_t size)
{
	uint32_t wanted = *cap ? *cap * 2 : 16;
	void *out;

	if (n < *cap)
		return array;
	if (wanted < *cap || wanted > SIZE_MAX / size)
		return NULL;
	out = nsr_arena_alloc(&plan->arena, wanted * size);
	if (!out)
		return NULL;
	if (array)
		memcpy(out, array, n * size);
	*cap = wanted;
	return out;
}

int nsr_plan_set_number(struct nsr_plan *plan, enum nsr_number which, int64_t value)
{
	if ((unsigned int)which >= NSR_NUMBER_END)
		return -EINVAL;
	plan->number[which] = value;
	return 0;
}

int nsr_plan_set_string(struct nsr_plan *plan, enum nsr_string which, const char *value)
{
	char *copy;

	if ((unsigned int)which >= NSR_STRING_END)
		return -EINVAL;
	if (!value) {
		plan->string[which] = NULL;
		return 0;
	}
	copy = nsr_arena_str(&plan->arena, value);
	if (!copy)
		return -ENOMEM;
	plan->string[which] = copy;
	return 0;
}

int nsr_plan_keep_word(struct nsr_plan *plan, enum nsr_list which, const char *value)
{
	struct nsr_words *list = &plan->list[which];
	/* one slot more than words: the list ends with NULL */
	const char **grown = nsr_plan_grow(plan, list->v, list->n + 1, &list->cap,
					   sizeof(*list->v));

	if (!grown)
		return -ENOMEM;
	list->v = grown;
	list->v[list->n++] = value;
	list->v[list->n] = NULL;
	return 0;
}

int nsr_plan_add_word(struct nsr_plan *plan, enum nsr_list which, const char *value)
{
	char *copy;

	if ((unsigned int)which >= NSR_LIST_END)
		return -EINVAL;
	copy = nsr_arena_str(&plan->arena, value);
	return copy ? nsr_plan_keep_word(plan, which, copy) : -ENOMEM;
}

/* Words in a row, the first so many of them; returns where they end, or NULL. */
static const char *keep_words(struct nsr_plan *plan, enum nsr_list which, const char *at,
			      const char *end, uint32_t most)
{
	for (; at < end && most; at += strlen(at) + 1, most--)
		if (nsr_plan_keep_word(plan, which, at))
			return NULL;
	return at;
}

int nsr_plan_add_words(struct nsr_plan *plan, enum nsr_list which, const char *data, uint64_t len)
{
	const char *at;

	if ((unsigned int)which >= NSR_LIST_END || (len && data[len - 1]))
		return -EINVAL;
	at = nsr_arena_copy(&plan->arena, data, len);
	return at && keep_words(plan, which, at, at + len, UINT32_MAX) ? 0 : -ENOMEM;
}

int nsr_plan_clear(struct nsr_plan *plan, enum nsr_list which)
{
	if ((unsigned int)which >= NSR_LIST_END)
		return -EINVAL;
	/* the array may be another plan's: nsr_plan_derive */
	plan->list[which] = (struct nsr_words){ .v = NULL };
	return 0;
}

static int take_command(struct nsr_plan *plan, const char *words, uint64_t len, uint32_t n_argv)
{
	const char *at = nsr_arena_copy(&plan->arena, words, len);
	const char *env;

	if (!at)
		return -ENOMEM;
	nsr_plan_clear(plan, NSR_ARGV);
	env = keep_words(plan, NSR_ARGV, at, at + len, n_argv);
	return env && keep_words(plan, NSR_ENV, env, at + len, UINT32_MAX) ? 0 : -ENOMEM;
}

struct nsr_plan *nsr_plan_for_command(const struct nsr_plan *base, const char *words, uint64_t len,
				      uint32_t n_argv, const char *dir, int64_t flags,
				      struct nsr_diag *diag)
{
	struct nsr_plan *plan;

	if (len && words[len - 1]) {
		nsr_diag_errno(diag, EINVAL, "The command's last word has no end");
		return NULL;
	}
	plan = nsr_plan_derive(base);
	if (!plan || take_command(plan, words, len, n_argv) ||
	    (dir && nsr_plan_set_string(plan, NSR_CHDIR, dir))) {
		nsr_diag_errno(diag, ENOMEM, "Out of memory");
	} else {
		plan->number[NSR_FLAGS] |= flags;
		if (!nsr_plan_check(plan, diag))
			return plan;
	}
	nsr_plan_free(plan);
	return NULL;
}

void nsr_plan_clear_ops(struct nsr_plan *plan)
{
	/* as above */
	plan->ops = NULL;
	plan->n_ops = plan->cap_ops = 0;
}

struct nsr_op *nsr_plan_new_op(struct nsr_plan *plan, uint32_t type)
{
	struct nsr_op *grown = nsr_plan_grow(plan, plan->ops, plan->n_ops, &plan->cap_ops,
					     sizeof(*plan->ops));
	struct nsr_op *op;

	if (!grown)
		return NULL;
	plan->ops = grown;
	op = &plan->ops[plan->n_ops++];
	*op = (struct nsr_op){ .type = type, .fd = -1 };
	return op;
}

static int copy_str(struct nsr_plan *plan, const char **s)
{
	if (*s)
		*s = nsr_arena_str(&plan->arena, *s);
	return *s ? 0 : -ENOMEM;
}

static int copy_layers(struct nsr_plan *plan, struct nsr_op *op)
{
	const char **copy = nsr_arena_alloc(&plan->arena, (op->n_layers + 1) * sizeof(*copy));

	if (!copy)
		return -ENOMEM;
	for (uint32_t i = 0; i < op->n_layers; i++) {
		copy[i] = op->layers[i];
		if (copy_str(plan, &copy[i]))
			return -ENOMEM;
	}
	copy[op->n_layers] = NULL;
	op->layers = copy;
	return 0;
}

int nsr_plan_add_op(struct nsr_plan *plan, const struct nsr_op *op)
{
	struct nsr_op copy = *op;
	struct nsr_op *slot;

	if ((copy.source && copy_str(plan, &copy.source)) ||
	    (copy.dest && copy_str(plan, &copy.dest)) ||
	    (copy.work && copy_str(plan, &copy.work)) ||
	    (copy.n_layers && copy_layers(plan, &copy)))
		return -ENOMEM;
	if (!copy.n_layers)
		copy.layers = NULL;
	if (copy.data) {
		copy.data = nsr_arena_copy(&plan->arena, copy.data, copy.data_len);
		if (!copy.data)
			return -ENOMEM;
	}
	slot = nsr_plan_new_op(plan, copy.type);
	if (!slot)
		return -ENOMEM;
	*slot = copy;
	return 0;
}

int nsr_plan_add_seccomp(struct nsr_plan *plan, const uint8_t *bpf, uint64_t len)
{
	struct nsr_blob *grown = nsr_plan_grow(plan, plan->seccomp, plan->n_seccomp,
					       &plan->cap_seccomp, sizeof(*plan->seccomp));
	uint8_t *copy = nsr_arena_copy(&plan->arena, bpf, len);

	if (!grown || !copy)
		return -ENOMEM;
	plan->seccomp = grown;
	plan->seccomp[plan->n_seccomp++] = (struct nsr_blob){ copy, len };
	return 0;
}

int nsr_plan_set_seccomp_profile(struct nsr_plan *plan, const struct nsr_seccomp_profile *profile)
{
	struct nsr_blob *grown;

	if (!profile->bpf)
		return 0;
	grown = nsr_plan_grow(plan, plan->seccomp, plan->n_seccomp, &plan->cap_seccomp,
			      sizeof(*plan->seccomp));
	if (!grown)
		return -ENOMEM;
	memmove(grown + 1, grown, plan->n_seccomp * sizeof(*grown));
	grown[0] = (struct nsr_blob){ profile->bpf, profile->len };
	plan->seccomp = grown;
	plan->n_seccomp++;
	return 0;
}

int nsr_plan_add_rlimit(struct nsr_plan *plan, const char *name, uint64_t soft, uint64_t hard)
{
	int resource = nsr_rlimit_number(name, strlen(name));
	struct nsr_rlimit *grown = nsr_plan_grow(plan, plan->rlimits, plan->n_rlimits,
						 &plan->cap_rlimits, sizeof(*plan->rlimits));

	if (resource < 0)
		return -EINVAL;
	if (!grown)
		return -ENOMEM;
	plan->rlimits = grown;
	plan->rlimits[plan->n_rlimits++] = (struct nsr_rlimit){ (uint32_t)resource, soft, hard };
	return 0;
}

int64_t nsr_plan_number(const struct nsr_plan *plan, enum nsr_number which)
{
	return plan->number[which];
}

const char *nsr_plan_string(const struct nsr_plan *plan, enum nsr_string which)
{
	return plan->string[which];
}

uint32_t nsr_plan_words(const struct nsr_plan *plan, enum nsr_list which)
{
	return plan->list[which].n;
}

const char *nsr_plan_word(const struct nsr_plan *plan, enum nsr_list which, uint32_t i)
{
	return i < plan->list[which].n ? plan->list[which].v[i] : NULL;
}

uint32_t nsr_plan_ops(const struct nsr_plan *plan)
{
	return plan->n_ops;
}

const struct nsr_op *nsr_plan_op(const struct nsr_plan *plan, uint32_t i)
{
	return i < plan->n_ops ? &plan->ops[i] : NULL;
}

static int valid_name(const char *name)
{
	return *name && !strchr(name, '=');
}

/* Index of NAME in the environment, or its length. */
static uint32_t find_env(const struct nsr_plan *plan, const char *name, size_t len)
{
	const struct nsr_words *env = &plan->list[NSR_ENV];
	uint32_t i;

	for (i = 0; i < env->n; i++)
		if (!strncmp(env->v[i], name, len) && env->v[i][len] == '=')
			break;
	return i;
}

int nsr_plan_setenv(struct nsr_plan *plan, const char *name, const char *value)
{
	size_t name_len = strlen(name);
	size_t value_len = strlen(value);
	uint32_t i;
	char *word;

	if (!valid_name(name))
		return -EINVAL;
	word = nsr_arena_alloc(&plan->arena, name_len + value_len + 2);
	if (!word)
		return -ENOMEM;
	memcpy(word, name, name_len);
	word[name_len] = '=';
	memcpy(word + name_len + 1, value, value_len + 1);
	i = find_env(plan, name, name_len);
	if (i == plan->list[NSR_ENV].n)
		return nsr_plan_keep_word(plan, NSR_ENV, word);
	plan->list[NSR_ENV].v[i] = word;
	return 0;
}

int nsr_plan_unsetenv(struct nsr_plan *plan, const char *name)
{
	struct nsr_words *env = &plan->list[NSR_ENV];
	size_t len = strlen(name);
	uint32_t i;

	if (!valid_name(name))
		return -EINVAL;
	while ((i = find_env(plan, name, len)) < env->n) {
		/* the terminating NULL moves along */
		memmove(&env->v[i], &env->v[i + 1], (env->n - i) * sizeof(*env->v));
		env->n--;
	}
	return 0;
}

const char *nsr_plan_getenv(const struct nsr_plan *plan, const char *name)
{
	size_t len = strlen(name);
	uint32_t i = find_env(plan, name, len);

	return i < plan->list[NSR_ENV].n ? plan->list[NSR_ENV].v[i] + len + 1 : NULL;
}
