/* SPDX-License-Identifier: MIT */
/*
 * mounter.c - the file server behind /dev/fuse, for tests on this machine.
 *
 *   mounter VIEW MOUNTPOINT THREADS
 *
 * In a mount namespace of its own, so that nothing is left of it: its files are
 * reached by /proc/PID/root.  Says "ready", serves until stdin ends, then
 * unmounts and frees all, so that a leak checker has its say.  VIEW is a file.
 * Whoever serves is behind the monitor's walls, where the kernel has them.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "end.h"
#include "server.h"
#include "walls.h"

enum {
	BUFFER = (1 << 20) + 65536,
	MOST_THREADS = 16,
	RETRY_US = 2000,
};

/* A request that waits for a lock. */
struct parked {
	struct parked *next;
	size_t len;
	char data[];
};

static struct fs_server *server;
static int device = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t come = PTHREAD_COND_INITIALIZER;
static struct parked *waiting;
static bool over;

static void die(const char *what)
{
	fprintf(stderr, "mounter: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int allow(void *arg, int fd, bool directory, bool writable)
{
	return vmm_walls_allow(*(const int *)arg, fd, directory, writable);
}

/* The calling thread; the main one is to unmount. */
static void confine(void)
{
	int rules, ret;

	if (!(vmm_walls_begin(true) & VMM_WALL_FILES))
		return;
	rules = vmm_walls_rules();
	ret = rules < 0 ? rules : fs_server_reach(server, allow, &rules);
	if (!ret)
		ret = vmm_walls_enter(rules);
	if (ret)
		vmm_fail(-ret, "mounter: Landlock");
	close(rules);
}

static ssize_t serve(const char *in, size_t len, char *out)
{
	struct iovec from = { (void *)(uintptr_t)in, len }, to = { out, BUFFER };
	ssize_t n = fs_request(server, &from, 1, &to, 1);

	if (n == -EPROTO) {
		errno = EPROTO;
		die("request");
	}
	/* ENOENT: the request was given up meanwhile; ENODEV: unmounted */
	if (n > 0 && write(device, out, (size_t)n) != n && errno != ENOENT && errno != ENODEV)
		die("reply");
	return n;
}

static void park(const char *data, size_t len)
{
	struct parked *new = malloc(sizeof(*new) + len);

	if (!new)
		die("malloc");
	memcpy(new->data, data, len);
	new->len = len;
	pthread_mutex_lock(&lock);
	new->next = waiting;
	waiting = new;
	pthread_cond_signal(&come);
	pthread_mutex_unlock(&lock);
}

static void *work(void *arg)
{
	char *in = malloc(BUFFER), *out = malloc(BUFFER);

	if (!in || !out)
		die("malloc");
	confine();
	for (;;) {
		ssize_t len = read(device, in, BUFFER);

		if (len < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
			continue;
		if (len < 0)
			break;
		if (serve(in, (size_t)len, out) == -EAGAIN)
			park(in, (size_t)len);
	}
	if (errno != ENODEV)
		die("read /dev/fuse");
	free(in);
	free(out);
	return arg;
}

static struct parked *take_parked(void)
{
	struct parked *all;

	pthread_mutex_lock(&lock);
	while (!waiting && !over)
		pthread_cond_wait(&come, &lock);
	all = waiting;
	waiting = NULL;
	pthread_mutex_unlock(&lock);
	return all;
}

static void *retry(void *arg)
{
	char *out = malloc(BUFFER);
	struct parked *all, *next;
	bool ended;

	if (!out)
		die("malloc");
	confine();
	do {
		all = take_parked();
		pthread_mutex_lock(&lock);
		ended = over;
		pthread_mutex_unlock(&lock);
		for (; all; all = next) {
			next = all->next;
			if (!ended && serve(all->data, all->len, out) == -EAGAIN)
				park(all->data, all->len);
			free(all);
		}
		usleep(RETRY_US);
	} while (!ended);
	free(out);
	return arg;
}

static void *read_file(const char *path, size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *data;

	if (fd < 0 || fstat(fd, &st))
		die(path);
	*len = (size_t)st.st_size;
	data = malloc(*len + 1);
	if (!data || read(fd, data, *len) != st.st_size)
		die(path);
	close(fd);
	return data;
}

static void mount_at(const char *place)
{
	char options[128];

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		die("unshare");
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (device < 0)
		die("/dev/fuse");
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0,"
		 "default_permissions,allow_other", device);
	if (mount("nsrun", place, "fuse", MS_NOSUID | MS_NODEV, options))
		die(place);
}

int main(int argc, char **argv)
{
	pthread_t thread[MOST_THREADS], retrier;
	int n = argc == 4 ? atoi(argv[3]) : 0;
	char error[512], byte;
	size_t len;
	void *view;

	if (n < 1 || n > MOST_THREADS) {
		fprintf(stderr, "usage: mounter VIEW MOUNTPOINT THREADS\n");
		return 2;
	}
	view = read_file(argv[1], &len);
	server = fs_server_new(view, len, error, sizeof(error));
	free(view);
	if (!server) {
		fprintf(stderr, "mounter: %s\n", error);
		return 1;
	}
	mount_at(argv[2]);
	for (int i = 0; i < n; i++) {
		if (pthread_create(&thread[i], NULL, work, NULL))
			die("pthread_create");
	}
	if (pthread_create(&retrier, NULL, retry, NULL))
		die("pthread_create");
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	/* whoever still uses it must not keep this process */
	if (umount2(argv[2], MNT_FORCE) && umount2(argv[2], MNT_DETACH))
		die("umount");
	for (int i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	pthread_mutex_lock(&lock);
	over = true;
	pthread_cond_signal(&come);
	pthread_mutex_unlock(&lock);
	pthread_join(retrier, NULL);
	fs_server_free(server);
	close(device);
	return 0;
}
