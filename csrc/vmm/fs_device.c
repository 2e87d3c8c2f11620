/* SPDX-License-Identifier: MIT */
/* fs_device.c - virtio-fs; threads of its own wait for the host's file systems. */
#include "fs_device.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "end.h"
#include "fs/server.h"
#include "jail.h"
#include "options.h"
#include "walls.h"

enum {
	FS_ID = 26, TAG_LEN = 36, QUEUES = 2, REQUEST_QUEUE = 1, HIGH_QUEUE_SIZE = 64,
	REQUEST_QUEUE_SIZE = 512, WORKERS = 2, RETRY_MS = 10, VIEW_MOST = 64 << 20,
};

struct config {
	char tag[TAG_LEN];
	uint32_t request_queues;
} __attribute__((packed));

/* A request that waits for a lock of another's; how many there can be, the queue says. */
struct parked {
	struct parked *next;
	uint32_t queue;
	uint16_t head;
	uint16_t n_out, n_in;
	struct iovec iov[];
};

struct fs {
	struct vmm_device device;
	struct config config;
	struct fs_server *server;
	/* guarded by vmm_lock */
	pthread_cond_t kicked, idle;
	bool pending[QUEUES];
	uint32_t busy;
	struct parked *parked;
	bool touched;               /* when it was saved: there is more than a client's begin */
};

/* All that there are; none goes. */
static struct {
	struct fs *fs[VMM_DEVICES];
	uint32_t n;
} devices;

/* Why a machine's files can't be saved, or are others now.  Locked. */
static char said[512];

static struct fs *fs_of(struct vmm_device *device)
{
	return (struct fs *)device;
}

/* Done with this one: give it back, or stop the device.  Locked. */
static void answer(struct fs *fs, uint32_t queue, uint16_t head, ssize_t written)
{
	if (!fs->device.running)
		return;
	if (written < 0) {
		vmm_device_broken(&fs->device, "a request without a header, or room for a reply");
		return;
	}
	vmm_queue_push(&fs->device.queue[queue], head, (uint32_t)written);
	vmm_device_signal(&fs->device, queue);
}

/* Unlocked while the server works; the device can't be reset meanwhile. */
static ssize_t serve(struct fs *fs, const struct iovec *out, int n_out, const struct iovec *in,
		     int n_in)
{
	ssize_t ret;

	fs->busy++;
	vmm_unlock();
	ret = fs_request(fs->server, out, n_out, in, n_in);
	vmm_lock();
	fs->busy--;
	pthread_cond_broadcast(&fs->idle);
	return ret;
}

static void park(struct fs *fs, uint32_t queue, const struct vmm_chain *chain)
{
	size_t n = (size_t)chain->n_out + chain->n_in;
	struct parked *parked = malloc(sizeof(*parked) + n * sizeof(parked->iov[0]));

	if (!parked) {
		vmm_device_broken(&fs->device, "a lock's request, for which there is no memory");
		return;
	}
	parked->queue = queue;
	parked->head = chain->head;
	parked->n_out = chain->n_out;
	parked->n_in = chain->n_in;
	memcpy(parked->iov, chain->out, chain->n_out * sizeof(parked->iov[0]));
	memcpy(parked->iov + chain->n_out, chain->in, chain->n_in * sizeof(parked->iov[0]));
	parked->next = fs->parked;
	fs->parked = parked;
}

/* Ask for all that wait once more. */
static void retry(struct fs *fs)
{
	struct parked *all = fs->parked, *next;

	fs->parked = NULL;
	for (; all; all = next) {
		ssize_t ret;

		next = all->next;
		/* a reset meanwhile gave them all back */
		ret = fs->device.running ? serve(fs, all->iov, all->n_out, all->iov + all->n_out,
						 all->n_in) : 0;
		if (ret == -EAGAIN) {
			all->next = fs->parked;
			fs->parked = all;
			continue;
		}
		answer(fs, all->queue, all->head, ret);
		free(all);
	}
}

static void drain(struct fs *fs, uint32_t queue, struct vmm_chain *chain)
{
	int ret = 0;

	for (uint32_t n = 0; fs->device.running &&
			     (ret = vmm_queue_pop(&fs->device.queue[queue], chain)) > 0; n++) {
		ssize_t written;

		/* more than one at a time: another thread takes part */
		if (n == 1) {
			fs->pending[queue] = true;
			pthread_cond_signal(&fs->kicked);
		}
		written = serve(fs, chain->out, chain->n_out, chain->in, chain->n_in);

		if (written == -EAGAIN)
			park(fs, queue, chain);
		else
			answer(fs, queue, chain->head, written);
	}
	if (ret < 0)
		vmm_device_broken(&fs->device, "a request's descriptors");
}

/* Until there is something to do; whether it is time to ask for locks again. */
static bool await(struct fs *fs)
{
	struct timespec until;

	while (!fs->pending[0] && !fs->pending[REQUEST_QUEUE]) {
		if (!fs->parked) {
			pthread_cond_wait(&fs->kicked, vmm_lock_mutex());
			continue;
		}
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += RETRY_MS * 1000000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		if (pthread_cond_timedwait(&fs->kicked, vmm_lock_mutex(), &until) == ETIMEDOUT)
			return true;
	}
	return false;
}

static void *work(void *arg)
{
	struct fs *fs = arg;
	struct vmm_chain *chain = malloc(sizeof(*chain));

	if (!chain)
		vmm_fail(ENOMEM, "a thread of --fs");
	vmm_lock();
	for (;;) {
		if (await(fs))
			retry(fs);
		for (uint32_t i = 0; i < QUEUES; i++) {
			if (!fs->pending[i])
				continue;
			fs->pending[i] = false;
			drain(fs, i, chain);
		}
	}
	return NULL;
}

static void notify(struct vmm_device *device, uint32_t queue)
{
	struct fs *fs = fs_of(device);

	fs->pending[queue] = true;
	pthread_cond_signal(&fs->kicked);
}

/* What is under way writes to the guest's memory, and must not after this. */
static void reset(struct vmm_device *device)
{
	struct fs *fs = fs_of(device);
	struct parked *next;

	while (fs->busy)
		pthread_cond_wait(&fs->idle, vmm_lock_mutex());
	for (; fs->parked; fs->parked = next) {
		next = fs->parked->next;
		free(fs->parked);
	}
	memset(fs->pending, 0, sizeof(fs->pending));
}

static const char *save(struct vmm_device *device, struct vmm_own_state *own)
{
	struct fs *fs = fs_of(device);
	bool mounted;

	while (fs->busy)
		pthread_cond_wait(&fs->idle, vmm_lock_mutex());
	if (fs->parked)
		return "a lock is waited for";
	fs->touched = !fs_server_untouched(fs->server, &mounted);
	own->len = 1;
	own->data[0] = mounted;
	return NULL;
}

static const char *load(struct vmm_device *device, const struct vmm_own_state *own)
{
	if (own->len != 1 || own->data[0] > 1)
		return "a state that can't be";
	fs_server_resume(fs_of(device)->server, own->data[0]);
	return NULL;
}

/* By the first one that files are shared with, EXPORTS being for that alone. */
static const char *save_files(struct vmm_device *device, struct vmm_files_state *files)
{
	struct fs *fs = fs_of(device);
	ssize_t len;

	if (!fs->touched)
		return NULL;
	if (fs != devices.fs[0])
		return "files are shared, or open";
	len = fs_server_save(fs->server, files->data, sizeof(files->data), said, sizeof(said));
	if (len < 0)
		return said;
	files->len = (uint32_t)len;
	return NULL;
}

static const char *load_files(struct vmm_device *device, const struct vmm_files_state *files)
{
	return fs_server_load(fs_of(device)->server, files->data, files->len, said,
			      sizeof(said)) ? said : NULL;
}

static void config_read(struct vmm_device *device, uint32_t offset, void *data, uint32_t len)
{
	memcpy(data, (uint8_t *)&fs_of(device)->config + offset, len);
}

/* All of a file, from its begin; NULL with errno set. */
static void *read_view(int fd, size_t *len)
{
	struct stat st;
	size_t done = 0;
	uint8_t *data;

	if (fstat(fd, &st))
		return NULL;
	if (!S_ISREG(st.st_mode) || st.st_size > VIEW_MOST) {
		errno = S_ISREG(st.st_mode) ? EFBIG : EINVAL;
		return NULL;
	}
	*len = (size_t)st.st_size;
	data = malloc(*len + 1);
	while (data && done < *len) {
		ssize_t n = pread(fd, data + done, *len - done, (off_t)done);

		if (n <= 0) {
			free(data);
			errno = n ? errno : EIO;
			return NULL;
		}
		done += (size_t)n;
	}
	return data;
}

int vmm_fs_add(struct vmm_device *device, int view_fd, char *error, size_t n)
{
	size_t len;
	void *view = read_view(view_fd, &len);
	int first;

	if (!view) {
		snprintf(error, n, "view: read: %s", strerror(errno));
		return -1;
	}
	first = fs_server_add(fs_of(device)->server, view, len, error, n);
	free(view);
	return first;
}

void vmm_fs_keep(struct vmm_device *device)
{
	fs_server_keep(fs_of(device)->server);
}

int vmm_fs_check(struct vmm_device *device)
{
	struct fs *fs = fs_of(device);

	while (fs->busy)
		pthread_cond_wait(&fs->idle, vmm_lock_mutex());
	if (!fs_server_check(fs->server, said, sizeof(said)))
		return 0;
	fprintf(stderr, "nsrun-vmm: %s\n", said);
	return -ESTALE;
}

static int allow(void *arg, int fd, bool directory, bool writable)
{
	return vmm_walls_allow(*(const int *)arg, fd, directory, writable);
}

void vmm_fs_shut(void)
{
	int rules, ret = 0;

	if (!(vmm_jail_holds() & VMM_WALL_FILES))
		return;
	rules = vmm_walls_rules();
	if (rules < 0)
		vmm_fail(-rules, "landlock_create_ruleset");
	for (uint32_t i = 0; !ret && i < devices.n; i++)
		ret = fs_server_reach(devices.fs[i]->server, allow, &rules);
	if (ret)
		vmm_fail(-ret, "Landlock: a rule for an export");
	vmm_jail_shut(rules);
}

static void start_threads(struct fs *fs)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&fs->kicked, &attr);
	pthread_cond_init(&fs->idle, &attr);
	pthread_condattr_destroy(&attr);
	for (int i = 0; i < WORKERS; i++)
		vmm_jail_thread(VMM_ROLE_FS, "--fs", work, fs);
}

struct vmm_device *vmm_fs_new(const char *tag, int view_fd)
{
	static const struct vmm_device_ops ops = {
		.name = "fs", .id = FS_ID, .n_queues = QUEUES,
		.queue_max = { HIGH_QUEUE_SIZE, REQUEST_QUEUE_SIZE },
		.config_size = sizeof(struct config), .config_read = config_read,
		.notify = notify, .reset = reset, .save = save, .load = load,
		.save_files = save_files, .load_files = load_files,
	};
	struct fs *fs = calloc(1, sizeof(*fs));
	char error[512];

	if (!fs)
		vmm_fail(ENOMEM, "--fs %s", tag);
	fs->device.ops = &ops;
	fs->server = fs_server_new(NULL, 0, error, sizeof(error));
	if (!fs->server || vmm_fs_add(&fs->device, view_fd, error, sizeof(error)) < 0)
		vmm_fail(0, "--fs %s=%d: %s", tag, view_fd, error);
	close(view_fd);
	/* without a NUL where it fills its place */
	memcpy(fs->config.tag, tag, strnlen(tag, sizeof(fs->config.tag)));
	fs->config.request_queues = 1;
	devices.fs[devices.n++] = fs;
	start_threads(fs);
	return &fs->device;
}
