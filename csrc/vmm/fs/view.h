/* SPDX-License-Identifier: MIT */
/*
 * view.h - what a client may see and change.
 *
 * The bytes (cowork_nsrun/guest/view.py writes them), all numbers little-endian:
 *
 *   u32 magic "NSRV"; u32 version 1; u32 length of all; u32 exports
 *   an export:  u32 flags (1 read-only, 2 the path's last part may be a symbolic
 *               link, and it is the export); u32 rules; u64 device; u64 inode
 *               (both 0: not compared); u32 length; path, absolute, without a NUL
 *   its rules:  u32 access (0 hidden, 1 read-only, 2 writable); u32 length;
 *               path relative to the export, without a NUL: no empty part, "."
 *               or "..", and no symbolic link but the last part
 *
 * The longest rule above a path decides.  A hidden path that exists stays as an
 * empty directory or an empty file without permissions, so that something can
 * be mounted over it; below it only what a longer rule shows can be reached.
 *
 * Rules hold for the path's name and for the inode that it had at the start,
 * under whatever name.  An inode's rule only takes away.  Nothing on the way to
 * a rule's path can be moved, removed or replaced, nor made but as a directory.
 */
#ifndef FS_VIEW_H
#define FS_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stat.h"

enum {
	FS_VIEW_MAGIC = 0x5652534e,
	FS_VIEW_VERSION = 1,
	FS_VIEW_EXPORTS = 4096,         /* of all views of a server */
	FS_VIEW_RULES = 65536,          /* of all exports of a view */
};

enum {
	FS_EXPORT_READ_ONLY = 1,
	FS_EXPORT_NOFOLLOW = 2,
};

/* In this order: the lesser one holds where two meet. */
enum fs_access {
	FS_HIDDEN,
	FS_READ_ONLY,
	FS_WRITABLE,
};

/* A path that has a rule or leads to one; each export's root is one, too. */
struct fs_place {
	struct fs_place *parent;
	struct fs_place *rule;          /* itself, or the nearest above that has a rule */
	struct fs_place *next;          /* in the hash */
	struct fs_place *sibling, *children;
	struct fs_export *export;
	char *name;
	enum fs_access access;
	bool shows;                     /* it, or something below it, is not hidden */
	bool there;                     /* it existed at the start, as: */
	struct fs_identity is;
};

struct fs_view;

struct fs_export {
	const struct fs_view *view;
	char *path;
	uint32_t flags;
	int fd;                         /* O_PATH */
	bool foreign;                   /* its file system is proc's like: sizes say nothing */
	struct fs_place *root;
	struct fs_place **by_inode;     /* those that existed, sorted */
	uint32_t n_by_inode;
};

struct fs_view {
	struct fs_view *next;           /* of the server's */
	struct fs_export *exports;
	uint32_t n_exports;
	struct fs_place **hash;
	uint32_t n_hash;                /* a power of two */
};

/* 0, or -1 with error set; fs_view_free in either case. */
int fs_view_read(struct fs_view *view, const void *data, size_t len, char *error, size_t n);
void fs_view_free(struct fs_view *view);

/* With an O_PATH descriptor; 0 or -errno, which ends it. */
typedef int fs_reach(void *arg, int fd, bool directory, bool writable);
/*
 * What can be reached at all, coarser than the rules: each export, and each
 * path in a read-only one that may be written to.
 */
int fs_view_reach(const struct fs_view *view, fs_reach *reach, void *arg);

/* The place of that name right below, or NULL. */
struct fs_place *fs_view_child(const struct fs_place *parent, const char *name);
/* The place that was this inode at the start, or NULL. */
struct fs_place *fs_view_inode(const struct fs_export *export, const struct fs_identity *is);

#endif
