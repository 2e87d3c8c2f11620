/* SPDX-License-Identifier: MIT */
/* cgroups.c - the end of a cgroup, v1 or v2, from outside. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cgroups.h"

#define CGROUP_V1_MAGIC 0x27e0eb
#define CGROUP_V2_MAGIC 0x63677270
#define OURS "nsrun-"

enum { BATCH = 64 };

struct batch {
	int n;
	int pid[BATCH];
	int fd[BATCH];
};

typedef void (*pid_fn)(struct batch *batch, int pid);
typedef void (*dir_fn)(const char *path);

int nsr_cgroup_name_ok(const char *path)
{
	const char *last = strrchr(path, '/');

	return *path == '/' && strlen(path) < NSR_CGROUP_PATH && !strstr(path, "/../") &&
	       !strncmp(last + 1, OURS, strlen(OURS));
}

static int put(const char *dir, const char *file, const char *text)
{
	char path[NSR_CGROUP_PATH + 32];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	close(fd);
	return n < 0 ? -1 : 0;
}

/* Each number of cgroup.procs; 0 is a process of a pid namespace that is not ours. */
static void each_pid(const char *dir, struct batch *batch, pid_fn visit)
{
	char path[NSR_CGROUP_PATH + 32], data[4096];
	unsigned int pid = 0;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/cgroup.procs", dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	while ((n = read(fd, data, sizeof(data))) > 0) {
		for (ssize_t i = 0; i < n; i++) {
			if (data[i] >= '0' && data[i] <= '9') {
				pid = pid * 10 + (unsigned int)(data[i] - '0');
				continue;
			}
			if (pid)
				visit(batch, (int)pid);
			pid = 0;
		}
	}
	close(fd);
}

static void take(struct batch *batch, int pid)
{
	int fd = batch->n < BATCH ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;

	if (fd < 0)
		return;
	batch->pid[batch->n] = pid;
	batch->fd[batch->n++] = fd;
}

static void kill_taken(struct batch *batch, int pid)
{
	for (int i = 0; i < batch->n; i++)
		if (batch->pid[i] == pid)
			syscall(SYS_pidfd_send_signal, batch->fd[i], SIGKILL, NULL, 0);
}

/*
 * A number that was read may be another process's a moment later.  So: a pidfd
 * first, and then a second look, whether that number is still (or again) here.
 * If it has become another's in between, the pidfd is a dead process's.
 */
static void kill_some(const char *path)
{
	struct batch batch;

	batch.n = 0;
	if (!put(path, "cgroup.kill", "1"))
		return;
	each_pid(path, &batch, take);
	each_pid(path, &batch, kill_taken);
	while (batch.n)
		close(batch.fd[--batch.n]);
}

static void remove_one(const char *path)
{
	/* whether it worked shows at the top, in the end */
	rmdir(path);
}

/* The deepest first; path is a buffer of NSR_CGROUP_PATH bytes and is as before after it. */
static void each_dir(char *path, dir_fn visit)
{
	size_t len = strlen(path);
	DIR *dir = opendir(path);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		size_t n = strlen(entry->d_name);

		if (entry->d_type != DT_DIR || !strcmp(entry->d_name, ".") ||
		    !strcmp(entry->d_name, "..") || len + n + 2 > NSR_CGROUP_PATH)
			continue;
		path[len] = '/';
		memcpy(path + len + 1, entry->d_name, n + 1);
		each_dir(path, visit);
		path[len] = '\0';
	}
	if (dir)
		closedir(dir);
	visit(path);
}

static void hold_one(const char *path)
{
	put(path, "pids.max", "0");
	put(path, "cpu.max", "max");
	put(path, "cpu.cfs_quota_us", "-1");
}

static void walk(const char *path, dir_fn visit)
{
	char buffer[NSR_CGROUP_PATH];

	strcpy(buffer, path);
	each_dir(buffer, visit);
}

/* Gone, or replaced by something that is not ours to remove. */
static int is_gone(const char *path)
{
	struct statfs fs;

	if (statfs(path, &fs))
		return errno == ENOENT;
	return fs.f_type != CGROUP_V1_MAGIC && fs.f_type != CGROUP_V2_MAGIC;
}

void nsr_cgroup_hold(const char *path)
{
	if (!is_gone(path))
		walk(path, hold_one);
}

int nsr_cgroup_remove(const char *path)
{
	if (is_gone(path))
		return 0;
	if (rmdir(path)) {
		walk(path, kill_some);
		walk(path, remove_one);
	}
	return is_gone(path) ? 0 : -1;
}
