/* SPDX-License-Identifier: MIT */
#ifndef NSR_HELP_H
#define NSR_HELP_H

#include <stdio.h>

/* The version of bwrap whose command line this is. */
#define NSR_BWRAP_VERSION "0.11.1"

/* 0, or 1 if it could not be written. */
int nsr_help(FILE *to, const char *argv0, int with_ours);

#endif
