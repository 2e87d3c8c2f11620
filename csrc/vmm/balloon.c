/* SPDX-License-Identifier: MIT */
/*
 * balloon.c - virtio-balloon: the guest tells which pages it does not use, and
 * the host gets them back until they are touched again.
 *
 * Its other use, to ask the guest for memory, is not made: no page is ever
 * wanted, so nothing comes over the first two queues.
 */
#include "balloon.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "device.h"

enum { BALLOON_ID = 5, BALLOON_QUEUE = 32, REPORTING = 2, PAGE = 4096 };
#define F_REPORTING (1ULL << 5)

/* num_pages, actual */
enum { CONFIG_BYTES = 8 };

/* Whole pages of it; what they held is gone. */
static void drop(const struct iovec *iov)
{
	uintptr_t from = ((uintptr_t)iov->iov_base + PAGE - 1) & ~(uintptr_t)(PAGE - 1);
	uintptr_t to = ((uintptr_t)iov->iov_base + iov->iov_len) & ~(uintptr_t)(PAGE - 1);

	/* where the host can't, the pages stay, which is no harm */
	if (to > from)
		madvise((void *)from, to - from, MADV_DONTNEED);
}

static void notify(struct vmm_device *device, uint32_t queue)
{
	static struct vmm_chain chain;
	uint32_t left = BALLOON_QUEUE;
	int ret = 0;

	while (left-- && (ret = vmm_queue_pop(&device->queue[queue], &chain)) > 0) {
		for (uint16_t i = 0; queue == REPORTING && i < chain.n_in; i++)
			drop(&chain.in[i]);
		vmm_queue_push(&device->queue[queue], chain.head, 0);
	}
	if (ret > 0)
		vmm_device_again(device, queue);
	if (ret < 0)
		vmm_device_broken(device, "a request's descriptors");
	vmm_device_signal(device, queue);
}

static void config_read(struct vmm_device *device, uint32_t offset, void *data, uint32_t len)
{
	(void)device, (void)offset;
	memset(data, 0, len);
}

struct vmm_device *vmm_balloon_new(void)
{
	static const struct vmm_device_ops ops = {
		.name = "balloon", .id = BALLOON_ID, .n_queues = 3,
		.queue_max = { BALLOON_QUEUE, BALLOON_QUEUE, BALLOON_QUEUE },
		.features = F_REPORTING, .config_size = CONFIG_BYTES, .config_read = config_read,
		.notify = notify, .save = vmm_device_save_nothing, .load = vmm_device_load_nothing,
	};
	static struct vmm_device device = { .ops = &ops };

	return &device;
}
