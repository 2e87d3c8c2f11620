/* SPDX-License-Identifier: MIT */
/*
 * server.h - the file server: FUSE requests in, replies out, over no transport.
 *
 * The directory that the client mounts has one child for each export of the
 * view, named 0, 1, 2...  What the view (view.h) takes away is taken away here,
 * whatever the client asks for.
 */
#ifndef FS_SERVER_H
#define FS_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

struct fs_server;

/*
 * Without bytes there are no exports yet.  NULL: error says what is wrong, in one line.
 * To be called in the process that serves, with /proc mounted; later /proc may
 * be out of reach.  Sets the process's umask to 0, since clients apply their
 * own, and ignores SIGXFSZ.
 */
struct fs_server *fs_server_new(const void *view, size_t len, char *error, size_t n);
void fs_server_free(struct fs_server *server);

/*
 * More exports, behind those that are there; any thread, while requests are
 * served.  The index of the first new one, or -1 with error set and nothing added.
 */
int fs_server_add(struct fs_server *server, const void *view, size_t len, char *error, size_t n);

/* What it opens files in or below, for rules of the kernel's: see view.h. */
int fs_server_reach(struct fs_server *server,
		    int (*reach)(void *arg, int fd, bool directory, bool writable), void *arg);

/*
 * Serve one request.  Any thread, several at once.
 * Returns the bytes of the reply in out, 0 when none is due, or
 * -EAGAIN: a lock is held by another: give the same request again later;
 * -EPROTO: no request at all, or no room for a reply's header.
 */
ssize_t fs_request(struct fs_server *server, const struct iovec *in, int n_in,
		   const struct iovec *out, int n_out);

/*
 * For a machine that is saved while no request is served: false unless another
 * server could go on in this one's place, since there are no exports and the
 * client knows of nothing but the root.  *mounted: whether there is a client.
 */
bool fs_server_untouched(struct fs_server *server, bool *mounted);
/* Go on so. */
void fs_server_resume(struct fs_server *server, bool mounted);

/*
 * From now on all that the client looks at is remembered, with the state that
 * it was in, so that it can be saved; before the client sees any export.
 */
void fs_server_keep(struct fs_server *server);
/*
 * What the client knows and has open, of a machine that stands still, as at most
 * so many bytes; how many, or -1 with error set: a file has changed since it
 * was first looked at, is open for writing or locked, or has lost its name.
 */
ssize_t fs_server_save(struct fs_server *server, void *bytes, size_t room, char *error, size_t n);
/*
 * Go on with that, in a server with the same exports that has served nobody yet.
 * 0, or -1 with error set, and then it is of no use: a file is another now.
 */
int fs_server_load(struct fs_server *server, const void *bytes, size_t len, char *error, size_t n);
/*
 * Whether all of that is still so, while the machine stands still; once it was,
 * nothing is remembered any more.  0, or -1 with error set.
 */
int fs_server_check(struct fs_server *server, char *error, size_t n);

#endif
