/* SPDX-License-Identifier: MIT */
/* session.c - the server's life, and a client's: what both sides can do. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "session.h"

/* No WRITEBACK_CACHE: what the client writes, the host sees at once. */
#define WANTED                                                                               \
	(FUSE_ASYNC_READ | FUSE_POSIX_LOCKS | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES |        \
	 FUSE_FLOCK_LOCKS | FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS |                     \
	 FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |    \
	 FUSE_HANDLE_KILLPRIV_V2)

enum {
	LEAST_NODE_FDS = 16,
	MOST_NODE_FDS = 4096,
	/* of the process, such as its guest's streams, and those of a call at work */
	LEAST_OTHER_FDS = 48,
	MOST_OTHER_FDS = 1280,
	LEAST_FDS = LEAST_OTHER_FDS + 4 * LEAST_NODE_FDS,
};

/* A client is gone, or a new one comes without having said so. */
static void end_session(struct fs_server *server)
{
	pthread_mutex_lock(&server->lock);
	atomic_store(&server->ready, false);
	fs_handles_release_all(server);
	fs_nodes_forget_all(server);
	pthread_mutex_unlock(&server->lock);
}

int fs_session_begin(struct fs_call *call)
{
	struct fuse_init_out out = { .major = FUSE_MAJOR, .minor = FUSE_MINOR };
	struct fuse_init_in in;
	int err = fs_take(call, &in, sizeof(in));

	if (err)
		return err;
	if (in.major < FUSE_MAJOR || (in.major == FUSE_MAJOR && in.minor < FUSE_MINOR_LEAST))
		return -EPROTO;
	/* a younger client asks again, in this version */
	if (in.major > FUSE_MAJOR)
		return fs_reply(call, &out, sizeof(out));
	end_session(call->server);
	out.max_readahead = in.max_readahead;
	out.flags = in.flags & WANTED;
	out.max_background = 64;
	out.congestion_threshold = 48;
	out.max_write = FS_MAX_WRITE;
	out.max_pages = FS_MAX_PAGES;
	out.time_gran = 1;
	err = fs_reply(call, &out, sizeof(out));
	atomic_store(&call->server->ready, !err);
	return err;
}

int fs_session_end(struct fs_call *call)
{
	end_session(call->server);
	return 0;
}

/* --- the server --------------------------------------------------------------------------- */

/* A share of the process's fds for nodes, the rest for what clients open. */
static int set_limits(struct fs_server *server)
{
	struct rlimit limit;
	rlim_t fds, other;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return -1;
	fds = limit.rlim_cur;
	if (fds < LEAST_FDS)
		return -1;
	if (fds > 1 << 20)
		fds = 1 << 20;
	other = fds / 4;
	if (other < LEAST_OTHER_FDS)
		other = LEAST_OTHER_FDS;
	fds -= other < MOST_OTHER_FDS ? other : MOST_OTHER_FDS;
	server->max_fds = (uint32_t)fds / 4;
	if (server->max_fds > MOST_NODE_FDS)
		server->max_fds = MOST_NODE_FDS;
	server->max_handles = (uint32_t)fds - server->max_fds;
	return 0;
}

static const char *prepare(struct fs_server *server)
{
	if (set_limits(server))
		return "too few open files are allowed: raise RLIMIT_NOFILE";
	server->proc = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (server->proc < 0)
		return "/proc/self/fd can't be opened: /proc must be mounted";
	if (fs_nodes_init(server) || fs_handles_init(server))
		return "out of memory";
	server->is_root = geteuid() == 0;
	server->devtmpfs = fs_find_devtmpfs();
	umask(0);
	signal(SIGXFSZ, SIG_IGN);
	return NULL;
}

struct fs_server *fs_server_new(const void *view, size_t len, char *error, size_t n)
{
	struct fs_server *server = calloc(1, sizeof(*server));
	const char *what;

	if (!server) {
		snprintf(error, n, "out of memory");
		return NULL;
	}
	server->proc = -1;
	pthread_mutex_init(&server->lock, NULL);
	pthread_mutex_init(&server->adding, NULL);
	what = prepare(server);
	if (what)
		snprintf(error, n, "%s", what);
	if (what || (len && fs_server_add(server, view, len, error, n) < 0)) {
		fs_server_free(server);
		return NULL;
	}
	return server;
}

/* Called with the lock of adding. */
static const char *enter(struct fs_server *server, struct fs_view *view)
{
	uint32_t n = atomic_load(&server->n_exports);

	if (view->n_exports > FS_VIEW_EXPORTS - n)
		return "there are too many exports";
	if (!fs_fds_allowed(server, view->n_exports))
		return "too few open files are allowed: raise RLIMIT_NOFILE";
	for (uint32_t i = 0; i < view->n_exports; i++)
		server->exports[n + i] = &view->exports[i];
	view->next = server->views;
	server->views = view;
	atomic_store(&server->n_exports, n + view->n_exports);
	return NULL;
}

int fs_server_add(struct fs_server *server, const void *data, size_t len, char *error, size_t n)
{
	struct fs_view *view = calloc(1, sizeof(*view));
	const char *what = "out of memory";
	int first;

	if (view && fs_view_read(view, data, len, error, n)) {
		fs_view_free(view);
		free(view);
		return -1;
	}
	pthread_mutex_lock(&server->adding);
	first = (int)atomic_load(&server->n_exports);
	if (view)
		what = enter(server, view);
	pthread_mutex_unlock(&server->adding);
	if (!what)
		return first;
	snprintf(error, n, "%s", what);
	if (view)
		fs_view_free(view);
	free(view);
	return -1;
}

int fs_server_reach(struct fs_server *server, fs_reach *reach, void *arg)
{
	int ret = 0;

	pthread_mutex_lock(&server->adding);
	for (const struct fs_view *view = server->views; !ret && view; view = view->next)
		ret = fs_view_reach(view, reach, arg);
	pthread_mutex_unlock(&server->adding);
	return ret;
}

static void free_views(struct fs_server *server)
{
	while (server->views) {
		struct fs_view *view = server->views;

		server->views = view->next;
		fs_view_free(view);
		free(view);
	}
}

void fs_server_free(struct fs_server *server)
{
	if (!server)
		return;
	fs_handles_free(server);
	fs_nodes_free(server);
	free_views(server);
	if (server->proc >= 0)
		close(server->proc);
	pthread_mutex_destroy(&server->lock);
	pthread_mutex_destroy(&server->adding);
	free(server);
}

bool fs_server_untouched(struct fs_server *server, bool *mounted)
{
	bool untouched;

	pthread_mutex_lock(&server->lock);
	*mounted = atomic_load(&server->ready);
	untouched = !atomic_load(&server->n_exports) && server->n_nodes == 1 && !server->n_opened;
	pthread_mutex_unlock(&server->lock);
	return untouched;
}

void fs_server_resume(struct fs_server *server, bool mounted)
{
	atomic_store(&server->ready, mounted);
}
