/* SPDX-License-Identifier: MIT */
/* host_tmp.c - a temporary directory that lives as long as its sandbox. */
#include "host_tmp.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "diag.h"

int nsr_host_tmp_make(struct nsr_plan *plan, char path[NSR_PATH_MAX], struct nsr_diag *diag)
{
	const char *base = nsr_plan_getenv(plan, "TMPDIR");
	struct nsr_op op = { .type = NSR_OP_BIND, .fd = -1, .source = path, .dest = path };

	if (!base || *base != '/' || access(base, W_OK))
		base = "/tmp";
	if (snprintf(path, NSR_PATH_MAX, "%s/nsrun-XXXXXX", base) >= NSR_PATH_MAX)
		return nsr_diag_set(diag, "--private-tmp: TMPDIR is too long");
	if (!mkdtemp(path)) {
		int err = errno;

		path[0] = '\0';
		return nsr_diag_errno(diag, err, "--private-tmp: can't make a directory in %s", base);
	}
	if (nsr_plan_add_op(plan, &op) || nsr_plan_setenv(plan, "TMPDIR", path) ||
	    (!nsr_plan_getenv(plan, "HOME") && nsr_plan_setenv(plan, "HOME", path)))
		return nsr_diag_errno(diag, ENOMEM, "Out of memory");
	return 0;
}

/*
 * Directories move up to the top one by one, so that neither depth nor length of
 * names ends in an error.
 */
static int empty(int top, int dir, unsigned long *serial)
{
	DIR *list = fdopendir(dir);
	struct dirent *entry;
	int ret = 0;

	if (!list) {
		close(dir);
		return -ENOMEM;
	}
	while (!ret && (entry = readdir(list))) {
		const char *name = entry->d_name;
		char moved[32];

		if (!strcmp(name, ".") || !strcmp(name, ".."))
			continue;
		if (!unlinkat(dir, name, 0))
			continue;
		if (errno != EISDIR && errno != EPERM) {
			ret = -errno;
			continue;
		}
		/* its ".." is written to, which takes a right to it */
		fchmodat(dir, name, 0700, 0);
		do
			snprintf(moved, sizeof(moved), "%lu", (*serial)++);
		while (!faccessat(top, moved, F_OK, AT_SYMLINK_NOFOLLOW));
		if (renameat(dir, name, top, moved))
			ret = -errno;
	}
	closedir(list);
	return ret;
}

/* One directory in the top is emptied and removed; 1: there was none left. */
static int remove_one(int top, unsigned long *serial)
{
	int copy = openat(top, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = copy < 0 ? NULL : fdopendir(copy);
	struct dirent *entry;
	char name[256] = "";
	int dir, ret;

	if (!list)
		return -errno;
	while ((entry = readdir(list)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") &&
		    unlinkat(top, entry->d_name, 0)) {
			snprintf(name, sizeof(name), "%s", entry->d_name);
			break;
		}
	closedir(list);
	if (!*name)
		return 1;
	fchmodat(top, name, 0700, 0);
	dir = openat(top, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dir < 0)
		return -errno;
	ret = empty(top, dir, serial);
	if (!ret && unlinkat(top, name, AT_REMOVEDIR))
		ret = -errno;
	return ret;
}

int nsr_host_tmp_remove(const char *path)
{
	unsigned long serial = 0;
	int top, ret = 0;

	chmod(path, 0700);
	top = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (top < 0)
		return errno == ENOENT ? 0 : -errno;
	while (!ret)
		ret = remove_one(top, &serial);
	close(top);
	if (ret < 0)
		return ret;
	return rmdir(path) && errno != ENOENT ? -errno : 0;
}
