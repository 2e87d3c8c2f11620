/* SPDX-License-Identifier: MIT */
/* xattr.c - extended attributes, but those that the host gives a meaning. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core.h"

enum {
	NAME_SIZE = 256,                /* XATTR_NAME_MAX and a NUL */
	MOST_VALUE = 65536,             /* XATTR_SIZE_MAX, XATTR_LIST_MAX */
};

static bool is_kept(const char *name)
{
	static const char *const kept[] = { "security.", "trusted.", "system.posix_acl_" };

	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
		if (!strncmp(name, kept[i], strlen(kept[i])))
			return true;
	}
	return false;
}

/* An fd that xattr calls take: an O_PATH one they don't. */
static int open_node(struct fs_call *call)
{
	struct fs_node *node = call->node;
	int fd, path;

	if (node->where.access == FS_HIDDEN || (node->is.type != S_IFREG &&
						node->is.type != S_IFDIR))
		return -EOPNOTSUPP;
	path = fs_node_fd(call->server, node);
	if (path < 0)
		return path;
	fd = fs_reopen(call->server, path, node->is.type, O_RDONLY);
	if (fd == -EACCES && node->is.type == S_IFREG)
		fd = fs_reopen(call->server, path, node->is.type, O_WRONLY);
	return fd;
}

/* --- changes ------------------------------------------------------------------------------ */

static int open_to_change(struct fs_call *call, const char *name)
{
	int err = fs_may_write(call->node);

	if (!err && is_kept(name))
		err = -EOPNOTSUPP;
	return err ? err : open_node(call);
}

int fs_op_setxattr(struct fs_call *call)
{
	struct fuse_setxattr_in in;
	char name[NAME_SIZE], *value;
	int err = fs_take(call, &in, sizeof(in)), fd;

	if (!err)
		err = fs_take_string(call, name, sizeof(name));
	if (!err && in.size > MOST_VALUE)
		err = -E2BIG;
	if (err)
		return err;
	value = malloc(in.size ? in.size : 1);
	if (!value)
		return -ENOMEM;
	err = fs_take(call, value, in.size);
	fd = err ? err : open_to_change(call, name);
	if (fd >= 0) {
		err = fsetxattr(fd, name, value, in.size, (int)in.flags) ? -errno : 0;
		close(fd);
	} else {
		err = fd;
	}
	free(value);
	return err;
}

int fs_op_removexattr(struct fs_call *call)
{
	char name[NAME_SIZE];
	int err = fs_take_string(call, name, sizeof(name)), fd;

	if (err)
		return err;
	fd = open_to_change(call, name);
	if (fd < 0)
		return fd;
	err = fremovexattr(fd, name) ? -errno : 0;
	close(fd);
	return err;
}

/* --- questions ---------------------------------------------------------------------------- */

/* The whole value, or all names; its length or -errno. */
static ssize_t read_all(int fd, const char *name, char *data)
{
	ssize_t len = name ? fgetxattr(fd, name, data, MOST_VALUE) : flistxattr(fd, data, MOST_VALUE);

	return len < 0 ? -errno : len;
}

static size_t without_kept(char *names, size_t len)
{
	size_t at = 0, out = 0;

	while (at < len) {
		size_t n = strnlen(names + at, len - at);

		n += n < len - at;
		if (!is_kept(names + at)) {
			memmove(names + out, names + at, n);
			out += n;
		}
		at += n;
	}
	return out;
}

/* The client asks for the length first, with size 0. */
static int reply_sized(struct fs_call *call, const char *data, size_t len, uint32_t size)
{
	struct fuse_getxattr_out out = { .size = (uint32_t)len };

	if (!size)
		return fs_reply(call, &out, sizeof(out));
	return len > size ? -ERANGE : fs_reply(call, data, len);
}

static int answer(struct fs_call *call, const char *name, uint32_t size)
{
	int fd = open_node(call), err;
	char *data;
	ssize_t len;

	if (fd < 0)
		return fd;
	data = malloc(MOST_VALUE + 1);
	len = data ? read_all(fd, name, data) : -ENOMEM;
	close(fd);
	if (len >= 0) {
		data[len] = '\0';
		if (!name)
			len = (ssize_t)without_kept(data, (size_t)len);
		err = reply_sized(call, data, (size_t)len, size);
	} else {
		err = (int)len;
	}
	free(data);
	return err;
}

int fs_op_getxattr(struct fs_call *call)
{
	struct fuse_getxattr_in in;
	char name[NAME_SIZE];
	int err = fs_take(call, &in, sizeof(in));

	if (!err)
		err = fs_take_string(call, name, sizeof(name));
	if (!err && (is_kept(name) || call->node == call->server->root))
		err = -EOPNOTSUPP;
	return err ? err : answer(call, name, in.size);
}

int fs_op_listxattr(struct fs_call *call)
{
	struct fuse_getxattr_in in;
	int err = fs_take(call, &in, sizeof(in));

	if (!err && call->node == call->server->root)
		err = -EOPNOTSUPP;
	return err ? err : answer(call, NULL, in.size);
}
