/* SPDX-License-Identifier: MIT */
/* argv.c - the bwrap command line, to a plan. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "caps.h"
#include "diag.h"
#include "options.h"
#include "plan.h"
#include "readfd.h"
#include "uapi.h"

enum {
	PERMS_NONE = -1,
	PARSE_PLAN = 100,           /* beside enum nsr_parse_result: --plan was read */
};

struct parser {
	struct nsr_plan *plan;
	struct nsr_diag *diag;
	nsr_warn_fn warn;
	void *warn_arg;
	size_t words;               /* of argv and all --args so far */
	int in_file;                /* the list comes from --args */
	const struct nsr_seccomp_profile *profile;
	int plan_fd;
};

/* What --perms, --size and --overlay-src hold for the next option. */
struct pending {
	int perms;
	uint64_t size;
	const char **layers;
	uint32_t n_layers;
	uint32_t cap_layers;
};

struct option {
	const char *name;
	int n_args;
	int (*handler)(struct parser *p, struct pending *next, const struct option *opt,
		       const char *const *arg);
	int value;
	unsigned int flags;
};

static int no_memory(struct parser *p)
{
	return nsr_diag_errno(p->diag, ENOMEM, "Out of memory");
}

static int parse_number(const char *s, int *out)
{
	char *end;
	long n = strtol(s, &end, 10);

	if (!*s || *end || n < 0)
		return -EINVAL;
	/* bwrap keeps the low bits of a long too large for an int */
	*out = (int)n;
	return 0;
}

static int parse_fd(struct parser *p, const char *s, int *out)
{
	return parse_number(s, out) || *out < 0 ? nsr_diag_set(p->diag, "Invalid fd: %s", s) : 0;
}

static int parse_octal(struct parser *p, const char *option, const char *s, int *out)
{
	char *end;
	unsigned long n = strtoul(s, &end, 8);

	if (!*s || *end || n > 07777)
		return nsr_diag_set(p->diag, "%s takes an octal argument <= 07777", option);
	*out = (int)n;
	return 0;
}

static void warn_if_again(struct parser *p, const struct option *opt, int again)
{
	char text[128] = "Only the last ";

	if (!again || !(opt->flags & NSR_OPTION_LAST) || !p->warn)
		return;
	strncat(text, opt->name, 32);
	strcat(text, " option will take effect");
	p->warn(p->warn_arg, text);
}

static int take_perms(struct pending *next, int otherwise)
{
	int perms = next->perms == PERMS_NONE ? otherwise : next->perms;

	next->perms = PERMS_NONE;
	return perms;
}

static struct nsr_op *add_op(struct parser *p, uint32_t type, const char *dest)
{
	struct nsr_op *op = nsr_plan_new_op(p->plan, type);

	if (!op) {
		no_memory(p);
		return NULL;
	}
	op->dest = dest;
	return op;
}

static int set_flag(struct parser *p, int64_t bits, enum nsr_number which)
{
	p->plan->number[which] |= bits;
	return 0;
}

#define HANDLER(fn) \
	static int fn(struct parser *p, struct pending *next, const struct option *opt, \
		      const char *const *arg)
#define UNUSED(x) ((void)(x))

HANDLER(opt_help)
{
	UNUSED(p), UNUSED(next), UNUSED(opt), UNUSED(arg);
	return NSR_PARSE_HELP;
}

HANDLER(opt_version)
{
	UNUSED(p), UNUSED(next), UNUSED(opt), UNUSED(arg);
	return NSR_PARSE_VERSION;
}

HANDLER(opt_argv0)
{
	UNUSED(next);
	if (p->plan->string[NSR_ARGV0])
		return nsr_diag_set(p->diag, "%s used multiple times", opt->name);
	p->plan->string[NSR_ARGV0] = arg[0];
	return 0;
}

HANDLER(opt_flag)
{
	UNUSED(next), UNUSED(arg);
	return set_flag(p, opt->value, NSR_FLAGS);
}

HANDLER(opt_unshare)
{
	UNUSED(next), UNUSED(arg);
	return set_flag(p, opt->value, NSR_UNSHARE);
}

HANDLER(opt_unshare_all)
{
	UNUSED(next), UNUSED(opt), UNUSED(arg);
	set_flag(p, NSR_UNSHARE_USER_TRY | NSR_UNSHARE_CGROUP_TRY, NSR_FLAGS);
	return set_flag(p, NSR_CLONE_NEWIPC | NSR_CLONE_NEWPID | NSR_CLONE_NEWNET |
			NSR_CLONE_NEWUTS, NSR_UNSHARE);
}

HANDLER(opt_share_net)
{
	UNUSED(next), UNUSED(opt), UNUSED(arg);
	p->plan->number[NSR_UNSHARE] &= ~(int64_t)NSR_CLONE_NEWNET;
	return 0;
}

HANDLER(opt_fd)
{
	int fd = -1;

	UNUSED(next);
	warn_if_again(p, opt, p->plan->number[opt->value] != -1);
	if (parse_fd(p, arg[0], &fd))
		return -EINVAL;
	p->plan->number[opt->value] = fd;
	return 0;
}

HANDLER(opt_id)
{
	int id;

	UNUSED(next);
	warn_if_again(p, opt, p->plan->number[opt->value] != NSR_ID_UNSET);
	if (parse_number(arg[0], &id) || id < 0)
		return nsr_diag_set(p->diag, "Invalid %s: %s", opt->name + 2, arg[0]);
	p->plan->number[opt->value] = id;
	return 0;
}

HANDLER(opt_hostname)
{
	struct nsr_op *op = add_op(p, NSR_OP_HOSTNAME, NULL);

	UNUSED(next);
	if (!op)
		return -ENOMEM;
	op->source = arg[0];
	warn_if_again(p, opt, p->plan->string[NSR_HOSTNAME] != NULL);
	p->plan->string[NSR_HOSTNAME] = arg[0];
	return 0;
}

HANDLER(opt_chdir)
{
	UNUSED(next);
	warn_if_again(p, opt, p->plan->string[NSR_CHDIR] != NULL);
	p->plan->string[NSR_CHDIR] = arg[0];
	return 0;
}

static int env_failed(struct parser *p, int ret, const char *text)
{
	return ret == -ENOMEM ? no_memory(p) : nsr_diag_set(p->diag, "%s", text);
}

HANDLER(opt_setenv)
{
	int ret = nsr_plan_setenv(p->plan, arg[0], arg[1]);

	UNUSED(next), UNUSED(opt);
	return ret ? env_failed(p, ret, "setenv failed") : 0;
}

HANDLER(opt_unsetenv)
{
	int ret = nsr_plan_unsetenv(p->plan, arg[0]);

	UNUSED(next), UNUSED(opt);
	return ret ? env_failed(p, ret, "unsetenv failed") : 0;
}

HANDLER(opt_clearenv)
{
	UNUSED(next), UNUSED(opt), UNUSED(arg);
	p->plan->list[NSR_ENV].n = 0;
	if (p->plan->list[NSR_ENV].v)
		p->plan->list[NSR_ENV].v[0] = NULL;
	return 0;
}

static int cap_mask(struct parser *p, const char *name, int64_t *mask)
{
	int cap;

	if (!strcasecmp(name, "ALL")) {
		*mask = -1;
		return 0;
	}
	cap = nsr_cap_by_name(name);
	if (cap < 0)
		return nsr_diag_set(p->diag, "unknown cap: %s", name);
	*mask = (int64_t)(1ULL << cap);
	return 0;
}

/* Add and drop work in order: the later word about a capability holds. */
static int move_caps(struct parser *p, const char *name, enum nsr_number to,
		     enum nsr_number from)
{
	int64_t mask = 0;

	if (cap_mask(p, name, &mask))
		return -EINVAL;
	p->plan->number[to] |= mask;
	p->plan->number[from] &= ~mask;
	return set_flag(p, NSR_CAPS_TOUCHED, NSR_FLAGS);
}

HANDLER(opt_cap_add)
{
	UNUSED(next), UNUSED(opt);
	return move_caps(p, arg[0], NSR_CAPS_SET, NSR_CAPS_CLEAR);
}

HANDLER(opt_cap_drop)
{
	UNUSED(next), UNUSED(opt);
	return move_caps(p, arg[0], NSR_CAPS_CLEAR, NSR_CAPS_SET);
}

HANDLER(opt_lock_file)
{
	UNUSED(next), UNUSED(opt);
	return nsr_plan_keep_word(p->plan, NSR_LOCK_FILES, arg[0]) ? no_memory(p) : 0;
}

/* Seconds with up to three decimals, to milliseconds. */
HANDLER(opt_timeout)
{
	char *end;
	unsigned long whole = strtoul(arg[0], &end, 10), part = 0, unit = 100;
	int digits = arg[0][0] >= '0' && arg[0][0] <= '9';

	UNUSED(next);
	warn_if_again(p, opt, p->plan->number[NSR_TIMEOUT_MS] != 0);
	if (digits && *end == '.')
		for (end++; *end >= '0' && *end <= '9' && unit; end++, unit /= 10)
			part += unit * (unsigned long)(*end - '0');
	if (!digits || *end || whole > NSR_MAX_TIMEOUT_MS / 1000 || !(whole + part))
		return nsr_diag_set(p->diag, "%s: %s is not a number of seconds", opt->name, arg[0]);
	p->plan->number[NSR_TIMEOUT_MS] = (int64_t)(whole * 1000 + part);
	return 0;
}

HANDLER(opt_cgroup)
{
	UNUSED(next), UNUSED(opt);
	return nsr_plan_keep_word(p->plan, NSR_CGROUPS, arg[0]) ? no_memory(p) : 0;
}

/* A number, or "unlimited"; what is behind it goes to end. */
static int parse_limit(const char *s, uint64_t *out, const char **end)
{
	static const char none[] = "unlimited";
	char *behind;

	*out = ~(uint64_t)0;
	*end = s + sizeof(none) - 1;
	if (!strncmp(s, none, sizeof(none) - 1))
		return 0;
	if (*s < '0' || *s > '9')
		return -EINVAL;
	errno = 0;
	*out = strtoull(s, &behind, 10);
	*end = behind;
	return errno ? -EINVAL : 0;
}

HANDLER(opt_rlimit)
{
	const char *at = arg[1];
	uint64_t soft, hard;
	int ret;

	UNUSED(next);
	if (parse_limit(at, &soft, &at))
		return nsr_diag_set(p->diag, "%s: %s is not SOFT or SOFT:HARD", opt->name, arg[1]);
	hard = soft;
	if ((*at == ':' && parse_limit(at + 1, &hard, &at)) || *at)
		return nsr_diag_set(p->diag, "%s: %s is not SOFT or SOFT:HARD", opt->name, arg[1]);
	ret = nsr_plan_add_rlimit(p->plan, arg[0], soft, hard);
	if (ret == -EINVAL)
		return nsr_diag_set(p->diag, "%s: there is no limit %s", opt->name, arg[0]);
	return ret ? no_memory(p) : 0;
}

HANDLER(opt_perms)
{
	if (next->perms != PERMS_NONE)
		return nsr_diag_set(p->diag, "--perms given twice for the same action");
	return parse_octal(p, opt->name, arg[0], &next->perms);
}

HANDLER(opt_size)
{
	char *end;

	UNUSED(opt);
	if (next->size)
		return nsr_diag_set(p->diag, "--size given twice for the same action");
	errno = 0;
	next->size = strtoull(arg[0], &end, 0);
	if (errno || arg[0][0] < '0' || arg[0][0] > '9' || *end || !next->size)
		return nsr_diag_set(p->diag, "--size takes a non-zero number of bytes");
	if (next->size > SIZE_MAX / 2)
		return nsr_diag_set(p->diag, "--size (for tmpfs) is limited to %zu", SIZE_MAX / 2);
	return 0;
}

HANDLER(opt_bind)
{
	struct nsr_op *op = add_op(p, NSR_OP_BIND, arg[1]);

	UNUSED(next);
	if (!op)
		return -ENOMEM;
	op->source = arg[0];
	op->flags = (uint32_t)opt->value;
	return 0;
}

HANDLER(opt_bind_fd)
{
	struct nsr_op *op;
	int fd = -1;

	UNUSED(next);
	if (parse_fd(p, arg[0], &fd))
		return -EINVAL;
	op = add_op(p, NSR_OP_BIND, arg[1]);
	if (!op)
		return -ENOMEM;
	op->fd = fd;
	op->flags = (uint32_t)opt->value | NSR_OP_SOURCE_FD;
	return 0;
}

HANDLER(opt_dest)
{
	UNUSED(next);
	return add_op(p, (uint32_t)opt->value, arg[0]) ? 0 : -ENOMEM;
}

HANDLER(opt_tmpfs)
{
	struct nsr_op *op = add_op(p, (uint32_t)opt->value, arg[0]);

	if (!op)
		return -ENOMEM;
	op->perms = (uint32_t)take_perms(next, 0755);
	op->size = next->size;
	next->size = 0;
	return 0;
}

HANDLER(opt_dir)
{
	struct nsr_op *op = add_op(p, (uint32_t)opt->value, arg[0]);

	if (!op)
		return -ENOMEM;
	op->perms = (uint32_t)take_perms(next, 0755);
	return 0;
}

static int add_data(struct parser *p, struct pending *next, const struct option *opt,
		    const char *const *arg, uint32_t flags)
{
	struct nsr_op *op;
	int fd = -1;

	if (parse_fd(p, arg[0], &fd))
		return -EINVAL;
	op = add_op(p, (uint32_t)opt->value, arg[1]);
	if (!op)
		return -ENOMEM;
	op->fd = fd;
	op->flags = flags;
	op->perms = (uint32_t)take_perms(next, opt->value == NSR_OP_FILE ? 0666 : 0600);
	return 0;
}

HANDLER(opt_data)
{
	return add_data(p, next, opt, arg, 0);
}

HANDLER(opt_ro_data)
{
	return add_data(p, next, opt, arg, NSR_OP_RDONLY);
}

HANDLER(opt_symlink)
{
	struct nsr_op *op = add_op(p, (uint32_t)opt->value, arg[1]);

	UNUSED(next);
	if (!op)
		return -ENOMEM;
	op->source = arg[0];
	return 0;
}

HANDLER(opt_chmod)
{
	struct nsr_op *op;
	int perms = 0;

	UNUSED(next);
	if (parse_octal(p, opt->name, arg[0], &perms))
		return -EINVAL;
	op = add_op(p, (uint32_t)opt->value, arg[1]);
	if (!op)
		return -ENOMEM;
	op->perms = (uint32_t)perms;
	return 0;
}

HANDLER(opt_overlay_src)
{
	const char **grown = nsr_plan_grow(p->plan, next->layers, next->n_layers,
					   &next->cap_layers, sizeof(*grown));

	UNUSED(opt);
	if (!grown)
		return no_memory(p);
	next->layers = grown;
	next->layers[next->n_layers++] = arg[0];
	return 0;
}

HANDLER(opt_overlay)
{
	int writable = opt->value == NSR_OP_OVERLAY;
	struct nsr_op *op;

	if (!next->n_layers)
		return nsr_diag_set(p->diag, "%s requires at least %s --overlay-src", opt->name,
				    opt->value == NSR_OP_RO_OVERLAY ? "two" : "one");
	if (opt->value == NSR_OP_RO_OVERLAY && next->n_layers < 2)
		return nsr_diag_set(p->diag, "%s requires at least two --overlay-src", opt->name);
	op = add_op(p, (uint32_t)opt->value, arg[writable ? 2 : 0]);
	if (!op)
		return -ENOMEM;
	if (writable) {
		op->source = arg[0];
		op->work = arg[1];
	}
	op->layers = next->layers;
	op->n_layers = next->n_layers;
	next->layers = NULL;
	next->n_layers = next->cap_layers = 0;
	return 0;
}

HANDLER(opt_seccomp)
{
	if (p->plan->n_seccomp)
		return nsr_diag_set(p->diag, "--seccomp cannot be combined with --add-seccomp-fd");
	return opt_fd(p, next, opt, arg);
}

HANDLER(opt_seccomp_profile)
{
	UNUSED(next);
	warn_if_again(p, opt, p->profile != NULL);
	p->profile = nsr_seccomp_profile(arg[0]);
	if (!p->profile)
		return nsr_diag_set(p->diag, "%s: there is no profile %s; there are default, "
				    "nesting, strict and none", opt->name, arg[0]);
	return 0;
}

HANDLER(opt_add_seccomp)
{
	struct nsr_blob data;
	int fd = -1, ret;

	UNUSED(next), UNUSED(opt);
	if (p->plan->number[NSR_SECCOMP_FD] != -1)
		return nsr_diag_set(p->diag, "--add-seccomp-fd cannot be combined with --seccomp");
	if (parse_fd(p, arg[0], &fd))
		return -EINVAL;
	ret = nsr_read_fd(p->plan, fd, &data);
	if (ret)
		return nsr_diag_errno(p->diag, -ret, "Can't read seccomp data");
	if (data.len % sizeof(struct nsr_sock_filter))
		return nsr_diag_set(p->diag, "Invalid seccomp data, must be multiple of 8");
	return nsr_plan_add_seccomp(p->plan, data.data, data.len) ? no_memory(p) : 0;
}

HANDLER(opt_tcp)
{
	UNUSED(next), UNUSED(opt);
	return nsr_plan_keep_word(p->plan, (enum nsr_list)opt->value, arg[0]) ? no_memory(p) : 0;
}

HANDLER(opt_label)
{
	UNUSED(next), UNUSED(opt), UNUSED(arg);
	return nsr_diag_set(p->diag, "labeling not supported on this system");
}

HANDLER(opt_backend)
{
	UNUSED(next), UNUSED(opt);
	p->plan->choice.backend = arg[0];
	/* the plan is checked for what the host can do */
	p->plan->number[NSR_FLAGS] &= ~(int64_t)NSR_ON_HOST;
	if (!strcasecmp(arg[0], "host"))
		set_flag(p, NSR_ON_HOST, NSR_FLAGS);
	p->plan->choice.words += 2;
	return 0;
}

HANDLER(opt_quiet)
{
	UNUSED(next), UNUSED(opt), UNUSED(arg);
	p->plan->choice.quiet = 1;
	p->plan->choice.words++;
	return 0;
}

HANDLER(opt_probe)
{
	UNUSED(next), UNUSED(opt), UNUSED(arg);
	p->plan->choice.probe = 1;
	return 0;
}

HANDLER(opt_allow_host)
{
	UNUSED(next), UNUSED(opt), UNUSED(arg);
	p->plan->choice.allow_host = 1;
	return 0;
}

HANDLER(opt_plan)
{
	UNUSED(next);
	if (p->words != 2 + p->plan->choice.words)
		return nsr_diag_set(p->diag, "%s stands alone", opt->name);
	if (parse_fd(p, arg[0], &p->plan_fd))
		return -EINVAL;
	return PARSE_PLAN;
}

/* The plan is not run: it only carries the number. */
HANDLER(opt_tend)
{
	int fd = -1;

	UNUSED(next);
	if (p->words != 2)
		return nsr_diag_set(p->diag, "%s stands alone", opt->name);
	if (parse_fd(p, arg[0], &fd))
		return -EINVAL;
	p->plan->number[NSR_SYNC_FD] = fd;
	return NSR_PARSE_TEND;
}

static int parse_list(struct parser *p, struct pending *next, const char *const *argv,
		      size_t n, size_t *used);

static size_t count_words(const char *data, size_t len)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++)
		n += !data[i];
	return len && data[len - 1] ? n + 1 : n;
}

HANDLER(opt_args)
{
	struct nsr_blob data;
	const char **words;
	size_t n, used;
	int fd = -1, ret;

	UNUSED(opt);
	if (p->in_file)
		return nsr_diag_set(p->diag, "--args not supported in arguments file");
	if (parse_fd(p, arg[0], &fd))
		return -EINVAL;
	ret = nsr_read_fd(p->plan, fd, &data);
	if (ret)
		return nsr_diag_errno(p->diag, -ret, "Can't read --args data");
	n = count_words((const char *)data.data, data.len);
	p->words += n;
	if (p->words > NSR_MAX_WORDS)
		return nsr_diag_set(p->diag, "Exceeded maximum number of arguments %d",
				    NSR_MAX_WORDS);
	words = nsr_arena_alloc(&p->plan->arena, (n + 1) * sizeof(*words));
	if (!words)
		return no_memory(p);
	for (size_t i = 0, at = 0; i < n; i++) {
		words[i] = (const char *)data.data + at;
		at += strlen(words[i]) + 1;
	}
	words[n] = NULL;
	p->in_file = 1;
	ret = parse_list(p, next, words, n, &used);
	p->in_file = 0;
	return ret;
}

#define ONE NSR_OPTION_ONE
#define LAST NSR_OPTION_LAST
#define OURS NSR_OPTION_OURS
#define S(title)
#define O(name, args, count, handler, value, flags, help) \
	{ name, count, handler, (int)(value), flags },

static const struct option options[] = {
#include "options.def"
};

static const struct option *find_option(const char *name)
{
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (!strcmp(name, options[i].name))
			return &options[i];
	return NULL;
}

static int complain_overlay_src(struct parser *p)
{
	return nsr_diag_set(p->diag, "--overlay-src must be followed by another "
		"--overlay-src or one of --overlay, --tmp-overlay, or --ro-overlay");
}

static int missing_argument(struct parser *p, const struct option *opt)
{
	static const char *const counts[] = { "", "one argument", "two arguments",
					      "three arguments" };
	/* bwrap's text for --ro-bind-fd names its writable twin */
	const char *name = strcmp(opt->name, "--ro-bind-fd") ? opt->name : "--bind-fd";

	if (opt->handler == opt_overlay_src)
		return complain_overlay_src(p);
	if (opt->n_args == 1 && !(opt->flags & NSR_OPTION_ONE))
		return nsr_diag_set(p->diag, "%s takes an argument", name);
	return nsr_diag_set(p->diag, "%s takes %s", name, counts[opt->n_args]);
}

/* What an option left pending must be taken by the next; --perms and --size agree. */
static int check_pending(struct parser *p, const struct pending *next, const struct option *opt)
{
	int modes = opt->handler == opt_perms || opt->handler == opt_size;

	if (!modes && next->perms != PERMS_NONE)
		return nsr_diag_set(p->diag,
			"--perms must be followed by an option that creates a file");
	if (!modes && next->size)
		return nsr_diag_set(p->diag, "--size must be followed by --tmpfs");
	if (next->n_layers && opt->handler != opt_overlay_src)
		return complain_overlay_src(p);
	return 0;
}

static int parse_option(struct parser *p, struct pending *next, const char *const *argv,
			size_t n, size_t *used)
{
	const struct option *opt = find_option(argv[0]);
	int ret;

	if (!opt)
		return nsr_diag_set(p->diag, "Unknown option %s", argv[0]);
	if (n < (size_t)opt->n_args + 1)
		return missing_argument(p, opt);
	ret = opt->handler(p, next, opt, argv + 1);
	if (!ret)
		ret = check_pending(p, next, opt);
	*used += (size_t)opt->n_args + 1;
	return ret;
}

/* Options up to the first other word; used: how many words they were. */
static int parse_list(struct parser *p, struct pending *next, const char *const *argv,
		      size_t n, size_t *used)
{
	*used = 0;
	while (*used < n) {
		const char *word = argv[*used];
		int ret;

		if (!strcmp(word, "--")) {
			++*used;
			break;
		}
		if (*word != '-')
			break;
		ret = parse_option(p, next, argv + *used, n - *used, used);
		if (ret)
			return ret;
	}
	return 0;
}

static int keep_words(struct parser *p, enum nsr_list which, const char *const *words)
{
	for (; *words; words++)
		if (nsr_plan_keep_word(p->plan, which, *words))
			return no_memory(p);
	return 0;
}

/* In front of the caller's programs, wherever the option stood. */
static int keep_profile(struct parser *p)
{
	if (!p->profile)
		return 0;
	return nsr_plan_set_seccomp_profile(p->plan, p->profile) ? no_memory(p) : 0;
}

static int read_plan(struct parser *p)
{
	struct nsr_blob data;
	int ret = nsr_read_fd(p->plan, p->plan_fd, &data);

	if (ret)
		nsr_diag_errno(p->diag, -ret, "Can't read plan from fd %d", p->plan_fd);
	else
		ret = nsr_plan_read(p->plan, data.data, data.len, p->diag);
	return ret ? NSR_PARSE_ERROR : NSR_PARSE_OK;
}

int nsr_plan_parse(struct nsr_plan *plan, int argc, const char *const *argv,
		   const char *const *envp, nsr_warn_fn warn, void *warn_arg,
		   struct nsr_diag *diag)
{
	struct parser p = { plan, diag, warn, warn_arg, 0, 0, NULL, -1 };
	struct pending next = { .perms = PERMS_NONE };
	size_t n = argc > 0 ? (size_t)argc - 1 : 0;
	size_t used;
	int ret;

	if (!n)
		return NSR_PARSE_USAGE;
	p.words = n;
	if (n > NSR_MAX_WORDS) {
		nsr_diag_set(diag, "Exceeded maximum number of arguments %d", NSR_MAX_WORDS);
		return NSR_PARSE_ERROR;
	}
	if (keep_words(&p, NSR_ENV, envp))
		return NSR_PARSE_ERROR;
	ret = parse_list(&p, &next, argv + 1, n, &used);
	if (ret == PARSE_PLAN)
		return read_plan(&p);
	if (ret > 0)
		return ret;
	if (!ret && next.n_layers)
		ret = complain_overlay_src(&p);
	if (ret < 0)
		return NSR_PARSE_ERROR;
	if (keep_profile(&p) || keep_words(&p, NSR_ARGV, argv + 1 + used))
		return NSR_PARSE_ERROR;
	if (nsr_plan_check(plan, diag))
		return NSR_PARSE_ERROR;
	return plan->list[NSR_ARGV].n ? NSR_PARSE_OK : NSR_PARSE_USAGE;
}
