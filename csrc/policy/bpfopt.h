/* SPDX-License-Identifier: MIT */
/* bpfopt.h - shorter filters, since each sandbox loads its filter twice. */
#ifndef NSR_BPFOPT_H
#define NSR_BPFOPT_H

#include <linux/filter.h>
#include <stddef.h>

enum { MAX_FILTER = 4096 };

struct program {
	struct sock_filter code[MAX_FILTER];
	size_t len;
};

/*
 * Make p shorter; it answers as before.  For what libseccomp writes: words
 * loaded, masked and compared, jumps forward.  Returns NULL, or what it found
 * that is not so.
 */
const char *bpf_shorten(struct program *p);

#endif
