/* SPDX-License-Identifier: MIT */
/* exec.c - command, environment and directory, made ready before the clone. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "diag.h"
#include "spawn.h"
#include "sys.h"

/* What execvp(3) searches where there is no PATH: confstr(_CS_PATH). */
static const char default_path[] = "/bin:/usr/bin";

static char *join(struct nsr_ctx *ctx, const char *a, size_t a_len, const char *b)
{
	size_t b_len = strlen(b);
	char *out = nsr_arena_alloc(ctx->arena, a_len + b_len + 2);

	if (!out)
		return NULL;
	memcpy(out, a, a_len);
	memcpy(out + a_len, b, b_len + 1);
	return out;
}

/* "DIR/FILE" for one element of PATH; an empty one means the directory we are in. */
static char *program_in(struct nsr_ctx *ctx, const char *dir, size_t len, const char *file)
{
	char *out = nsr_arena_alloc(ctx->arena, len + strlen(file) + 2);

	if (!out)
		return NULL;
	memcpy(out, dir, len);
	if (len)
		out[len++] = '/';
	memcpy(out + len, file, strlen(file) + 1);
	return out;
}

static int search_path(struct nsr_ctx *ctx, const char *path, const char *file)
{
	size_t n = 2, i = 0;

	for (const char *p = path; *p; p++)
		n += *p == ':';
	ctx->programs = nsr_arena_alloc(ctx->arena, n * sizeof(*ctx->programs));
	if (!ctx->programs)
		return -ENOMEM;
	for (;;) {
		size_t len = strcspn(path, ":");

		ctx->programs[i] = program_in(ctx, path, len, file);
		if (!ctx->programs[i++])
			return -ENOMEM;
		if (!path[len])
			break;
		path += len + 1;
	}
	ctx->programs[i] = NULL;
	return 0;
}

static int find_programs(struct nsr_ctx *ctx)
{
	const char *file = ctx->plan->list[NSR_ARGV].v[0];
	const char *path = nsr_plan_getenv(ctx->plan, "PATH");

	if (*file && !strchr(file, '/'))
		return search_path(ctx, path ? path : default_path, file);
	ctx->programs = nsr_arena_alloc(ctx->arena, 2 * sizeof(*ctx->programs));
	if (!ctx->programs)
		return -ENOMEM;
	/* an empty name is found nowhere */
	ctx->programs[0] = *file ? file : NULL;
	ctx->programs[1] = NULL;
	return 0;
}

static int make_argv(struct nsr_ctx *ctx)
{
	const struct nsr_words *argv = &ctx->plan->list[NSR_ARGV];
	const char *argv0 = ctx->plan->string[NSR_ARGV0];
	size_t size = (argv->n + 1) * sizeof(*argv->v);

	ctx->argv = nsr_arena_copy(ctx->arena, argv->v, size);
	/* one place more, for the script's path */
	ctx->sh_argv = nsr_arena_alloc(ctx->arena, size + sizeof(*argv->v));
	if (!ctx->argv || !ctx->sh_argv)
		return -ENOMEM;
	if (argv0)
		ctx->argv[0] = argv0;
	ctx->sh_argv[0] = "/bin/sh";
	memcpy(ctx->sh_argv + 2, argv->v + 1, size - sizeof(*argv->v));
	return 0;
}

static int same_dir(const char *a, const char *b)
{
	struct stat sa, sb;

	return !stat(a, &sa) && !stat(b, &sb) && sa.st_ino == sb.st_ino &&
	       sa.st_dev == sb.st_dev;
}

/* get_current_dir_name(3): $PWD as it is written, if that is where we are. */
static int find_cwd(struct nsr_ctx *ctx)
{
	const char *pwd = nsr_plan_getenv(ctx->plan, "PWD");
	const char *cwd;

	if (ctx->plan->string[NSR_CHDIR])
		return 0;
	cwd = getcwd(ctx->cold->path[0], sizeof(ctx->cold->path[0]));
	if (cwd && *cwd != '/')
		cwd = NULL;
	/* where both are written alike, it is all the same which one is taken */
	if (pwd && *pwd == '/' && ((cwd && !strcmp(pwd, cwd)) || same_dir(pwd, ".")))
		ctx->old_cwd = pwd;
	else if (cwd)
		ctx->old_cwd = nsr_arena_str(ctx->arena, cwd);
	ctx->home = nsr_plan_getenv(ctx->plan, "HOME");
	return 0;
}

static int make_env(struct nsr_ctx *ctx)
{
	const struct nsr_words *env = &ctx->plan->list[NSR_ENV];
	static const char pwd[] = "PWD=";
	const size_t len = sizeof(pwd) - 1;
	const char *dir = ctx->plan->string[NSR_CHDIR];
	uint32_t i;

	ctx->envp = nsr_arena_alloc(ctx->arena, (env->n + 2) * sizeof(*env->v));
	if (!ctx->envp)
		return -ENOMEM;
	if (env->n)
		memcpy(ctx->envp, env->v, env->n * sizeof(*env->v));
	for (i = 0; i < env->n; i++)
		if (!strncmp(env->v[i], pwd, len))
			break;
	ctx->pwd_slot = &ctx->envp[i];
	ctx->envp[env->n] = ctx->envp[env->n + 1] = NULL;
	ctx->envp[i] = "PWD=/";
	ctx->pwd_chdir = join(ctx, pwd, len, dir ? dir : "");
	ctx->pwd_cwd = join(ctx, pwd, len, ctx->old_cwd ? ctx->old_cwd : "");
	ctx->pwd_home = join(ctx, pwd, len, ctx->home ? ctx->home : "");
	return ctx->pwd_chdir && ctx->pwd_cwd && ctx->pwd_home ? 0 : -ENOMEM;
}

static void find_console(struct nsr_ctx *ctx)
{
	int out = ctx->stdio[1] >= 0 ? ctx->stdio[1] : STDOUT_FILENO;
	char name[256];

	for (uint32_t i = 0; i < ctx->plan->n_ops; i++) {
		if (ctx->plan->ops[i].type != NSR_OP_DEV)
			continue;
		if (!ttyname_r(out, name, sizeof(name)))
			ctx->console = nsr_arena_str(ctx->arena, name);
		return;
	}
}

static void keep_sigmask(struct nsr_ctx *ctx)
{
	SYS4(SYS_rt_sigprocmask, SIG_SETMASK, 0, &ctx->sigmask, sizeof(ctx->sigmask));
	/* the payload can wait for its children, whatever its caller did */
	ctx->sigmask &= ~(1ULL << (SIGCHLD - 1));
}

int nsr_prepare_words(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	if (find_programs(ctx) || make_argv(ctx) || make_env(ctx))
		return nsr_diag_errno(diag, ENOMEM, "Out of memory");
	return 0;
}

int nsr_prepare_exec(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	if (find_cwd(ctx))
		return nsr_diag_errno(diag, ENOMEM, "Out of memory");
	if (nsr_prepare_words(ctx, diag))
		return -1;
	find_console(ctx);
	keep_sigmask(ctx);
	return 0;
}
