/* SPDX-License-Identifier: MIT */
/* blk.c - virtio-blk; a thread of its own waits for the disk. */
#include "blk.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "disk.h"
#include "end.h"
#include "jail.h"

enum { BLK_ID = 2, BLK_QUEUE = 128, SECTOR = 512, SERIAL_LEN = 20 };
enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
#define F_SEG_MAX (1ULL << 2)
#define F_RO (1ULL << 5)
#define F_FLUSH (1ULL << 9)

struct request {
	uint32_t type, reserved;
	uint64_t sector;
};

struct config {
	uint64_t capacity;
	uint32_t size_max, seg_max;
} __attribute__((packed));

struct blk {
	struct vmm_device device;
	struct vmm_device_ops ops;
	struct config config;
	struct vmm_disk disk;
	bool read_only;
	/* guarded by vmm_lock */
	pthread_cond_t kicked, idle;
	bool pending, busy;
	/* the thread's alone */
	struct vmm_chain chain;
	struct iovec iov[VMM_QUEUE_MAX];
};

static struct blk *blk_of(struct vmm_device *device)
{
	return (struct blk *)device;
}

/* Copy the places of len bytes from an offset on; how many there are. */
static int slice(const struct iovec *from, uint16_t n_from, uint64_t offset, uint64_t len,
		 struct iovec *to)
{
	int n = 0;

	for (uint16_t i = 0; i < n_from && len; i++) {
		uint64_t room = from[i].iov_len;

		if (offset >= room) {
			offset -= room;
			continue;
		}
		room -= offset;
		to[n] = (struct iovec){ .iov_base = (uint8_t *)from[i].iov_base + offset,
					.iov_len = room < len ? room : len };
		len -= to[n++].iov_len;
		offset = 0;
	}
	return n;
}

static bool in_disk(const struct blk *blk, uint64_t sector, uint64_t len)
{
	uint64_t sectors = blk->config.capacity;

	return len % SECTOR == 0 && sector <= sectors && len / SECTOR <= sectors - sector;
}

/* Data lies behind the request's head, and before its status. */
static uint8_t transfer(struct blk *blk, const struct request *request)
{
	const struct vmm_chain *chain = &blk->chain;
	bool out = request->type == T_OUT;
	uint64_t len = out ? chain->out_bytes - sizeof(*request) : chain->in_bytes - 1;
	int n, ret;

	if (!in_disk(blk, request->sector, len) || (out && blk->read_only))
		return S_IOERR;
	n = out ? slice(chain->out, chain->n_out, sizeof(*request), len, blk->iov)
		: slice(chain->in, chain->n_in, 0, len, blk->iov);
	ret = out ? vmm_disk_write(&blk->disk, blk->iov, n, request->sector * SECTOR)
		  : vmm_disk_read(&blk->disk, blk->iov, n, request->sector * SECTOR);
	return ret ? S_IOERR : S_OK;
}

static uint8_t identify(const struct blk *blk)
{
	static const char serial[SERIAL_LEN] = "nsrun";

	if (blk->chain.in_bytes - 1 < sizeof(serial))
		return S_IOERR;
	vmm_chain_write(&blk->chain, 0, serial, sizeof(serial));
	return S_OK;
}

/* Serve the chain, unlocked; the bytes that were written, or 0 when it can't be answered. */
static uint32_t serve(struct blk *blk)
{
	const struct vmm_chain *chain = &blk->chain;
	struct request request;
	uint8_t status;

	if (vmm_chain_read(chain, 0, &request, sizeof(request)) != sizeof(request) ||
	    !chain->in_bytes || chain->in_bytes > UINT32_MAX)
		return 0;
	switch (request.type) {
	case T_IN:
	case T_OUT:
		status = transfer(blk, &request);
		break;
	case T_FLUSH:
		status = vmm_disk_flush(&blk->disk) ? S_IOERR : S_OK;
		break;
	case T_GET_ID:
		status = identify(blk);
		break;
	default:
		status = S_UNSUPP;
	}
	vmm_chain_write(chain, chain->in_bytes - 1, &status, 1);
	return status == S_OK ? (uint32_t)chain->in_bytes : 1;
}

/* All that is in the queue; locked, but not while the disk works. */
static void drain(struct blk *blk)
{
	struct vmm_queue *queue = &blk->device.queue[0];
	int ret = 0;

	while (blk->device.running && (ret = vmm_queue_pop(queue, &blk->chain)) > 0) {
		uint32_t written;

		blk->busy = true;
		vmm_unlock();
		written = serve(blk);
		vmm_lock();
		blk->busy = false;
		pthread_cond_signal(&blk->idle);
		if (!written) {
			vmm_device_broken(&blk->device, "a request without head or status");
			return;
		}
		vmm_queue_push(queue, blk->chain.head, written);
		vmm_device_signal(&blk->device, 0);
	}
	if (ret < 0)
		vmm_device_broken(&blk->device, "a request's descriptors");
}

static void *work(void *arg)
{
	struct blk *blk = arg;

	vmm_lock();
	for (;;) {
		while (!blk->pending)
			pthread_cond_wait(&blk->kicked, vmm_lock_mutex());
		blk->pending = false;
		drain(blk);
	}
	return NULL;
}

static void notify(struct vmm_device *device, uint32_t queue)
{
	struct blk *blk = blk_of(device);

	(void)queue;
	blk->pending = true;
	pthread_cond_signal(&blk->kicked);
}

/* What is under way writes to the guest's memory, and must not after this. */
static void reset(struct vmm_device *device)
{
	struct blk *blk = blk_of(device);

	while (blk->busy)
		pthread_cond_wait(&blk->idle, vmm_lock_mutex());
	blk->pending = false;
}

/* A disk that was written to is not the one that clones would be given. */
static const char *save(struct vmm_device *device, struct vmm_own_state *own)
{
	struct blk *blk = blk_of(device);

	if (!blk->read_only)
		return "only a machine whose disks are read-only can be saved";
	while (blk->busy)
		pthread_cond_wait(&blk->idle, vmm_lock_mutex());
	own->len = sizeof(blk->config);
	memcpy(own->data, &blk->config, sizeof(blk->config));
	return NULL;
}

static const char *load(struct vmm_device *device, const struct vmm_own_state *own)
{
	struct blk *blk = blk_of(device);

	if (own->len != sizeof(blk->config) || memcmp(own->data, &blk->config, own->len))
		return "the disk that was saved had another size";
	return blk->read_only ? NULL : "the disk that was saved was read-only";
}

static void config_read(struct vmm_device *device, uint32_t offset, void *data, uint32_t len)
{
	memcpy(data, (uint8_t *)&blk_of(device)->config + offset, len);
}

struct vmm_device *vmm_blk_new(const struct vmm_blk_option *option)
{
	struct blk *blk = calloc(1, sizeof(*blk));
	int ret;

	if (!blk)
		vmm_fail(ENOMEM, "--blk %d", option->fd);
	ret = vmm_disk_open(&blk->disk, option->fd, option->cow);
	if (ret == -EINVAL)
		vmm_fail(0, "--blk %d:cow=%d: the file that takes the writes must be empty",
			 option->fd, option->cow);
	if (ret)
		vmm_fail(-ret, "--blk %d", option->fd);
	blk->read_only = option->read_only;
	blk->config.capacity = blk->disk.size / SECTOR;
	/* head and status have a descriptor each */
	blk->config.seg_max = BLK_QUEUE - 2;
	blk->ops = (struct vmm_device_ops){
		.name = "blk", .id = BLK_ID, .n_queues = 1, .queue_max = { BLK_QUEUE },
		.features = F_SEG_MAX | F_FLUSH | (option->read_only ? F_RO : 0),
		.config_size = sizeof(blk->config), .config_read = config_read,
		.notify = notify, .reset = reset, .save = save, .load = load,
	};
	blk->device.ops = &blk->ops;
	pthread_cond_init(&blk->kicked, NULL);
	pthread_cond_init(&blk->idle, NULL);
	vmm_jail_thread(VMM_ROLE_DISK, "--blk", work, blk);
	return &blk->device;
}
