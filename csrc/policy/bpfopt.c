/* SPDX-License-Identifier: MIT */
/*
 * bpfopt.c - shorter filters.
 *
 * libseccomp compares arguments of 64 bits in two halves, also where the mask
 * of the upper one is 0, and each bit of a mask by itself.  The first kind of
 * test is left out here, the second joined to one jump on any of the bits.
 */
#include <stdint.h>

#include "bpfopt.h"

enum {
	LOAD = BPF_LD | BPF_W | BPF_ABS,
	MASK = BPF_ALU | BPF_AND | BPF_K,
	EQUAL = BPF_JMP | BPF_JEQ | BPF_K,
	ANY_BIT = BPF_JMP | BPF_JSET | BPF_K,
	ALWAYS = BPF_JMP | BPF_JA,
	ANSWER = BPF_RET | BPF_K,
};

/* With targets instead of distances. */
struct node {
	uint16_t code;
	uint32_t k;
	size_t yes, no;             /* yes alone where it is no jump */
};

static int is_jump(uint16_t code)
{
	return BPF_CLASS(code) == BPF_JMP;
}

static const char *decode(struct node *node, const struct program *p)
{
	for (size_t i = 0; i < p->len; i++) {
		const struct sock_filter *in = &p->code[i];

		node[i] = (struct node){ in->code, in->k, i + 1, i + 1 };
		if (in->code == ALWAYS) {
			node[i].yes += in->k;
			node[i].no += in->k;
		} else if (is_jump(in->code)) {
			node[i].yes += in->jt;
			node[i].no += in->jf;
		}
		if (in->code != ANSWER && (node[i].yes >= p->len || node[i].no >= p->len))
			return "a jump out of the filter";
	}
	return NULL;
}

/* A test of no bits at all; what stands behind it loads its own word. */
static int is_true(const struct node *node, size_t i)
{
	return node[i].code == LOAD && node[i + 1].code == MASK && !node[i + 1].k &&
	       node[i + 2].code == EQUAL && !node[i + 2].k &&
	       (node[node[i + 2].yes].code == LOAD || node[node[i + 2].yes].code == ANSWER);
}

static size_t skip_true(const struct node *node, size_t i)
{
	for (;;) {
		if (node[i].code == ALWAYS)
			i = node[i].yes;
		else if (is_true(node, i))
			i = node[i + 2].yes;
		else
			return i;
	}
}

static int same(const struct node *node, size_t a, size_t b)
{
	return a == b || (node[a].code == ANSWER && node[b].code == ANSWER &&
			  node[a].k == node[b].k);
}

/* From the end, so that what stands behind a test is joined already. */
static void join_bits(struct node *node, size_t len)
{
	for (size_t i = len; i-- > 0;) {
		struct node *test = &node[i + 1];

		if (i + 2 >= len || node[i].code != LOAD)
			continue;
		if (test->code == MASK && test->k && !(test->k & (test->k - 1)) &&
		    node[i + 2].code == EQUAL && node[i + 2].k == test->k)
			*test = (struct node){ ANY_BIT, test->k, node[i + 2].yes, node[i + 2].no };
		if (test->code == ANY_BIT && node[test->no].code == LOAD &&
		    node[test->no].k == node[i].k && node[test->no + 1].code == ANY_BIT &&
		    same(node, test->yes, node[test->no + 1].yes)) {
			test->k |= node[test->no + 1].k;
			test->no = node[test->no + 1].no;
		}
	}
}

/* What can still be reached, in the old order; jumps go forward, so one pass finds it. */
static void place(const struct node *node, size_t len, size_t *to)
{
	static uint8_t reached[MAX_FILTER];
	size_t n = 0;

	for (size_t i = 0; i < len; i++)
		reached[i] = !i;
	for (size_t i = 0; i < len; i++) {
		to[i] = n;
		if (!reached[i])
			continue;
		n++;
		if (node[i].code == ANSWER)
			continue;
		reached[node[i].yes] = 1;
		reached[node[i].no] = 1;
	}
	to[len] = n;
}

static const char *encode(struct program *p, const struct node *node, size_t len)
{
	static size_t to[MAX_FILTER + 1];

	place(node, len, to);
	p->len = to[len];
	for (size_t i = 0; i < len; i++) {
		struct sock_filter *out = &p->code[to[i]];
		size_t yes = to[node[i].yes] - to[i] - 1, no = to[node[i].no] - to[i] - 1;

		if (to[i] == to[i + 1])
			continue;
		*out = (struct sock_filter){ node[i].code, 0, 0, node[i].k };
		if (node[i].code == ANSWER)
			continue;
		if (node[i].code == ALWAYS || yes > UINT8_MAX || no > UINT8_MAX ||
		    (!is_jump(node[i].code) && yes))
			return "a jump too far";
		out->jt = (uint8_t)yes;
		out->jf = (uint8_t)no;
	}
	return NULL;
}

const char *bpf_shorten(struct program *p)
{
	static struct node node[MAX_FILTER + 2];
	size_t len = p->len;
	const char *wrong = decode(node, p);

	if (wrong)
		return wrong;
	/* nothing to look at behind the end */
	node[len] = node[len + 1] = (struct node){ ANSWER, 0, 0, 0 };
	for (size_t i = 0; i < len; i++) {
		if (!is_jump(node[i].code))
			continue;
		node[i].yes = skip_true(node, node[i].yes);
		node[i].no = skip_true(node, node[i].no);
	}
	join_bits(node, len);
	return encode(p, node, len);
}
