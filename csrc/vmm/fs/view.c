/* SPDX-License-Identifier: MIT */
/* view.c - the view: read from its bytes, and tied to what exists. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "view.h"

struct reader {
	struct fs_view *view;
	const uint8_t *at;
	size_t left;
	bool bad;
	uint32_t n_rules;               /* of all exports, so far */
	char *error;
	size_t error_size;
};

__attribute__((format(printf, 2, 3)))
static int fail(struct reader *r, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(r->error, r->error_size, format, args);
	va_end(args);
	return -1;
}

static uint64_t number(struct reader *r, unsigned int bytes)
{
	uint64_t value = 0;

	if (r->bad || r->left < bytes) {
		r->bad = true;
		return 0;
	}
	for (unsigned int i = 0; i < bytes; i++)
		value |= (uint64_t)r->at[i] << (8 * i);
	r->at += bytes;
	r->left -= bytes;
	return value;
}

/* A path of the view as a string of its own; NULL with error set. */
static char *take_path(struct reader *r)
{
	uint64_t len = number(r, 4);
	char *path;

	if (r->bad || len > r->left || !len || len >= PATH_MAX || memchr(r->at, 0, len)) {
		fail(r, "view: a path of %llu bytes is cut off, empty, too long or has a NUL",
		     (unsigned long long)len);
		return NULL;
	}
	path = strndup((const char *)r->at, len);
	if (!path)
		fail(r, "view: out of memory");
	r->at += len;
	r->left -= len;
	return path;
}

static uint32_t slot(const struct fs_view *view, const struct fs_place *parent, const char *name)
{
	uint64_t hash = (uintptr_t)parent / sizeof(void *);

	for (; *name; name++)
		hash = (hash ^ (uint8_t)*name) * 0x100000001b3u;
	return (uint32_t)(hash ^ hash >> 32) & (view->n_hash - 1);
}

struct fs_place *fs_view_child(const struct fs_place *parent, const char *name)
{
	const struct fs_view *view = parent->export->view;
	struct fs_place *place = view->hash[slot(view, parent, name)];

	while (place && (place->parent != parent || strcmp(place->name, name)))
		place = place->next;
	return place;
}

static int grow(struct fs_view *view, uint32_t n)
{
	struct fs_place **hash;

	view->n_hash = 64;
	while (view->n_hash < n)
		view->n_hash *= 2;
	hash = calloc(view->n_hash, sizeof(struct fs_place *));
	view->hash = hash;
	return hash ? 0 : -1;
}

static struct fs_place *add_place(struct reader *r, struct fs_export *export,
				  struct fs_place *parent, const char *name)
{
	struct fs_place *place = calloc(1, sizeof(*place));
	uint32_t at;

	if (!place || !(place->name = strdup(name))) {
		free(place);
		fail(r, "view: out of memory");
		return NULL;
	}
	place->export = export;
	place->parent = parent;
	if (!parent) {
		export->root = place;
		return place;
	}
	place->sibling = parent->children;
	parent->children = place;
	at = slot(r->view, parent, name);
	place->next = r->view->hash[at];
	r->view->hash[at] = place;
	return place;
}

static bool is_component(const char *name)
{
	return *name && strcmp(name, ".") && strcmp(name, "..") && strlen(name) <= NAME_MAX;
}

/* The place at a relative path; its parts are made as needed. */
static struct fs_place *place_at(struct reader *r, struct fs_export *export, char *path)
{
	struct fs_place *place = export->root, *child;
	char *rest = path, *name;

	while ((name = strsep(&rest, "/"))) {
		if (!is_component(name)) {
			fail(r, "view: a rule of export %s has the part '%s'", export->path, name);
			return NULL;
		}
		child = fs_view_child(place, name);
		place = child ? child : add_place(r, export, place, name);
		if (!place)
			return NULL;
	}
	return place;
}

static int read_rule(struct reader *r, struct fs_export *export)
{
	uint64_t access = number(r, 4);
	struct fs_place *place;
	char *path = take_path(r);

	if (!path)
		return -1;
	if (access > FS_WRITABLE) {
		free(path);
		return fail(r, "view: a rule of export %s has access %llu", export->path,
			    (unsigned long long)access);
	}
	place = place_at(r, export, path);
	free(path);
	if (!place)
		return -1;
	if (place->rule)
		return fail(r, "view: export %s has two rules for one path", export->path);
	place->rule = place;
	place->access = (enum fs_access)access;
	return 0;
}

static int open_export(struct reader *r, struct fs_export *export, uint64_t dev, uint64_t ino)
{
	int nofollow = export->flags & FS_EXPORT_NOFOLLOW ? O_NOFOLLOW : 0;
	struct fs_stat st;
	int err;

	export->fd = open(export->path, O_PATH | O_CLOEXEC | nofollow);
	if (export->fd < 0)
		return fail(r, "export %s: open: %s", export->path, strerror(errno));
	err = fs_stat_at(export->fd, "", &st);
	if (err)
		return fail(r, "export %s: statx: %s", export->path, strerror(-err));
	fs_identify(&st, &export->root->is);
	export->root->there = true;
	export->foreign = fs_is_foreign(export->fd, &export->root->is, 0);
	if ((dev || ino) && (export->root->is.dev != dev || export->root->is.ino != ino))
		return fail(r, "export %s: it is another file now", export->path);
	return 0;
}

static int read_export(struct reader *r, struct fs_export *export)
{
	uint64_t flags = number(r, 4), rules = number(r, 4);
	uint64_t dev = number(r, 8), ino = number(r, 8);

	export->path = take_path(r);
	if (!export->path)
		return -1;
	if (export->path[0] != '/' || flags > (FS_EXPORT_READ_ONLY | FS_EXPORT_NOFOLLOW))
		return fail(r, "view: export %s: not absolute, or unknown flags", export->path);
	if (rules > FS_VIEW_RULES - r->n_rules)
		return fail(r, "view: more than %d rules", FS_VIEW_RULES);
	r->n_rules += (uint32_t)rules;
	export->flags = (uint32_t)flags;
	if (!add_place(r, export, NULL, ""))
		return -1;
	export->root->rule = export->root;
	export->root->access = flags & FS_EXPORT_READ_ONLY ? FS_READ_ONLY : FS_WRITABLE;
	for (uint64_t i = 0; i < rules; i++) {
		if (read_rule(r, export))
			return -1;
	}
	return open_export(r, export, dev, ino);
}

static int read_exports(struct reader *r)
{
	struct fs_view *view = r->view;
	uint64_t len = r->left, n;

	if (number(r, 4) != FS_VIEW_MAGIC || number(r, 4) != FS_VIEW_VERSION ||
	    number(r, 4) != len)
		return fail(r, "view: not a view of version %d", FS_VIEW_VERSION);
	n = number(r, 4);
	if (r->bad || n > FS_VIEW_EXPORTS)
		return fail(r, "view: cut off, or more than %d exports", FS_VIEW_EXPORTS);
	view->exports = calloc(n ? n : 1, sizeof(*view->exports));
	if (!view->exports || grow(view, (uint32_t)(len / 8)))
		return fail(r, "view: out of memory");
	for (uint64_t i = 0; i < n; i++) {
		view->exports[i].fd = -1;
		view->exports[i].view = view;
		view->n_exports++;
		if (read_export(r, &view->exports[i]))
			return -1;
	}
	return r->left ? fail(r, "view: %zu bytes too many", r->left) : 0;
}

/* --- what of it exists ---------------------------------------------------------------- */

/* The next place of a tree, each before what is below it; NULL at the end. */
static struct fs_place *following(struct fs_place *place)
{
	if (place->children)
		return place->children;
	while (place && !place->sibling)
		place = place->parent;
	return place ? place->sibling : NULL;
}

/* The path below its export; 0, or -1 if it is too long to exist. */
static int path_of(const struct fs_place *place, char path[PATH_MAX])
{
	size_t at = PATH_MAX - 1;

	path[at] = '\0';
	for (; place->parent; place = place->parent) {
		size_t len = strlen(place->name);

		if (len + 1 > at)
			return -1;
		if (path[at])
			path[--at] = '/';
		at -= len;
		memcpy(path + at, place->name, len);
	}
	memmove(path, path + at, PATH_MAX - at);
	return 0;
}

/* O_PATH, or -1 with errno set; no symbolic link is followed. */
static int open_place(const struct fs_place *place, const char *path)
{
	/* struct open_how: RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH */
	const uint64_t how[3] = { O_PATH | O_NOFOLLOW | O_CLOEXEC, 0, 0x2 | 0x4 | 0x8 };

	return (int)syscall(SYS_openat2, place->export->fd, path, how, sizeof(how));
}

static int find_place(struct reader *r, struct fs_place *place)
{
	char path[PATH_MAX];
	struct fs_stat st;
	int fd, err;

	if (path_of(place, path))
		return fail(r, "export %s: a rule's path is too long", place->export->path);
	fd = open_place(place, path);
	if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
		return 0;
	if (fd < 0)
		return fail(r, "export %s: rule for %s: %s", place->export->path, path,
			    errno == ELOOP ? "a symbolic link is on the way: name what it leads to"
					   : strerror(errno));
	err = fs_stat_at(fd, "", &st);
	close(fd);
	if (err)
		return fail(r, "export %s: rule for %s: statx: %s", place->export->path, path,
			    strerror(-err));
	if ((st.mode & S_IFMT) == S_IFLNK && place->children)
		return fail(r, "export %s: rule below %s: that is a symbolic link",
			    place->export->path, path);
	fs_identify(&st, &place->is);
	place->there = true;
	return 0;
}

static int by_inode(const void *a, const void *b)
{
	const struct fs_identity *x = &(*(struct fs_place *const *)a)->is;
	const struct fs_identity *y = &(*(struct fs_place *const *)b)->is;

	if (x->dev != y->dev)
		return x->dev < y->dev ? -1 : 1;
	return x->ino < y->ino ? -1 : x->ino > y->ino;
}

static void show(struct fs_place *place)
{
	for (; place && !place->shows; place = place->parent)
		place->shows = true;
}

static int tie(struct reader *r, struct fs_export *export)
{
	uint32_t n = 0;

	for (struct fs_place *p = export->root; p; p = following(p)) {
		if (!p->rule) {
			p->rule = p->parent->rule;
			p->access = p->parent->access;
		}
		if (p->access != FS_HIDDEN)
			show(p);
		if (p->parent && find_place(r, p))
			return -1;
		n += p->there;
	}
	export->by_inode = calloc(n, sizeof(struct fs_place *));
	if (!export->by_inode)
		return fail(r, "view: out of memory");
	for (struct fs_place *p = export->root; p; p = following(p)) {
		if (p->there)
			export->by_inode[export->n_by_inode++] = p;
	}
	qsort(export->by_inode, n, sizeof(struct fs_place *), by_inode);
	return 0;
}

struct fs_place *fs_view_inode(const struct fs_export *export, const struct fs_identity *is)
{
	struct fs_place *place = NULL;
	uint32_t low = 0, high = export->n_by_inode;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const struct fs_identity *at = &export->by_inode[middle]->is;

		if (at->dev < is->dev || (at->dev == is->dev && at->ino < is->ino))
			low = middle + 1;
		else
			high = middle;
	}
	/* one inode may have had several of the names: the strictest counts */
	for (; low < export->n_by_inode; low++) {
		struct fs_place *at = export->by_inode[low];

		if (at->is.dev != is->dev || at->is.ino != is->ino)
			break;
		if (fs_same_inode(&at->is, is) && (!place || at->access < place->access))
			place = at;
	}
	return place;
}

int fs_view_read(struct fs_view *view, const void *data, size_t len, char *error, size_t n)
{
	struct reader r = { view, data, len, false, 0, error, n };

	memset(view, 0, sizeof(*view));
	if (n)
		error[0] = '\0';
	if (read_exports(&r))
		return -1;
	for (uint32_t i = 0; i < view->n_exports; i++) {
		if (tie(&r, &view->exports[i]))
			return -1;
	}
	return 0;
}

static int reach_at(int fd, const struct fs_place *place, fs_reach *reach, void *arg)
{
	const uint32_t type = place->is.type;

	/* nothing else is ever opened */
	if (type != S_IFREG && type != S_IFDIR)
		return 0;
	return reach(arg, fd, type == S_IFDIR, place->access == FS_WRITABLE);
}

/* A path that may be written to, in one that may not. */
static int reach_place(const struct fs_place *place, fs_reach *reach, void *arg)
{
	char path[PATH_MAX];
	int fd, ret;

	if (path_of(place, path))
		return -ENAMETOOLONG;
	fd = open_place(place, path);
	/* it went meanwhile: whatever comes there is another file */
	if (fd < 0)
		return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : -errno;
	ret = reach_at(fd, place, reach, arg);
	close(fd);
	return ret;
}

static int reach_export(const struct fs_export *export, fs_reach *reach, void *arg)
{
	int ret = reach_at(export->fd, export->root, reach, arg);

	for (struct fs_place *p = export->root; !ret && p; p = following(p))
		if (p->parent && p->there && p->access == FS_WRITABLE &&
		    p->parent->access != FS_WRITABLE)
			ret = reach_place(p, reach, arg);
	return ret;
}

int fs_view_reach(const struct fs_view *view, fs_reach *reach, void *arg)
{
	int ret = 0;

	for (uint32_t i = 0; !ret && i < view->n_exports; i++)
		ret = reach_export(&view->exports[i], reach, arg);
	return ret;
}

static void free_places(struct fs_place *place)
{
	/* the last of a branch first: depth comes from a file, so no recursion */
	while (place) {
		struct fs_place *child = place->children, *parent = place->parent;

		if (child) {
			place->children = child->sibling;
			child->sibling = NULL;
			place = child;
			continue;
		}
		free(place->name);
		free(place);
		place = parent;
	}
}

void fs_view_free(struct fs_view *view)
{
	for (uint32_t i = 0; i < view->n_exports; i++) {
		struct fs_export *export = &view->exports[i];

		if (export->fd >= 0)
			close(export->fd);
		free_places(export->root);
		free(export->by_inode);
		free(export->path);
	}
	free(view->exports);
	free(view->hash);
	memset(view, 0, sizeof(*view));
}
