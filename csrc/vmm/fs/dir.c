/* SPDX-License-Identifier: MIT */
/* dir.c - names: looked up, made, moved, removed. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

enum {
	RENAME_KNOWN = 1 | 2,           /* RENAME_NOREPLACE, RENAME_EXCHANGE */
	RENAME_SWAP = 2,
};

/* Look the name up, and answer with its node. */
static int reply_entry(struct fs_call *call, const char *name)
{
	struct fs_server *server = call->server;
	struct fuse_entry_out entry;
	struct fs_found found;
	struct fs_node *node;
	int err = fs_look(server, call->node, name, &found);

	if (!err)
		err = fs_node_seen(server, call->node, name, &found, &node);
	if (err)
		return err;
	atomic_store(&node->looked, true);
	fs_fill_entry(server, node, &found.st, &entry);
	fs_node_put(server, node);
	return fs_reply(call, &entry, sizeof(entry));
}

int fs_op_lookup(struct fs_call *call)
{
	char name[FS_NAME];
	int err = fs_take_name(call, name);

	return err ? err : reply_entry(call, name);
}

int fs_op_readlink(struct fs_call *call)
{
	char target[PATH_MAX];
	ssize_t len;
	int fd;

	if (call->node->is.type != S_IFLNK || call->node->where.access == FS_HIDDEN)
		return -EINVAL;
	fd = fs_node_fd(call->server, call->node);
	if (fd < 0)
		return fd;
	len = readlinkat(fd, "", target, sizeof(target));
	return len < 0 ? -errno : fs_reply(call, target, (size_t)len);
}

/* The directory's fd, if something new of this name may be made there. */
static int make_at(struct fs_call *call, const char *name, bool as_directory)
{
	struct fs_where where;
	int err = fs_may_make(call->node, name, as_directory, &where);

	return err ? err : fs_directory_fd(call->server, call->node);
}

int fs_op_symlink(struct fs_call *call)
{
	char name[FS_NAME], target[PATH_MAX];
	int err = fs_take_name(call, name), fd;

	if (!err)
		err = fs_take_string(call, target, sizeof(target));
	if (err)
		return err;
	fd = make_at(call, name, false);
	if (fd < 0)
		return fd;
	return symlinkat(target, fd, name) ? -errno : reply_entry(call, name);
}

static int make_regular(int dir, const char *name, mode_t mode)
{
	int fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, mode);

	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

int fs_op_mknod(struct fs_call *call)
{
	struct fuse_mknod_in in;
	char name[FS_NAME];
	int err = fs_take(call, &in, sizeof(in)), fd;
	uint32_t mode;

	if (!err)
		err = fs_take_name(call, name);
	if (err)
		return err;
	mode = fs_new_mode(call->server, in.mode);
	fd = make_at(call, name, false);
	if (fd < 0)
		return fd;
	switch (in.mode & S_IFMT) {
	case 0:
	case S_IFREG:
		err = make_regular(fd, name, mode);
		break;
	case S_IFIFO:
	case S_IFSOCK:
		/* for the client's own use: this server opens neither */
		err = mknodat(fd, name, (in.mode & S_IFMT) | mode, 0) ? -errno : 0;
		break;
	default:
		err = -EPERM;
	}
	return err ? err : reply_entry(call, name);
}

int fs_op_mkdir(struct fs_call *call)
{
	struct fuse_mkdir_in in;
	char name[FS_NAME];
	int err = fs_take(call, &in, sizeof(in)), fd;

	if (!err)
		err = fs_take_name(call, name);
	if (err)
		return err;
	fd = make_at(call, name, true);
	if (fd < 0)
		return fd;
	if (mkdirat(fd, name, fs_new_mode(call->server, in.mode)))
		return -errno;
	return reply_entry(call, name);
}

static int remove_name(struct fs_call *call, int flags)
{
	struct fs_found found;
	char name[FS_NAME];
	int err = fs_take_name(call, name), fd;

	if (!err)
		err = fs_may_unmake(call->server, call->node, name, &found);
	if (err)
		return err;
	fd = fs_directory_fd(call->server, call->node);
	if (fd < 0)
		return fd;
	return unlinkat(fd, name, flags) ? -errno : 0;
}

int fs_op_unlink(struct fs_call *call)
{
	return remove_name(call, 0);
}

int fs_op_rmdir(struct fs_call *call)
{
	return remove_name(call, AT_REMOVEDIR);
}

/* --- rename, link ------------------------------------------------------------------------- */

struct move {
	struct fs_node *to;
	uint32_t flags;
	char old[FS_NAME], new[FS_NAME];
	struct fs_found moved, other;   /* other: what the new name was before */
};

static int may_move(struct fs_call *call, struct move *move)
{
	struct fs_server *server = call->server;
	struct fs_where where;
	int err = fs_may_unmake(server, call->node, move->old, &move->moved);

	if (!err)
		err = fs_may_make(move->to, move->new, false, &where);
	if (err)
		return err;
	if (!fs_same_rule(&call->node->where, &move->to->where) ||
	    !fs_same_rule(&call->node->where, &move->moved.where))
		return -EXDEV;
	err = fs_may_unmake(server, move->to, move->new, &move->other);
	return err == -ENOENT && !(move->flags & RENAME_SWAP) ? 0 : err;
}

static int rename_at(struct fs_call *call, struct move *move)
{
	int from = fs_directory_fd(call->server, call->node);
	int to = fs_directory_fd(call->server, move->to);

	if (from < 0 || to < 0)
		return from < 0 ? from : to;
	if (syscall(SYS_renameat2, from, move->old, to, move->new, move->flags))
		return -errno;
	fs_node_moved(call->server, &move->moved.is, &move->moved.where, move->to, move->new);
	if (move->flags & RENAME_SWAP)
		fs_node_moved(call->server, &move->other.is, &move->other.where, call->node,
			      move->old);
	return 0;
}

static int rename_to(struct fs_call *call, uint64_t newdir, uint32_t flags)
{
	struct move move = { .flags = flags };
	int err = fs_take_name(call, move.old);

	if (!err)
		err = fs_take_name(call, move.new);
	if (!err && flags & ~(uint32_t)RENAME_KNOWN)
		err = -EINVAL;
	if (err)
		return err;
	move.to = fs_node_get(call->server, newdir);
	if (!move.to)
		return -ESTALE;
	err = may_move(call, &move);
	if (!err)
		err = rename_at(call, &move);
	fs_node_put(call->server, move.to);
	return err;
}

int fs_op_rename(struct fs_call *call)
{
	struct fuse_rename_in in;
	int err = fs_take(call, &in, sizeof(in));

	return err ? err : rename_to(call, in.newdir, 0);
}

int fs_op_rename2(struct fs_call *call)
{
	struct fuse_rename2_in in;
	int err = fs_take(call, &in, sizeof(in));

	return err ? err : rename_to(call, in.newdir, in.flags);
}

static int link_node(struct fs_call *call, struct fs_node *node, const char *name)
{
	struct fs_server *server = call->server;
	char number[16];
	int fd, dir;

	if (node->is.type != S_IFREG && node->is.type != S_IFLNK)
		return -EPERM;
	if (node->where.place || !fs_same_rule(&node->where, &call->node->where))
		return -EXDEV;
	dir = make_at(call, name, false);
	if (dir < 0)
		return dir;
	fd = fs_node_fd(server, node);
	if (fd < 0)
		return fd;
	snprintf(number, sizeof(number), "%d", fd);
	if (linkat(server->proc, number, dir, name, AT_SYMLINK_FOLLOW))
		return -errno;
	return reply_entry(call, name);
}

int fs_op_link(struct fs_call *call)
{
	struct fuse_link_in in;
	struct fs_node *node;
	char name[FS_NAME];
	int err = fs_take(call, &in, sizeof(in));

	if (!err)
		err = fs_take_name(call, name);
	if (err)
		return err;
	node = fs_node_get(call->server, in.oldnodeid);
	if (!node)
		return -ESTALE;
	err = link_node(call, node, name);
	fs_node_put(call->server, node);
	return err;
}
