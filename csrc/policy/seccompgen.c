/* SPDX-License-Identifier: MIT */
/*
 * seccompgen.c - the seccomp profiles as BPF, in C.
 *
 *   seccompgen x86_64|aarch64 >seccomp_filters.h
 *
 * Run by the build, with libseccomp; not installed.  libseccomp makes the
 * filter from seccomp.def; in front of it stands what it has no words for: the
 * answer to calls of the x32 ABI, and what is allowed whatever the rows say.
 *
 * Calls of another architecture kill the process: not even exit would work in
 * there, so no program could go on, and the signal says why.  x32 calls get
 * ENOSYS, as from the kernels without them.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bpfopt.h"
#include "nsrun.h"

enum { X32_BIT = 0x40000000 };

struct target {
	const char *name;
	uint32_t libseccomp;
	uint32_t audit;
	int has_x32;
};
static const struct target targets[] = {
	{ "x86_64", SCMP_ARCH_X86_64, AUDIT_ARCH_X86_64, 1 },
	{ "aarch64", SCMP_ARCH_AARCH64, AUDIT_ARCH_AARCH64, 0 },
};
enum { N_TARGETS = sizeof(targets) / sizeof(targets[0]) };

/* Calls that are newer than a libseccomp in use; the same number everywhere. */
static const struct {
	const char *name;
	int number;
} newer[] = {
	{ "quotactl_fd", 443 },
	{ "set_mempolicy_home_node", 450 },
	{ "fchmodat2", 452 },
	{ "open_tree_attr", 467 },
};

static _Noreturn void fail(const char *what, const char *name, int err)
{
	fprintf(stderr, "seccompgen: %s: %s%s%s\n", name, what, err ? ": " : "",
		err ? strerror(err) : "");
	exit(EXIT_FAILURE);
}

/* -1: not on this architecture. */
static int call_number(const struct target *target, const char *name)
{
	int known = 0;

	for (size_t i = 0; i < sizeof(newer) / sizeof(newer[0]); i++)
		if (!strcmp(newer[i].name, name))
			return newer[i].number;
	for (int i = 0; i < N_TARGETS; i++)
		known |= seccomp_syscall_resolve_name_arch(targets[i].libseccomp, name) >= 0;
	if (!known)
		fail("libseccomp knows no such call", name, 0);
	return seccomp_syscall_resolve_name_arch(target->libseccomp, name);
}

/* A test on one bit of those of ANY, or the whole test. */
static struct scmp_arg_cmp compare(const struct nsr_seccomp_test *test, uint64_t bit)
{
	struct scmp_arg_cmp cmp = { test->arg, SCMP_CMP_MASKED_EQ, test->mask, test->value };

	switch (test->type) {
	case NSR_TEST_ANY:
		cmp.datum_a = cmp.datum_b = bit;
		break;
	case NSR_TEST_ABOVE:
		cmp.op = SCMP_CMP_GT;
		cmp.datum_a = test->value;
		break;
	case NSR_TEST_NOT:
		cmp.op = SCMP_CMP_NE;
		cmp.datum_a = test->value;
		break;
	default:
		break;
	}
	return cmp;
}

/* The bits to make a rule for each: those of ANY; any one for other tests. */
static uint64_t bits_of(const struct nsr_seccomp_test *test)
{
	return test->type == NSR_TEST_ANY ? test->mask : 1;
}

static void add_rules(scmp_filter_ctx ctx, int number, const struct nsr_seccomp_rule *rule)
{
	const struct nsr_seccomp_test *test = rule->test;
	unsigned int n = 0;

	while (n < 2 && test[n].type != NSR_TEST_NONE)
		n++;
	for (uint64_t a = bits_of(&test[0]); a; a &= a - 1) {
		for (uint64_t b = bits_of(&test[1]); b; b &= b - 1) {
			const struct scmp_arg_cmp cmp[2] = { compare(&test[0], a & -a),
							     compare(&test[1], b & -b) };
			int ret = seccomp_rule_add_exact_array(
				ctx, SCMP_ACT_ERRNO((unsigned int)rule->err), number, n, cmp);

			/* of two rows of which one says more, a rule may be left over */
			if (ret && ret != -EEXIST)
				fail("seccomp_rule_add", rule->call, -ret);
		}
	}
}

static void emit(struct program *p, uint16_t code, uint8_t jt, uint8_t jf, uint32_t k)
{
	if (p->len == MAX_FILTER)
		fail("the filter is too long", "seccomp.def", 0);
	p->code[p->len++] = (struct sock_filter){ code, jt, jf, k };
}

static void load(struct program *p, size_t offset)
{
	emit(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)offset);
}

/* Skip so many where the word is not k. */
static void unless_equal(struct program *p, uint32_t k, uint8_t skip)
{
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, skip, k);
}

static void answer(struct program *p, uint32_t action)
{
	emit(p, BPF_RET | BPF_K, 0, 0, action);
}

static void emit_front(struct program *p, const struct target *target, unsigned int profile)
{
	const struct nsr_seccomp_rule *rule;

	load(p, offsetof(struct seccomp_data, arch));
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, target->audit);
	answer(p, SECCOMP_RET_KILL_PROCESS);
	load(p, offsetof(struct seccomp_data, nr));
	if (target->has_x32) {
		/* -1 is what a debugger makes of a call that it skips */
		emit(p, BPF_JMP | BPF_JGE | BPF_K, 0, 2, X32_BIT);
		emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, UINT32_MAX);
		answer(p, SECCOMP_RET_ERRNO | ENOSYS);
	}
	for (uint32_t i = 0; (rule = nsr_seccomp_rule(i)); i++) {
		int number;

		if (!rule->call || rule->err || !(rule->profiles & 1u << profile))
			continue;
		number = call_number(target, rule->call);
		if (number < 0)
			continue;
		unless_equal(p, (uint32_t)number, 4);
		load(p, offsetof(struct seccomp_data, args) + 8 * rule->test[0].arg);
		unless_equal(p, (uint32_t)rule->test[0].value, 1);
		answer(p, SECCOMP_RET_ALLOW);
		load(p, offsetof(struct seccomp_data, nr));
	}
}

/* What libseccomp made; it can only write to a descriptor. */
static void export_filter(struct program *p, scmp_filter_ctx ctx)
{
	int fd = memfd_create("filter", 0);
	int ret = seccomp_export_bpf(ctx, fd);
	ssize_t n;

	if (fd < 0 || ret)
		fail("seccomp_export_bpf", "seccomp.def", ret ? -ret : errno);
	n = pread(fd, p->code, sizeof(p->code), 0);
	if (n <= 0 || (size_t)n == sizeof(p->code) || (size_t)n % sizeof(p->code[0]))
		fail("the filter is too long", "seccomp.def", 0);
	p->len = (size_t)n / sizeof(p->code[0]);
	close(fd);
}

/*
 * Where libseccomp's own tests of architecture and ABI end: they are made in
 * front, for the target.  0 where they look otherwise than those of 2.5.
 */
static size_t behind_checks(const struct program *p)
{
	const uint16_t word = BPF_LD | BPF_W | BPF_ABS, jump = BPF_JMP | BPF_K;
	const struct sock_filter *c = p->code;
	size_t at = 2;

	if (p->len < 16 || c[0].code != word || c[0].k != offsetof(struct seccomp_data, arch) ||
	    c[1].code != (jump | BPF_JEQ) || c[1].k != seccomp_arch_native() || c[1].jt > 1)
		return 0;
	at += c[1].jt;
	if (c[at + 1].code == (jump | BPF_JGE) && c[at + 1].k == X32_BIT) {
		if (c[at + 2].code != (jump | BPF_JEQ) || c[at + 2].k != UINT32_MAX ||
		    c[at + 1].jt || c[at + 1].jf > 2 || c[at + 1].jf != c[at + 2].jt + 1)
			return 0;
		at += 2 + c[at + 1].jf;
	}
	return c[at].code == word && c[at].k == offsetof(struct seccomp_data, nr) ? at + 1 : 0;
}

/*
 * libseccomp takes the builder's numbers for calls and translates them by
 * name, so it can't be given one for another machine that it has no name for.
 * It gets the target's numbers, for the builder's machine, and its tests for
 * that have to go.
 */
static void append_filter(struct program *p, const struct program *made,
			  const struct target *target)
{
	size_t from = behind_checks(made);

	if (!from && seccomp_arch_native() != target->libseccomp)
		fail("this libseccomp's filters can be made for the builder's machine alone", target->name, 0);
	for (size_t i = from; i < made->len; i++)
		emit(p, made->code[i].code, made->code[i].jt, made->code[i].jf, made->code[i].k);
}

static void build(struct program *p, const struct target *target, unsigned int profile)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
	const struct nsr_seccomp_rule *rule;
	static struct program made;
	const char *wrong;
	int ret;

	if (!ctx)
		fail("seccomp_init", target->name, ENOMEM);
	ret = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	if (!ret)
		ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (ret)
		fail("seccomp_attr_set", target->name, -ret);
	for (uint32_t i = 0; (rule = nsr_seccomp_rule(i)); i++) {
		int number;

		if (!rule->call || !rule->err || !(rule->profiles & 1u << profile))
			continue;
		number = call_number(target, rule->call);
		if (number >= 0)
			add_rules(ctx, number, rule);
	}
	export_filter(&made, ctx);
	seccomp_release(ctx);
	p->len = 0;
	/* leaves the call's number loaded */
	emit_front(p, target, profile);
	append_filter(p, &made, target);
	wrong = bpf_shorten(p);
	if (wrong)
		fail(wrong, "libseccomp's filter", 0);
}

static void print(const struct program *p, const char *name)
{
	printf("\n/* %zu instructions */\nstatic const struct nsr_sock_filter f_%s[] = {\n", p->len,
	       name);
	for (size_t i = 0; i < p->len; i++)
		printf("\t{ 0x%02x, %u, %u, 0x%08x },\n", (unsigned int)p->code[i].code,
		       (unsigned int)p->code[i].jt, (unsigned int)p->code[i].jf,
		       (unsigned int)p->code[i].k);
	printf("};\n");
}

int main(int argc, char **argv)
{
	static const char *const profiles[] = {
#define P(name, help) #name,
#define G(title, why, breaks)
#define R(profiles, call, err, test, when)
#define R2(profiles, call, err, test, test2, when)
#define E(profiles, call, arg, value, when)
#include "seccomp.def"
	};
	static struct program program;
	const struct target *target = targets;

	while (argc == 2 && target < targets + N_TARGETS && strcmp(target->name, argv[1]))
		target++;
	if (argc != 2 || target == targets + N_TARGETS) {
		fprintf(stderr, "usage: seccompgen x86_64|aarch64\n");
		return EXIT_FAILURE;
	}
	printf("/* Made from csrc/policy/seccomp.def by seccompgen for %s; changes here are lost. */\n",
	       target->name);
	for (unsigned int i = 0; i < sizeof(profiles) / sizeof(profiles[0]); i++) {
		build(&program, target, i);
		print(&program, profiles[i]);
	}
	return fflush(stdout) || ferror(stdout) ? EXIT_FAILURE : EXIT_SUCCESS;
}
