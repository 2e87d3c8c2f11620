/* SPDX-License-Identifier: MIT */
/*
 * hand.h - the message by which a parked sandbox gets its command.
 *
 * One packet: this head, the limits, then strings that each end with a NUL: the
 * directory if NSR_HAND_CHDIR says so, names of the program to try, the
 * arguments, the environment, whose last word is PWD.  stdin, stdout and stderr
 * come along as SCM_RIGHTS: unix(7).
 */
#ifndef NSR_HAND_H
#define NSR_HAND_H

#include <stdint.h>

enum {
	NSR_HAND_MAX = 96 * 1024,   /* bytes; well below the kernel's default for a socket */
	NSR_HAND_WORDS = 8192,      /* of all strings */
	NSR_HAND_RLIMITS = 16,
	NSR_HAND_CHDIR = 1,
	NSR_HAND_TERMINAL = 2,
};

struct nsr_hand {
	uint32_t size;              /* of the whole packet */
	uint32_t flags;
	uint32_t n_rlimits;
	uint32_t n_programs;
	uint32_t n_argv;
	uint32_t n_env;
};

/* struct nsr_rlimit without padding */
struct nsr_hand_rlimit {
	uint64_t resource;
	uint64_t soft;
	uint64_t hard;
};

#endif
