/* SPDX-License-Identifier: MIT */
/*
 * node.c - the files that the client knows.
 *
 * A node costs memory, not an fd: it remembers where it was seen, and is opened
 * again by that name when it is needed.  What is there then must be the same
 * file, or the node is stale.  The fds that stay open are the last used ones.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

enum {
	FIRST_SLOTS = 1024,
	MAX_NODES = 1 << 22,            /* a client's own inodes take more memory than ours */
};

static uint32_t id_slot(const struct fs_server *server, uint64_t id)
{
	return (uint32_t)id & (server->n_slots - 1);
}

static uint32_t key_slot(const struct fs_server *server, const struct fs_identity *is)
{
	uint64_t hash = (is->ino ^ is->dev << 40) * 0x9e3779b97f4a7c15u;

	return (uint32_t)(hash >> 32) & (server->n_slots - 1);
}

/* --- tables ------------------------------------------------------------------------------ */

static void insert(struct fs_server *server, struct fs_node *node)
{
	struct fs_node **id = &server->by_id[id_slot(server, node->id)];
	struct fs_node **key = &server->by_key[key_slot(server, &node->is)];

	node->next_by_id = *id;
	*id = node;
	node->next_by_key = *key;
	*key = node;
}

static int set_slots(struct fs_server *server, uint32_t n)
{
	struct fs_node **old = server->by_id, *node, *next;
	struct fs_node **by_id = calloc(n, sizeof(struct fs_node *));
	struct fs_node **by_key = calloc(n, sizeof(struct fs_node *));
	uint32_t n_old = server->n_slots;

	if (!by_id || !by_key) {
		free(by_id);
		free(by_key);
		return -ENOMEM;
	}
	free(server->by_key);
	server->by_id = by_id;
	server->by_key = by_key;
	server->n_slots = n;
	for (uint32_t i = 0; i < n_old; i++) {
		for (node = old[i]; node; node = next) {
			next = node->next_by_id;
			insert(server, node);
		}
	}
	free(old);
	return 0;
}

static struct fs_node *by_id(const struct fs_server *server, uint64_t id)
{
	struct fs_node *node = server->by_id[id_slot(server, id)];

	while (node && node->id != id)
		node = node->next_by_id;
	return node;
}

static struct fs_node *by_key(const struct fs_server *server, const struct fs_identity *is,
			      const struct fs_where *where)
{
	struct fs_node *node = server->by_key[key_slot(server, is)];

	while (node && !(fs_same(&node->is, is) && fs_same_where(&node->where, where)))
		node = node->next_by_key;
	return node;
}

static void take_out(struct fs_server *server, struct fs_node *node)
{
	struct fs_node **at = &server->by_id[id_slot(server, node->id)];

	while (*at != node)
		at = &(*at)->next_by_id;
	*at = node->next_by_id;
	at = &server->by_key[key_slot(server, &node->is)];
	while (*at != node)
		at = &(*at)->next_by_key;
	*at = node->next_by_key;
}

/* --- fds --------------------------------------------------------------------------------- */

static void unlist(struct fs_server *server, struct fs_node *node)
{
	*(node->newer ? &node->newer->older : &server->newest) = node->older;
	*(node->older ? &node->older->newer : &server->oldest) = node->newer;
	node->newer = node->older = NULL;
}

static void list(struct fs_server *server, struct fs_node *node)
{
	node->older = server->newest;
	node->newer = NULL;
	*(server->newest ? &server->newest->newer : &server->oldest) = node;
	server->newest = node;
}

static void close_fd(struct fs_server *server, struct fs_node *node)
{
	if (node->fd < 0 || node->fixed)
		return;
	unlist(server, node);
	close(node->fd);
	node->fd = -1;
	server->n_fds--;
}

bool fs_node_evict(struct fs_server *server)
{
	struct fs_node *node = server->oldest;

	while (node && (node->n_users || node->down))
		node = node->newer;
	if (!node)
		return false;
	close_fd(server, node);
	return true;
}

static void set_fd(struct fs_server *server, struct fs_node *node, int fd)
{
	while (server->n_fds >= server->max_fds && fs_node_evict(server))
		;
	node->fd = fd;
	server->n_fds++;
	list(server, node);
}

/* Where its parent is open, or it has a handle: open the node itself. */
static int open_node(struct fs_server *server, struct fs_node *node)
{
	struct fs_identity is;
	struct fs_stat st;
	char name[16];
	int fd, err;

	do {
		if (node->handles && node->handles->fd >= 0) {
			snprintf(name, sizeof(name), "%d", node->handles->fd);
			fd = openat(server->proc, name, O_PATH | O_CLOEXEC);
		} else if (!node->parent) {
			return -ESTALE;
		} else {
			fd = openat(node->parent->fd, node->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		}
	} while (fd < 0 && (errno == EMFILE || errno == ENFILE) && fs_node_evict(server));
	if (fd < 0)
		return errno == ENOENT || errno == ENOTDIR ? -ESTALE : -errno;
	err = fs_stat_at(fd, "", &st);
	if (!err) {
		fs_identify(&st, &is);
		err = fs_same(&is, &node->is) ? 0 : -ESTALE;
	}
	if (err) {
		close(fd);
		return err;
	}
	set_fd(server, node, fd);
	return 0;
}

/* Open it, and first whatever above it is closed. */
static int open_way(struct fs_server *server, struct fs_node *node)
{
	struct fs_node *top = node, *next;
	int err = 0;

	while (top->fd < 0 && !(top->handles && top->handles->fd >= 0) && top->parent) {
		top->parent->down = top;
		top = top->parent;
	}
	while (top) {
		if (!err && top->fd < 0)
			err = open_node(server, top);
		next = top == node ? NULL : top->down;
		/* until here it could not be evicted */
		if (top->parent)
			top->parent->down = NULL;
		top = next;
	}
	node->down = NULL;
	return err;
}

int fs_node_fd(struct fs_server *server, struct fs_node *node)
{
	int fd;

	pthread_mutex_lock(&server->lock);
	if (node->fd < 0) {
		int err = open_way(server, node);

		fd = err ? err : node->fd;
	} else {
		fd = node->fd;
		if (!node->fixed && node->newer) {
			unlist(server, node);
			list(server, node);
		}
	}
	pthread_mutex_unlock(&server->lock);
	return fd;
}

/* The parent, held, if the node is best seen by its name; its name is copied. */
static struct fs_node *hold_parent(struct fs_server *server, struct fs_node *node,
				   char name[FS_NAME])
{
	struct fs_node *parent = NULL;

	pthread_mutex_lock(&server->lock);
	if (node->fd < 0 && !node->handles && node->parent) {
		parent = node->parent;
		parent->n_users++;
		strcpy(name, node->name);
	}
	pthread_mutex_unlock(&server->lock);
	return parent;
}

int fs_node_stat(struct fs_server *server, struct fs_node *node, struct fs_stat *st)
{
	char name[FS_NAME] = "";
	struct fs_node *parent = hold_parent(server, node, name);
	struct fs_identity is;
	int fd = fs_node_fd(server, parent ? parent : node), err;

	err = fd < 0 ? fd : fs_stat_at(fd, name, st);
	if (parent) {
		fs_node_put(server, parent);
		if (!err) {
			fs_identify(st, &is);
			err = fs_same(&is, &node->is) ? 0 : -ESTALE;
		} else if (err == -ENOENT || err == -ENOTDIR) {
			err = -ESTALE;
		}
	}
	return err;
}

/* --- life -------------------------------------------------------------------------------- */

static bool is_used(const struct fs_node *node)
{
	return node->n_lookup || node->n_users || node->n_children || node->handles ||
	       node->locks;
}

void fs_node_let(struct fs_server *server, struct fs_node *node)
{
	while (node && node != server->root && !server->keeping && !is_used(node)) {
		struct fs_node *parent = node->parent;

		take_out(server, node);
		close_fd(server, node);
		free(node->name);
		free(node);
		server->n_nodes--;
		if (parent)
			parent->n_children--;
		node = parent;
	}
}

struct fs_node *fs_node_get(struct fs_server *server, uint64_t id)
{
	struct fs_node *node;

	pthread_mutex_lock(&server->lock);
	node = by_id(server, id);
	/* one that is only kept for what is below it is unknown to the client */
	if (node && !node->n_lookup && node != server->root)
		node = NULL;
	if (node)
		node->n_users++;
	pthread_mutex_unlock(&server->lock);
	return node;
}

void fs_node_put(struct fs_server *server, struct fs_node *node)
{
	if (!node)
		return;
	pthread_mutex_lock(&server->lock);
	node->n_users--;
	fs_node_let(server, node);
	pthread_mutex_unlock(&server->lock);
}

static void forget(struct fs_server *server, struct fs_node *node, uint64_t n)
{
	if (node == server->root)
		return;
	node->n_lookup -= n < node->n_lookup ? n : node->n_lookup;
	fs_node_let(server, node);
}

void fs_node_forget(struct fs_server *server, uint64_t id, uint64_t n)
{
	struct fs_node *node;

	pthread_mutex_lock(&server->lock);
	node = by_id(server, id);
	if (node)
		forget(server, node, n);
	pthread_mutex_unlock(&server->lock);
}

/* Called with the lock: whether a is b, or above it. */
static bool is_above(const struct fs_node *a, const struct fs_node *b)
{
	while (b && b != a)
		b = b->parent;
	return b;
}

/* Called with the lock.  The old name goes even if there is no memory for the new one. */
static int set_name(struct fs_server *server, struct fs_node *node, struct fs_node *parent,
		    const char *name)
{
	struct fs_node *old = node->parent;
	char *copy;

	if (old && old == parent && !strcmp(node->name, name))
		return 0;
	/* what the host moved around may seem to be above itself */
	if (old != parent && node->n_children && is_above(node, parent))
		return -ESTALE;
	copy = name ? strdup(name) : NULL;
	if (name && !copy)
		return -ENOMEM;
	free(node->name);
	node->name = copy;
	node->parent = parent;
	if (parent)
		parent->n_children++;
	if (old) {
		old->n_children--;
		fs_node_let(server, old);
	}
	return 0;
}

static struct fs_node *add(struct fs_server *server, uint64_t id, const struct fs_found *found)
{
	struct fs_node *node;

	if (server->n_nodes >= MAX_NODES)
		return NULL;
	if (server->n_nodes >= server->n_slots && set_slots(server, server->n_slots * 2))
		return NULL;
	node = calloc(1, sizeof(*node));
	if (!node)
		return NULL;
	node->id = id;
	node->is = found->is;
	node->where = found->where;
	node->fd = -1;
	fs_stamp(&found->st, &node->seen);
	insert(server, node);
	server->n_nodes++;
	return node;
}

/* What the view has open already. */
static void fix_export(const struct fs_server *server, struct fs_node *node)
{
	if (node->parent != server->root || node->fixed)
		return;
	node->fd = node->where.export->fd;
	node->fixed = true;
}

int fs_node_seen(struct fs_server *server, struct fs_node *parent, const char *name,
		 const struct fs_found *found, struct fs_node **out)
{
	struct fs_node *node;
	int err;

	pthread_mutex_lock(&server->lock);
	node = by_key(server, &found->is, &found->where);
	if (!node)
		node = add(server, server->next_node++, found);
	err = node ? set_name(server, node, parent, name) : -ENOMEM;
	if (!err) {
		fix_export(server, node);
		node->n_users++;
		node->n_lookup++;
		*out = node;
	} else if (node) {
		fs_node_let(server, node);
	}
	pthread_mutex_unlock(&server->lock);
	return err;
}

struct fs_node *fs_node_find(const struct fs_server *server, uint64_t id)
{
	return by_id(server, id);
}

struct fs_node *fs_node_again(struct fs_server *server, uint64_t id, uint64_t n_lookup,
			      struct fs_node *parent, const char *name,
			      const struct fs_found *found)
{
	struct fs_node *node;

	if (id >= server->next_node || n_lookup > INT64_MAX || by_id(server, id) ||
	    by_key(server, &found->is, &found->where))
		return NULL;
	node = add(server, id, found);
	if (!node)
		return NULL;
	node->n_lookup = n_lookup;
	if (set_name(server, node, parent, name))
		return NULL;
	fix_export(server, node);
	return node;
}

void fs_node_moved(struct fs_server *server, const struct fs_identity *is,
		   const struct fs_where *where, struct fs_node *parent, const char *name)
{
	struct fs_node *node;

	pthread_mutex_lock(&server->lock);
	node = by_key(server, is, where);
	/* without memory it becomes stale: the client looks it up anew */
	if (node)
		(void)set_name(server, node, parent, name);
	pthread_mutex_unlock(&server->lock);
}

int fs_nodes_init(struct fs_server *server)
{
	const struct fs_found found = {
		.is = { .ino = 1, .type = S_IFDIR }, .where = { .access = FS_READ_ONLY },
	};

	server->next_node = FUSE_ROOT_ID + 1;
	if (set_slots(server, FIRST_SLOTS))
		return -ENOMEM;
	server->root = add(server, FUSE_ROOT_ID, &found);
	return server->root ? 0 : -ENOMEM;
}

void fs_nodes_let_go(struct fs_server *server)
{
	server->keeping = false;
	/* as below */
	for (uint32_t i = 0; i < server->n_slots; i++) {
		struct fs_node *node = server->by_id[i];

		while (node) {
			struct fs_node *next = node->next_by_id;

			if (node != server->root && !is_used(node)) {
				fs_node_let(server, node);
				next = server->by_id[i];
			}
			node = next;
		}
	}
}

void fs_nodes_forget_all(struct fs_server *server)
{
	bool keeping = server->keeping;

	fs_nodes_let_go(server);
	/* what a node's going takes along lies above it, so each slot is begun again */
	for (uint32_t i = 0; i < server->n_slots; i++) {
		struct fs_node *node = server->by_id[i];

		while (node) {
			struct fs_node *next = node->next_by_id;

			if (node == server->root || (!node->n_lookup && !node->locks)) {
				node = next;
				continue;
			}
			fs_locks_drop_all(server, node);
			forget(server, node, node->n_lookup);
			node = server->by_id[i];
		}
	}
	server->keeping = keeping;
}

void fs_nodes_free(struct fs_server *server)
{
	if (server->root) {
		fs_nodes_forget_all(server);
		free(server->root);
	}
	free(server->by_id);
	free(server->by_key);
}
