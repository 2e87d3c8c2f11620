/* SPDX-License-Identifier: MIT */
/* stat.c - what a file is, and what its file system is. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "stat.h"

enum { STATX_FLAGS = 0x100 | 0x800 | 0x1000 }; /* AT_SYMLINK_NOFOLLOW, _NO_AUTOMOUNT, _EMPTY_PATH */

_Static_assert(sizeof(struct fs_stat) == 256, "struct statx");

int fs_stat_at(int fd, const char *name, struct fs_stat *st)
{
	const unsigned int mask = FS_STATX_BASIC | FS_STATX_BTIME | FS_STATX_MNT_ID;

	if (syscall(SYS_statx, fd, name, STATX_FLAGS, mask, st))
		return -errno;
	return 0;
}

static uint64_t nanoseconds(const struct fs_time *time)
{
	return (uint64_t)time->sec * 1000000000u + time->nsec;
}

void fs_identify(const struct fs_stat *st, struct fs_identity *is)
{
	is->dev = makedev(st->dev_major, st->dev_minor);
	is->ino = st->ino;
	is->mount = st->mask & FS_STATX_MNT_ID ? st->mnt_id : 0;
	is->born = 0;
	if (st->mask & FS_STATX_BTIME)
		is->born = nanoseconds(&st->btime);
	is->type = st->mode & S_IFMT;
}

void fs_stamp(const struct fs_stat *st, struct fs_stamp *stamp)
{
	stamp->size = st->size;
	stamp->modified = nanoseconds(&st->mtime);
	stamp->changed = nanoseconds(&st->ctime);
}

bool fs_same_inode(const struct fs_identity *a, const struct fs_identity *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->born == b->born && a->type == b->type;
}

bool fs_same(const struct fs_identity *a, const struct fs_identity *b)
{
	return fs_same_inode(a, b) && a->mount == b->mount;
}

bool fs_is_foreign(int fd, const struct fs_identity *is, uint64_t devtmpfs)
{
	static const uint32_t foreign[] = {
		0x9fa0,                 /* proc */
		0x62656572,             /* sysfs */
		0x1cd1,                 /* devpts */
		0x27e0eb, 0x63677270,   /* cgroup, cgroup2 */
		0x65735546,             /* fuse */
		0x64626720, 0x74726163, /* debugfs, tracefs */
		0x73636673, 0xcafe4a11, /* securityfs, bpf */
		0x6165676c, 0xde5e81e4, /* pstore, efivarfs */
		0x62656570, 0xf97cff8c, /* configfs, selinuxfs */
		0x43415d53, 0x42494e4d, /* smackfs, binfmt_misc */
		0x6e736673, 0x187,      /* nsfs, autofs */
	};
	struct statfs sf;

	if (devtmpfs && is->dev == devtmpfs)
		return true;
	if (fstatfs(fd, &sf))
		return true;
	for (size_t i = 0; i < sizeof(foreign) / sizeof(foreign[0]); i++) {
		if ((uint32_t)sf.f_type == foreign[i])
			return true;
	}
	return false;
}

uint64_t fs_find_devtmpfs(void)
{
	FILE *file = fopen("/proc/self/mountinfo", "re");
	char line[4096];
	uint64_t found = 0;

	/* 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw */
	while (file && !found && fgets(line, sizeof(line), file)) {
		const char *kind = strstr(line, " - ");
		unsigned int maj, min;

		if (kind && !strncmp(kind, " - devtmpfs ", 12) &&
		    sscanf(line, "%*u %*u %u:%u", &maj, &min) == 2)
			found = makedev(maj, min);
	}
	if (file)
		fclose(file);
	return found;
}
