/* SPDX-License-Identifier: MIT */
/* look.c - one step of a path, and what the view has to say about it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

/* What a name alone says. */
static void where_by_name(const struct fs_where *parent, const char *name,
			  struct fs_where *where)
{
	*where = *parent;
	where->place = parent->place ? fs_view_child(parent->place, name) : NULL;
	if (!where->place)
		return;
	where->rule = where->place->rule;
	/* below an inode's rule nothing is given back */
	if (!parent->capped || where->place->access < parent->access)
		where->access = where->place->access;
}

/* An inode that had a rule at the start keeps it under any name. */
static void where_by_inode(const struct fs_identity *is, struct fs_where *where)
{
	struct fs_place *place = fs_view_inode(where->export, is);

	if (!place || place == where->place)
		return;
	if (place->access < where->access)
		where->access = place->access;
	where->capped = true;
	/* where the host has put it under another rule's name, that name's rules count on */
	if (where->place)
		return;
	where->rule = place->rule;
	where->place = place;
}

static bool is_mount(const struct fs_identity *parent, const struct fs_identity *child)
{
	return child->dev != parent->dev || child->mount != parent->mount;
}

/* proc and its like below a source show as empty directories. */
static int cross(struct fs_server *server, int fd, const char *name, struct fs_found *found)
{
	struct fs_identity is;
	struct fs_stat st;
	int child = openat(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), err;

	if (child < 0)
		return -errno;
	err = fs_stat_at(child, "", &st);
	if (!err) {
		fs_identify(&st, &is);
		err = fs_same(&is, &found->is) ? 0 : -ESTALE;
	}
	if (!err && fs_is_foreign(child, &is, server->devtmpfs)) {
		found->where.foreign = true;
		found->where.access = FS_HIDDEN;
	}
	close(child);
	return err;
}

static int look_export(struct fs_server *server, const char *name, struct fs_found *found)
{
	struct fs_export *export;
	char *end;
	unsigned long number = strtoul(name, &end, 10);
	char again[24];

	snprintf(again, sizeof(again), "%lu", number);
	if (number >= atomic_load(&server->n_exports) || strcmp(again, name))
		return -ENOENT;
	export = server->exports[number];
	found->is = export->root->is;
	found->where = (struct fs_where){ .export = export, .place = export->root,
					  .rule = export->root,
					  .access = export->root->access };
	return fs_stat_at(export->fd, "", &found->st);
}

int fs_directory_fd(struct fs_server *server, struct fs_node *node)
{
	if (node->is.type != S_IFDIR)
		return -ENOTDIR;
	if (node->where.foreign)
		return -ENOENT;
	return fs_node_fd(server, node);
}

int fs_look(struct fs_server *server, struct fs_node *parent, const char *name,
	    struct fs_found *found)
{
	int fd, err;

	if (parent == server->root)
		return look_export(server, name, found);
	fd = fs_directory_fd(server, parent);
	if (fd < 0)
		return fd;
	where_by_name(&parent->where, name, &found->where);
	/* below a hidden directory only the way to what is shown */
	if (parent->where.access == FS_HIDDEN && !(found->where.place && found->where.place->shows))
		return -ENOENT;
	err = fs_stat_at(fd, name, &found->st);
	if (err)
		return err;
	fs_identify(&found->st, &found->is);
	where_by_inode(&found->is, &found->where);
	if (is_mount(&parent->is, &found->is))
		return cross(server, fd, name, found);
	return 0;
}

int fs_may_write(const struct fs_node *node)
{
	if (!node->where.export || node->where.access == FS_READ_ONLY)
		return -EROFS;
	return node->where.access == FS_HIDDEN ? -EACCES : 0;
}

int fs_may_make(const struct fs_node *parent, const char *name, bool as_directory,
		struct fs_where *where)
{
	int err = fs_may_write(parent);

	if (err)
		return err;
	where_by_name(&parent->where, name, where);
	if (!where->place)
		return 0;
	if (where->access != FS_WRITABLE)
		return where->access == FS_HIDDEN ? -EACCES : -EROFS;
	/* a link on the way to a rule's path would lead the host past the rule */
	return as_directory ? 0 : -EBUSY;
}

int fs_may_unmake(struct fs_server *server, struct fs_node *parent, const char *name,
		  struct fs_found *found)
{
	int err = fs_may_write(parent);

	if (!err)
		err = fs_look(server, parent, name, found);
	if (err)
		return err;
	return found->where.place ? -EBUSY : 0;
}

bool fs_same_where(const struct fs_where *a, const struct fs_where *b)
{
	return a->export == b->export && a->place == b->place && a->rule == b->rule &&
	       a->access == b->access && a->capped == b->capped && a->foreign == b->foreign;
}

bool fs_same_rule(const struct fs_where *a, const struct fs_where *b)
{
	return a->export == b->export && a->rule == b->rule && a->access == b->access &&
	       a->capped == b->capped;
}
