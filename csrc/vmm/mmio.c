/* SPDX-License-Identifier: MIT */
/* mmio.c - the transport virtio-mmio, version 2. */
#include "mmio.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "end.h"
#include "loop.h"
#include "options.h"
#include "state.h"
#include "vm.h"

enum {
	MAGIC = 0x000, VERSION = 0x004, DEVICE_ID = 0x008, VENDOR_ID = 0x00c,
	DEVICE_FEATURES = 0x010, DEVICE_FEATURES_SEL = 0x014, DRIVER_FEATURES = 0x020,
	DRIVER_FEATURES_SEL = 0x024, QUEUE_SEL = 0x030, QUEUE_NUM_MAX = 0x034, QUEUE_NUM = 0x038,
	QUEUE_READY = 0x044, QUEUE_NOTIFY = 0x050, INTERRUPT_STATUS = 0x060, INTERRUPT_ACK = 0x064,
	STATUS = 0x070, QUEUE_DESC = 0x080, QUEUE_AVAIL = 0x090, QUEUE_USED = 0x0a0,
	SHM_LEN = 0x0b0, SHM_BASE_END = 0x0bc, CONFIG_GENERATION = 0x0fc, CONFIG = 0x100,
};
enum { MAGIC_VALUE = 0x74726976, VENDOR = 0x4e52534e };
enum {
	ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64, FAILED = 128,
};
enum { INTERRUPT_QUEUE = 1, INTERRUPT_CONFIG = 2 };
#define F_INDIRECT_DESC (1ULL << 28)
#define F_EVENT_IDX (1ULL << 29)
#define F_VERSION_1 (1ULL << 32)

struct transport;

/* The eventfd that the guest writes to when it kicks a queue. */
struct doorbell {
	struct vmm_event event;
	struct transport *transport;
	uint32_t queue;
};

struct transport {
	struct vmm_device *device;
	int interrupt;
	uint32_t status, interrupt_status, generation;
	uint32_t device_features_sel, driver_features_sel, queue_sel;
	uint64_t driver_features;
	bool told;                  /* that the driver broke the rules; once is enough */
	struct doorbell bell[VMM_DEVICE_QUEUES];
};

static struct transport transports[VMM_DEVICES];
static uint32_t n_transports;

void vmm_device_interrupt(const struct vmm_device *device)
{
	const struct transport *t = device->transport;
	const uint64_t one = 1;

	(void)!write(t->interrupt, &one, sizeof(one));
}

static void interrupt(struct transport *t, uint32_t why)
{
	t->interrupt_status |= why;
	vmm_device_interrupt(t->device);
}

bool vmm_device_due(struct vmm_device *device, uint32_t queue)
{
	struct transport *t = device->transport;

	if (!device->running || !vmm_queue_should_signal(&device->queue[queue]))
		return false;
	t->interrupt_status |= INTERRUPT_QUEUE;
	return true;
}

void vmm_device_signal(struct vmm_device *device, uint32_t queue)
{
	if (vmm_device_due(device, queue))
		vmm_device_interrupt(device);
}

void vmm_device_config_changed(struct vmm_device *device)
{
	struct transport *t = device->transport;

	t->generation++;
	if (t->status & DRIVER_OK)
		interrupt(t, INTERRUPT_CONFIG);
}

void vmm_device_broken(struct vmm_device *device, const char *why)
{
	struct transport *t = device->transport;

	device->running = false;
	if (t->status & NEEDS_RESET)
		return;
	t->status |= NEEDS_RESET;
	if (t->status & DRIVER_OK)
		interrupt(t, INTERRUPT_CONFIG);
	if (!t->told)
		fprintf(stderr, "nsrun-vmm: %s: the guest's driver broke the rules: %s\n",
			device->ops->name, why);
	t->told = true;
}

void vmm_device_again(struct vmm_device *device, uint32_t queue)
{
	const struct transport *t = device->transport;
	const uint64_t one = 1;

	(void)!write(t->bell[queue].event.fd, &one, sizeof(one));
}

static uint64_t offered(const struct transport *t)
{
	return t->device->ops->features | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;
}

static void reset(struct transport *t)
{
	struct vmm_device *device = t->device;

	device->running = false;
	if (device->ops->reset)
		device->ops->reset(device);
	for (uint32_t i = 0; i < device->ops->n_queues; i++)
		vmm_queue_reset(&device->queue[i]);
	device->acked = 0;
	t->status = t->interrupt_status = 0;
	t->device_features_sel = t->driver_features_sel = t->queue_sel = 0;
	t->driver_features = 0;
}

/* Features are settled here, or the driver sees that they aren't. */
static bool settle_features(struct transport *t)
{
	struct vmm_device *device = t->device;

	if (t->driver_features & ~offered(t) || !(t->driver_features & F_VERSION_1))
		return false;
	device->acked = t->driver_features;
	for (uint32_t i = 0; i < device->ops->n_queues; i++)
		device->queue[i].event_idx = device->acked & F_EVENT_IDX;
	return true;
}

static void start(struct transport *t)
{
	struct vmm_device *device = t->device;

	if (t->status & NEEDS_RESET)
		return;
	device->running = true;
	if (device->ops->start)
		device->ops->start(device);
}

/* Each step once, in its order; what is out of order has no effect. */
static void write_status(struct transport *t, uint32_t value)
{
	uint32_t known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
	uint32_t now = t->status & known, new = value & known & ~now;

	if (!value) {
		reset(t);
		return;
	}
	if (now & ~value)
		return;
	if (new & FAILED)
		t->device->running = false;
	t->status |= new & (ACKNOWLEDGE | FAILED);
	if (new & DRIVER && t->status & ACKNOWLEDGE)
		t->status |= DRIVER;
	if (new & FEATURES_OK && t->status & DRIVER && settle_features(t))
		t->status |= FEATURES_OK;
	if (new & DRIVER_OK && t->status & FEATURES_OK && !(t->status & FAILED)) {
		t->status |= DRIVER_OK;
		start(t);
	}
}

/* The queue that the driver has chosen, or NULL. */
static struct vmm_queue *selected(const struct transport *t)
{
	return t->queue_sel < t->device->ops->n_queues ? &t->device->queue[t->queue_sel] : NULL;
}

/* Whether its setting is still open. */
static bool is_open(const struct transport *t, const struct vmm_queue *queue)
{
	return queue && !queue->ready && t->status & FEATURES_OK &&
	       !(t->status & (DRIVER_OK | NEEDS_RESET));
}

static void write_ready(struct transport *t, uint32_t value)
{
	struct vmm_queue *queue = selected(t);

	if (!queue)
		return;
	if (!(value & 1))
		queue->ready = false;
	else if (is_open(t, queue) && !vmm_queue_start(queue))
		vmm_device_broken(t->device, "a queue's size or addresses");
}

static void set_half(uint64_t *address, bool high, uint32_t value)
{
	if (high)
		*address = (*address & UINT32_MAX) | (uint64_t)value << 32;
	else
		*address = (*address & ~(uint64_t)UINT32_MAX) | value;
}

static void write_queue(struct transport *t, uint32_t offset, uint32_t value)
{
	struct vmm_queue *queue = selected(t);

	if (!is_open(t, queue))
		return;
	if (offset == QUEUE_NUM)
		queue->size = value <= UINT16_MAX ? (uint16_t)value : 0;
	else if ((offset & ~4u) == QUEUE_DESC)
		set_half(&queue->desc, offset & 4, value);
	else if ((offset & ~4u) == QUEUE_AVAIL)
		set_half(&queue->avail, offset & 4, value);
	else if ((offset & ~4u) == QUEUE_USED)
		set_half(&queue->used, offset & 4, value);
}

static void write_driver_features(struct transport *t, uint32_t value)
{
	if (t->driver_features_sel < 2 && !(t->status & FEATURES_OK))
		set_half(&t->driver_features, t->driver_features_sel, value);
}

static void write_register(struct transport *t, uint32_t offset, uint32_t value)
{
	switch (offset) {
	case DEVICE_FEATURES_SEL:
		t->device_features_sel = value;
		break;
	case DRIVER_FEATURES:
		write_driver_features(t, value);
		break;
	case DRIVER_FEATURES_SEL:
		t->driver_features_sel = value;
		break;
	case QUEUE_SEL:
		t->queue_sel = value;
		break;
	case QUEUE_READY:
		write_ready(t, value);
		break;
	case INTERRUPT_ACK:
		t->interrupt_status &= ~value;
		break;
	case STATUS:
		write_status(t, value);
		break;
	default:
		write_queue(t, offset, value);
	}
}

static uint32_t read_features(const struct transport *t)
{
	return t->device_features_sel < 2 ? (uint32_t)(offered(t) >> 32 * t->device_features_sel)
					  : 0;
}

static uint32_t read_register(const struct transport *t, uint32_t offset)
{
	const struct vmm_queue *queue = selected(t);

	switch (offset) {
	case MAGIC:
		return MAGIC_VALUE;
	case VERSION:
		return 2;
	case DEVICE_ID:
		return t->device->ops->id;
	case VENDOR_ID:
		return VENDOR;
	case DEVICE_FEATURES:
		return read_features(t);
	case QUEUE_NUM_MAX:
		return queue ? queue->max : 0;
	case QUEUE_READY:
		return queue && queue->ready;
	case INTERRUPT_STATUS:
		return t->interrupt_status;
	case STATUS:
		return t->status;
	case CONFIG_GENERATION:
		return t->generation;
	default:
		/* a shared region that isn't there is of -1 bytes */
		return offset >= SHM_LEN && offset <= SHM_BASE_END ? UINT32_MAX : 0;
	}
}

static void read_config(struct vmm_device *device, uint32_t offset, uint8_t *data, uint32_t len)
{
	uint32_t size = device->ops->config_size;

	if (offset <= size && len <= size - offset)
		device->ops->config_read(device, offset, data, len);
}

static void write_config(struct vmm_device *device, uint32_t offset, const uint8_t *data,
			 uint32_t len)
{
	uint32_t size = device->ops->config_size;

	if (device->ops->config_write && offset <= size && len <= size - offset)
		device->ops->config_write(device, offset, data, len);
}

static struct transport *at(uint64_t gpa)
{
	uint64_t slot = (gpa - VMM_MMIO_BASE) / VMM_MMIO_SIZE;

	return gpa >= VMM_MMIO_BASE && slot < n_transports ? &transports[slot] : NULL;
}

void vmm_mmio_read(uint64_t gpa, uint8_t *data, uint32_t len)
{
	struct transport *t = at(gpa);
	uint32_t offset = gpa % VMM_MMIO_SIZE, value;

	memset(data, t ? 0 : 0xff, len);
	if (!t)
		return;
	vmm_lock();
	if (offset >= CONFIG) {
		read_config(t->device, offset - CONFIG, data, len);
	} else if (len == sizeof(value) && !(offset & 3)) {
		value = read_register(t, offset);
		memcpy(data, &value, sizeof(value));
	}
	vmm_unlock();
}

void vmm_mmio_write(uint64_t gpa, const uint8_t *data, uint32_t len)
{
	struct transport *t = at(gpa);
	uint32_t offset = gpa % VMM_MMIO_SIZE, value;

	if (!t)
		return;
	vmm_lock();
	if (offset >= CONFIG) {
		write_config(t->device, offset - CONFIG, data, len);
	} else if (len == sizeof(value) && !(offset & 3)) {
		memcpy(&value, data, sizeof(value));
		write_register(t, offset, value);
	}
	vmm_unlock();
}

static void rung(struct vmm_event *event, uint32_t events)
{
	struct doorbell *bell = (void *)((char *)event - offsetof(struct doorbell, event));
	struct vmm_device *device = bell->transport->device;
	uint64_t count;

	(void)events;
	(void)!read(event->fd, &count, sizeof(count));
	if (device->running)
		device->ops->notify(device, bell->queue);
}

static void add_bell(const struct vmm_vm *vm, struct vmm_loop *loop, struct transport *t,
		     uint64_t base, uint32_t queue)
{
	struct doorbell *bell = &t->bell[queue];
	int ret;

	*bell = (struct doorbell){
		.event = { .events = EPOLLIN, .ready = rung,
			   .fd = vmm_vm_doorbell(vm, base + QUEUE_NOTIFY, queue) },
		.transport = t, .queue = queue,
	};
	if (t->device->ops->bell) {
		t->device->ops->bell(t->device, queue, bell->event.fd);
		return;
	}
	ret = vmm_loop_add(loop, &bell->event);
	if (ret)
		vmm_fail(-ret, "a doorbell of %s", t->device->ops->name);
}

void vmm_mmio_attach(const struct vmm_vm *vm, struct vmm_loop *loop, struct vmm_device *device)
{
	uint32_t slot = n_transports++;
	struct transport *t = &transports[slot];

	*t = (struct transport){ .device = device };
	device->transport = t;
	t->interrupt = vmm_vm_interrupt(vm, VMM_MMIO_GSI + slot);
	for (uint32_t i = 0; i < device->ops->n_queues; i++) {
		device->queue[i] = (struct vmm_queue){
			.memory = &vm->memory, .max = device->ops->queue_max[i],
		};
		add_bell(vm, loop, t, VMM_MMIO_BASE + (uint64_t)slot * VMM_MMIO_SIZE, i);
	}
}

uint32_t vmm_mmio_devices(void)
{
	return n_transports;
}

const char *vmm_device_save_nothing(struct vmm_device *device, struct vmm_own_state *own)
{
	(void)device, (void)own;
	return NULL;
}

const char *vmm_device_load_nothing(struct vmm_device *device, const struct vmm_own_state *own)
{
	(void)device;
	return own->len ? "it has no state of its own" : NULL;
}

static void save_queue(const struct vmm_queue *queue, struct vmm_queue_state *state)
{
	*state = (struct vmm_queue_state){
		.desc = queue->desc, .avail = queue->avail, .used = queue->used,
		.size = queue->size, .next_avail = queue->next_avail,
		.next_used = queue->next_used, .signalled_used = queue->signalled_used,
		.ready = queue->ready, .broken = queue->broken,
	};
}

static const char *save_device(const struct transport *t, struct vmm_device_state *state)
{
	struct vmm_device *device = t->device;
	const char *why = device->ops->save(device, &state->own);

	state->id = device->ops->id;
	state->n_queues = device->ops->n_queues;
	state->status = t->status;
	state->interrupt_status = t->interrupt_status;
	state->device_features_sel = t->device_features_sel;
	state->driver_features_sel = t->driver_features_sel;
	state->queue_sel = t->queue_sel;
	state->driver_features = t->driver_features;
	state->acked = device->acked;
	state->running = device->running;
	for (uint32_t i = 0; i < device->ops->n_queues; i++)
		save_queue(&device->queue[i], &state->queue[i]);
	return why;
}

/* All that it has to keep. */
static const char *save_whole(const struct transport *t, struct vmm_device_state *state,
			      struct vmm_files_state *files)
{
	const char *why = save_device(t, state);

	if (why || !t->device->ops->save_files)
		return why;
	return t->device->ops->save_files(t->device, files);
}

int vmm_mmio_save(struct vmm_state *state)
{
	state->n_devices = n_transports;
	state->files.len = 0;
	for (uint32_t i = 0; i < n_transports; i++) {
		const struct vmm_device_ops *ops = transports[i].device->ops;
		const char *why = "it can't be saved";
		int ret = -EOPNOTSUPP;

		state->device[i].own.len = 0;
		if (ops->save) {
			why = save_whole(&transports[i], &state->device[i], &state->files);
			ret = -EBUSY;
		}
		if (why) {
			fprintf(stderr, "nsrun-vmm: %s: %s\n", ops->name, why);
			return ret;
		}
	}
	return 0;
}

static bool load_queue(struct vmm_queue *queue, const struct vmm_queue_state *state, uint64_t acked)
{
	vmm_queue_reset(queue);
	queue->size = state->size;
	queue->desc = state->desc;
	queue->avail = state->avail;
	queue->used = state->used;
	queue->event_idx = acked & F_EVENT_IDX;
	if (state->ready && !vmm_queue_start(queue))
		return false;
	queue->broken = state->broken;
	queue->next_avail = state->next_avail;
	queue->next_used = state->next_used;
	queue->signalled_used = state->signalled_used;
	return true;
}

/* Whether a driver can have brought a device of this kind to here. */
static bool is_possible(const struct transport *t, const struct vmm_device_state *state)
{
	const uint32_t known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED;
	uint32_t status = state->status;
	bool settled = status & FEATURES_OK;

	return !(status & ~known) &&
	       (!(status & DRIVER) || status & ACKNOWLEDGE) && (!settled || status & DRIVER) &&
	       (!(status & DRIVER_OK) || settled) &&
	       !(state->acked & ~offered(t)) && (!settled || state->acked & F_VERSION_1) &&
	       (!state->running ||
		(status & DRIVER_OK && !(status & (NEEDS_RESET | FAILED))));
}

static void load_device(struct transport *t, const struct vmm_device_state *state)
{
	struct vmm_device *device = t->device;
	const struct vmm_device_ops *ops = device->ops;
	const char *why = NULL;

	if (state->id != ops->id || state->n_queues != ops->n_queues || !ops->load)
		vmm_fail(0, "--restore: where %s is now, another device was saved", ops->name);
	if (!is_possible(t, state))
		vmm_fail(0, "--restore: %s: a state that can't be", ops->name);
	t->status = state->status;
	t->interrupt_status = state->interrupt_status & (INTERRUPT_QUEUE | INTERRUPT_CONFIG);
	t->device_features_sel = state->device_features_sel;
	t->driver_features_sel = state->driver_features_sel;
	t->queue_sel = state->queue_sel;
	t->driver_features = state->driver_features;
	device->acked = state->acked;
	for (uint32_t i = 0; i < ops->n_queues; i++)
		if (!load_queue(&device->queue[i], &state->queue[i], device->acked))
			vmm_fail(0, "--restore: %s: a queue outside the memory", ops->name);
	device->running = state->running;
	why = ops->load(device, &state->own);
	if (why)
		vmm_fail(0, "--restore: %s: %s", ops->name, why);
}

static void load_files(const struct vmm_files_state *files)
{
	const char *why = "they are of no device";
	uint32_t i = 0;

	if (!files->len)
		return;
	while (i < n_transports && !transports[i].device->ops->load_files)
		i++;
	if (i < n_transports)
		why = transports[i].device->ops->load_files(transports[i].device, files);
	if (why)
		vmm_fail(0, "--restore: files: %s", why);
}

/* What was under way between guest and device when it was saved is not lost, if told again. */
static void tell_again(struct transport *t)
{
	struct vmm_device *device = t->device;

	if (t->interrupt_status)
		interrupt(t, 0);
	for (uint32_t i = 0; device->running && i < device->ops->n_queues; i++) {
		if (!device->queue[i].ready)
			continue;
		if (device->ops->notify)
			device->ops->notify(device, i);
		else
			vmm_device_again(device, i);
	}
}

void vmm_mmio_load(const struct vmm_state *state)
{
	if (state->n_devices != n_transports)
		vmm_fail(0, "--restore: %u devices were saved, not %u", state->n_devices,
			 n_transports);
	for (uint32_t i = 0; i < n_transports; i++)
		load_device(&transports[i], &state->device[i]);
	load_files(&state->files);
	for (uint32_t i = 0; i < n_transports; i++)
		tell_again(&transports[i]);
}
