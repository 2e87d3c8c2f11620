/* SPDX-License-Identifier: MIT */
/* monitor.h - what the monitors of both backends do alike. */
#ifndef NSR_MONITOR_H
#define NSR_MONITOR_H

#include "spawn.h"

/* Mark the fds that are ours alone, and take those of a parked sandbox. */
int nsr_monitor_keep(struct nsr_ctx *ctx, struct nsr_diag *diag);
/* Tell whoever reads the report the pid of the sandbox's first process. */
void nsr_monitor_pid(const struct nsr_ctx *ctx, pid_t pid);
/* A record from inside, passed on to the report; 1, 0 at the end, or -errno. */
int nsr_monitor_next(struct nsr_ctx *ctx, struct nsr_record *record, char *text);
/* Where --die-with-parent asks for it. */
int nsr_monitor_die_with(const struct nsr_ctx *ctx, pid_t parent, struct nsr_diag *diag);

/* host.c: nsr_run_command without namespaces */
int nsr_run_host(struct nsr_plan *plan, struct nsr_ctx *ctx, struct nsr_diag *diag);

#endif
