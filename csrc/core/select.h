/* SPDX-License-Identifier: MIT */
/*
 * select.h - which backend runs a sandbox, and why.
 *
 * The one place where that is decided: for the command line, Python, the
 * service and the doctor.
 */
#ifndef NSR_SELECT_H
#define NSR_SELECT_H

#include "probe.h"

#define NSR_BACKEND_VARIABLE "COWORK_VM_BACKEND"

enum nsr_backend {
	NSR_BACKEND_NONE,
	NSR_BACKEND_NAMESPACES,     /* our own core */
	NSR_BACKEND_BWRAP,          /* namespaces through an installed bwrap */
	NSR_BACKEND_KVM,            /* the microVM */
	NSR_BACKEND_HOST,           /* no namespaces: Landlock, seccomp */
	NSR_BACKEND_END,
};

enum nsr_wish {
	NSR_WISH_AUTO,
	NSR_WISH_ANY_NAMESPACES,    /* "bwrap" in the variable: ours, or else bwrap's */
	NSR_WISH_NAMESPACES,
	NSR_WISH_BWRAP,
	NSR_WISH_KVM,
	NSR_WISH_HOST,
	NSR_WISH_END,
};

struct nsr_request {
	enum nsr_wish wish;
	const char *word;           /* as it was given; NULL: nothing was */
	const char *by;             /* "--backend", the variable's name, or "default" */
	int allow_host;             /* last in the automatic order, confined */
};

struct nsr_selection {
	enum nsr_backend backend;
	char reason[2048];          /* one sentence */
	char remedy[32];            /* of the first probe that failed, by name */
	enum nsr_probe_id failed[NSR_PROBE_END];
	int n_failed;
};

const char *nsr_backend_name(enum nsr_backend backend);

/*
 * Read --backend, else the variable (NULL: it does not count here).  -EINVAL
 * with diag filled: no such backend.
 */
int nsr_request_read(struct nsr_request *out, const char *option, const char *variable,
		     struct nsr_diag *diag);

/* Probe as far as the answer needs; backend NONE: reason says why. */
void nsr_select(struct nsr_probes *probes, const struct nsr_request *request,
		struct nsr_selection *out);

/* remedy.c: a few words, or NULL where there are none to say. */
const char *nsr_remedy_text(const char *name);

/* conf.c: /etc/nsrun.conf lets the program called bwrap fall back too. */
int nsr_conf_bwrap_fallback(void);

#endif
