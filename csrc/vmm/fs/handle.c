/* SPDX-License-Identifier: MIT */
/* handle.c - what the client has open. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

enum {
	SLOT_BITS = 20,                 /* of a handle's number; the rest is a count */
	MOST_HANDLES = 1 << SLOT_BITS,
};

int fs_handles_init(struct fs_server *server)
{
	if (server->max_handles > MOST_HANDLES)
		server->max_handles = MOST_HANDLES;
	server->next_handle = 1;
	server->handles = calloc(server->max_handles, sizeof(struct fs_handle *));
	server->free_slots = calloc(server->max_handles, sizeof(uint32_t));
	if (!server->handles || !server->free_slots)
		return -ENOMEM;
	while (server->n_free_slots < server->max_handles) {
		server->free_slots[server->n_free_slots] =
			server->max_handles - 1 - server->n_free_slots;
		server->n_free_slots++;
	}
	return 0;
}

/* Called with the lock. */
static bool allow(struct fs_server *server, uint32_t n)
{
	if (n > server->max_handles - server->n_opened)
		return false;
	server->n_opened += n;
	return true;
}

bool fs_fds_allowed(struct fs_server *server, uint32_t n)
{
	bool allowed;

	pthread_mutex_lock(&server->lock);
	allowed = allow(server, n);
	pthread_mutex_unlock(&server->lock);
	return allowed;
}

void fs_fds_returned(struct fs_server *server, uint32_t n)
{
	pthread_mutex_lock(&server->lock);
	server->n_opened -= n;
	pthread_mutex_unlock(&server->lock);
}

static void join(struct fs_handle *handle)
{
	handle->next_of_node = handle->node->handles;
	handle->node->handles = handle;
	handle->node->own |= handle->writable;
}

/* Called with the lock. */
static int enter(struct fs_server *server, struct fs_handle *handle)
{
	if (!server->n_free_slots || !allow(server, 1))
		return -ENFILE;
	handle->slot = server->free_slots[--server->n_free_slots];
	handle->id = server->next_handle++ << SLOT_BITS | handle->slot;
	server->handles[handle->slot] = handle;
	join(handle);
	return 0;
}

static struct fs_handle *make(struct fs_node *node, int fd, bool is_dir, bool writable)
{
	struct fs_handle *handle = calloc(1, sizeof(*handle));

	if (!handle)
		return NULL;
	handle->node = node;
	handle->fd = fd;
	handle->is_dir = is_dir;
	handle->writable = writable;
	pthread_mutex_init(&handle->position, NULL);
	return handle;
}

int fs_handle_new(struct fs_server *server, struct fs_node *node, int fd, bool is_dir,
		  bool writable, uint64_t *id)
{
	struct fs_handle *handle = make(node, fd, is_dir, writable);
	int err = handle ? 0 : -ENOMEM;

	if (handle) {
		pthread_mutex_lock(&server->lock);
		err = enter(server, handle);
		*id = handle->id;
		pthread_mutex_unlock(&server->lock);
	}
	if (err) {
		free(handle);
		if (fd >= 0)
			close(fd);
	}
	return err;
}

/* Take the slot out of the free ones; false: it is none of them. */
static bool take_slot(struct fs_server *server, uint64_t slot)
{
	/* the next ones lie at the end, and so do those that were used */
	for (uint32_t i = server->n_free_slots; i-- > 0;) {
		if (server->free_slots[i] != slot)
			continue;
		server->free_slots[i] = server->free_slots[--server->n_free_slots];
		return true;
	}
	return false;
}

static int enter_again(struct fs_server *server, struct fs_handle *handle, uint64_t id)
{
	uint64_t slot = id & (MOST_HANDLES - 1);

	if (id >> SLOT_BITS >= server->next_handle || slot >= server->max_handles)
		return -EINVAL;
	if (!take_slot(server, slot))
		return -EINVAL;
	if (!allow(server, 1)) {
		server->free_slots[server->n_free_slots++] = (uint32_t)slot;
		return -ENFILE;
	}
	handle->slot = (uint32_t)slot;
	handle->id = id;
	server->handles[slot] = handle;
	join(handle);
	return 0;
}

int fs_handle_again(struct fs_server *server, uint64_t id, struct fs_node *node, int fd,
		    bool is_dir)
{
	struct fs_handle *handle = make(node, fd, is_dir, false);
	int err = handle ? enter_again(server, handle, id) : -ENOMEM;

	if (err) {
		free(handle);
		if (fd >= 0)
			close(fd);
	}
	return err;
}

struct fs_handle *fs_handle_get(struct fs_server *server, const struct fs_node *node, uint64_t id,
				bool is_dir)
{
	uint64_t slot = id & (MOST_HANDLES - 1);
	struct fs_handle *handle = NULL;

	pthread_mutex_lock(&server->lock);
	if (slot < server->max_handles)
		handle = server->handles[slot];
	if (handle && (handle->id != id || handle->is_dir != is_dir ||
		       (node && handle->node != node)))
		handle = NULL;
	if (handle)
		handle->n_users++;
	pthread_mutex_unlock(&server->lock);
	return handle;
}

/* Called with the lock. */
static void finish(struct fs_server *server, struct fs_handle *handle)
{
	struct fs_handle **at = &handle->node->handles;

	if (handle->n_users || !handle->released)
		return;
	while (*at != handle)
		at = &(*at)->next_of_node;
	*at = handle->next_of_node;
	if (handle->fd >= 0)
		close(handle->fd);
	server->n_opened--;
	fs_locks_drop_handle(server, handle->node, handle->id);
	/* a lock can't outlive the file's last opening */
	if (!handle->node->handles)
		fs_locks_drop_all(server, handle->node);
	fs_node_let(server, handle->node);
	pthread_mutex_destroy(&handle->position);
	free(handle);
}

/* Called with the lock: from now on the client can't name it. */
static void release(struct fs_server *server, struct fs_handle *handle)
{
	if (handle->released)
		return;
	handle->released = true;
	server->handles[handle->slot] = NULL;
	server->free_slots[server->n_free_slots++] = handle->slot;
}

void fs_handle_put(struct fs_server *server, struct fs_handle *handle)
{
	pthread_mutex_lock(&server->lock);
	handle->n_users--;
	finish(server, handle);
	pthread_mutex_unlock(&server->lock);
}

void fs_handle_release(struct fs_server *server, struct fs_handle *handle)
{
	pthread_mutex_lock(&server->lock);
	release(server, handle);
	handle->n_users--;
	finish(server, handle);
	pthread_mutex_unlock(&server->lock);
}

void fs_handles_release_all(struct fs_server *server)
{
	for (uint32_t i = 0; i < server->max_handles; i++) {
		struct fs_handle *handle = server->handles[i];

		if (!handle)
			continue;
		release(server, handle);
		finish(server, handle);
	}
}

void fs_handles_free(struct fs_server *server)
{
	if (server->handles)
		fs_handles_release_all(server);
	free(server->handles);
	free(server->free_slots);
}

int fs_reopen(struct fs_server *server, int fd, uint32_t type, int flags)
{
	char name[16];
	bool evicted;
	int opened;

	/* opening a FIFO waits, and opening a device acts */
	if (type != S_IFREG && type != S_IFDIR)
		return -ENXIO;
	snprintf(name, sizeof(name), "%d", fd);
	do {
		evicted = false;
		opened = openat(server->proc, name, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
		if (opened < 0 && (errno == EMFILE || errno == ENFILE)) {
			pthread_mutex_lock(&server->lock);
			evicted = fs_node_evict(server);
			pthread_mutex_unlock(&server->lock);
			errno = ENFILE;
		}
	} while (evicted);
	return opened < 0 ? -errno : opened;
}
