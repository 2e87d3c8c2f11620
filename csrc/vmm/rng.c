/* SPDX-License-Identifier: MIT */
/* rng.c - virtio-rng: the host's random numbers. */
#include "rng.h"

#include <sys/random.h>

#include "device.h"

/* At most so many bytes a request: the driver asks again for more. */
enum { RNG_ID = 4, RNG_QUEUE = 64, RNG_MOST = 256 };

static void notify(struct vmm_device *device, uint32_t queue)
{
	static struct vmm_chain chain;
	uint8_t bytes[RNG_MOST];
	uint32_t written, left = RNG_QUEUE;
	int ret = 0;

	/* a guest that asks without end gets its turns, but not all of them */
	while (left-- && (ret = vmm_queue_pop(&device->queue[queue], &chain)) > 0) {
		/* never short, and never waits, at that length on a system that is up */
		written = getrandom(bytes, sizeof(bytes), 0) == sizeof(bytes) ?
			  (uint32_t)vmm_chain_write(&chain, 0, bytes, sizeof(bytes)) : 0;
		vmm_queue_push(&device->queue[queue], chain.head, written);
	}
	if (ret > 0)
		vmm_device_again(device, queue);
	if (ret < 0)
		vmm_device_broken(device, "a request's descriptors");
	vmm_device_signal(device, queue);
}

struct vmm_device *vmm_rng_new(void)
{
	static const struct vmm_device_ops ops = {
		.name = "rng", .id = RNG_ID, .n_queues = 1, .queue_max = { RNG_QUEUE },
		.notify = notify, .save = vmm_device_save_nothing, .load = vmm_device_load_nothing,
	};
	static struct vmm_device device = { .ops = &ops };

	return &device;
}
