/* SPDX-License-Identifier: MIT */
/* end.h - how a monitor ends: always by one of these, from any thread. */
#ifndef VMM_END_H
#define VMM_END_H

enum vmm_status {
	VMM_OVER = 0,               /* the guest powered off, or its owner went */
	VMM_ERROR = 1,
	VMM_USAGE = 2,
	VMM_CRASHED = 3,            /* the guest's fault */
};

/* Tell the owner, bring the console's last words out, exit. */
_Noreturn void vmm_end(enum vmm_status status);
/* The same with a line on stderr; err: errno's or 0. */
_Noreturn void vmm_fail(int err, const char *format, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void vmm_crashed(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
