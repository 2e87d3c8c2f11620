/* SPDX-License-Identifier: MIT */
/*
 * mmio: a driver that writes anything to any register of the transport, with random numbers,
 * a disk and a balloon behind it, and rings of its own making.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* the disk's thread is called by hand here */
#include "../csrc/vmm/blk.c"
#include "../csrc/vmm/balloon.h"
#include "../csrc/vmm/loop.h"
#include "../csrc/vmm/mmio.h"
#include "../csrc/vmm/rng.h"
#include "../csrc/vmm/vm.h"

enum { MEMORY = 1 << 14, SECTORS = 8, BELLS = 8 };

static struct vmm_vm vm;
static struct vmm_event *bell[BELLS];
static uint32_t n_bells;
static struct blk *disk_device;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void vmm_lock(void)
{
	pthread_mutex_lock(&lock);
}

void vmm_unlock(void)
{
	pthread_mutex_unlock(&lock);
}

pthread_mutex_t *vmm_lock_mutex(void)
{
	return &lock;
}

int vmm_vm_interrupt(const struct vmm_vm *machine, uint32_t gsi)
{
	(void)machine, (void)gsi;
	return eventfd(0, EFD_NONBLOCK);
}

int vmm_vm_doorbell(const struct vmm_vm *machine, uint64_t gpa, uint32_t value)
{
	(void)machine, (void)gpa, (void)value;
	return eventfd(0, EFD_NONBLOCK);
}

int vmm_loop_add(struct vmm_loop *loop, struct vmm_event *event)
{
	(void)loop;
	bell[n_bells++] = event;
	return 0;
}

uint32_t vmm_jail_thread(enum vmm_role role, const char *what, void *(*fn)(void *arg), void *arg)
{
	(void)role, (void)what, (void)fn;
	disk_device = arg;
	return 0;
}

_Noreturn void vmm_fail(int err, const char *format, ...)
{
	(void)err, (void)format;
	abort();
}

static int file_of(size_t bytes)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		abort();
	return fd;
}

static void make(void)
{
	struct vmm_blk_option option = { .fd = file_of(SECTORS * SECTOR), .cow = file_of(0) };

	vm.memory.region[0] = (struct vmm_region){ .size = MEMORY, .host = aligned_alloc(4096, MEMORY) };
	vm.memory.n = 1;
	vmm_mmio_attach(&vm, NULL, vmm_rng_new());
	vmm_mmio_attach(&vm, NULL, vmm_blk_new(&option));
	vmm_mmio_attach(&vm, NULL, vmm_balloon_new());
}

/* Let the devices work, as their threads would. */
static void kick(uint32_t queue)
{
	vmm_lock();
	bell[queue % n_bells]->ready(bell[queue % n_bells], 1);
	if (disk_device->pending) {
		disk_device->pending = false;
		drain(disk_device);
	}
	vmm_unlock();
}

struct step {
	uint8_t what;               /* 0 to 3: write of 1 << what bytes; 4: read; 5: kick; 6: memory */
	uint8_t device;
	uint16_t at;
	uint32_t value;
};

static void take(const struct step *step)
{
	uint64_t gpa = VMM_MMIO_BASE + step->device % 4 * VMM_MMIO_SIZE + step->at % VMM_MMIO_SIZE;
	uint64_t value = step->value;
	uint8_t bytes[8];

	switch (step->what % 8) {
	case 0:
	case 1:
	case 2:
	case 3:
		memcpy(bytes, &value, sizeof(bytes));
		vmm_mmio_write(gpa, bytes, 1u << step->what % 8);
		break;
	case 4:
		vmm_mmio_read(gpa, bytes, 4);
		break;
	case 5:
		kick(step->device);
		break;
	default:
		if (step->at <= MEMORY - sizeof(step->value))
			memcpy(vm.memory.region[0].host + step->at, &step->value,
			       sizeof(step->value));
	}
}

/* Devices, memory and disk as they were at first. */
static void forget(void)
{
	const struct step reset = { .what = 2, .at = 0x70 };
	struct step step = reset;

	for (uint32_t i = 0; i < vmm_mmio_devices(); i++, step.device++)
		take(&step);
	memset(vm.memory.region[0].host, 0, MEMORY);
	memset(disk_device->disk.written, 0, sizeof(uint64_t));
	if (ftruncate(disk_device->disk.overlay, 0))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct step step;

	if (!n_bells)
		make();
	forget();
	for (; size >= sizeof(step); data += sizeof(step), size -= sizeof(step)) {
		memcpy(&step, data, sizeof(step));
		take(&step);
	}
	return 0;
}
