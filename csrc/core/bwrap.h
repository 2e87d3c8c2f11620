/* SPDX-License-Identifier: MIT */
/* bwrap.h - a plan handed on to an installed bwrap. */
#ifndef NSR_BWRAP_H
#define NSR_BWRAP_H

#include "plan.h"

/* In the environment of a bwrap that we start: it may be a wrapper around us. */
#define NSR_FALLBACK_MARK "NSRUN_FALLBACK"

/*
 * The plan as words for bwrap: argv ends with NULL and names fds on which its
 * options and contents wait; they are left open.  Contents that were read from
 * the caller's fds are served again.  -EINVAL with diag filled: bwrap can't
 * express this plan; nothing is ever left out.
 */
int nsr_bwrap_argv(struct nsr_plan *plan, const char *program, const char *const *environment,
		   const char ***argv, struct nsr_diag *diag);

/* Exec it; returns only to say, in diag, why not. */
void nsr_bwrap_exec(struct nsr_plan *plan, const char *program, struct nsr_diag *diag);

#endif
