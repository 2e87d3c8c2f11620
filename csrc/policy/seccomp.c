/* SPDX-License-Identifier: MIT */
/* seccomp.c - the built-in seccomp profiles by name. */
#include <errno.h>
#include <string.h>

#include "plan.h"
#include "uapi.h"

/* one array a profile, f_NAME: written by seccompgen */
#include "seccomp_filters.h"

#define P(name, help) \
	{ #name, help, (const uint8_t *)(const void *)f_##name, sizeof(f_##name) },
#define G(title, why, breaks)
#define R(profiles, call, err, test, when)
#define R2(profiles, call, err, test, test2, when)
#define E(profiles, call, arg, value, when)

static const struct nsr_seccomp_profile profiles[] = {
#include "seccomp.def"
	{ "none", "No profile", NULL, 0 },
};
_Static_assert(sizeof(profiles) / sizeof(profiles[0]) == NSR_SECCOMP_END,
	       "enum nsr_seccomp_name names the profiles in the table's order");

const struct nsr_seccomp_profile *nsr_seccomp_profile(const char *name)
{
	for (size_t i = 0; i < NSR_SECCOMP_END; i++)
		if (!strcmp(profiles[i].name, name))
			return &profiles[i];
	return NULL;
}

const struct nsr_seccomp_profile *nsr_seccomp_profile_at(uint32_t i)
{
	return i < NSR_SECCOMP_END ? &profiles[i] : NULL;
}

static int is_ours(const struct nsr_blob *program)
{
	for (size_t i = 0; i < NSR_SECCOMP_END; i++)
		if (profiles[i].bpf && profiles[i].len == program->len &&
		    !memcmp(profiles[i].bpf, program->data, program->len))
			return 1;
	return 0;
}

int nsr_plan_seccomp_is_ours(const struct nsr_plan *plan)
{
	for (uint32_t i = 0; i < plan->n_seccomp; i++)
		if (!is_ours(&plan->seccomp[i]))
			return 0;
	return plan->number[NSR_SECCOMP_FD] == -1;
}
