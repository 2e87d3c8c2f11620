/* SPDX-License-Identifier: MIT */
/* select.c - the choice of a backend. */
#include "select.h"

#include <stdio.h>
#include <string.h>

#include "diag.h"

static const struct {
	const char *name;
	const char *what;
	enum nsr_probe_id needs[5]; /* in this order; NSR_PROBE_END ends them */
} backends[NSR_BACKEND_END] = {
	[NSR_BACKEND_NONE] = { "none", "", { NSR_PROBE_END } },
	[NSR_BACKEND_NAMESPACES] = { "namespaces", "namespaces",
				     { NSR_PROBE_NAMESPACES, NSR_PROBE_END } },
	[NSR_BACKEND_BWRAP] = { "bwrap", "namespaces through the installed bwrap",
				{ NSR_PROBE_BWRAP, NSR_PROBE_END } },
	[NSR_BACKEND_KVM] = { "kvm", "a microVM",
			      { NSR_PROBE_MICROVM, NSR_PROBE_KVM, NSR_PROBE_KVM_GUEST,
				NSR_PROBE_GUEST_KERNEL, NSR_PROBE_END } },
	[NSR_BACKEND_HOST] = { "host", "the host, without namespaces",
			       { NSR_PROBE_HOST, NSR_PROBE_SECCOMP, NSR_PROBE_LANDLOCK,
				 NSR_PROBE_END } },
};

/* What a wish may end in, the first choice first. */
static const enum nsr_backend orders[NSR_WISH_END][NSR_BACKEND_END] = {
	[NSR_WISH_AUTO] = { NSR_BACKEND_NAMESPACES, NSR_BACKEND_BWRAP, NSR_BACKEND_KVM,
			    NSR_BACKEND_HOST },
	[NSR_WISH_ANY_NAMESPACES] = { NSR_BACKEND_NAMESPACES, NSR_BACKEND_BWRAP },
	[NSR_WISH_NAMESPACES] = { NSR_BACKEND_NAMESPACES },
	[NSR_WISH_BWRAP] = { NSR_BACKEND_BWRAP },
	[NSR_WISH_KVM] = { NSR_BACKEND_KVM },
	[NSR_WISH_HOST] = { NSR_BACKEND_HOST },
};

const char *nsr_backend_name(enum nsr_backend backend)
{
	return backends[backend].name;
}

static void fail(struct nsr_selection *out, enum nsr_probe_id id, const struct nsr_probe *probe)
{
	out->failed[out->n_failed++] = id;
	if (!*out->remedy)
		memcpy(out->remedy, probe->remedy, sizeof(out->remedy));
}

static int usable(struct nsr_probes *probes, enum nsr_backend backend, int by_name,
		  struct nsr_selection *out)
{
	for (const enum nsr_probe_id *id = backends[backend].needs; *id != NSR_PROBE_END; id++) {
		const struct nsr_probe *probe = nsr_probe(probes, *id);

		/* who asks for the host by name gets it with what there is */
		if (probe->verdict == NSR_OK || (by_name && *id == NSR_PROBE_LANDLOCK))
			continue;
		fail(out, *id, probe);
		return 0;
	}
	return 1;
}

static void add(struct nsr_selection *out, const char *text)
{
	size_t len = strlen(out->reason);

	snprintf(out->reason + len, sizeof(out->reason) - len, "%s", text);
}

static void add_failures(struct nsr_selection *out, struct nsr_probes *probes)
{
	for (int i = 0; i < out->n_failed; i++) {
		add(out, i ? "; " : "");
		add(out, nsr_probe_name(out->failed[i]));
		add(out, ": ");
		add(out, nsr_probe(probes, out->failed[i])->evidence);
	}
}

static void give_reason(struct nsr_selection *out, struct nsr_probes *probes,
			const struct nsr_request *request)
{
	if (out->backend == NSR_BACKEND_NONE && request->word) {
		add(out, request->by);
		add(out, " asks for ");
		add(out, request->word);
		add(out, ", which can't run here: ");
	} else if (out->backend == NSR_BACKEND_NONE) {
		add(out, "no backend can run here: ");
	} else {
		add(out, backends[out->backend].what);
		if (request->word) {
			add(out, ", asked for by ");
			add(out, request->by);
		}
		add(out, out->n_failed ? ", since what comes before it is refused: " :
					 request->word ? "" : ", the first choice");
	}
	add_failures(out, probes);
}

void nsr_select(struct nsr_probes *probes, const struct nsr_request *request,
		struct nsr_selection *out)
{
	const enum nsr_backend *order = orders[request->wish];
	int by_name = request->wish == NSR_WISH_HOST;

	memset(out, 0, sizeof(*out));
	for (int i = 0; i < NSR_BACKEND_END && order[i] != NSR_BACKEND_NONE; i++) {
		if (order[i] == NSR_BACKEND_HOST && !by_name && !request->allow_host)
			continue;
		if (usable(probes, order[i], by_name, out)) {
			out->backend = order[i];
			break;
		}
	}
	give_reason(out, probes, request);
}
