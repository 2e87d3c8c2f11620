/* SPDX-License-Identifier: MIT */
/*
 * bytes.c - a plan to bytes and back.
 *
 * Header (magic, version, length), then the numbers, strings, lists,
 * operations, seccomp programs and limits, in the order of their enums.  Numbers are
 * little-endian; a string is its length with the final NUL, 0 standing for
 * "none", and its bytes.  The reader keeps pointers into one copy of the input.
 */
#include <errno.h>
#include <string.h>

#include "diag.h"
#include "plan.h"

enum { MAGIC = 0x5052534e };    /* "NSRP" */

struct writer {
	uint8_t *out;
	uint64_t cap;
	uint64_t len;
};

struct reader {
	const uint8_t *in;
	uint64_t left;
	int bad;
};

static void put(struct writer *w, const void *data, uint64_t len)
{
	if (len && w->len <= w->cap && len <= w->cap - w->len)
		memcpy(w->out + w->len, data, len);
	w->len += len;
}

static void put_number(struct writer *w, uint64_t value, unsigned int bytes)
{
	uint8_t le[8];

	for (unsigned int i = 0; i < bytes; i++)
		le[i] = (uint8_t)(value >> (8 * i));
	put(w, le, bytes);
}

static void put_blob(struct writer *w, const void *data, uint64_t len)
{
	put_number(w, len, 4);
	put(w, data, len);
}

static void put_str(struct writer *w, const char *s)
{
	put_blob(w, s, s ? strlen(s) + 1 : 0);
}

static void put_strs(struct writer *w, const char *const *v, uint32_t n)
{
	put_number(w, n, 4);
	for (uint32_t i = 0; i < n; i++)
		put_str(w, v[i]);
}

static void put_op(struct writer *w, const struct nsr_op *op)
{
	put_number(w, op->type, 4);
	put_number(w, op->flags, 4);
	put_number(w, (uint32_t)op->fd, 4);
	put_number(w, op->perms, 4);
	put_number(w, op->size, 8);
	put_str(w, op->source);
	put_str(w, op->dest);
	put_str(w, op->work);
	put_number(w, op->data != NULL, 1);
	put_blob(w, op->data, op->data ? op->data_len : 0);
	put_strs(w, op->layers, op->n_layers);
}

static void put_plan(struct writer *w, const struct nsr_plan *plan, uint64_t total)
{
	put_number(w, MAGIC, 4);
	put_number(w, NSR_PLAN_VERSION, 4);
	put_number(w, total, 8);
	for (int i = 0; i < NSR_NUMBER_END; i++)
		put_number(w, (uint64_t)plan->number[i], 8);
	for (int i = 0; i < NSR_STRING_END; i++)
		put_str(w, plan->string[i]);
	for (int i = 0; i < NSR_LIST_END; i++)
		put_strs(w, plan->list[i].v, plan->list[i].n);
	put_number(w, plan->n_ops, 4);
	for (uint32_t i = 0; i < plan->n_ops; i++)
		put_op(w, &plan->ops[i]);
	put_number(w, plan->n_seccomp, 4);
	for (uint32_t i = 0; i < plan->n_seccomp; i++)
		put_blob(w, plan->seccomp[i].data, plan->seccomp[i].len);
	put_number(w, plan->n_rlimits, 4);
	for (uint32_t i = 0; i < plan->n_rlimits; i++) {
		put_number(w, plan->rlimits[i].resource, 4);
		put_number(w, plan->rlimits[i].soft, 8);
		put_number(w, plan->rlimits[i].hard, 8);
	}
}

int64_t nsr_plan_write(const struct nsr_plan *plan, uint8_t *out, uint64_t cap)
{
	struct writer measure = { NULL, 0, 0 };
	struct writer w = { out, cap, 0 };

	put_plan(&measure, plan, 0);
	put_plan(&w, plan, measure.len);
	return (int64_t)w.len;
}

static const uint8_t *get(struct reader *r, uint64_t len)
{
	const uint8_t *at = r->in;

	if (r->bad || len > r->left) {
		r->bad = 1;
		return NULL;
	}
	r->in += len;
	r->left -= len;
	return at;
}

static uint64_t get_number(struct reader *r, unsigned int bytes)
{
	const uint8_t *at = get(r, bytes);
	uint64_t value = 0;

	if (at)
		for (unsigned int i = 0; i < bytes; i++)
			value |= (uint64_t)at[i] << (8 * i);
	return value;
}

static struct nsr_blob get_blob(struct reader *r)
{
	uint64_t len = get_number(r, 4);
	const uint8_t *data = get(r, len);

	return (struct nsr_blob){ data, data ? len : 0 };
}

static const char *get_str(struct reader *r)
{
	struct nsr_blob blob = get_blob(r);

	if (!blob.len)
		return NULL;
	/* one NUL, at the end */
	if (memchr(blob.data, 0, blob.len) != blob.data + blob.len - 1)
		r->bad = 1;
	return (const char *)blob.data;
}

/* A count of things of at least min bytes each that can still be there. */
static uint32_t get_count(struct reader *r, uint64_t min)
{
	uint64_t n = get_number(r, 4);

	if (n > r->left / min)
		r->bad = 1;
	return r->bad ? 0 : (uint32_t)n;
}

static const char **get_strs(struct reader *r, struct nsr_plan *plan, uint32_t *n)
{
	const char **v;

	*n = get_count(r, 5);
	v = nsr_arena_alloc(&plan->arena, (*n + 1) * sizeof(*v));
	if (!v) {
		r->bad = 1;
		return NULL;
	}
	for (uint32_t i = 0; i < *n; i++) {
		v[i] = get_str(r);
		if (!v[i])
			r->bad = 1;
	}
	v[*n] = NULL;
	return v;
}

static void get_op(struct reader *r, struct nsr_plan *plan, struct nsr_op *op)
{
	uint64_t has_data;
	struct nsr_blob data;

	op->type = (uint32_t)get_number(r, 4);
	op->flags = (uint32_t)get_number(r, 4);
	op->fd = (int32_t)get_number(r, 4);
	op->perms = (uint32_t)get_number(r, 4);
	op->size = get_number(r, 8);
	op->source = get_str(r);
	op->dest = get_str(r);
	op->work = get_str(r);
	has_data = get_number(r, 1);
	data = get_blob(r);
	if (has_data > 1 || (!has_data && data.len))
		r->bad = 1;
	op->data = has_data ? data.data : NULL;
	op->data_len = data.len;
	op->layers = get_strs(r, plan, &op->n_layers);
	if (!op->n_layers)
		op->layers = NULL;
}

static void get_header(struct reader *r, uint64_t len, struct nsr_diag *diag)
{
	uint64_t magic = get_number(r, 4);
	uint64_t version = get_number(r, 4);
	uint64_t total = get_number(r, 8);

	if (r->bad || magic != MAGIC)
		nsr_diag_set(diag, "Not a plan");
	else if (version != NSR_PLAN_VERSION)
		nsr_diag_set(diag, "Plan of version %llu, this nsrun reads version %d",
			     (unsigned long long)version, NSR_PLAN_VERSION);
	else if (total != len)
		nsr_diag_set(diag, "Plan is cut short or has more behind it");
	else
		return;
	r->bad = 1;
}

static void get_rlimits(struct reader *r, struct nsr_plan *plan)
{
	plan->n_rlimits = plan->cap_rlimits = get_count(r, 20);
	plan->rlimits = nsr_arena_alloc(&plan->arena,
					(plan->n_rlimits + 1) * sizeof(*plan->rlimits));
	if (!plan->rlimits)
		r->bad = 1;
	for (uint32_t i = 0; plan->rlimits && i < plan->n_rlimits; i++) {
		plan->rlimits[i].resource = (uint32_t)get_number(r, 4);
		plan->rlimits[i].soft = get_number(r, 8);
		plan->rlimits[i].hard = get_number(r, 8);
	}
}

static void get_arrays(struct reader *r, struct nsr_plan *plan)
{
	plan->n_ops = plan->cap_ops = get_count(r, 45);
	plan->ops = nsr_arena_alloc(&plan->arena, (plan->n_ops + 1) * sizeof(*plan->ops));
	for (uint32_t i = 0; plan->ops && i < plan->n_ops; i++)
		get_op(r, plan, &plan->ops[i]);
	plan->n_seccomp = plan->cap_seccomp = get_count(r, 4);
	plan->seccomp = nsr_arena_alloc(&plan->arena,
					(plan->n_seccomp + 1) * sizeof(*plan->seccomp));
	for (uint32_t i = 0; plan->seccomp && i < plan->n_seccomp; i++)
		plan->seccomp[i] = get_blob(r);
	get_rlimits(r, plan);
	if (!plan->ops || !plan->seccomp || r->left)
		r->bad = 1;
}

static void get_plan(struct reader *r, struct nsr_plan *plan)
{
	for (int i = 0; i < NSR_NUMBER_END; i++)
		plan->number[i] = (int64_t)get_number(r, 8);
	for (int i = 0; i < NSR_STRING_END; i++)
		plan->string[i] = get_str(r);
	for (int i = 0; i < NSR_LIST_END; i++) {
		plan->list[i].v = get_strs(r, plan, &plan->list[i].n);
		plan->list[i].cap = plan->list[i].n + 1;
	}
	get_arrays(r, plan);
}

/* A plan that was found bad is left empty. */
static int refuse(struct nsr_plan *plan)
{
	struct nsr_arena arena = plan->arena;

	*plan = (struct nsr_plan){ .arena = arena };
	return -EINVAL;
}

int nsr_plan_read(struct nsr_plan *plan, const uint8_t *in, uint64_t len,
		  struct nsr_diag *diag)
{
	struct reader r = { NULL, len, 0 };

	if (len > NSR_MAX_PLAN_BYTES) {
		nsr_diag_set(diag, "Plan of %llu bytes, at most %d are read",
			     (unsigned long long)len, NSR_MAX_PLAN_BYTES);
		return refuse(plan);
	}
	r.in = nsr_arena_copy(&plan->arena, in, len);
	if (!r.in) {
		nsr_diag_errno(diag, ENOMEM, "Out of memory");
		return refuse(plan);
	}
	get_header(&r, len, diag);
	if (r.bad)
		return refuse(plan);
	get_plan(&r, plan);
	if (r.bad) {
		nsr_diag_set(diag, "Plan is damaged");
		return refuse(plan);
	}
	if (nsr_plan_check_read(plan, diag))
		return refuse(plan);
	if (!plan->list[NSR_ARGV].n) {
		nsr_diag_set(diag, "Plan has no command");
		return refuse(plan);
	}
	return 0;
}
