/* SPDX-License-Identifier: MIT */
/* options.h - the option table as its readers other than the parser see it. */
#ifndef NSR_OPTIONS_H
#define NSR_OPTIONS_H

enum nsr_option_flag {
	NSR_OPTION_ONE = 1 << 0,
	NSR_OPTION_LAST = 1 << 1,
	NSR_OPTION_OURS = 1 << 2,
};

struct nsr_option_doc {
	const char *section;        /* set on a section's row alone */
	const char *name;
	const char *args;
	const char *help;
	unsigned int flags;
};

/* Ends with a row of NULLs. */
extern const struct nsr_option_doc nsr_option_docs[];

#endif
