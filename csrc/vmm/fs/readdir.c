/* SPDX-License-Identifier: MIT */
/* readdir.c - what a directory holds. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

enum { LARGEST = 128 * 1024 };  /* bytes of one reply */

struct kernel_dirent {
	uint64_t ino;
	int64_t off;
	uint16_t len;
	uint8_t type;
	char name[];
};

struct listing {
	struct fs_call *call;
	struct fs_handle *handle;
	bool plus;
	uint64_t space;                 /* what is left of what the client asked for */
};

int fs_open_directory(struct fs_server *server, struct fs_node *node, int *fd)
{
	*fd = -1;
	if (node->is.type != S_IFDIR)
		return -ENOTDIR;
	/* others have no fd: what they list comes from the view */
	if (node == server->root || node->where.access == FS_HIDDEN)
		return 0;
	*fd = fs_directory_fd(server, node);
	if (*fd >= 0)
		*fd = fs_reopen(server, *fd, S_IFDIR, O_RDONLY | O_DIRECTORY);
	return *fd < 0 ? *fd : 0;
}

int fs_op_opendir(struct fs_call *call)
{
	struct fs_server *server = call->server;
	struct fuse_open_out out = { 0 };
	struct fuse_open_in in;
	int err = fs_take(call, &in, sizeof(in)), fd;

	if (!err)
		err = fs_open_directory(server, call->node, &fd);
	if (!err)
		err = fs_handle_new(server, call->node, fd, true, false, &out.fh);
	return err ? err : fs_reply(call, &out, sizeof(out));
}

int fs_op_releasedir(struct fs_call *call)
{
	struct fuse_release_in in;
	struct fs_handle *handle;
	int err = fs_take(call, &in, sizeof(in));

	if (err)
		return err;
	handle = fs_handle_get(call->server, call->node, in.fh, true);
	if (!handle)
		return -EBADF;
	fs_handle_release(call->server, handle);
	return 0;
}

int fs_op_fsyncdir(struct fs_call *call)
{
	struct fuse_fsync_in in;
	struct fs_handle *handle;
	int err = fs_take(call, &in, sizeof(in));

	if (err)
		return err;
	handle = fs_handle_get(call->server, call->node, in.fh, true);
	if (!handle)
		return -EBADF;
	if (handle->fd >= 0 &&
	    (in.fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(handle->fd) : fsync(handle->fd)))
		err = -errno;
	fs_handle_put(call->server, handle);
	return err;
}

static int reply_padded(struct fs_call *call, const char *name, size_t len)
{
	static const char zero[8];
	int err = fs_reply(call, name, len);

	return err ? err : fs_reply(call, zero, -len & 7);
}

static bool is_dots(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

/* For READDIRPLUS: the entry's node; without one the client looks it up when it needs it. */
static void fill_plus(struct listing *l, const char *name, struct fuse_entry_out *entry,
		      struct fs_node **node)
{
	struct fs_server *server = l->call->server;
	struct fs_found found;

	memset(entry, 0, sizeof(*entry));
	*node = NULL;
	if (is_dots(name) || fs_look(server, l->call->node, name, &found))
		return;
	if (!fs_node_seen(server, l->call->node, name, &found, node))
		fs_fill_entry(server, *node, &found.st, entry);
}

/* 1: it is in the reply; 0: there is no space for it. */
static int add_entry(struct listing *l, const struct fuse_dirent *in, const char *name)
{
	struct fs_call *call = l->call;
	struct fuse_entry_out entry;
	struct fuse_dirent dirent = *in;
	size_t len = strlen(name);
	size_t need = sizeof(dirent) + ((len + 7) & ~(size_t)7) + (l->plus ? sizeof(entry) : 0);
	struct fs_node *node = NULL;
	int err = 0;

	if (need > l->space)
		return 0;
	if (l->plus) {
		fill_plus(l, name, &entry, &node);
		if (node) {
			dirent.ino = entry.attr.ino;
			dirent.type = (entry.attr.mode & S_IFMT) >> 12;
		}
		err = fs_reply(call, &entry, sizeof(entry));
		fs_node_put(call->server, node);
	}
	dirent.namelen = (uint32_t)len;
	if (!err)
		err = fs_reply(call, &dirent, sizeof(dirent));
	if (!err)
		err = reply_padded(call, name, len);
	l->space -= need;
	return err ? err : 1;
}

/* --- directories that the view makes: the root, and hidden ones ----------------------------- */

/* The n-th name, after the two dots; NULL at the end. */
static const char *made_name(struct fs_call *call, uint64_t n, char number[24])
{
	const struct fs_where *where = &call->node->where;
	struct fs_place *place;

	if (call->node == call->server->root) {
		snprintf(number, 24, "%llu", (unsigned long long)n);
		return n < atomic_load(&call->server->n_exports) ? number : NULL;
	}
	for (place = where->place ? where->place->children : NULL; place; place = place->sibling) {
		if (place->shows && place->there && !n--)
			return place->name;
	}
	return NULL;
}

static int list_made(struct listing *l, uint64_t off)
{
	char number[24];
	int added = 1;

	for (; added == 1; off++) {
		struct fuse_dirent dirent = { .ino = off + 1, .off = off + 1, .type = DT_DIR };
		const char *name = off == 0 ? "." : off == 1 ? ".." : NULL;

		if (!name)
			name = made_name(l->call, off - 2, number);
		if (!name)
			return 0;
		/* an export can be a file, too: only a look tells */
		if (off > 1)
			dirent.type = DT_UNKNOWN;
		added = add_entry(l, &dirent, name);
	}
	return added;
}

/* --- real ones ------------------------------------------------------------------------------ */

static int list_some(struct listing *l, const char *data, size_t len)
{
	uint64_t dev = l->call->node->is.dev;
	int added = 1;

	for (size_t at = 0; at < len && added == 1;) {
		const struct kernel_dirent *entry = (const void *)(data + at);
		struct fuse_dirent dirent = { .off = (uint64_t)entry->off, .type = entry->type };

		/* what is above an export has no number here */
		dirent.ino = is_dots(entry->name) ? 1 :
			     fs_fill_ino(l->call->server, dev, entry->ino);
		added = add_entry(l, &dirent, entry->name);
		at += entry->len;
	}
	return added;
}

/* Whatever doesn't fit is read again by the next request, from its offset. */
static int list_real(struct listing *l, uint64_t off, size_t size)
{
	char *data = malloc(size);
	long len = 0;
	int err = 0;

	if (!data)
		return -ENOMEM;
	pthread_mutex_lock(&l->handle->position);
	if (lseek(l->handle->fd, (off_t)off, SEEK_SET) < 0) {
		err = -errno;
	} else {
		len = syscall(SYS_getdents64, l->handle->fd, data, size);
		if (len < 0)
			err = -errno;
	}
	pthread_mutex_unlock(&l->handle->position);
	if (!err && len > 0)
		err = list_some(l, data, (size_t)len);
	free(data);
	return err < 0 ? err : 0;
}

static int list_handle(struct fs_call *call, bool plus)
{
	struct listing l = { .call = call, .plus = plus };
	struct fuse_read_in in;
	int err = fs_take(call, &in, sizeof(in));
	/* the kernel's entry is as large as FUSE's without attributes; one must fit */
	size_t size;

	if (err)
		return err;
	l.space = in.size < call->room ? in.size : call->room;
	if (l.space > LARGEST)
		l.space = LARGEST;
	size = (plus ? l.space / 4 : l.space) + 512;
	l.handle = fs_handle_get(call->server, call->node, in.fh, true);
	if (!l.handle)
		return -EBADF;
	if (l.handle->fd < 0)
		err = list_made(&l, in.offset);
	else
		err = list_real(&l, in.offset, size);
	fs_handle_put(call->server, l.handle);
	return err < 0 ? err : 0;
}

int fs_op_readdir(struct fs_call *call)
{
	return list_handle(call, false);
}

int fs_op_readdirplus(struct fs_call *call)
{
	return list_handle(call, true);
}
