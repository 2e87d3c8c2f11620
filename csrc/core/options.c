/* SPDX-License-Identifier: MIT */
/* options.c - the option table for --help, the man page and the completions. */
#include <stddef.h>

#include "options.h"

#define ONE NSR_OPTION_ONE
#define LAST NSR_OPTION_LAST
#define OURS NSR_OPTION_OURS
#define S(title) { title, NULL, NULL, NULL, 0 },
#define O(name, args, count, handler, value, flags, help) { NULL, name, args, help, flags },

const struct nsr_option_doc nsr_option_docs[] = {
#include "options.def"
	{ NULL, NULL, NULL, NULL, 0 },
};
