/* SPDX-License-Identifier: MIT */
/* plan: the strict reader. What it takes, the writer gives back byte for byte. */
#include <stdlib.h>
#include <string.h>

#include "nsrun.h"

static uint8_t *write_plan(const struct nsr_plan *plan, uint64_t *len)
{
	int64_t need = nsr_plan_write(plan, NULL, 0);
	uint8_t *out = malloc((size_t)need);

	if (!out || nsr_plan_write(plan, out, (uint64_t)need) != need)
		abort();
	*len = (uint64_t)need;
	return out;
}

static struct nsr_plan *read_plan(const uint8_t *data, uint64_t len)
{
	static struct nsr_diag diag;
	struct nsr_plan *plan = nsr_plan_new();

	if (!plan)
		abort();
	diag.text[0] = '\0';
	if (!nsr_plan_read(plan, data, len, &diag))
		return plan;
	if (!diag.text[0])
		abort();                /* refused without a word */
	nsr_plan_free(plan);
	return NULL;
}

static void check_same(const struct nsr_plan *plan, const uint8_t *data, uint64_t len)
{
	uint64_t written;
	uint8_t *out = write_plan(plan, &written);

	if (written != len || memcmp(out, data, len))
		abort();
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct nsr_plan *plan = read_plan(data, size), *again;
	uint8_t *bytes;
	uint64_t len;

	if (!plan)
		return 0;
	check_same(plan, data, size);
	bytes = write_plan(plan, &len);
	again = read_plan(bytes, len);
	if (!again)
		abort();
	check_same(again, data, size);
	nsr_plan_free(again);
	nsr_plan_free(plan);
	free(bytes);
	return 0;
}
