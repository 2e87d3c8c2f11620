/* SPDX-License-Identifier: MIT */
/* dispatch.h - run a plan by the backend that is to run it. */
#ifndef NSR_DISPATCH_H
#define NSR_DISPATCH_H

#include "spawn.h"

/*
 * Exit status, or -1 with diag filled.  say takes the one line that tells of
 * another backend than the first choice.  Called as bwrap, nothing but our own
 * namespaces is used unless --backend or /etc/nsrun.conf says otherwise.
 */
int nsr_dispatch(struct nsr_plan *plan, struct nsr_ctx *ctx, int as_bwrap, nsr_warn_fn say,
		 void *say_arg, struct nsr_diag *diag);

/* probe_json.c: --probe.  Exit status. */
int nsr_print_probes(const struct nsr_choice *choice, struct nsr_diag *diag);

#endif
