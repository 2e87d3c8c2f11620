/* SPDX-License-Identifier: MIT */
/*
 * fs_device.c - virtio-fs; threads of its own wait for the guest and for the host's file systems.
 *
 * A request is the way from the kick to the interrupt on one thread: it wakes,
 * serves, interrupts and waits again, with no other between it and the guest.
 */
#include "fs_device.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
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
	int bells;                  /* an epoll of the queues' eventfds */
	/* guarded by vmm_lock */
	pthread_cond_t idle;
	uint32_t waiting;           /* threads without work */
	bool called;                /* one of them, and it has not come yet */
	uint32_t busy;
	struct parked *parked;
	bool touched;               /* when it was saved: there is more than a client's begin */
	uint64_t retry_ms;          /* when these are to be asked for again */
};

struct worker {
	struct fs *fs;
	bool due;                   /* an interrupt, once the lock is given free */
	struct vmm_chain chain;
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

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Done with this one: give it back, or stop the device.  Locked. */
static void answer(struct worker *worker, uint32_t queue, uint16_t head, ssize_t written)
{
	struct vmm_device *device = &worker->fs->device;

	if (!device->running)
		return;
	if (written < 0) {
		vmm_device_broken(device, "a request without a header, or room for a reply");
		return;
	}
	vmm_queue_push(&device->queue[queue], head, (uint32_t)written);
	worker->due |= vmm_device_due(device, queue);
}

/* Give the lock free.  A guest that is interrupted comes for it. */
static void unlock(struct worker *worker)
{
	vmm_unlock();
	if (worker->due)
		vmm_device_interrupt(&worker->fs->device);
	worker->due = false;
}

/* Unlocked while the server works; the device can't be reset meanwhile. */
static ssize_t serve(struct worker *worker, const struct iovec *out, int n_out,
		     const struct iovec *in, int n_in)
{
	struct fs *fs = worker->fs;
	ssize_t ret;

	fs->busy++;
	unlock(worker);
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
	if (!fs->parked)
		fs->retry_ms = now_ms() + RETRY_MS;
	parked->next = fs->parked;
	fs->parked = parked;
}

/* Ask for all that wait once more. */
static void retry(struct worker *worker)
{
	struct fs *fs = worker->fs;
	struct parked *all = fs->parked, *next;

	fs->parked = NULL;
	for (; all; all = next) {
		ssize_t ret;

		next = all->next;
		/* a reset meanwhile gave them all back */
		ret = fs->device.running ? serve(worker, all->iov, all->n_out,
						 all->iov + all->n_out, all->n_in) : 0;
		if (ret == -EAGAIN) {
			all->next = fs->parked;
			fs->parked = all;
			continue;
		}
		answer(worker, all->queue, all->head, ret);
		free(all);
	}
	fs->retry_ms = now_ms() + RETRY_MS;
}

/* One is taken out: who comes for those behind it? */
static void share(struct fs *fs, uint32_t number)
{
	struct vmm_queue *queue = &fs->device.queue[number];

	/* this thread is at work for some time: the guest is to kick for the next */
	vmm_queue_enable_kicks(queue, true);
	if (vmm_queue_added(queue) == queue->next_avail || !fs->waiting || fs->called)
		return;
	fs->called = true;
	vmm_device_again(&fs->device, number);
}

static void drain(struct worker *worker, uint32_t queue)
{
	struct fs *fs = worker->fs;
	struct vmm_chain *chain = &worker->chain;
	int ret = 0;

	while (fs->device.running &&
	       (ret = vmm_queue_pop(&fs->device.queue[queue], chain)) > 0) {
		ssize_t written;

		share(fs, queue);
		written = serve(worker, chain->out, chain->n_out, chain->in, chain->n_in);
		if (written == -EAGAIN)
			park(fs, queue, chain);
		else
			answer(worker, queue, chain->head, written);
	}
	if (ret < 0)
		vmm_device_broken(&fs->device, "a request's descriptors");
}

/* How long to wait for a kick, in milliseconds; -1: for ever. */
static int patience(const struct fs *fs)
{
	uint64_t now = now_ms();

	if (!fs->parked)
		return -1;
	return fs->retry_ms > now ? (int)(fs->retry_ms - now) : 0;
}

/* Wait for a kick; of which queue, or -1: it is something else's time. */
static int await(struct worker *worker)
{
	struct fs *fs = worker->fs;
	struct epoll_event rung;
	int most = patience(fs), n;

	fs->waiting++;
	unlock(worker);
	n = epoll_wait(fs->bells, &rung, 1, most);
	if (n < 0 && errno != EINTR)
		vmm_fail(errno, "the doorbells of --fs");
	vmm_lock();
	fs->waiting--;
	fs->called = false;
	return n > 0 ? (int)rung.data.u32 : -1;
}

static void *work(void *arg)
{
	struct worker *worker = arg;
	struct fs *fs = worker->fs;

	vmm_lock();
	for (;;) {
		int queue = await(worker);

		if (queue >= 0)
			drain(worker, (uint32_t)queue);
		/* however much there is to do beside them */
		if (fs->parked && now_ms() >= fs->retry_ms)
			retry(worker);
	}
	return NULL;
}

/*
 * Each kick wakes one thread, once; the eventfd is never read.  Its count has
 * room for kicks enough.
 */
static void bell(struct vmm_device *device, uint32_t queue, int fd)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u32 = queue };

	if (epoll_ctl(fs_of(device)->bells, EPOLL_CTL_ADD, fd, &event) < 0)
		vmm_fail(errno, "a doorbell of fs");
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
	pthread_cond_init(&fs->idle, NULL);
	fs->bells = epoll_create1(EPOLL_CLOEXEC);
	if (fs->bells < 0)
		vmm_fail(errno, "epoll_create1");
	for (int i = 0; i < WORKERS; i++) {
		struct worker *worker = malloc(sizeof(*worker));

		if (!worker)
			vmm_fail(ENOMEM, "a thread of --fs");
		worker->fs = fs;
		worker->due = false;
		vmm_jail_thread(VMM_ROLE_FS, "--fs", work, worker);
	}
}

struct vmm_device *vmm_fs_new(const char *tag, int view_fd)
{
	static const struct vmm_device_ops ops = {
		.name = "fs", .id = FS_ID, .n_queues = QUEUES,
		.queue_max = { HIGH_QUEUE_SIZE, REQUEST_QUEUE_SIZE },
		.config_size = sizeof(struct config), .config_read = config_read,
		.bell = bell, .reset = reset, .save = save, .load = load,
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
