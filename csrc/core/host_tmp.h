/* SPDX-License-Identifier: MIT */
/* host_tmp.h - a temporary directory that lives as long as its sandbox. */
#ifndef NSR_HOST_TMP_H
#define NSR_HOST_TMP_H

#include "spawn.h"

/* Make it, show it to the plan, and name it by TMPDIR; path gets its name. */
int nsr_host_tmp_make(struct nsr_plan *plan, char path[NSR_PATH_MAX], struct nsr_diag *diag);
/* When nobody is left who could write to it.  0 or -errno. */
int nsr_host_tmp_remove(const char *path);

#endif
