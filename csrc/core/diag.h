/* SPDX-License-Identifier: MIT */
/* diag.h - saying why: formatting into a struct nsr_diag, outside the child. */
#ifndef NSR_DIAG_H
#define NSR_DIAG_H

#include "nsrun.h"

/* Both return -EINVAL, so that a check can end with them. */
int nsr_diag_set(struct nsr_diag *diag, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* The same with ": strerror(err)" behind it; returns -err. */
int nsr_diag_errno(struct nsr_diag *diag, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* strerror(3) as glibc words it. */
const char *nsr_strerror(int err);

#endif
