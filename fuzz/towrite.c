/* SPDX-License-Identifier: MIT */
/* towrite: the plan of a command line, as bytes on stdout: seeds for plan.c. */
#include <stdio.h>
#include <stdlib.h>

#include "nsrun.h"

int main(int argc, char **argv)
{
	static const char *const env[] = { "PATH=/bin", NULL };
	static struct nsr_diag diag;
	struct nsr_plan *plan = nsr_plan_new();
	uint8_t *out;
	int64_t len;

	if (!plan || nsr_plan_parse(plan, argc, (const char *const *)argv, env, NULL, NULL, &diag)) {
		fprintf(stderr, "towrite: %s\n", diag.text);
		return EXIT_FAILURE;
	}
	len = nsr_plan_write(plan, NULL, 0);
	out = malloc((size_t)len);
	if (!out || nsr_plan_write(plan, out, (uint64_t)len) != len)
		return EXIT_FAILURE;
	return fwrite(out, 1, (size_t)len, stdout) == (size_t)len ? 0 : EXIT_FAILURE;
}
