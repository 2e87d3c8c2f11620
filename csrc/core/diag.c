/* SPDX-License-Identifier: MIT */
/* diag.c - saying why. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "diag.h"

const char *nsr_strerror(int err)
{
	static const char *const texts[] = {
#define E(number, text) [number] = text,
#include "errno.def"
#undef E
	};
	const size_t n = sizeof(texts) / sizeof(texts[0]);

	return err > 0 && (size_t)err < n && texts[err] ? texts[err] : "Unknown error";
}

static void format(struct nsr_diag *diag, int err, const char *fmt, va_list ap)
{
	size_t used;
	int n = vsnprintf(diag->text, sizeof(diag->text), fmt, ap);

	diag->step = 0;
	diag->err = err;
	diag->path[0] = '\0';
	if (n < 0)
		diag->text[0] = '\0';
	used = strlen(diag->text);
	if (err)
		snprintf(diag->text + used, sizeof(diag->text) - used, ": %s", nsr_strerror(err));
}

int nsr_diag_set(struct nsr_diag *diag, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	format(diag, 0, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

int nsr_diag_errno(struct nsr_diag *diag, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	format(diag, err, fmt, ap);
	va_end(ap);
	return -err;
}
