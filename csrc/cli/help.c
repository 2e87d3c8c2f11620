/* SPDX-License-Identifier: MIT */
/* help.c - the option table as --help. */
#include "help.h"
#include "options.h"

enum { COLUMN = 32 };

static void one(FILE *to, const struct nsr_option_doc *doc)
{
	int n = fprintf(to, "    %s%s%s", doc->name, *doc->args ? " " : "", doc->args);

	fprintf(to, "%*s%s\n", n < COLUMN ? COLUMN - n : 1, "", doc->help);
}

int nsr_help(FILE *to, const char *argv0, int with_ours)
{
	fprintf(to, "usage: %s [OPTIONS...] [--] COMMAND [ARGS...]\n", argv0);
	if (with_ours)
		fprintf(to, "       %s run|doctor|profile|version [ARGS...]   see '%s run --help'\n", argv0,
			argv0);
	for (const struct nsr_option_doc *doc = nsr_option_docs; doc->section || doc->name; doc++) {
		if (doc->section)
			fprintf(to, "\n%s:\n", doc->section);
		else
			one(to, doc);
	}
	return fflush(to) || ferror(to);
}
