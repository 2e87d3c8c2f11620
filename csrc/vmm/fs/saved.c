/* SPDX-License-Identifier: MIT */
/*
 * saved.c - what a client knows and has open, as bytes, for a machine that is saved.
 *
 * The client goes on with the numbers of nodes and handles that it has, and may
 * believe what it was told of them.  So each is found again by the name below its
 * parent, and must be the same file in the same state; where it lies in the view
 * is looked up anew.  The bytes may come from anybody: they give numbers, names
 * and what to compare with, and nothing that a client could not have come to.
 *
 * All numbers are u64 in the processor's byte order.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core.h"

struct saved_head {
	uint64_t next_node, next_handle, n_devices, n_nodes, n_handles;
	/* the devices, the nodes with their names behind them, and the handles follow */
};

struct saved_node {
	uint64_t id, parent, n_lookup;
	uint64_t dev, ino, mount, born, type;
	struct fs_stamp stamp;
	uint64_t name_len;
};

struct saved_handle {
	uint64_t id, node, is_dir;
};

enum { PATH_SHOWN = 256 };

/* A handle's number has 44 bits for it. */
#define MOST_OPENED (UINT64_C(1) << 43)

struct saving {
	struct fs_server *server;
	uint8_t *at;
	size_t left;
	char *error;
	size_t n_error;
};

/* --- what is said of a file ---------------------------------------------------------------- */

/* The host's path, or its end if that is long; it lies at the end of the room. */
static const char *path_of(const struct fs_server *server, const struct fs_node *node,
			   char room[PATH_SHOWN])
{
	size_t at = PATH_SHOWN - 1;

	room[at] = '\0';
	for (; node && node->parent; node = node->parent) {
		const char *part = node->parent == server->root ? node->where.export->path :
				   node->name;
		size_t len = strlen(part);

		if (at < PATH_SHOWN - 1 && at)
			room[--at] = '/';
		if (len > at)
			break;
		at -= len;
		memcpy(room + at, part, len);
	}
	return room + at;
}

static int refuse(const struct saving *saving, const struct fs_node *node, const char *what)
{
	char room[PATH_SHOWN];
	const char *path = path_of(saving->server, node, room);

	snprintf(saving->error, saving->n_error, "%s: %s", *path ? path : "a file without a name",
		 what);
	return -1;
}

static int wrong(const struct saving *saving, const char *what)
{
	snprintf(saving->error, saving->n_error, "the files of a saved machine: %s", what);
	return -1;
}

/* --- a node against what is there ------------------------------------------------------------ */

/*
 * What the client may believe for long, or a program of its may have read: files
 * and links everywhere, directories where the client believes their times, too.
 */
static bool is_stamped(const struct fs_node *node)
{
	if (node->where.access == FS_HIDDEN)
		return false;
	if (node->is.type == S_IFDIR)
		return node->where.access == FS_READ_ONLY;
	return node->is.type == S_IFREG || node->is.type == S_IFLNK;
}

static bool same_stamp(const struct fs_stamp *a, const struct fs_stamp *b)
{
	return a->size == b->size && a->modified == b->modified && a->changed == b->changed;
}

/* What the node's name leads to now, if that is this very node; else what is wrong. */
static const char *look_again(struct fs_server *server, struct fs_node *node,
			      struct fs_found *found)
{
	if (!node->parent)
		return "it has no name any more";
	if (fs_look(server, node->parent, node->name, found))
		return "it is not there any more";
	if (!fs_same(&found->is, &node->is) || !fs_same_where(&found->where, &node->where))
		return "another file is there now";
	return NULL;
}

/* What a program wrote itself and has removed again is nothing to anybody. */
static bool is_over(const struct fs_node *node)
{
	return node->own && !node->n_lookup && !node->handles && !node->n_children;
}

/*
 * Of a file that was only in a list, in a writable directory, a client believes
 * nothing: it asks for the name before it uses it, and gets another number then.
 */
static bool is_listed(const struct fs_node *node)
{
	return node->where.access == FS_WRITABLE && node->is.type != S_IFDIR &&
	       !node->looked && !node->own && !node->handles;
}

static const char *check_state(const struct fs_node *node, const struct fs_found *found)
{
	struct fs_stamp now;

	fs_stamp(&found->st, &now);
	return is_stamped(node) && !same_stamp(&now, &node->seen) ? "it has changed" : NULL;
}

/* --- saving ------------------------------------------------------------------------------ */

static int put(struct saving *saving, const void *data, size_t len)
{
	if (len > saving->left)
		return wrong(saving, "there are too many");
	memcpy(saving->at, data, len);
	saving->at += len;
	saving->left -= len;
	return 0;
}

/* 1: it was saved, 0: there is nothing to be saved of it. */
static int save_node(struct saving *saving, struct fs_node *node)
{
	const struct fs_identity *is = &node->is;
	struct saved_node saved = {
		.id = node->id, .n_lookup = node->n_lookup, .dev = is->dev, .ino = is->ino,
		.mount = is->mount, .born = is->born, .type = is->type,
	};
	struct fs_found found;
	const char *why = look_again(saving->server, node, &found);

	if (why && is_over(node))
		return 0;
	if (!why && node->locks)
		why = "it is locked";
	if (!why && node->where.export->foreign)
		why = "its file system doesn't tell whether it has changed";
	if (!why && node->own)
		fs_stamp(&found.st, &node->seen);
	if (!why)
		why = check_state(node, &found);
	if (why)
		return refuse(saving, node, why);
	saved.parent = node->parent->id;
	saved.stamp = node->seen;
	saved.name_len = strlen(node->name);
	return put(saving, &saved, sizeof(saved)) || put(saving, node->name, saved.name_len) ?
	       -1 : 1;
}

static int save_handle(struct saving *saving, const struct fs_handle *handle)
{
	const struct saved_handle saved = { handle->id, handle->node->id, handle->is_dir };

	if (handle->writable)
		return refuse(saving, handle->node, "it is open for writing");
	if (atomic_load(&handle->flocked))
		return refuse(saving, handle->node, "it is locked");
	return put(saving, &saved, sizeof(saved));
}

struct by_depth {
	struct fs_node *node;
	uint32_t depth;
};

static int compare_depths(const void *a, const void *b)
{
	const struct by_depth *x = a, *y = b;

	return (x->depth > y->depth) - (x->depth < y->depth);
}

/* All but the root, those above before those below; free it. */
static struct by_depth *list_nodes(struct fs_server *server, size_t *n)
{
	struct by_depth *list = calloc(server->n_nodes, sizeof(*list));

	*n = 0;
	for (uint32_t i = 0; list && i < server->n_slots; i++) {
		for (struct fs_node *node = server->by_id[i]; node; node = node->next_by_id) {
			struct by_depth *one = &list[*n];

			if (node == server->root || is_listed(node))
				continue;
			one->node = node;
			for (const struct fs_node *up = node->parent; up; up = up->parent)
				one->depth++;
			(*n)++;
		}
	}
	if (list)
		qsort(list, *n, sizeof(*list), compare_depths);
	return list;
}

static int save_nodes(struct saving *saving, uint64_t *n_saved)
{
	size_t n;
	struct by_depth *list = list_nodes(saving->server, &n);
	int ret = list ? 0 : wrong(saving, "out of memory");

	*n_saved = 0;
	for (size_t i = 0; ret >= 0 && i < n; i++) {
		ret = save_node(saving, list[i].node);
		*n_saved += ret > 0;
	}
	free(list);
	return ret < 0 ? -1 : 0;
}

static int save_handles(struct saving *saving, uint64_t *n_saved)
{
	const struct fs_server *server = saving->server;
	int ret = 0;

	*n_saved = 0;
	for (uint32_t i = 0; !ret && i < server->max_handles; i++) {
		if (!server->handles[i])
			continue;
		ret = save_handle(saving, server->handles[i]);
		(*n_saved)++;
	}
	return ret;
}

/* Without the lock: the machine stands still, and no request is under way. */
ssize_t fs_server_save(struct fs_server *server, void *bytes, size_t room, char *error, size_t n)
{
	struct saved_head head = {
		.next_node = server->next_node, .next_handle = server->next_handle,
		.n_devices = server->n_devices,
	};
	struct saving saving = { server, bytes, room, error, n };
	int ret;

	if (!server->keeping) {
		snprintf(error, n, "files are shared, and not to be saved");
		return -1;
	}
	ret = put(&saving, &head, sizeof(head)) ||
	      put(&saving, server->devices, head.n_devices * sizeof(server->devices[0])) ||
	      save_nodes(&saving, &head.n_nodes) || save_handles(&saving, &head.n_handles);
	if (ret)
		return -1;
	/* how many there are is known now */
	memcpy(bytes, &head, sizeof(head));
	return (ssize_t)(room - saving.left);
}

/* --- loading ------------------------------------------------------------------------------ */

static int get(struct saving *saving, void *data, size_t len)
{
	if (len > saving->left)
		return wrong(saving, "they are cut short");
	memcpy(data, saving->at, len);
	saving->at += len;
	saving->left -= len;
	return 0;
}

static int get_name(struct saving *saving, uint64_t len, char name[FS_NAME])
{
	if (len >= FS_NAME)
		return wrong(saving, "a name that is too long");
	if (get(saving, name, (size_t)len))
		return -1;
	name[len] = '\0';
	return strlen(name) == len && fs_is_name(name) ? 0 : wrong(saving, "a name that can't be");
}

/* The node that it was, at the place where it was, in the view as it is now. */
static int load_node(struct saving *saving)
{
	struct fs_server *server = saving->server;
	struct saved_node saved;
	struct fs_node *parent, *node;
	struct fs_found found;
	char name[FS_NAME];
	const char *why;

	if (get(saving, &saved, sizeof(saved)) || get_name(saving, saved.name_len, name))
		return -1;
	parent = fs_node_find(server, saved.parent);
	if (!parent)
		return wrong(saving, "one below no other");
	if (fs_look(server, parent, name, &found))
		return refuse(saving, parent, "what was in it is not there any more");
	node = fs_node_again(server, saved.id, saved.n_lookup, parent, name, &found);
	if (!node)
		return wrong(saving, "one that can't be");
	node->looked = true;
	node->seen = saved.stamp;
	node->is = (struct fs_identity){ saved.dev, saved.ino, saved.mount, saved.born,
					 (uint32_t)saved.type };
	why = fs_same(&found.is, &node->is) ? NULL : "another file is there now";
	/* it is in the table as what it is */
	node->is = found.is;
	if (!why)
		why = check_state(node, &found);
	return why ? refuse(saving, node, why) : 0;
}

static int open_again(struct fs_server *server, struct fs_node *node, bool is_dir, int *fd)
{
	if (is_dir)
		return fs_open_directory(server, node, fd);
	if (node->where.access == FS_HIDDEN)
		return -EACCES;
	*fd = fs_node_fd(server, node);
	if (*fd >= 0)
		*fd = fs_reopen(server, *fd, node->is.type, O_RDONLY);
	return *fd < 0 ? *fd : 0;
}

static int load_handle(struct saving *saving)
{
	struct fs_server *server = saving->server;
	struct saved_handle saved;
	struct fs_node *node;
	int fd, err;

	if (get(saving, &saved, sizeof(saved)))
		return -1;
	node = fs_node_find(server, saved.node);
	if (!node || saved.is_dir > 1 || saved.is_dir != (node->is.type == S_IFDIR))
		return wrong(saving, "one that is open, and is no file");
	err = open_again(server, node, saved.is_dir, &fd);
	if (err)
		return refuse(saving, node, strerror(-err));
	return fs_handle_again(server, saved.id, node, fd, saved.is_dir) ?
	       wrong(saving, "an open one whose number can't be") : 0;
}

static int load_all(struct saving *saving)
{
	struct fs_server *server = saving->server;
	struct saved_head head;
	int ret = get(saving, &head, sizeof(head));

	if (ret)
		return ret;
	if (head.n_devices > sizeof(server->devices) / sizeof(server->devices[0]))
		return wrong(saving, "too many devices");
	ret = get(saving, server->devices, head.n_devices * sizeof(server->devices[0]));
	if (ret)
		return ret;
	/* below it are those that were given away, and above it there is room for more */
	if (head.next_node > INT64_MAX || head.next_node <= FUSE_ROOT_ID ||
	    head.next_handle > MOST_OPENED || !head.next_handle)
		return wrong(saving, "numbers that can't be");
	server->n_devices = (uint32_t)head.n_devices;
	server->next_node = head.next_node;
	server->next_handle = head.next_handle;
	for (uint64_t i = 0; !ret && i < head.n_nodes; i++)
		ret = load_node(saving);
	for (uint64_t i = 0; !ret && i < head.n_handles; i++)
		ret = load_handle(saving);
	if (!ret && saving->left)
		ret = wrong(saving, "bytes that mean nothing");
	return ret;
}

void fs_server_keep(struct fs_server *server)
{
	pthread_mutex_lock(&server->lock);
	server->keeping = true;
	pthread_mutex_unlock(&server->lock);
}

int fs_server_load(struct fs_server *server, const void *bytes, size_t len, char *error, size_t n)
{
	/* which is only read */
	struct saving saving = { server, (uint8_t *)(uintptr_t)bytes, len, error, n };

	server->keeping = true;
	return load_all(&saving);
}

/* --- looking once more --------------------------------------------------------------------- */

static int check_node(struct saving *saving, struct fs_node *node)
{
	struct fs_found found;
	const char *why = look_again(saving->server, node, &found);

	if (why && is_over(node))
		return 0;
	if (!why)
		why = check_state(node, &found);
	return why ? refuse(saving, node, why) : 0;
}

/* Without the lock, as saving. */
int fs_server_check(struct fs_server *server, char *error, size_t n)
{
	struct saving saving = { .server = server, .error = error, .n_error = n };
	int ret = server->keeping ? 0 : wrong(&saving, "there are none to be looked at");

	for (uint32_t i = 0; !ret && i < server->n_slots; i++)
		for (struct fs_node *node = server->by_id[i]; !ret && node; node = node->next_by_id)
			if (node != server->root && !is_listed(node))
				ret = check_node(&saving, node);
	if (ret)
		return ret;
	pthread_mutex_lock(&server->lock);
	fs_nodes_let_go(server);
	pthread_mutex_unlock(&server->lock);
	return 0;
}
