/* SPDX-License-Identifier: MIT */
/* request.c - a request from its bytes to its operation, and the reply back. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "session.h"

/* --- bytes -------------------------------------------------------------------------------- */

static struct fs_bytes all_of(const struct iovec *iov, int n)
{
	struct fs_bytes bytes = { .iov = iov, .n = n };

	for (int i = 0; i < n; i++)
		bytes.left += iov[i].iov_len;
	return bytes;
}

/* Go on by up to len bytes that lie together; their number. */
static size_t next_piece(struct fs_bytes *bytes, size_t len, char **at)
{
	size_t piece;

	while (bytes->n && bytes->skip == bytes->iov->iov_len) {
		bytes->iov++;
		bytes->n--;
		bytes->skip = 0;
	}
	if (!bytes->n)
		return 0;
	piece = bytes->iov->iov_len - bytes->skip;
	if (piece > len)
		piece = len;
	*at = (char *)bytes->iov->iov_base + bytes->skip;
	bytes->skip += piece;
	bytes->left -= piece;
	return piece;
}

static int copy_out(struct fs_bytes *bytes, void *data, size_t len)
{
	size_t done = 0, piece;
	char *at;

	if (len > bytes->left)
		return -EINVAL;
	for (; done < len; done += piece) {
		piece = next_piece(bytes, len - done, &at);
		if (!piece)
			return -EINVAL;
		memcpy((char *)data + done, at, piece);
	}
	return 0;
}

static int copy_in(struct fs_bytes *bytes, const void *data, size_t len)
{
	size_t done = 0, piece;
	char *at;

	if (len > bytes->left)
		return -ERANGE;
	for (; done < len; done += piece) {
		piece = next_piece(bytes, len - done, &at);
		if (!piece)
			return -ERANGE;
		memcpy(at, (const char *)data + done, piece);
	}
	return 0;
}

int fs_take(struct fs_call *call, void *data, size_t len)
{
	return copy_out(&call->in, data, len);
}

int fs_take_string(struct fs_call *call, char *data, size_t size)
{
	struct fs_bytes ahead = call->in;
	size_t len = ahead.left < size ? ahead.left : size, n;
	int err = copy_out(&ahead, data, len);

	if (err)
		return err;
	n = strnlen(data, len);
	if (n == len)
		return len == size ? -ENAMETOOLONG : -EINVAL;
	/* the memory may have changed since: only its length is taken from it again */
	ahead = call->in;
	for (size_t left = n + 1, piece; left; left -= piece) {
		char *at;

		piece = next_piece(&ahead, left, &at);
	}
	call->in = ahead;
	return 0;
}

bool fs_is_name(const char *name)
{
	return *name && strcmp(name, ".") && strcmp(name, "..") && !strchr(name, '/');
}

int fs_take_name(struct fs_call *call, char name[FS_NAME])
{
	int err = fs_take_string(call, name, FS_NAME);

	if (err)
		return err;
	return fs_is_name(name) ? 0 : -EINVAL;
}

int fs_reply(struct fs_call *call, const void *data, size_t len)
{
	int err = copy_in(&call->out, data, len);

	if (!err)
		call->replied += len;
	return err;
}

void fs_replied(struct fs_call *call, uint64_t len)
{
	call->replied += len;
}

int fs_slice(const struct fs_bytes *bytes, uint64_t len, struct iovec *iov, int max,
	     uint64_t *sliced)
{
	struct fs_bytes ahead = *bytes;
	int n = 0;

	*sliced = 0;
	while (n < max && *sliced < len) {
		char *at;
		size_t piece = next_piece(&ahead, len - *sliced, &at);

		if (!piece)
			break;
		iov[n++] = (struct iovec){ .iov_base = at, .iov_len = piece };
		*sliced += piece;
	}
	return n;
}

/* --- dispatch ----------------------------------------------------------------------------- */

static int op_no_ioctl(struct fs_call *call)
{
	(void)call;
	return -ENOTTY;
}

struct op {
	int (*run)(struct fs_call *call);
	uint16_t in, out;               /* the least that follows either header */
};

#define IN(type) sizeof(struct fuse_##type)

static const struct op ops[FUSE_OPCODES] = {
	[FUSE_LOOKUP] = { fs_op_lookup, 2, IN(entry_out) },
	[FUSE_GETATTR] = { fs_op_getattr, IN(getattr_in), IN(attr_out) },
	[FUSE_SETATTR] = { fs_op_setattr, IN(setattr_in), IN(attr_out) },
	[FUSE_READLINK] = { fs_op_readlink, 0, 0 },
	[FUSE_SYMLINK] = { fs_op_symlink, 3, IN(entry_out) },
	[FUSE_MKNOD] = { fs_op_mknod, IN(mknod_in), IN(entry_out) },
	[FUSE_MKDIR] = { fs_op_mkdir, IN(mkdir_in), IN(entry_out) },
	[FUSE_UNLINK] = { fs_op_unlink, 2, 0 },
	[FUSE_RMDIR] = { fs_op_rmdir, 2, 0 },
	[FUSE_RENAME] = { fs_op_rename, IN(rename_in), 0 },
	[FUSE_RENAME2] = { fs_op_rename2, IN(rename2_in), 0 },
	[FUSE_LINK] = { fs_op_link, IN(link_in), IN(entry_out) },
	[FUSE_OPEN] = { fs_op_open, IN(open_in), IN(open_out) },
	[FUSE_READ] = { fs_op_read, IN(read_in), 0 },
	[FUSE_WRITE] = { fs_op_write, IN(write_in), IN(write_out) },
	[FUSE_STATFS] = { fs_op_statfs, 0, IN(statfs_out) },
	[FUSE_RELEASE] = { fs_op_release, IN(release_in), 0 },
	[FUSE_FSYNC] = { fs_op_fsync, IN(fsync_in), 0 },
	[FUSE_SETXATTR] = { fs_op_setxattr, IN(setxattr_in), 0 },
	[FUSE_GETXATTR] = { fs_op_getxattr, IN(getxattr_in), 0 },
	[FUSE_LISTXATTR] = { fs_op_listxattr, IN(getxattr_in), 0 },
	[FUSE_REMOVEXATTR] = { fs_op_removexattr, 2, 0 },
	[FUSE_FLUSH] = { fs_op_flush, IN(flush_in), 0 },
	[FUSE_OPENDIR] = { fs_op_opendir, IN(open_in), IN(open_out) },
	[FUSE_READDIR] = { fs_op_readdir, IN(read_in), 0 },
	[FUSE_READDIRPLUS] = { fs_op_readdirplus, IN(read_in), 0 },
	[FUSE_RELEASEDIR] = { fs_op_releasedir, IN(release_in), 0 },
	[FUSE_FSYNCDIR] = { fs_op_fsyncdir, IN(fsync_in), 0 },
	[FUSE_GETLK] = { fs_op_getlk, IN(lk_in), IN(lk_out) },
	[FUSE_SETLK] = { fs_op_setlk, IN(lk_in), 0 },
	[FUSE_SETLKW] = { fs_op_setlkw, IN(lk_in), 0 },
	[FUSE_CREATE] = { fs_op_create, IN(create_in), IN(create_out) },
	[FUSE_IOCTL] = { op_no_ioctl, 0, 0 },
	[FUSE_FALLOCATE] = { fs_op_fallocate, IN(fallocate_in), 0 },
	[FUSE_LSEEK] = { fs_op_lseek, IN(lseek_in), IN(lseek_out) },
	[FUSE_COPY_FILE_RANGE] = { fs_op_copy_file_range, IN(copy_file_range_in), IN(write_out) },
	[FUSE_SYNCFS] = { fs_op_syncfs, IN(syncfs_in), 0 },
	[FUSE_TMPFILE] = { fs_op_tmpfile, IN(create_in), IN(create_out) },
	[FUSE_STATX] = { fs_op_statx, IN(statx_in), IN(statx_out) },
};

static int run_on_node(struct fs_call *call, const struct op *op)
{
	int err;

	if (call->in.left < op->in || call->room < op->out)
		return -EINVAL;
	call->node = fs_node_get(call->server, call->head.nodeid);
	if (!call->node)
		return -ESTALE;
	err = op->run(call);
	fs_node_put(call->server, call->node);
	return err;
}

static int run(struct fs_call *call)
{
	uint32_t code = call->head.opcode;

	if (code == FUSE_INIT)
		return fs_session_begin(call);
	if (!atomic_load(&call->server->ready))
		return -EIO;
	if (code == FUSE_DESTROY)
		return fs_session_end(call);
	/* also ACCESS, since clients decide by modes, and POLL: a client asks once */
	if (code >= FUSE_OPCODES || !ops[code].run)
		return -ENOSYS;
	return run_on_node(call, &ops[code]);
}

/* --- what gets no reply --------------------------------------------------------------------- */

static void forget_many(struct fs_call *call)
{
	struct fuse_batch_forget_in in;
	struct fuse_forget_one one;

	if (fs_take(call, &in, sizeof(in)))
		return;
	while (in.count-- && !fs_take(call, &one, sizeof(one)))
		fs_node_forget(call->server, one.nodeid, one.nlookup);
}

static bool run_silent(struct fs_call *call)
{
	struct fuse_forget_in in;

	switch (call->head.opcode) {
	case FUSE_FORGET:
		if (!fs_take(call, &in, sizeof(in)))
			fs_node_forget(call->server, call->head.nodeid, in.nlookup);
		return true;
	case FUSE_BATCH_FORGET:
		forget_many(call);
		return true;
	case FUSE_INTERRUPT:
		/* whatever is at work ends by itself */
		return true;
	default:
		return false;
	}
}

ssize_t fs_request(struct fs_server *server, const struct iovec *in, int n_in,
		   const struct iovec *out, int n_out)
{
	struct fs_call call = { .server = server, .in = all_of(in, n_in) };
	struct fuse_out_header head = { 0 };
	struct fs_bytes begin = all_of(out, n_out);
	uint64_t total = call.in.left;
	int err;

	if (copy_out(&call.in, &call.head, sizeof(call.head)) ||
	    call.head.len < sizeof(call.head) || call.head.len > total)
		return -EPROTO;
	call.in.left = call.head.len - sizeof(call.head);
	if (run_silent(&call))
		return 0;
	call.out = begin;
	/* the header is written last, over these */
	if (copy_in(&call.out, &head, sizeof(head)))
		return -EPROTO;
	call.room = call.out.left;
	err = run(&call);
	if (err == FS_PARKED)
		return -EAGAIN;
	head.len = (uint32_t)(sizeof(head) + (err ? 0 : call.replied));
	head.error = err;
	head.unique = call.head.unique;
	copy_in(&begin, &head, sizeof(head));
	return (ssize_t)head.len;
}
