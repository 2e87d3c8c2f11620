/* SPDX-License-Identifier: MIT */
/* file.c - open files. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

enum {
	/* what a client may choose of open(2); appending is done at the write */
	OPEN_FLAGS = O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC,
	COPY_MOST = 16 << 20,           /* bytes of one copy, so that it ends soon */
	MAX_IOV = 1024,
};

static bool writes(uint32_t flags)
{
	return (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
}

static int may_open(const struct fs_node *node, uint32_t flags)
{
	if (node->is.type == S_IFDIR)
		return -EISDIR;
	if (node->is.type != S_IFREG)
		return node->is.type == S_IFLNK ? -ELOOP : -ENXIO;
	if (node->where.access == FS_HIDDEN)
		return -EACCES;
	return writes(flags) ? fs_may_write(node) : 0;
}

/* A handle for the node's file, opened anew. */
static int open_handle(struct fs_server *server, struct fs_node *node, uint32_t flags,
		       struct fuse_open_out *out)
{
	bool writable = writes(flags);
	int err = may_open(node, flags), fd;

	if (err)
		return err;
	fd = fs_node_fd(server, node);
	fd = fd < 0 ? fd : fs_reopen(server, fd, S_IFREG, (int)(flags & OPEN_FLAGS));
	if (fd < 0)
		return fd;
	err = writable ? fs_drop_setid(server, fd) : 0;
	if (err) {
		close(fd);
		return err;
	}
	/* nobody writes there but the host, whose changes show in the attributes */
	if (node->where.access == FS_READ_ONLY)
		out->open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH;
	/* to the end, wherever that is */
	if (node->where.export->foreign)
		out->open_flags = FOPEN_DIRECT_IO;
	return fs_handle_new(server, node, fd, false, writable, &out->fh);
}

int fs_op_open(struct fs_call *call)
{
	struct fuse_open_out out = { 0 };
	struct fuse_open_in in;
	int err = fs_take(call, &in, sizeof(in));

	if (!err)
		err = open_handle(call->server, call->node, in.flags, &out);
	return err ? err : fs_reply(call, &out, sizeof(out));
}

/* --- new files ------------------------------------------------------------------------------ */

/* The file of this fd is new, or has no name: its node, and a handle with the fd. */
static int enter_new(struct fs_call *call, const char *name, const struct fs_where *where, int fd,
		     uint32_t flags, struct fuse_create_out *out)
{
	struct fs_server *server = call->server;
	struct fs_found found = { .where = *where };
	struct fs_node *node;
	int err = fs_stat_at(fd, "", &found.st);

	if (!err) {
		fs_identify(&found.st, &found.is);
		err = fs_node_seen(server, name ? call->node : NULL, name, &found, &node);
	}
	if (err) {
		close(fd);
		return err;
	}
	fs_fill_entry(server, node, &found.st, &out->entry);
	err = fs_handle_new(server, node, fd, false, writes(flags), &out->open.fh);
	if (err)
		fs_node_forget(server, node->id, 1);
	fs_node_put(server, node);
	return err;
}

/* What is there already is opened as by LOOKUP and OPEN. */
static int open_existing(struct fs_call *call, const char *name, uint32_t flags,
			 struct fuse_create_out *out)
{
	struct fs_server *server = call->server;
	struct fs_found found;
	struct fs_node *node;
	int err = fs_look(server, call->node, name, &found);

	if (!err)
		err = fs_node_seen(server, call->node, name, &found, &node);
	if (err)
		return err;
	atomic_store(&node->looked, true);
	err = open_handle(server, node, flags, &out->open);
	if (!err && flags & O_TRUNC)
		err = fs_node_stat(server, node, &found.st);
	fs_fill_entry(server, node, &found.st, &out->entry);
	if (err)
		fs_node_forget(server, node->id, 1);
	fs_node_put(server, node);
	return err;
}

static int create(struct fs_call *call, const char *name, const struct fuse_create_in *in,
		  struct fuse_create_out *out)
{
	const int exclusive = O_CREAT | O_EXCL | O_CLOEXEC;
	struct fs_where where;
	int err = fs_may_make(call->node, name, false, &where);
	int dir = err ? err : fs_directory_fd(call->server, call->node), fd;

	if (dir < 0)
		return dir;
	/* never without O_EXCL: what is there might be a FIFO */
	fd = openat(dir, name, exclusive | (int)(in->flags & (O_ACCMODE | O_SYNC | O_DSYNC)),
		    fs_new_mode(call->server, in->mode));
	if (fd >= 0)
		return enter_new(call, name, &where, fd, in->flags, out);
	if (errno != EEXIST || in->flags & O_EXCL)
		return -errno;
	return open_existing(call, name, in->flags, out);
}

int fs_op_create(struct fs_call *call)
{
	struct fuse_create_out out = { 0 };
	struct fuse_create_in in;
	char name[FS_NAME];
	int err = fs_take(call, &in, sizeof(in));

	if (!err)
		err = fs_take_name(call, name);
	if (!err)
		err = create(call, name, &in, &out);
	return err ? err : fs_reply(call, &out, sizeof(out));
}

int fs_op_tmpfile(struct fs_call *call)
{
	struct fuse_create_out out = { 0 };
	struct fs_where where = call->node->where;
	struct fuse_create_in in;
	int err = fs_take(call, &in, sizeof(in)), dir, fd;

	if (!err)
		err = fs_may_write(call->node);
	if (err)
		return err;
	dir = fs_directory_fd(call->server, call->node);
	if (dir < 0)
		return dir;
	/* it lies nowhere: no rule's path leads through it */
	where.place = NULL;
	fd = openat(dir, ".", O_TMPFILE | O_CLOEXEC | (int)(in.flags & (O_ACCMODE | O_EXCL)),
		    fs_new_mode(call->server, in.mode));
	if (fd < 0)
		return -errno;
	err = enter_new(call, NULL, &where, fd, in.flags, &out);
	return err ? err : fs_reply(call, &out, sizeof(out));
}

/* --- data ----------------------------------------------------------------------------------- */

static struct fs_handle *file_handle(struct fs_call *call, uint64_t fh)
{
	return fs_handle_get(call->server, call->node, fh, false);
}

int fs_op_read(struct fs_call *call)
{
	struct iovec iov[MAX_IOV];
	struct fs_handle *handle;
	struct fuse_read_in in;
	uint64_t len;
	ssize_t got;
	int err = fs_take(call, &in, sizeof(in)), n;

	if (err)
		return err;
	handle = file_handle(call, in.fh);
	if (!handle)
		return -EBADF;
	n = fs_slice(&call->out, in.size < call->room ? in.size : call->room, iov, MAX_IOV, &len);
	got = preadv(handle->fd, iov, n, (off_t)in.offset);
	err = got < 0 ? -errno : 0;
	fs_handle_put(call->server, handle);
	if (!err)
		fs_replied(call, (uint64_t)got);
	return err;
}

static ssize_t write_at(const struct fs_handle *handle, const struct iovec *iov, int n,
			const struct fuse_write_in *in)
{
	const int rwf_append = 0x10;

	/* pages of a mapping have their place, whatever the file was opened with */
	if (in->flags & O_APPEND && !(in->write_flags & FUSE_WRITE_CACHE))
		return syscall(SYS_pwritev2, handle->fd, iov, n, 0, 0, rwf_append);
	return pwritev(handle->fd, iov, n, (off_t)in->offset);
}

int fs_op_write(struct fs_call *call)
{
	struct fuse_write_out out = { 0 };
	struct iovec iov[MAX_IOV];
	struct fs_handle *handle;
	struct fuse_write_in in;
	uint64_t len;
	ssize_t put;
	int err = fs_take(call, &in, sizeof(in)), n;

	if (err)
		return err;
	if (in.size > call->in.left)
		return -EINVAL;
	handle = file_handle(call, in.fh);
	if (!handle)
		return -EBADF;
	n = fs_slice(&call->in, in.size, iov, MAX_IOV, &len);
	put = write_at(handle, iov, n, &in);
	err = put < 0 ? -errno : 0;
	out.size = err ? 0 : (uint32_t)put;
	fs_handle_put(call->server, handle);
	return err ? err : fs_reply(call, &out, sizeof(out));
}

int fs_op_flush(struct fs_call *call)
{
	struct fs_handle *handle;
	struct fuse_flush_in in;
	int err = fs_take(call, &in, sizeof(in)), fd;

	if (err)
		return err;
	handle = file_handle(call, in.fh);
	if (!handle)
		return -EBADF;
	fs_locks_drop(call->server, call->node, in.lock_owner);
	/* network file systems tell at close what could not be written */
	if (handle->writable) {
		fd = fcntl(handle->fd, F_DUPFD_CLOEXEC, 0);
		if (fd >= 0 && close(fd))
			err = -errno;
	}
	fs_handle_put(call->server, handle);
	return err;
}

int fs_op_release(struct fs_call *call)
{
	struct fuse_release_in in;
	struct fs_handle *handle;
	int err = fs_take(call, &in, sizeof(in));

	if (err)
		return err;
	handle = file_handle(call, in.fh);
	if (!handle)
		return -EBADF;
	fs_handle_release(call->server, handle);
	return 0;
}

int fs_op_fsync(struct fs_call *call)
{
	struct fs_handle *handle;
	struct fuse_fsync_in in;
	int err = fs_take(call, &in, sizeof(in));

	if (err)
		return err;
	handle = file_handle(call, in.fh);
	if (!handle)
		return -EBADF;
	if (in.fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(handle->fd) : fsync(handle->fd))
		err = -errno;
	fs_handle_put(call->server, handle);
	return err;
}

int fs_op_fallocate(struct fs_call *call)
{
	struct fuse_fallocate_in in;
	struct fs_handle *handle;
	int err = fs_take(call, &in, sizeof(in));

	if (err)
		return err;
	handle = file_handle(call, in.fh);
	if (!handle)
		return -EBADF;
	if (fallocate(handle->fd, (int)in.mode, (off_t)in.offset, (off_t)in.length))
		err = -errno;
	fs_handle_put(call->server, handle);
	return err;
}

int fs_op_lseek(struct fs_call *call)
{
	struct fuse_lseek_out out = { 0 };
	struct fuse_lseek_in in;
	struct fs_handle *handle;
	int err = fs_take(call, &in, sizeof(in));
	off_t at;

	if (err)
		return err;
	/* the others the client's kernel does by itself */
	if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE)
		return -EINVAL;
	handle = file_handle(call, in.fh);
	if (!handle)
		return -EBADF;
	at = lseek(handle->fd, (off_t)in.offset, (int)in.whence);
	err = at < 0 ? -errno : 0;
	out.offset = (uint64_t)at;
	fs_handle_put(call->server, handle);
	return err ? err : fs_reply(call, &out, sizeof(out));
}

static int copy(const struct fs_handle *from, const struct fs_handle *to,
		const struct fuse_copy_file_range_in *in, struct fuse_write_out *out)
{
	int64_t off_in = (int64_t)in->off_in, off_out = (int64_t)in->off_out;
	size_t len = in->len < COPY_MOST ? in->len : COPY_MOST;
	long n;

	if (in->flags)
		return -EINVAL;
	n = syscall(SYS_copy_file_range, from->fd, &off_in, to->fd, &off_out, len, 0);
	if (n < 0)
		return -errno;
	out->size = (uint32_t)n;
	return 0;
}

int fs_op_copy_file_range(struct fs_call *call)
{
	struct fs_server *server = call->server;
	struct fs_handle *from = NULL, *to = NULL;
	struct fuse_copy_file_range_in in;
	struct fuse_write_out out = { 0 };
	struct fs_node *node;
	int err = fs_take(call, &in, sizeof(in));

	if (err)
		return err;
	node = fs_node_get(server, in.nodeid_out);
	from = file_handle(call, in.fh_in);
	to = node ? fs_handle_get(server, node, in.fh_out, false) : NULL;
	err = from && to ? copy(from, to, &in, &out) : -EBADF;
	if (to)
		fs_handle_put(server, to);
	if (from)
		fs_handle_put(server, from);
	fs_node_put(server, node);
	return err ? err : fs_reply(call, &out, sizeof(out));
}
