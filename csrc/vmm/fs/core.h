/* SPDX-License-Identifier: MIT */
/*
 * core.h - the server's inside: nodes, handles, and one call.
 *
 * One lock, server->lock, guards the tables: which nodes and handles there are,
 * their fds, counts and names.  A call holds (n_users) what it works on, so that
 * neither it nor its fd goes away, and works without the lock.
 */
#ifndef FS_CORE_H
#define FS_CORE_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fuse.h"
#include "server.h"
#include "stat.h"
#include "view.h"

enum {
	FS_NAME = NAME_MAX + 1,
	FS_MAX_PAGES = 256,
	FS_MAX_WRITE = FS_MAX_PAGES * 4096,
};

/* For how long a client may believe what it was told. */
enum {
	FS_VALID_READ_ONLY_S = 60,
	FS_VALID_WRITABLE_S = 1,
	/* sizes and times of files that the host may write, too: long enough to be used at all */
	FS_VALID_FILE_NS = 10000000,
};

/* How a file was reached decides what may be done to it, so it is part of a node. */
struct fs_where {
	struct fs_export *export;       /* NULL: the root above the exports */
	struct fs_place *place;         /* NULL: no rule's path leads through here */
	struct fs_place *rule;          /* the one that decides */
	enum fs_access access;
	bool capped;                    /* an inode's rule was met: no rule below gives more */
	bool foreign;                   /* the root of a file system that stays outside */
};

struct fs_lock;

struct fs_node {
	uint64_t id;                    /* never used again */
	struct fs_identity is;
	struct fs_where where;
	struct fs_node *parent;         /* where it was last seen, and as what; NULL: nowhere */
	char *name;
	int fd;                         /* O_PATH, or -1 */
	bool fixed;                     /* its fd is the view's */
	uint64_t n_lookup;              /* the client's references */
	uint32_t n_users;               /* calls at work on it */
	uint32_t n_children;            /* nodes whose parent it is */
	struct fs_handle *handles;
	struct fs_lock *locks;
	atomic_bool locked;             /* it ever was: see fs_valid */
	bool own;                       /* the client has written it */
	atomic_bool looked;             /* it was asked for by its name, and not only listed */
	struct fs_stamp seen;           /* its state when it was first seen; while keeping */
	struct fs_node *next_by_id, *next_by_key;
	struct fs_node *newer, *older;  /* of those with an fd, by last use */
	struct fs_node *down;           /* the way that is being walked */
};

struct fs_handle {
	uint64_t id;
	struct fs_node *node;
	int fd;                         /* -1: a directory without a file behind it */
	bool is_dir;
	bool writable;
	bool released;
	atomic_bool flocked;            /* its fd holds a lock */
	uint32_t n_users;
	uint32_t slot;
	struct fs_handle *next_of_node;
	pthread_mutex_t position;       /* of a directory's fd */
};

struct fs_server {
	struct fs_view *views;
	pthread_mutex_t adding;         /* views */
	struct fs_export *exports[FS_VIEW_EXPORTS]; /* of all views; they only become more */
	_Atomic uint32_t n_exports;
	int proc;                       /* /proc/self/fd */
	bool is_root;
	uint64_t devtmpfs;
	pthread_mutex_t lock;
	atomic_bool ready;              /* INIT was taken */
	bool keeping;                   /* no node goes: all are to be saved, or looked at again */
	struct fs_node *root;
	struct fs_node **by_id, **by_key;
	uint32_t n_slots, n_nodes;
	uint64_t next_node, next_handle;
	struct fs_node *newest, *oldest;
	uint32_t n_fds, max_fds;        /* of nodes */
	struct fs_handle **handles;
	uint32_t *free_slots;           /* of handles */
	uint32_t n_free_slots;
	uint32_t max_handles, n_opened; /* fds for the client: handles and locks */
	uint64_t devices[256];          /* see fs_fill_ino */
	uint32_t n_devices;
};

/* --- a call: request.c ------------------------------------------------------------------ */

struct fs_bytes {
	const struct iovec *iov;
	int n;
	size_t skip;                    /* into iov[0] */
	uint64_t left;
};

struct fs_call {
	struct fs_server *server;
	struct fuse_in_header head;
	struct fs_bytes in;             /* what is left of the request */
	struct fs_bytes out;            /* where the rest of the reply goes */
	uint64_t room;                  /* for a reply after its header */
	uint64_t replied;
	struct fs_node *node;           /* of head.nodeid, held */
};

/* The next bytes of the request; -EINVAL if there are fewer. */
int fs_take(struct fs_call *call, void *data, size_t len);
/* A string with its NUL; -ENAMETOOLONG if it doesn't fit size. */
int fs_take_string(struct fs_call *call, char *data, size_t size);
/* Whether it can be one component of a path. */
bool fs_is_name(const char *name);
/* The same, out of the request. */
int fs_take_name(struct fs_call *call, char name[FS_NAME]);
/* Append to the reply; -ERANGE where it has no room. */
int fs_reply(struct fs_call *call, const void *data, size_t len);
/* The next len bytes as iovecs, as many as max; their number, and how long they are together. */
int fs_slice(const struct fs_bytes *bytes, uint64_t len, struct iovec *iov, int max,
	     uint64_t *sliced);
/* As if they had been appended already. */
void fs_replied(struct fs_call *call, uint64_t len);

/* --- nodes: node.c ---------------------------------------------------------------------- */

int fs_nodes_init(struct fs_server *server);
void fs_nodes_free(struct fs_server *server);
/* The client starts anew: it knows only the root. */
void fs_nodes_forget_all(struct fs_server *server);

/* By the client's number, held; NULL: there is none. */
struct fs_node *fs_node_get(struct fs_server *server, uint64_t id);
void fs_node_put(struct fs_server *server, struct fs_node *node);
void fs_node_forget(struct fs_server *server, uint64_t id, uint64_t n);
/* An O_PATH fd, good while the node is held; or -errno, -ESTALE if it is gone. */
int fs_node_fd(struct fs_server *server, struct fs_node *node);
int fs_node_stat(struct fs_server *server, struct fs_node *node, struct fs_stat *st);
struct fs_found {
	struct fs_identity is;
	struct fs_where where;
	struct fs_stat st;
};

/*
 * The node of a file that was just seen below parent as name (NULL: it has
 * none), with one more reference of the client's; held.  0 or -errno.
 */
int fs_node_seen(struct fs_server *server, struct fs_node *parent, const char *name,
		 const struct fs_found *found, struct fs_node **node);
/* A file was moved: the node, if the client knows it, has another name now. */
void fs_node_moved(struct fs_server *server, const struct fs_identity *is,
		   const struct fs_where *where, struct fs_node *parent, const char *name);
/* Close an fd of a node that nobody uses; false: there is none. server->lock is held. */
bool fs_node_evict(struct fs_server *server);
/* Called with the lock: the last handle or user is gone. */
void fs_node_let(struct fs_server *server, struct fs_node *node);
/* No longer keeping: what nobody uses goes. */
void fs_nodes_let_go(struct fs_server *server);
/* For a server that serves nobody yet: by its number, and a saved one at its old place, or NULL. */
struct fs_node *fs_node_find(const struct fs_server *server, uint64_t id);
struct fs_node *fs_node_again(struct fs_server *server, uint64_t id, uint64_t n_lookup,
			      struct fs_node *parent, const char *name,
			      const struct fs_found *found);

/* --- handles: handle.c ------------------------------------------------------------------ */

int fs_handles_init(struct fs_server *server);
void fs_handles_free(struct fs_server *server);
void fs_handles_release_all(struct fs_server *server);
/* fd becomes the handle's, or is closed. 0 or -errno. */
int fs_handle_new(struct fs_server *server, struct fs_node *node, int fd, bool is_dir,
		  bool writable, uint64_t *id);
/* A saved one under its old number; the fd becomes its, or is closed.  0 or -errno. */
int fs_handle_again(struct fs_server *server, uint64_t id, struct fs_node *node, int fd,
		    bool is_dir);
/* Held; NULL unless it is one of this node's (NULL: of any), of that kind. */
struct fs_handle *fs_handle_get(struct fs_server *server, const struct fs_node *node, uint64_t id,
				bool is_dir);
void fs_handle_put(struct fs_server *server, struct fs_handle *handle);
/* As put, and the client is done with it. */
void fs_handle_release(struct fs_server *server, struct fs_handle *handle);
/* So many fds more for the client's sake; false: it has enough. */
bool fs_fds_allowed(struct fs_server *server, uint32_t n);
void fs_fds_returned(struct fs_server *server, uint32_t n);
/* Open what the O_PATH fd is: a regular file or a directory, else -ENXIO. */
int fs_reopen(struct fs_server *server, int fd, uint32_t type, int flags);
/* A directory's file to be listed; -1 where the list comes from the view.  0 or -errno. */
int fs_open_directory(struct fs_server *server, struct fs_node *node, int *fd);

/* --- paths: look.c ---------------------------------------------------------------------- */

/* What the name below the directory is, and what may be done to it. */
int fs_look(struct fs_server *server, struct fs_node *parent, const char *name,
	    struct fs_found *found);
/* Where something new of this name would be; 0, or why it may not be made, as a directory or not. */
int fs_may_make(const struct fs_node *parent, const char *name, bool as_directory,
		struct fs_where *where);
/* Whether the name, and what is there now, may be removed or moved. */
int fs_may_unmake(struct fs_server *server, struct fs_node *parent, const char *name,
		  struct fs_found *found);
bool fs_same_where(const struct fs_where *a, const struct fs_where *b);
/* Whether files may go from the one to the other. */
bool fs_same_rule(const struct fs_where *a, const struct fs_where *b);
/* 0, or why this node can't be changed. */
int fs_may_write(const struct fs_node *node);
/* The fd of a directory that is really there; -ENOENT below a hidden or foreign one. */
int fs_directory_fd(struct fs_server *server, struct fs_node *node);

/* --- attributes: attr.c ----------------------------------------------------------------- */

/* What the client is told: a hidden file loses all but its type. */
void fs_mask(const struct fs_where *where, struct fs_stat *st);
/* For how long the node's attributes are valid. */
void fs_valid(const struct fs_node *node, uint64_t *s, uint32_t *ns);
uint64_t fs_fill_ino(struct fs_server *server, uint64_t dev, uint64_t ino);
void fs_fill_attr(struct fs_server *server, const struct fs_stat *st, struct fuse_attr *attr);
void fs_fill_entry(struct fs_server *server, const struct fs_node *node, struct fs_stat *st,
		   struct fuse_entry_out *entry);
/* set-id bits are kept from a server that is root */
uint32_t fs_new_mode(const struct fs_server *server, uint32_t mode);
/* Before a file is written or cut: what the kernel would not do for root. */
int fs_drop_setid(struct fs_server *server, int fd);

/* --- locks: lock.c ---------------------------------------------------------------------- */

/* The owner closed the file: all its locks on it go. */
void fs_locks_drop(struct fs_server *server, struct fs_node *node, uint64_t owner);
/*
 * Called with the lock: an open file is gone.  Clients say so of each owner of POSIX locks, but
 * not of OFD locks, whose owner is the open file.
 */
void fs_locks_drop_handle(struct fs_server *server, struct fs_node *node, uint64_t handle);
void fs_locks_drop_all(struct fs_server *server, struct fs_node *node);

/* --- operations: 0 or -errno ------------------------------------------------------------ */

enum { FS_PARKED = 1 };                 /* of SETLKW: not now, ask again */

int fs_op_lookup(struct fs_call *call);
int fs_op_getattr(struct fs_call *call);
int fs_op_setattr(struct fs_call *call);
int fs_op_statx(struct fs_call *call);
int fs_op_statfs(struct fs_call *call);
int fs_op_readlink(struct fs_call *call);
int fs_op_symlink(struct fs_call *call);
int fs_op_mknod(struct fs_call *call);
int fs_op_mkdir(struct fs_call *call);
int fs_op_unlink(struct fs_call *call);
int fs_op_rmdir(struct fs_call *call);
int fs_op_rename(struct fs_call *call);
int fs_op_rename2(struct fs_call *call);
int fs_op_link(struct fs_call *call);
int fs_op_open(struct fs_call *call);
int fs_op_create(struct fs_call *call);
int fs_op_tmpfile(struct fs_call *call);
int fs_op_read(struct fs_call *call);
int fs_op_write(struct fs_call *call);
int fs_op_flush(struct fs_call *call);
int fs_op_release(struct fs_call *call);
int fs_op_fsync(struct fs_call *call);
int fs_op_fallocate(struct fs_call *call);
int fs_op_lseek(struct fs_call *call);
int fs_op_copy_file_range(struct fs_call *call);
int fs_op_syncfs(struct fs_call *call);
int fs_op_opendir(struct fs_call *call);
int fs_op_readdir(struct fs_call *call);
int fs_op_readdirplus(struct fs_call *call);
int fs_op_releasedir(struct fs_call *call);
int fs_op_fsyncdir(struct fs_call *call);
int fs_op_setxattr(struct fs_call *call);
int fs_op_getxattr(struct fs_call *call);
int fs_op_listxattr(struct fs_call *call);
int fs_op_removexattr(struct fs_call *call);
int fs_op_getlk(struct fs_call *call);
int fs_op_setlk(struct fs_call *call);
int fs_op_setlkw(struct fs_call *call);

#endif
