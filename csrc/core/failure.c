/* SPDX-License-Identifier: MIT */
/* failure.c - (step, path, errno) to text, outside the sandbox. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "diag.h"
#include "spawn.h"

static const struct step_text {
	const char *text;
	int with_errno;
} steps[NSR_STEP_END] = {
#define T(step, with_errno, text) [step] = { text, with_errno },
#include "steps.def"
#undef T
};

int nsr_step_clone(void)
{
	return NSR_STEP_CLONE;
}

int nsr_step_exec(void)
{
	return NSR_STEP_EXEC;
}

struct text {
	char *at;
	size_t left;
};

static void put(struct text *t, const char *s)
{
	size_t len;

	/* a record may have been forged: the step need not fit its operation */
	s = s ? s : "";
	len = strlen(s);
	if (len >= t->left)
		len = t->left - 1;
	memcpy(t->at, s, len);
	t->at += len;
	t->left -= len;
	*t->at = '\0';
}

static void put_below(struct text *t, const char *root, const char *path)
{
	path = path ? path : "";
	put(t, root);
	put(t, "/");
	put(t, path + strspn(path, "/"));
}

/* As the child saw it: without links. */
static void put_real(struct text *t, const char *path)
{
	char *real = path ? realpath(path, NULL) : NULL;

	put_below(t, "/oldroot", real ? real : path);
	free(real);
}

static void put_mode(struct text *t, uint32_t mode)
{
	char octal[16];

	snprintf(octal, sizeof(octal), "%#o", mode);
	put(t, octal);
}

static void put_source(struct text *t, const struct nsr_op *op)
{
	char name[NSR_FD_PATH];

	if (op->source) {
		put(t, op->source);
	} else {
		nsr_fd_path(name, op->fd);
		put(t, name);
	}
}

static void put_word(struct text *t, char what, const struct nsr_op *op, const char *extra)
{
	switch (what) {
	case 'S':
		put_source(t, op);
		break;
	case 'O':
		if (op->type == NSR_OP_BIND_DATA)
			put(t, "/bindfile");
		else
			put_real(t, op->source);
		break;
	case 'D':
		put(t, op->dest);
		break;
	case 'N':
		put_below(t, "/newroot", op->dest);
		break;
	case 'P':
		put_mode(t, op->perms);
		break;
	case 'X':
		put(t, extra);
		break;
	}
}

/* The kernel says "no space" for several limits that have nothing to do with disks. */
static const char *errno_text(int step, int err)
{
	if (err == 28 && (step == NSR_STEP_BIND || step == NSR_STEP_TMPFS ||
			  step == NSR_STEP_PROC || step == NSR_STEP_DEVPTS ||
			  step == NSR_STEP_MQUEUE || step == NSR_STEP_ROOT ||
			  step == NSR_STEP_DEV_BIND || step == NSR_STEP_OVERLAY))
		return "Limit exceeded (ENOSPC). (Hint: Check that "
		       "/proc/sys/fs/mount-max is sufficient, typically 100000)";
	return nsr_strerror(err);
}

void nsr_failure_text(const struct nsr_plan *plan, const struct nsr_record *record,
		      const char *text, struct nsr_diag *diag)
{
	static const struct nsr_op none = { .dest = "/", .source = "/" };
	const struct nsr_op *op = nsr_plan_op(plan, (uint32_t)record->op);
	struct text t = { diag->text, sizeof(diag->text) };
	int known = record->step > NSR_STEP_NONE && record->step < NSR_STEP_END;
	const char *fmt = known ? steps[record->step].text : "Unknown failure";

	if (!op)
		op = &none;
	diag->step = record->step;
	diag->err = record->err;
	snprintf(diag->path, sizeof(diag->path), "%s",
		 record->op < 0 ? text : op->dest ? op->dest : op->source ? op->source : "");
	for (; *fmt; fmt++) {
		char one[2] = { *fmt, '\0' };

		if (*fmt == '%')
			put_word(&t, *++fmt, op, text);
		else
			put(&t, one);
	}
	if (known && steps[record->step].with_errno) {
		put(&t, ": ");
		put(&t, errno_text(record->step, record->err));
	}
}
