/* SPDX-License-Identifier: MIT */
/* main.c - nsrun, called by its own name or by bwrap's. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dispatch.h"
#include "help.h"
#include "python.h"
#include "spawn.h"
#include "tend.h"

/*
 * All that one run needs, where the loader puts zeroes for nothing.  What every
 * run touches lies together, right behind .data, and the rest far away: each
 * page costs a fault here, and once written to after the clone a copy.
 */
static struct {
	struct nsr_plan plan;
	struct nsr_ctx ctx;
} hot;
static struct {
	char memory[16384];         /* of the plan; the heap takes over behind it */
	struct nsr_diag diag;
	struct nsr_cold cold;
} rest __attribute__((section(".cold_bss,\"aw\",@nobits#")));

struct teller {
	const char *name;           /* what messages begin with */
	const struct nsr_plan *plan;
};

static void tell(const struct teller *teller, char level, const char *text)
{
	char line[NSR_DIAG_TEXT + 64];
	int levels = teller->plan && nsr_plan_number(teller->plan, NSR_FLAGS) & NSR_LEVEL_PREFIX;
	int n = levels ? snprintf(line, sizeof(line), "<%c>%s: %s\n", level, teller->name, text) :
			 snprintf(line, sizeof(line), "%s: %s\n", teller->name, text);

	/* one write(2): lines of several processes don't mix */
	if (n > 0 && write(STDERR_FILENO, line, (size_t)n) < 0)
		return;         /* nowhere left to say it */
}

static void warn(void *arg, const char *text)
{
	tell(arg, '4', text);
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static int print_version(int as_bwrap)
{
	return printf(as_bwrap ? "bubblewrap %s\n" : "nsrun %2$s (bubblewrap %1$s)\n",
		      NSR_BWRAP_VERSION, nsr_version()) < 0 || fflush(stdout);
}

static int run(int argc, char **argv, int as_bwrap)
{
	struct teller teller = { as_bwrap ? "bwrap" : "nsrun", NULL };
	struct nsr_plan *plan = &hot.plan;
	enum nsr_parse_result parsed;
	int status = -1;

	nsr_plan_init(plan);
	nsr_arena_give(&plan->arena, rest.memory, sizeof(rest.memory));
	hot.ctx.arena = &plan->arena;
	hot.ctx.cold = &rest.cold;
	teller.plan = plan;
	parsed = nsr_plan_parse(plan, argc, (const char *const *)argv,
				(const char *const *)environ, warn, &teller, &rest.diag);
	if (plan->choice.probe && parsed != NSR_PARSE_ERROR) {
		status = nsr_print_probes(&plan->choice, &rest.diag);
		if (status >= 0)
			return status;
		parsed = NSR_PARSE_ERROR;
	}
	switch (parsed) {
	case NSR_PARSE_HELP:
		return nsr_help(stdout, argv[0], !as_bwrap);
	case NSR_PARSE_VERSION:
		return print_version(as_bwrap);
	case NSR_PARSE_USAGE:
		nsr_help(stderr, argc ? argv[0] : teller.name, !as_bwrap);
		return EXIT_FAILURE;
	case NSR_PARSE_TEND:
		if (!nsr_tend((int)nsr_plan_number(plan, NSR_SYNC_FD), &rest.diag))
			return EXIT_SUCCESS;
		break;
	case NSR_PARSE_OK:
		status = nsr_dispatch(plan, &hot.ctx, as_bwrap, warn, &teller, &rest.diag);
		if (status >= 0)
			return status;
		if (plan->number[NSR_REPORT_FD] != -1) {
			nsr_report_diag(&hot.ctx, &rest.diag);
			return EXIT_FAILURE;
		}
		break;
	case NSR_PARSE_ERROR:
		break;
	}
	tell(&teller, '3', rest.diag.text);
	return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
	int as_bwrap = argc && !strcmp(base_name(argv[0]), "bwrap");

	/* a caller that ignores SIGCHLD would make our children unwaitable */
	signal(SIGCHLD, SIG_DFL);
	if (!as_bwrap && argc > 1 && argv[1][0] != '-' && argv[1][0])
		return nsr_python("cowork_nsrun.cli", argv[1], argv + 1);
	/* nothing is left to flush; exit(3) would only touch more pages */
	_exit(run(argc, argv, as_bwrap));
}
