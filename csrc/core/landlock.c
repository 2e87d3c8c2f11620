/* SPDX-License-Identifier: MIT */
/*
 * landlock.c - what the payload may do to files, said a second time: landlock(7).
 *
 * Rules are made of the plan's operations before the clone, and applied by the
 * payload itself when everything is mounted.  A rule holds for all that lies
 * below its path, so what is read-only within something writable is the mounts'
 * business alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "diag.h"
#include "spawn.h"
#include "sys.h"

enum {
	ABI_WANTED = 2,             /* ABI 1 forbids every rename between directories */
	ABI_TRUNCATE = 3,
	ABI_TCP = 4,
	ABI_IOCTL = 5,
	ABI_SCOPE = 6,
	FILE_RIGHTS = NSR_LANDLOCK_EXECUTE | NSR_LANDLOCK_WRITE_FILE | NSR_LANDLOCK_READ_FILE |
		      NSR_LANDLOCK_TRUNCATE | NSR_LANDLOCK_IOCTL_DEV,
};

int nsr_landlock_abi(void)
{
	return (int)SYS3(SYS_landlock_create_ruleset, 0, 0, NSR_LANDLOCK_CREATE_RULESET_VERSION);
}

int nsr_wall_add(struct nsr_ctx *ctx, const char *path, const struct nsr_source *source,
		 uint64_t access)
{
	uint32_t cap = ctx->cap_walls ? 2 * ctx->cap_walls : 16;

	if (ctx->n_walls == ctx->cap_walls) {
		struct nsr_wall *grown = nsr_arena_alloc(ctx->arena, cap * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		if (ctx->n_walls)
			memcpy(grown, ctx->walls, ctx->n_walls * sizeof(*grown));
		ctx->walls = grown;
		ctx->cap_walls = cap;
	}
	ctx->walls[ctx->n_walls++] = (struct nsr_wall){ path, source, access };
	return 0;
}

/* What an operation lets the payload write at its destination and below. */
static uint64_t written(const struct nsr_op *op)
{
	switch (op->type) {
	case NSR_OP_BIND:
		return op->flags & NSR_OP_RDONLY ? 0 : NSR_WALL_WRITE |
			(op->flags & NSR_OP_DEVICES ? NSR_LANDLOCK_IOCTL_DEV : 0);
	case NSR_OP_DEV:
		return NSR_WALL_WRITE | NSR_LANDLOCK_IOCTL_DEV;
	case NSR_OP_PROC:
		return NSR_LANDLOCK_WRITE_FILE | NSR_LANDLOCK_TRUNCATE;
	case NSR_OP_TMPFS:
		/* the root that holds the rest: everything lies below it */
		return nsr_path_below("/", op->dest) ? 0 : NSR_WALL_WRITE;
	case NSR_OP_BIND_DATA:
	case NSR_OP_FILE:
		return op->flags & NSR_OP_RDONLY ? 0 : NSR_LANDLOCK_WRITE_FILE |
			NSR_LANDLOCK_TRUNCATE;
	case NSR_OP_DIR:
	case NSR_OP_MQUEUE:
	case NSR_OP_OVERLAY:
	case NSR_OP_TMP_OVERLAY:
		return NSR_WALL_WRITE;
	default:
		return 0;
	}
}

static int mounts(const struct nsr_op *op)
{
	return op->type != NSR_OP_DIR && op->type != NSR_OP_FILE && op->type != NSR_OP_SYMLINK &&
	       op->type != NSR_OP_CHMOD && op->type != NSR_OP_GUARD && op->type != NSR_OP_HOSTNAME;
}

/* A later operation hides operation i, takes writing back, or makes it a mere stem. */
static int overruled(const struct nsr_ctx *ctx, uint32_t i)
{
	const struct nsr_op *op = &ctx->plan->ops[i];

	for (uint32_t j = i + 1; j < ctx->plan->n_ops; j++) {
		const struct nsr_op *later = &ctx->plan->ops[j];

		if (!later->dest || (later->type == NSR_OP_BIND && !ctx->sources[j].type))
			continue;
		if (mounts(later) && nsr_path_below(op->dest, later->dest) &&
		    (later->type != NSR_OP_REMOUNT_RO || nsr_path_below(later->dest, op->dest)))
			return 1;
		if (op->type == NSR_OP_DIR && nsr_path_below(later->dest, op->dest))
			return 1;
	}
	return 0;
}

/* The current directory is another one by then. */
static const char *from_root(struct nsr_ctx *ctx, const char *path)
{
	size_t len = strlen(path);
	char *out;

	if (*path == '/')
		return path;
	out = nsr_arena_alloc(ctx->arena, len + 2);
	if (out) {
		*out = '/';
		memcpy(out + 1, path, len + 1);
	}
	return out;
}

/* Read everything that is mounted, write what the operations make writable. */
static int mount_walls(struct nsr_ctx *ctx)
{
	int ret = nsr_wall_add(ctx, "/", NULL, NSR_WALL_READ);

	for (uint32_t i = 0; !ret && i < ctx->plan->n_ops; i++) {
		const struct nsr_op *op = &ctx->plan->ops[i];
		uint64_t access = written(op);
		const char *path;

		if (!access || (op->type == NSR_OP_BIND && !ctx->sources[i].type) ||
		    overruled(ctx, i))
			continue;
		path = from_root(ctx, op->dest);
		ret = path ? nsr_wall_add(ctx, path, NULL, access) : -ENOMEM;
	}
	return ret;
}

static int add_ports(struct nsr_ctx *ctx, enum nsr_list which, uint64_t access)
{
	const struct nsr_words *words = &ctx->plan->list[which];

	if (words->n)
		ctx->wall.handled_access_net |= access;
	for (uint32_t i = 0; i < words->n; i++) {
		int port = nsr_port_number(words->v[i]);

		if (port > 0)
			ctx->ports[ctx->n_ports++] = (struct nsr_port){ access, (uint16_t)port };
	}
	return 0;
}

static int tcp_walls(struct nsr_ctx *ctx)
{
	const struct nsr_words *list = ctx->plan->list;
	size_t n = (size_t)list[NSR_TCP_CONNECT].n + list[NSR_TCP_BIND].n;

	ctx->ports = nsr_arena_alloc(ctx->arena, (n + 1) * sizeof(*ctx->ports));
	if (!ctx->ports)
		return -ENOMEM;
	return add_ports(ctx, NSR_TCP_CONNECT, NSR_LANDLOCK_CONNECT_TCP) ||
	       add_ports(ctx, NSR_TCP_BIND, NSR_LANDLOCK_BIND_TCP) ? -EINVAL : 0;
}

static int no_landlock(int abi, const char *who, struct nsr_diag *diag)
{
	diag->err = abi < 0 ? -abi : 0;
	if (abi == -ENOSYS)
		nsr_diag_set(diag, "%s: this kernel has no Landlock: it takes Linux 5.19 or later "
			     "with CONFIG_SECURITY_LANDLOCK", who);
	else if (abi == -EOPNOTSUPP)
		nsr_diag_set(diag, "%s: Landlock is not enabled: put \"landlock\" into the list "
			     "behind lsm= on the kernel's command line", who);
	else if (abi < 0)
		nsr_diag_errno(diag, -abi, "%s: landlock_create_ruleset", who);
	else
		nsr_diag_set(diag, "%s: this kernel's Landlock, ABI %d, forbids every rename "
			     "between directories: it takes Linux 5.19 or later", who, abi);
	return -EINVAL;
}

/* All that this kernel can hold back. */
static void handle_all(struct nsr_ctx *ctx, int abi)
{
	struct nsr_landlock_ruleset_attr *wall = &ctx->wall;

	wall->handled_access_fs = NSR_LANDLOCK_FS_ABI1 | NSR_LANDLOCK_REFER;
	if (abi >= ABI_TRUNCATE)
		wall->handled_access_fs |= NSR_LANDLOCK_TRUNCATE;
	if (abi >= ABI_IOCTL)
		wall->handled_access_fs |= NSR_LANDLOCK_IOCTL_DEV;
	if (abi >= ABI_SCOPE)
		wall->scoped = NSR_LANDLOCK_SCOPE_ABSTRACT_UNIX | NSR_LANDLOCK_SCOPE_SIGNAL;
}

int nsr_landlock_prepare(struct nsr_ctx *ctx, struct nsr_diag *diag)
{
	const struct nsr_plan *plan = ctx->plan;
	int on_host = nsr_host_confined(plan);
	const char *who = on_host ? "--backend host" : "--landlock";
	int abi, ret;

	if (!on_host && !(plan->number[NSR_FLAGS] & NSR_LANDLOCK))
		return 0;
	abi = nsr_landlock_abi();
	if (abi < ABI_WANTED)
		return no_landlock(abi, who, diag);
	if (abi < ABI_TCP && (plan->list[NSR_TCP_CONNECT].n || plan->list[NSR_TCP_BIND].n))
		return nsr_diag_set(diag, "%s: this kernel's Landlock, ABI %d, knows nothing of "
				    "TCP ports: it takes Linux 6.7 or later",
				    plan->list[NSR_TCP_CONNECT].n ? "--tcp-connect" : "--tcp-bind",
				    abi);
	handle_all(ctx, abi);
	if (on_host) {
		ret = nsr_host_walls(ctx, diag);
		if (ret && ret != -ENOMEM)
			return ret;
	} else {
		ret = mount_walls(ctx);
	}
	if (!ret)
		ret = tcp_walls(ctx);
	return ret ? nsr_diag_errno(diag, ENOMEM, "Out of memory") : 0;
}

/* 1: nobody can get there, so there is nothing to allow. */
static int out_of_reach(long err)
{
	return err == -EACCES || err == -ENOENT || err == -ENOTDIR;
}

static int same(const struct nsr_source *source, const struct nsr_statx *st)
{
	return source->ino == st->ino && source->dev_major == st->dev_major &&
	       source->dev_minor == st->dev_minor;
}

static int add_wall(struct nsr_ctx *ctx, int rules, const struct nsr_wall *wall)
{
	struct nsr_landlock_path_attr attr;
	struct nsr_statx st;
	long fd = SYS3(SYS_openat, NSR_AT_FDCWD, wall->path, O_PATH | O_CLOEXEC);
	long ret;

	if (!wall->source && out_of_reach(fd))
		return 0;
	if (fd < 0)
		return nsr_fail_text(ctx, NSR_STEP_LANDLOCK_OPEN, fd, wall->path);
	ret = SYS5(SYS_statx, fd, "", NSR_AT_EMPTY_PATH, NSR_STATX_TYPE | NSR_STATX_INO, &st);
	if (ret < 0)
		return nsr_fail_text(ctx, NSR_STEP_LANDLOCK_OPEN, ret, wall->path);
	if (wall->source && !same(wall->source, &st))
		return nsr_fail_text(ctx, NSR_STEP_LANDLOCK_CHANGED, 0, wall->path);
	attr.parent_fd = (int32_t)fd;
	attr.allowed_access = wall->access & ctx->wall.handled_access_fs;
	if (!S_ISDIR(st.mode))
		attr.allowed_access &= FILE_RIGHTS;
	/* an empty rule is an error to the kernel */
	if (attr.allowed_access)
		ret = SYS4(SYS_landlock_add_rule, rules, NSR_LANDLOCK_RULE_PATH_BENEATH, &attr, 0);
	SYS1(SYS_close, fd);
	return ret < 0 ? nsr_fail_text(ctx, NSR_STEP_LANDLOCK, ret, wall->path) : 0;
}

static int add_port(struct nsr_ctx *ctx, int rules, const struct nsr_port *port)
{
	const struct nsr_landlock_port_attr attr = { port->access, port->port };
	long ret = SYS4(SYS_landlock_add_rule, rules, NSR_LANDLOCK_RULE_NET_PORT, &attr, 0);

	return ret < 0 ? nsr_fail_text(ctx, NSR_STEP_LANDLOCK, ret, "a TCP port") : 0;
}

int nsr_landlock_apply(struct nsr_ctx *ctx)
{
	long rules, ret;

	if (!ctx->wall.handled_access_fs)
		return 0;
	rules = SYS3(SYS_landlock_create_ruleset, &ctx->wall, sizeof(ctx->wall), 0);
	if (rules < 0)
		return nsr_fail_text(ctx, NSR_STEP_LANDLOCK, rules, "landlock_create_ruleset");
	for (uint32_t i = 0; i < ctx->n_walls; i++)
		if (add_wall(ctx, (int)rules, &ctx->walls[i]))
			return -1;
	for (uint32_t i = 0; i < ctx->n_ports; i++)
		if (add_port(ctx, (int)rules, &ctx->ports[i]))
			return -1;
	ret = SYS2(SYS_landlock_restrict_self, rules, 0);
	SYS1(SYS_close, rules);
	return ret < 0 ? nsr_fail_text(ctx, NSR_STEP_LANDLOCK, ret, "landlock_restrict_self") : 0;
}
