/* SPDX-License-Identifier: MIT */
/*
 * virtqueue: rings and descriptors of a guest that writes what it likes, and goes on writing
 * while they are read.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../csrc/vmm/virtqueue.h"

enum { LOW = 1 << 14, HIGH = 1 << 12, POPS = 64 };

/* The first bytes of an input; what follows fills the guest's memory from 0 on. */
struct setting {
	uint8_t size_shift, flags;
	uint16_t desc, avail, used;
	/* after each pop: a byte of the memory changes */
	uint16_t change_at;
	uint8_t change_by, odd_size;
};

static void check_part(const struct vmm_memory *memory, const struct iovec *iov, uint16_t n,
		       uint64_t bytes)
{
	for (uint16_t i = 0; i < n; i++) {
		const uint8_t *at = iov[i].iov_base;
		bool inside = false;

		for (uint32_t j = 0; j < memory->n; j++)
			inside |= at >= memory->region[j].host &&
				  at + iov[i].iov_len <=
				  memory->region[j].host + memory->region[j].size;
		if (!inside || !iov[i].iov_len)
			abort();
		bytes -= iov[i].iov_len;
	}
	if (bytes)
		abort();
}

/* What a device would do with it. */
static void use(struct vmm_queue *queue, const struct vmm_chain *chain)
{
	uint8_t data[300];
	size_t n;

	check_part(queue->memory, chain->out, chain->n_out, chain->out_bytes);
	check_part(queue->memory, chain->in, chain->n_in, chain->in_bytes);
	if (chain->n_out + chain->n_in > VMM_QUEUE_MAX)
		abort();
	n = vmm_chain_read(chain, 1, data, sizeof(data));
	if (n > sizeof(data) || (chain->out_bytes && n > chain->out_bytes - 1))
		abort();
	memset(data, 0xa5, sizeof(data));
	n = vmm_chain_write(chain, chain->in_bytes / 2, data, sizeof(data));
	if (n > sizeof(data) || n > chain->in_bytes - chain->in_bytes / 2)
		abort();
	vmm_queue_push(queue, chain->head, (uint32_t)n);
	vmm_queue_should_signal(queue);
}

static void drive(struct vmm_queue *queue, const struct setting *setting)
{
	static struct vmm_chain chain;
	uint8_t *low = queue->memory->region[0].host;
	int ret;

	vmm_queue_enable_kicks(queue, setting->flags & 2);
	for (int i = 0; i < POPS; i++) {
		ret = vmm_queue_pop(queue, &chain);
		if (ret < 0 && !queue->broken)
			abort();
		if (ret <= 0)
			break;
		if (setting->flags & 4 && i % 3 == 2)
			vmm_queue_unpop(queue);
		else
			use(queue, &chain);
		low[setting->change_at % LOW] += setting->change_by;
	}
	if (queue->broken && vmm_queue_pop(queue, &chain) != -EIO)
		abort();
	vmm_queue_enable_kicks(queue, true);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* of their own, so that a byte behind them is noticed */
	uint8_t *low = calloc(1, LOW), *high = calloc(1, HIGH);
	struct vmm_memory memory = {
		.region = { { 0, LOW, low }, { 1ULL << 32, HIGH, high } }, .n = 2,
	};
	struct vmm_queue queue = { .memory = &memory, .max = 256 };
	struct setting setting;

	if (low && high && size >= sizeof(setting)) {
		memcpy(&setting, data, sizeof(setting));
		size -= sizeof(setting);
		memcpy(low, data + sizeof(setting), size < LOW ? size : LOW);
		queue.size = (uint16_t)((1u << setting.size_shift % 10) + setting.odd_size);
		queue.desc = setting.desc;
		queue.avail = setting.avail;
		queue.used = setting.used;
		queue.event_idx = setting.flags & 1;
		if (vmm_queue_start(&queue))
			drive(&queue, &setting);
		vmm_queue_reset(&queue);
		if (queue.ready || queue.memory != &memory || queue.max != 256)
			abort();
	}
	free(low);
	free(high);
	return 0;
}
