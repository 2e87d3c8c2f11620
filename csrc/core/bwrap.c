/* SPDX-License-Identifier: MIT */
/*
 * bwrap.c - a plan in the words of bwrap.
 *
 * What was written is read back by our own parser and compared with the plan,
 * so that nothing can be left out: a word that a plan may hold and bwrap has
 * no option for makes the two differ.
 */
#include "bwrap.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "diag.h"
#include "spawn.h"
#include "sys.h"

#define CLOSE_RANGE_CLOEXEC (1U << 2)

enum { NUMBER_TEXT = 24, FIRST_FREE = 3, CAP_BITS = 64 };

/* What we do for bwrap before it starts. */
static const int64_t done_here = NSR_CLOSE_FDS | NSR_DEFAULT_SIGNALS;

struct writer {
	struct nsr_plan *plan;      /* in its arena the words live */
	struct nsr_plan *words;     /* its argv are the words so far */
	struct nsr_diag *diag;
	int failed;
};

static void word(struct writer *w, const char *text)
{
	if (!text || nsr_plan_keep_word(w->words, NSR_ARGV, text))
		w->failed = 1;
}

static void number(struct writer *w, const char *fmt, int64_t value)
{
	char text[NUMBER_TEXT];

	snprintf(text, sizeof(text), fmt, (long long)value);
	word(w, nsr_arena_str(&w->plan->arena, text));
}

static void option(struct writer *w, const char *name, int64_t value)
{
	word(w, name);
	number(w, "%lld", value);
}

/* --- the plan's numbers, strings and lists ------------------------------------------------ */

static void write_flags(struct writer *w)
{
	static const struct {
		int64_t flag;
		const char *option;
	} flags[] = {
		{ NSR_UNSHARE_USER_TRY, "--unshare-user-try" },
		{ NSR_UNSHARE_CGROUP_TRY, "--unshare-cgroup-try" },
		{ NSR_DISABLE_USERNS, "--disable-userns" },
		{ NSR_ASSERT_USERNS_DISABLED, "--assert-userns-disabled" },
		{ NSR_NEW_SESSION, "--new-session" },
		{ NSR_DIE_WITH_PARENT, "--die-with-parent" },
		{ NSR_AS_PID_1, "--as-pid-1" },
		{ NSR_LEVEL_PREFIX, "--level-prefix" },
		{ NSR_NOT_A_SECURITY_BOUNDARY, "--not-a-security-boundary" },
	}, namespaces[] = {
		{ NSR_CLONE_NEWUSER, "--unshare-user" }, { NSR_CLONE_NEWIPC, "--unshare-ipc" },
		{ NSR_CLONE_NEWPID, "--unshare-pid" }, { NSR_CLONE_NEWNET, "--unshare-net" },
		{ NSR_CLONE_NEWUTS, "--unshare-uts" },
		{ NSR_CLONE_NEWCGROUP, "--unshare-cgroup" },
	};

	for (size_t i = 0; i < sizeof(namespaces) / sizeof(namespaces[0]); i++)
		if (w->plan->number[NSR_UNSHARE] & namespaces[i].flag)
			word(w, namespaces[i].option);
	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
		if (w->plan->number[NSR_FLAGS] & flags[i].flag)
			word(w, flags[i].option);
}

static void write_numbers(struct writer *w)
{
	static const struct {
		enum nsr_number which;
		const char *option;
	} numbers[] = {
		{ NSR_UID, "--uid" }, { NSR_GID, "--gid" }, { NSR_USERNS_FD, "--userns" },
		{ NSR_USERNS2_FD, "--userns2" }, { NSR_PIDNS_FD, "--pidns" },
		{ NSR_SYNC_FD, "--sync-fd" }, { NSR_BLOCK_FD, "--block-fd" },
		{ NSR_USERNS_BLOCK_FD, "--userns-block-fd" }, { NSR_INFO_FD, "--info-fd" },
		{ NSR_JSON_STATUS_FD, "--json-status-fd" }, { NSR_SECCOMP_FD, "--seccomp" },
	};
	const struct nsr_words *locks = &w->plan->list[NSR_LOCK_FILES];

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		if (w->plan->number[numbers[i].which] != -1)
			option(w, numbers[i].option, w->plan->number[numbers[i].which]);
	for (uint32_t i = 0; i < locks->n; i++) {
		word(w, "--lock-file");
		word(w, locks->v[i]);
	}
	if (w->plan->string[NSR_CHDIR]) {
		word(w, "--chdir");
		word(w, w->plan->string[NSR_CHDIR]);
	}
	if (w->plan->string[NSR_ARGV0]) {
		word(w, "--argv0");
		word(w, w->plan->string[NSR_ARGV0]);
	}
}

static void write_caps_of(struct writer *w, const char *name, uint64_t mask)
{
	for (int i = 0; i < CAP_BITS; i++)
		if (mask >> i & 1)
			option(w, name, i);
}

/* The highest bit is no capability's: only ALL sets it. */
static void write_caps(struct writer *w)
{
	uint64_t add = (uint64_t)w->plan->number[NSR_CAPS_SET];
	uint64_t drop = (uint64_t)w->plan->number[NSR_CAPS_CLEAR];
	const uint64_t all = 1ULL << (CAP_BITS - 1);

	if (drop & all) {
		word(w, "--cap-drop");
		word(w, "ALL");
		drop = 0;
	}
	if (add & all) {
		word(w, "--cap-add");
		word(w, "ALL");
		add = 0;
	}
	write_caps_of(w, "--cap-add", add);
	write_caps_of(w, "--cap-drop", drop);
}

/* --- operations ------------------------------------------------------------------------- */

/* A file that nothing but its number names, with this content, read from its start. */
static int content_fd(struct writer *w, const void *data, size_t len)
{
	int fd = memfd_create("nsrun-content", 0);
	const char *at = data;
	int moved;

	if (fd >= 0 && fd < FIRST_FREE) {
		moved = fcntl(fd, F_DUPFD, FIRST_FREE);
		close(fd);
		fd = moved;
	}
	while (fd >= 0 && len) {
		ssize_t n = write(fd, at, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break;
		at += n;
		len -= (size_t)n;
	}
	if (fd < 0 || len || lseek(fd, 0, SEEK_SET)) {
		nsr_diag_errno(w->diag, errno, "Can't keep contents for bwrap");
		w->failed = 1;
	}
	return fd;
}

static const char *bind_option(const struct nsr_op *op)
{
	static const char *const names[] = { "--bind", "--ro-bind", "--dev-bind", NULL };
	static const char *const tries[] = { "--bind-try", "--ro-bind-try", "--dev-bind-try",
					     NULL };
	uint32_t kind = op->flags & (NSR_OP_RDONLY | NSR_OP_DEVICES);

	if (op->flags & NSR_OP_SOURCE_FD)
		return kind & NSR_OP_RDONLY ? "--ro-bind-fd" : "--bind-fd";
	return op->flags & NSR_OP_TRY ? tries[kind] : names[kind];
}

static void write_bind(struct writer *w, const struct nsr_op *op)
{
	const char *name = bind_option(op);

	if (!name) {
		nsr_diag_set(w->diag, "bwrap can't express a read-only bind with usable devices, "
			     "at %s", op->dest);
		w->failed = 1;
		return;
	}
	word(w, name);
	if (op->flags & NSR_OP_SOURCE_FD)
		number(w, "%lld", op->fd);
	else
		word(w, op->source);
	word(w, op->dest);
}

static void write_perms(struct writer *w, const struct nsr_op *op, uint32_t otherwise)
{
	char text[NUMBER_TEXT];

	if (op->perms == otherwise)
		return;
	snprintf(text, sizeof(text), "0%o", op->perms);
	word(w, "--perms");
	word(w, nsr_arena_str(&w->plan->arena, text));
}

static void write_data(struct writer *w, struct nsr_op *op)
{
	int file = op->type == NSR_OP_FILE;

	if (op->data) {
		op->fd = content_fd(w, op->data, op->data_len);
		op->data = NULL;
		op->data_len = 0;
	}
	write_perms(w, op, file ? 0666 : 0600);
	option(w, file ? "--file" : op->flags & NSR_OP_RDONLY ? "--ro-bind-data" : "--bind-data",
	       op->fd);
	word(w, op->dest);
}

static void write_overlay(struct writer *w, const struct nsr_op *op)
{
	for (uint32_t i = 0; i < op->n_layers; i++) {
		word(w, "--overlay-src");
		word(w, op->layers[i]);
	}
	word(w, op->type == NSR_OP_OVERLAY ? "--overlay" :
	     op->type == NSR_OP_TMP_OVERLAY ? "--tmp-overlay" : "--ro-overlay");
	if (op->type == NSR_OP_OVERLAY) {
		word(w, op->source);
		word(w, op->work);
	}
	word(w, op->dest);
}

static void write_tmpfs(struct writer *w, const struct nsr_op *op)
{
	write_perms(w, op, 0755);
	if (op->size)
		option(w, "--size", (int64_t)op->size);
	word(w, "--tmpfs");
	word(w, op->dest);
}

/* A name, and one or two of the operation's words behind it. */
static void write_simple(struct writer *w, const char *name, const char *first,
			 const char *second)
{
	word(w, name);
	word(w, first);
	if (second)
		word(w, second);
}

static void write_chmod(struct writer *w, const struct nsr_op *op)
{
	char text[NUMBER_TEXT];

	snprintf(text, sizeof(text), "0%o", op->perms);
	write_simple(w, "--chmod", nsr_arena_str(&w->plan->arena, text), op->dest);
}

static void write_op(struct writer *w, struct nsr_op *op)
{
	switch (op->type) {
	case NSR_OP_BIND:
		return write_bind(w, op);
	case NSR_OP_FILE:
	case NSR_OP_BIND_DATA:
		return write_data(w, op);
	case NSR_OP_OVERLAY:
	case NSR_OP_TMP_OVERLAY:
	case NSR_OP_RO_OVERLAY:
		return write_overlay(w, op);
	case NSR_OP_TMPFS:
		return write_tmpfs(w, op);
	case NSR_OP_DIR:
		write_perms(w, op, 0755);
		return write_simple(w, "--dir", op->dest, NULL);
	case NSR_OP_CHMOD:
		return write_chmod(w, op);
	case NSR_OP_SYMLINK:
		return write_simple(w, "--symlink", op->source, op->dest);
	case NSR_OP_HOSTNAME:
		return write_simple(w, "--hostname", op->source, NULL);
	case NSR_OP_REMOUNT_RO:
		return write_simple(w, "--remount-ro", op->dest, NULL);
	case NSR_OP_PROC:
		return write_simple(w, "--proc", op->dest, NULL);
	case NSR_OP_DEV:
		return write_simple(w, "--dev", op->dest, NULL);
	case NSR_OP_MQUEUE:
		return write_simple(w, "--mqueue", op->dest, NULL);
	default:
		w->failed = 1;
	}
}

/* --- environment, by what differs ----------------------------------------------------------- */

static const char *find(const char *const *list, uint32_t n, const char *entry, size_t len)
{
	for (uint32_t i = 0; i < n; i++)
		if (!strncmp(list[i], entry, len) && list[i][len] == '=')
			return list[i];
	return NULL;
}

static void write_environment(struct writer *w, const char *const *environment)
{
	const struct nsr_words *wanted = &w->plan->list[NSR_ENV];
	uint32_t n = 0;

	word(w, "--unsetenv");
	word(w, NSR_FALLBACK_MARK);
	for (; environment[n]; n++) {
		size_t len = strcspn(environment[n], "=");
		char *name = nsr_arena_copy(&w->plan->arena, environment[n], len + 1);

		if (!environment[n][len] || !len || find(wanted->v, wanted->n, environment[n], len))
			continue;
		if (name)
			name[len] = '\0';
		word(w, "--unsetenv");
		word(w, name);
	}
	for (uint32_t i = 0; i < wanted->n; i++) {
		size_t len = strcspn(wanted->v[i], "=");
		const char *there = find(environment, n, wanted->v[i], len);
		char *name;

		if (!wanted->v[i][len] || !len || (there && !strcmp(there, wanted->v[i])))
			continue;
		name = nsr_arena_copy(&w->plan->arena, wanted->v[i], len + 1);
		if (name)
			name[len] = '\0';
		write_simple(w, "--setenv", name, wanted->v[i] + len + 1);
	}
}

/* --- nothing was left out ------------------------------------------------------------------- */

static uint8_t *bytes_of(const struct nsr_plan *plan, int64_t *len)
{
	struct nsr_plan copy = *plan;
	uint8_t *out;

	/* these are written, and compared, apart */
	copy.list[NSR_ENV].n = 0;
	copy.n_seccomp = 0;
	copy.number[NSR_FLAGS] &= ~done_here;
	*len = nsr_plan_write(&copy, NULL, 0);
	out = *len > 0 ? malloc((size_t)*len) : NULL;
	if (out)
		nsr_plan_write(&copy, out, (uint64_t)*len);
	return out;
}

static int same(const struct nsr_plan *a, const struct nsr_plan *b)
{
	int64_t a_len, b_len;
	uint8_t *a_bytes = bytes_of(a, &a_len), *b_bytes = bytes_of(b, &b_len);
	int ret = a_bytes && b_bytes && a_len == b_len && !memcmp(a_bytes, b_bytes, (size_t)a_len);

	free(a_bytes);
	free(b_bytes);
	return ret;
}

static int read_back(struct writer *w)
{
	static const char *const nothing[] = { NULL };
	const struct nsr_words *words = &w->words->list[NSR_ARGV];
	struct nsr_plan *again = nsr_plan_new();
	int ret = again ? nsr_plan_parse(again, (int)words->n, words->v, nothing, NULL, NULL,
					 w->diag) : NSR_PARSE_ERROR;

	if (ret == NSR_PARSE_OK && !same(w->plan, again)) {
		nsr_diag_set(w->diag, "this sandbox has something that bwrap can't express");
		ret = NSR_PARSE_ERROR;
	}
	nsr_plan_free(again);
	return ret == NSR_PARSE_OK ? 0 : -EINVAL;
}

/* What bwrap would hand to the payload although it should get stdio alone. */
static int check_close_fds(const struct writer *w)
{
	static const struct {
		enum nsr_number which;
		const char *option;
	} kept[] = {
		{ NSR_SYNC_FD, "--sync-fd" }, { NSR_USERNS_FD, "--userns" },
		{ NSR_USERNS2_FD, "--userns2" }, { NSR_PIDNS_FD, "--pidns" },
	};

	if (!(w->plan->number[NSR_FLAGS] & NSR_CLOSE_FDS))
		return 0;
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
		if (w->plan->number[kept[i].which] != -1)
			return nsr_diag_set(w->diag, "bwrap can't express --close-fds with %s",
					    kept[i].option);
	for (uint32_t i = 0; i < w->plan->n_ops; i++)
		if (w->plan->ops[i].flags & NSR_OP_SOURCE_FD)
			return nsr_diag_set(w->diag, "bwrap can't express --close-fds with a bind "
					    "of fd %d", w->plan->ops[i].fd);
	return 0;
}

/* --- the command line --------------------------------------------------------------------- */

/* Options on a file of their own: others can read a process's argv, and it is bounded. */
static int options_fd(struct writer *w, uint32_t from, uint32_t to)
{
	const char **v = w->words->list[NSR_ARGV].v;
	size_t len = 0;
	char *text, *at;
	int fd;

	for (uint32_t i = from; i < to; i++)
		len += strlen(v[i]) + 1;
	at = text = nsr_arena_alloc(&w->plan->arena, len + 1);
	for (uint32_t i = from; text && i < to; i++)
		at = stpcpy(at, v[i]) + 1;
	if (!text)
		w->failed = 1;
	fd = text ? content_fd(w, text, len) : -1;
	return fd;
}

/* "program OPTIONS... -- COMMAND...", as the parser is to read it back. */
static uint32_t write_words(struct writer *w, const char *program)
{
	const struct nsr_words *command = &w->plan->list[NSR_ARGV];
	uint32_t options_end;

	word(w, program);
	write_flags(w);
	write_numbers(w);
	write_caps(w);
	for (uint32_t i = 0; i < w->plan->n_ops; i++)
		write_op(w, &w->plan->ops[i]);
	options_end = w->words->list[NSR_ARGV].n;
	word(w, "--");
	for (uint32_t i = 0; i < command->n; i++)
		word(w, command->v[i]);
	return options_end;
}

/* The same with options by --args, and what was kept back from the comparison. */
static void rewrite(struct writer *w, const char *program, const char *const *environment)
{
	const struct nsr_words *command = &w->plan->list[NSR_ARGV];
	struct nsr_words *words = &w->words->list[NSR_ARGV];
	int fd;

	write_environment(w, environment);
	for (uint32_t i = 0; i < w->plan->n_seccomp; i++)
		option(w, "--add-seccomp-fd",
		       content_fd(w, w->plan->seccomp[i].data, w->plan->seccomp[i].len));
	if (w->failed)
		return;
	fd = options_fd(w, 1, words->n);
	words->n = 0;
	word(w, program);
	option(w, "--args", fd);
	word(w, "--");
	for (uint32_t i = 0; i < command->n; i++)
		word(w, command->v[i]);
}

static int no_memory(struct nsr_diag *diag)
{
	nsr_diag_errno(diag, ENOMEM, "Out of memory");
	return -ENOMEM;
}

int nsr_bwrap_argv(struct nsr_plan *plan, const char *program, const char *const *environment,
		   const char ***argv, struct nsr_diag *diag)
{
	struct writer w = { plan, nsr_plan_new(), diag, 0 };
	uint32_t options_end;

	diag->text[0] = '\0';
	if (!w.words)
		return no_memory(diag);
	if (check_close_fds(&w) || nsr_reserve_fds(plan, diag))
		return -EINVAL;
	options_end = write_words(&w, program);
	if (!w.failed && read_back(&w))
		return -EINVAL;
	w.words->list[NSR_ARGV].n = options_end;
	if (!w.failed)
		rewrite(&w, program, environment);
	if (w.failed)
		return *diag->text ? -EINVAL : no_memory(diag);
	/* it lives as long as this process: the exec is next */
	*argv = w.words->list[NSR_ARGV].v;
	return 0;
}

/*
 * With --close-fds only what bwrap reads from goes to it, and that it closes
 * itself.  Contents of ours are opened after this.
 */
static void keep_named_fds(const struct nsr_plan *plan)
{
	SYS3(SYS_close_range, FIRST_FREE, ~0u, CLOSE_RANGE_CLOEXEC);
	for (int i = NSR_USERNS_FD; i < NSR_NUMBER_END; i++)
		if (plan->number[i] != -1)
			fcntl((int)plan->number[i], F_SETFD, 0);
	for (uint32_t i = 0; i < plan->n_ops; i++)
		if (plan->ops[i].fd >= 0)
			fcntl(plan->ops[i].fd, F_SETFD, 0);
}

void nsr_bwrap_exec(struct nsr_plan *plan, const char *program, struct nsr_diag *diag)
{
	const char **argv;
	sigset_t sigchld;

	if (plan->number[NSR_FLAGS] & NSR_CLOSE_FDS)
		keep_named_fds(plan);
	if (nsr_bwrap_argv(plan, program, (const char *const *)environ, &argv, diag))
		return;
	if (plan->number[NSR_FLAGS] & NSR_DEFAULT_SIGNALS) {
		signal(SIGPIPE, SIG_DFL);
		signal(SIGXFSZ, SIG_DFL);
	}
	/* our attempt may have blocked it */
	sigemptyset(&sigchld);
	sigaddset(&sigchld, SIGCHLD);
	sigprocmask(SIG_UNBLOCK, &sigchld, NULL);
	if (!setenv(NSR_FALLBACK_MARK, "1", 1))
		execv(program, (char *const *)(uintptr_t)argv);
	nsr_diag_errno(diag, errno, "Can't exec %s", program);
}
