/* SPDX-License-Identifier: MIT */
/* readfd.h - what an inherited fd holds. */
#ifndef NSR_READFD_H
#define NSR_READFD_H

#include "plan.h"

/* Read fd to its end into the plan's arena and close it; a NUL follows the data. */
int nsr_read_fd(struct nsr_plan *plan, int fd, struct nsr_blob *out);

#endif
