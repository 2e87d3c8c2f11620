/* SPDX-License-Identifier: MIT */
#ifndef NSR_TEND_H
#define NSR_TEND_H

#include "nsrun.h"

/*
 * "nsrun --tend FD": outlive the caller and remove its cgroups.  Returns in
 * the caller's child, at once: 0, or -errno with diag filled.  What goes over
 * FD: see tend.c.
 */
int nsr_tend(int fd, struct nsr_diag *diag);

#endif
