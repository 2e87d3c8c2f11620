/* SPDX-License-Identifier: MIT */
/* request.c - what a caller asks for, in words. */
#include <errno.h>
#include <strings.h>

#include "diag.h"
#include "select.h"

static int wish_by_name(const char *word, int by_option, enum nsr_wish *out)
{
	static const struct {
		const char *word;
		enum nsr_wish wish;
		int option_only;
	} words[] = {
		{ "auto", NSR_WISH_AUTO, 1 }, { "namespaces", NSR_WISH_NAMESPACES, 1 },
		{ "bwrap", NSR_WISH_BWRAP, 0 }, { "kvm", NSR_WISH_KVM, 0 },
		{ "host", NSR_WISH_HOST, 0 },
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if (strcasecmp(word, words[i].word) || (words[i].option_only && !by_option))
			continue;
		*out = words[i].wish;
		/* the launchers' word means the kind of sandbox, not who makes it */
		if (*out == NSR_WISH_BWRAP && !by_option)
			*out = NSR_WISH_ANY_NAMESPACES;
		return 0;
	}
	return -1;
}

int nsr_request_read(struct nsr_request *out, const char *option, const char *variable,
		     struct nsr_diag *diag)
{
	const char *word = option ? option : variable;

	out->wish = NSR_WISH_AUTO;
	out->word = NULL;
	out->by = "default";
	if (!word || (!option && !*word))
		return 0;
	out->word = word;
	out->by = option ? "--backend" : NSR_BACKEND_VARIABLE;
	if (!wish_by_name(word, option != NULL, &out->wish))
		return 0;
	return nsr_diag_set(diag, "Unknown backend \"%.200s\" in %s: --backend takes auto, "
			    "namespaces, bwrap, kvm or host, %s takes bwrap, kvm or host",
			    word, out->by, NSR_BACKEND_VARIABLE);
}

int nsr_select_own(const char *option, const char *variable, struct nsr_probe *probe,
		   struct nsr_diag *diag)
{
	struct nsr_request request = { .wish = NSR_WISH_AUTO };

	if (nsr_request_read(&request, option, variable, diag))
		return -EINVAL;
	if (request.wish != NSR_WISH_AUTO && request.wish != NSR_WISH_ANY_NAMESPACES &&
	    request.wish != NSR_WISH_NAMESPACES)
		return 0;
	nsr_probe_namespaces(probe);
	return probe->verdict == NSR_OK;
}
