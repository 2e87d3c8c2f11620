/* SPDX-License-Identifier: MIT */
/* attr.c - attributes of files and of file systems. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core.h"

/* Whether the host sees and makes changes there while the client runs. */
static bool is_shared(const struct fs_node *node)
{
	return node->where.access == FS_WRITABLE;
}

void fs_valid(const struct fs_node *node, uint64_t *s, uint32_t *ns)
{
	*s = is_shared(node) ? FS_VALID_WRITABLE_S : FS_VALID_READ_ONLY_S;
	*ns = 0;
	if (!is_shared(node) || node->is.type != S_IFREG)
		return;
	/* a client reads from its cache while the attributes are valid: not what others lock */
	*s = 0;
	*ns = atomic_load(&node->locked) ? 0 : FS_VALID_FILE_NS;
}

/*
 * The client has one device for all, so that files of two devices could be
 * taken for one: the second device and those after it count from elsewhere.
 */
uint64_t fs_fill_ino(struct fs_server *server, uint64_t dev, uint64_t ino)
{
	const uint32_t most = sizeof(server->devices) / sizeof(server->devices[0]);
	uint32_t i = 0;

	/* the server's own root */
	if (!dev)
		return ino;
	pthread_mutex_lock(&server->lock);
	while (i < server->n_devices && server->devices[i] != dev)
		i++;
	if (i == server->n_devices && i < most)
		server->devices[server->n_devices++] = dev;
	pthread_mutex_unlock(&server->lock);
	return ino ^ (uint64_t)i << 48;
}

void fs_mask(const struct fs_where *where, struct fs_stat *st)
{
	bool is_dir = (st->mode & S_IFMT) == S_IFDIR;

	/* devices are the host's: their numbers would name devices of the guest's */
	st->rdev_major = st->rdev_minor = 0;
	if (where->access != FS_HIDDEN)
		return;
	st->mode = (uint16_t)(is_dir ? S_IFDIR | 0555 : S_IFREG);
	st->nlink = is_dir ? 2 : 1;
	st->uid = st->gid = 0;
	st->size = st->blocks = 0;
	st->attributes = st->attributes_mask = 0;
	st->mask &= ~FS_STATX_BTIME;
	memset(&st->atime, 0, sizeof(st->atime));
	memset(&st->btime, 0, sizeof(st->btime));
	memset(&st->ctime, 0, sizeof(st->ctime));
	memset(&st->mtime, 0, sizeof(st->mtime));
}

void fs_fill_attr(struct fs_server *server, const struct fs_stat *st, struct fuse_attr *attr)
{
	*attr = (struct fuse_attr){
		.ino = fs_fill_ino(server, makedev(st->dev_major, st->dev_minor), st->ino),
		.size = st->size,
		.blocks = st->blocks,
		.atime = (uint64_t)st->atime.sec,
		.mtime = (uint64_t)st->mtime.sec,
		.ctime = (uint64_t)st->ctime.sec,
		.atimensec = st->atime.nsec,
		.mtimensec = st->mtime.nsec,
		.ctimensec = st->ctime.nsec,
		.mode = st->mode,
		.nlink = st->nlink,
		.uid = st->uid,
		.gid = st->gid,
		.blksize = st->blksize,
	};
}

void fs_fill_entry(struct fs_server *server, const struct fs_node *node, struct fs_stat *st,
		   struct fuse_entry_out *entry)
{
	fs_mask(&node->where, st);
	*entry = (struct fuse_entry_out){
		.nodeid = node->id,
		.entry_valid = is_shared(node) ? FS_VALID_WRITABLE_S : FS_VALID_READ_ONLY_S,
	};
	/* a file that is gone must not be there: a journal of a database's would be played back */
	if (is_shared(node) && node->is.type != S_IFDIR)
		entry->entry_valid = 0;
	fs_valid(node, &entry->attr_valid, &entry->attr_valid_nsec);
	fs_fill_attr(server, st, &entry->attr);
}

/* The directory above the exports is nowhere on the host. */
static void fill_root(struct fs_stat *st)
{
	memset(st, 0, sizeof(*st));
	st->mask = FS_STATX_BASIC;
	st->mode = S_IFDIR | 0555;
	st->ino = 1;
	st->nlink = 2;
	st->blksize = 4096;
}

/* By an open file of the node's, if the client names one. */
static int stat_handle(struct fs_call *call, uint64_t fh, struct fs_stat *st)
{
	struct fs_handle *handle = fs_handle_get(call->server, call->node, fh, false);
	int err;

	if (!handle)
		return -EBADF;
	err = fs_stat_at(handle->fd, "", st);
	fs_handle_put(call->server, handle);
	return err;
}

static int get_stat(struct fs_call *call, bool by_handle, uint64_t fh, struct fs_stat *st)
{
	int err = 0;

	if (call->node == call->server->root)
		fill_root(st);
	else if (by_handle)
		err = stat_handle(call, fh, st);
	else
		err = fs_node_stat(call->server, call->node, st);
	if (!err)
		fs_mask(&call->node->where, st);
	return err;
}

static int reply_attr(struct fs_call *call, const struct fs_stat *st)
{
	struct fuse_attr_out out = { 0 };

	fs_valid(call->node, &out.attr_valid, &out.attr_valid_nsec);
	fs_fill_attr(call->server, st, &out.attr);
	return fs_reply(call, &out, sizeof(out));
}

int fs_op_getattr(struct fs_call *call)
{
	struct fuse_getattr_in in;
	struct fs_stat st;
	int err = fs_take(call, &in, sizeof(in));

	if (!err)
		err = get_stat(call, in.getattr_flags & FUSE_GETATTR_FH, in.fh, &st);
	return err ? err : reply_attr(call, &st);
}

static struct fuse_sx_time sx_time(const struct fs_time *t)
{
	return (struct fuse_sx_time){ .sec = t->sec, .nsec = t->nsec };
}

int fs_op_statx(struct fs_call *call)
{
	struct fuse_statx_out out = { 0 };
	struct fuse_statx_in in;
	struct fs_stat st;
	int err = fs_take(call, &in, sizeof(in));

	if (!err)
		err = get_stat(call, in.getattr_flags & FUSE_GETATTR_FH, in.fh, &st);
	if (err)
		return err;
	fs_valid(call->node, &out.attr_valid, &out.attr_valid_nsec);
	out.stat = (struct fuse_statx){
		.mask = st.mask & (FS_STATX_BASIC | FS_STATX_BTIME),
		.blksize = st.blksize,
		.attributes = st.attributes,
		.attributes_mask = st.attributes_mask,
		.nlink = st.nlink,
		.uid = st.uid,
		.gid = st.gid,
		.mode = st.mode,
		.ino = fs_fill_ino(call->server, makedev(st.dev_major, st.dev_minor), st.ino),
		.size = st.size,
		.blocks = st.blocks,
		.atime = sx_time(&st.atime),
		.btime = sx_time(&st.btime),
		.ctime = sx_time(&st.ctime),
		.mtime = sx_time(&st.mtime),
	};
	return fs_reply(call, &out, sizeof(out));
}

/* --- changes ------------------------------------------------------------------------------ */

uint32_t fs_new_mode(const struct fs_server *server, uint32_t mode)
{
	return mode & (server->is_root ? 01777 : 07777);
}

int fs_drop_setid(struct fs_server *server, int fd)
{
	struct stat st;

	if (!server->is_root)
		return 0;
	if (fstat(fd, &st))
		return -errno;
	if (S_ISREG(st.st_mode) && st.st_mode & 06000 && fchmod(fd, st.st_mode & 01777))
		return -errno;
	return 0;
}

static int truncate_node(struct fs_call *call, const struct fuse_setattr_in *in)
{
	struct fs_server *server = call->server;
	struct fs_handle *handle = NULL;
	int fd, err = 0;

	if (in->size > INT64_MAX)
		return -EFBIG;
	if (call->node->is.type != S_IFREG)
		return call->node->is.type == S_IFDIR ? -EISDIR : -EINVAL;
	if (in->valid & FATTR_FH)
		handle = fs_handle_get(server, call->node, in->fh, false);
	if (handle && handle->writable) {
		fd = handle->fd;
	} else {
		fd = fs_node_fd(server, call->node);
		fd = fd < 0 ? fd : fs_reopen(server, fd, S_IFREG, O_WRONLY);
	}
	if (fd < 0)
		err = fd;
	if (!err)
		err = fs_drop_setid(server, fd);
	if (!err && ftruncate(fd, (off_t)in->size))
		err = -errno;
	if (fd >= 0 && !(handle && fd == handle->fd))
		close(fd);
	if (handle)
		fs_handle_put(server, handle);
	return err;
}

static struct timespec time_of(uint32_t valid, uint32_t set, uint32_t now, uint64_t s, uint32_t ns)
{
	if (!(valid & (set | now)))
		return (struct timespec){ .tv_nsec = UTIME_OMIT };
	if (valid & now)
		return (struct timespec){ .tv_nsec = UTIME_NOW };
	return (struct timespec){ .tv_sec = (time_t)s, .tv_nsec = (long)ns };
}

static int set_times(int proc, const char *name, const struct fuse_setattr_in *in)
{
	const struct timespec times[2] = {
		time_of(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
		time_of(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
	};

	if (in->atimensec >= 1000000000 || in->mtimensec >= 1000000000)
		return -EINVAL;
	return utimensat(proc, name, times, 0) ? -errno : 0;
}

static int set_owner(int proc, const char *name, const struct fuse_setattr_in *in)
{
	uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
	gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;

	return fchownat(proc, name, uid, gid, 0) ? -errno : 0;
}

/* All but the size; the magic link leads to the file itself, be it a symbolic link. */
static int set_attributes(struct fs_call *call, const struct fuse_setattr_in *in)
{
	int fd = fs_node_fd(call->server, call->node), err = 0;
	int proc = call->server->proc;
	char name[16];

	if (fd < 0)
		return fd;
	/* the host's devices are not the client's */
	if (call->node->is.type == S_IFCHR || call->node->is.type == S_IFBLK)
		return -EPERM;
	snprintf(name, sizeof(name), "%d", fd);
	if (in->valid & (FATTR_UID | FATTR_GID))
		err = set_owner(proc, name, in);
	if (!err && in->valid & FATTR_MODE) {
		if (call->node->is.type == S_IFLNK)
			err = -EOPNOTSUPP;
		else if (fchmodat(proc, name, fs_new_mode(call->server, in->mode), 0))
			err = -errno;
	}
	if (!err && in->valid & (FATTR_ATIME | FATTR_ATIME_NOW | FATTR_MTIME | FATTR_MTIME_NOW))
		err = set_times(proc, name, in);
	return err;
}

int fs_op_setattr(struct fs_call *call)
{
	const uint32_t other = ~(FATTR_SIZE | FATTR_FH);
	struct fuse_setattr_in in;
	struct fs_stat st;
	int err = fs_take(call, &in, sizeof(in));

	if (!err)
		err = fs_may_write(call->node);
	if (!err && in.valid & FATTR_SIZE)
		err = truncate_node(call, &in);
	if (!err && in.valid & other)
		err = set_attributes(call, &in);
	if (!err)
		err = get_stat(call, false, 0, &st);
	return err ? err : reply_attr(call, &st);
}

/* --- file systems ------------------------------------------------------------------------- */

int fs_op_statfs(struct fs_call *call)
{
	struct fuse_statfs_out out = { .namelen = NAME_MAX, .bsize = 4096, .frsize = 4096 };
	struct statvfs sf;
	int fd;

	if (call->node == call->server->root || call->node->where.access == FS_HIDDEN)
		return fs_reply(call, &out, sizeof(out));
	fd = fs_node_fd(call->server, call->node);
	if (fd < 0)
		return fd;
	if (fstatvfs(fd, &sf))
		return -errno;
	out.blocks = sf.f_blocks;
	out.bfree = sf.f_bfree;
	out.bavail = sf.f_bavail;
	out.files = sf.f_files;
	out.ffree = sf.f_ffree;
	out.bsize = (uint32_t)sf.f_bsize;
	out.namelen = (uint32_t)sf.f_namemax;
	out.frsize = (uint32_t)sf.f_frsize;
	return fs_reply(call, &out, sizeof(out));
}

static int sync_export(struct fs_server *server, const struct fs_export *export)
{
	int fd = fs_reopen(server, export->fd, export->root->is.type, O_RDONLY), err = 0;

	/* what can't be opened holds nothing that this server wrote */
	if (fd < 0)
		return 0;
	if (syncfs(fd))
		err = -errno;
	close(fd);
	return err;
}

int fs_op_syncfs(struct fs_call *call)
{
	uint32_t n = atomic_load(&call->server->n_exports);
	int err = 0, one;

	for (uint32_t i = 0; i < n; i++) {
		one = sync_export(call->server, call->server->exports[i]);
		err = err ? err : one;
	}
	return err;
}
