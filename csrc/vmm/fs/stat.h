/* SPDX-License-Identifier: MIT */
/* stat.h - statx(2), which musl of older distributions and old headers cut short. */
#ifndef FS_STAT_H
#define FS_STAT_H

#include <stdbool.h>
#include <stdint.h>

#define FS_STATX_BASIC 0x7ffu
#define FS_STATX_BTIME 0x800u
#define FS_STATX_MNT_ID 0x1000u

struct fs_time {
	int64_t sec;
	uint32_t nsec;
	int32_t reserved;
};

/* struct statx of linux/stat.h */
struct fs_stat {
	uint32_t mask;
	uint32_t blksize;
	uint64_t attributes;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint16_t mode;
	uint16_t spare0;
	uint64_t ino;
	uint64_t size;
	uint64_t blocks;
	uint64_t attributes_mask;
	struct fs_time atime, btime, ctime, mtime;
	uint32_t rdev_major, rdev_minor;
	uint32_t dev_major, dev_minor;
	uint64_t mnt_id;
	uint64_t spare3[13];
};

/* What makes a file the same file. */
struct fs_identity {
	uint64_t dev;
	uint64_t ino;
	uint64_t mount;                 /* 0 where the kernel doesn't say */
	uint64_t born;                  /* nanoseconds; 0 where the file system doesn't say */
	uint32_t type;                  /* S_IFMT */
};

/* What tells one state of a file from another, without reading it; times in nanoseconds. */
struct fs_stamp {
	uint64_t size, modified, changed;
};

/* Of the name below the directory, or of fd itself where name is ""; 0 or -errno. */
int fs_stat_at(int fd, const char *name, struct fs_stat *st);
void fs_identify(const struct fs_stat *st, struct fs_identity *is);
void fs_stamp(const struct fs_stat *st, struct fs_stamp *stamp);
/* The same inode, through whatever mount. */
bool fs_same_inode(const struct fs_identity *a, const struct fs_identity *b);
/* The same inode, through the same mount. */
bool fs_same(const struct fs_identity *a, const struct fs_identity *b);
/* A file system below a source that stays outside (proc, sysfs, FUSE...); fd may be O_PATH. */
bool fs_is_foreign(int fd, const struct fs_identity *is, uint64_t devtmpfs);
/* The device of the kernel's devtmpfs, which statfs calls a tmpfs; 0: not mounted here. */
uint64_t fs_find_devtmpfs(void);

#endif
