/* SPDX-License-Identifier: MIT */
/*
 * lock.c - the client's locks, held on the host.
 *
 * flock is of an open file, so it is taken on the handle's fd.  POSIX locks are
 * of an owner, whatever it opened the file with: each owner has one fd of its
 * own for each file, whose open file description holds the locks.  Nothing here
 * waits: a lock that is to be waited for is asked for again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

struct fs_lock {
	uint64_t owner;
	_Atomic uint64_t handle;        /* by which it was last asked for */
	int fd;
	bool dropped;
	uint32_t n_users;
	struct fs_lock *next;
};

/* Called with the lock. */
static void finish(struct fs_server *server, struct fs_lock *lock)
{
	if (lock->n_users || !lock->dropped)
		return;
	close(lock->fd);
	server->n_opened--;
	free(lock);
}

static void drop(struct fs_server *server, struct fs_lock **at)
{
	struct fs_lock *lock = *at;

	*at = lock->next;
	lock->dropped = true;
	finish(server, lock);
}

void fs_locks_drop_all(struct fs_server *server, struct fs_node *node)
{
	while (node->locks)
		drop(server, &node->locks);
}

static struct fs_lock **find(struct fs_node *node, uint64_t owner)
{
	struct fs_lock **at = &node->locks;

	while (*at && (*at)->owner != owner)
		at = &(*at)->next;
	return at;
}

void fs_locks_drop(struct fs_server *server, struct fs_node *node, uint64_t owner)
{
	struct fs_lock **at;

	pthread_mutex_lock(&server->lock);
	at = find(node, owner);
	if (*at)
		drop(server, at);
	pthread_mutex_unlock(&server->lock);
}

void fs_locks_drop_handle(struct fs_server *server, struct fs_node *node, uint64_t handle)
{
	struct fs_lock **at = &node->locks;

	while (*at) {
		if ((*at)->handle == handle)
			drop(server, at);
		else
			at = &(*at)->next;
	}
}

static struct fs_lock *get(struct fs_server *server, struct fs_node *node, uint64_t owner)
{
	struct fs_lock *lock;

	pthread_mutex_lock(&server->lock);
	lock = *find(node, owner);
	if (lock)
		lock->n_users++;
	pthread_mutex_unlock(&server->lock);
	return lock;
}

static void put(struct fs_server *server, struct fs_lock *lock)
{
	pthread_mutex_lock(&server->lock);
	lock->n_users--;
	finish(server, lock);
	pthread_mutex_unlock(&server->lock);
}

/* A write lock needs an fd for writing, a read lock one for reading. */
static int open_for_lock(struct fs_server *server, struct fs_node *node)
{
	int path = fs_node_fd(server, node), fd = -EACCES;

	if (path < 0)
		return path;
	if (!fs_may_write(node))
		fd = fs_reopen(server, path, node->is.type, O_RDWR);
	if (fd == -EACCES || fd == -ETXTBSY || fd == -EROFS || fd == -EPERM)
		fd = fs_reopen(server, path, node->is.type, O_RDONLY);
	return fd;
}

/* Another call may have made the owner's lock meanwhile: then that one, and fd is closed. */
static void enter(struct fs_server *server, struct fs_node *node, struct fs_lock **lock)
{
	struct fs_lock *new = *lock, *old;

	pthread_mutex_lock(&server->lock);
	old = *find(node, new->owner);
	if (old) {
		old->n_users++;
		new->n_users = 0;
		new->dropped = true;
		finish(server, new);
		*lock = old;
	} else {
		new->next = node->locks;
		node->locks = new;
	}
	pthread_mutex_unlock(&server->lock);
}

static int make(struct fs_server *server, struct fs_node *node, uint64_t owner,
		struct fs_lock **out)
{
	struct fs_lock *lock = calloc(1, sizeof(*lock));

	if (!lock)
		return -ENOMEM;
	if (!fs_fds_allowed(server, 1)) {
		free(lock);
		return -ENOLCK;
	}
	lock->owner = owner;
	lock->n_users = 1;
	lock->fd = open_for_lock(server, node);
	if (lock->fd < 0) {
		int err = lock->fd;

		fs_fds_returned(server, 1);
		free(lock);
		return err;
	}
	enter(server, node, &lock);
	*out = lock;
	return 0;
}

static int to_flock(const struct fuse_file_lock *lk, struct flock *fl)
{
	const uint64_t most = INT64_MAX;

	if (lk->start > most || lk->end > most || lk->start > lk->end)
		return -EINVAL;
	if (lk->type != F_RDLCK && lk->type != F_WRLCK && lk->type != F_UNLCK)
		return -EINVAL;
	*fl = (struct flock){
		.l_type = (short)lk->type,
		.l_whence = SEEK_SET,
		.l_start = (off_t)lk->start,
		.l_len = lk->end == most ? 0 : (off_t)(lk->end - lk->start + 1),
	};
	return 0;
}

static int posix_lock(struct fs_call *call, const struct fuse_lk_in *in)
{
	struct fs_lock *lock = get(call->server, call->node, in->owner);
	struct flock fl;
	int err = to_flock(&in->lk, &fl);

	/* no lock, nothing to unlock */
	if (!lock && (err || in->lk.type == F_UNLCK))
		return err;
	if (!lock)
		err = make(call->server, call->node, in->owner, &lock);
	if (!err)
		atomic_store(&lock->handle, in->fh);
	if (!err && fcntl(lock->fd, F_OFD_SETLK, &fl))
		err = errno == EACCES ? -EAGAIN : -errno;
	if (lock)
		put(call->server, lock);
	return err;
}

static int whole_lock(struct fs_handle *handle, uint32_t type)
{
	int how = type == F_UNLCK ? LOCK_UN : type == F_WRLCK ? LOCK_EX : LOCK_SH;

	if (flock(handle->fd, how | LOCK_NB))
		return -errno;
	atomic_store(&handle->flocked, how != LOCK_UN);
	return 0;
}

static int set_lock(struct fs_call *call, bool wait)
{
	struct fs_handle *handle;
	struct fuse_lk_in in;
	int err = fs_take(call, &in, sizeof(in));

	if (err)
		return err;
	handle = fs_handle_get(call->server, call->node, in.fh, false);
	if (!handle)
		return -EBADF;
	atomic_store(&call->node->locked, true);
	if (in.lk_flags & FUSE_LK_FLOCK)
		err = whole_lock(handle, in.lk.type);
	else
		err = posix_lock(call, &in);
	fs_handle_put(call->server, handle);
	return err == -EAGAIN && wait ? FS_PARKED : err;
}

int fs_op_setlk(struct fs_call *call)
{
	return set_lock(call, false);
}

int fs_op_setlkw(struct fs_call *call)
{
	return set_lock(call, true);
}

static int ask(struct fs_call *call, const struct fuse_lk_in *in, struct fuse_lk_out *out)
{
	struct fs_lock *lock;
	struct flock fl;
	int err = to_flock(&in->lk, &fl);

	if (err)
		return err;
	/* by the owner's own fd, or its locks would stand in its way */
	lock = get(call->server, call->node, in->owner);
	if (!lock)
		err = make(call->server, call->node, in->owner, &lock);
	if (err)
		return err;
	if (fcntl(lock->fd, F_OFD_GETLK, &fl))
		err = -errno;
	put(call->server, lock);
	out->lk.type = (uint32_t)fl.l_type;
	out->lk.start = (uint64_t)fl.l_start;
	out->lk.end = fl.l_len ? (uint64_t)(fl.l_start + fl.l_len - 1) : INT64_MAX;
	return err;
}

int fs_op_getlk(struct fs_call *call)
{
	struct fuse_lk_out out = { 0 };
	struct fs_handle *handle;
	struct fuse_lk_in in;
	int err = fs_take(call, &in, sizeof(in));

	if (err)
		return err;
	handle = fs_handle_get(call->server, call->node, in.fh, false);
	if (!handle)
		return -EBADF;
	err = ask(call, &in, &out);
	fs_handle_put(call->server, handle);
	return err ? err : fs_reply(call, &out, sizeof(out));
}
