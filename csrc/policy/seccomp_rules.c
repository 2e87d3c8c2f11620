/* SPDX-License-Identifier: MIT */
/* seccomp_rules.c - the table of the profiles as data, for the generator and for Python. */
#include <errno.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "nsrun.h"

enum {
	DEFAULT = 1 << NSR_SECCOMP_DEFAULT,
	NESTING = 1 << NSR_SECCOMP_NESTING,
	STRICT = 1 << NSR_SECCOMP_STRICT,
	ALL = DEFAULT | NESTING | STRICT,

	NEW_TIME = 0x80,
	NEW_NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
			 CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET,
	/* O_CREAT and the bit of O_TMPFILE that is not O_DIRECTORY: the mode counts then */
	MAKES_FILE = 0100 | 020000000,
};

#define ALWAYS { NSR_TEST_NONE, 0, 0, 0 }
#define ANY(arg, bits) { NSR_TEST_ANY, arg, bits, 0 }
#define BITS(arg, mask, value) { NSR_TEST_BITS, arg, mask, value }
#define ABOVE(arg, value) { NSR_TEST_ABOVE, arg, 0, value }
#define NOT(arg, value) { NSR_TEST_NOT, arg, 0, value }

#define P(name, help)
#define G(title, why, breaks) { title, why, breaks, NULL, NULL, NULL, 0, 0, { ALWAYS, ALWAYS } },
#define R2(profiles, call, err, test, test2, when) \
	{ NULL, NULL, NULL, #call, when, #err, err, profiles, { test, test2 } },
#define R(profiles, call, err, test, when) \
	{ NULL, NULL, NULL, #call, when, #err, err, profiles, { test, ALWAYS } },
#define E(profiles, call, arg, value, when) \
	{ NULL, NULL, NULL, #call, when, "", 0, profiles, { BITS(arg, 0xffffffff, value), ALWAYS } },

static const struct nsr_seccomp_rule rules[] = {
#include "seccomp.def"
};

const struct nsr_seccomp_rule *nsr_seccomp_rule(uint32_t i)
{
	return i < sizeof(rules) / sizeof(rules[0]) ? &rules[i] : NULL;
}
