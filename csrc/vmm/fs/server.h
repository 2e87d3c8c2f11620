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

#endif
