/* SPDX-License-Identifier: MIT */
/* snapshot.c - a machine, saved to a file and made again out of it. */
#include "snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cpu.h"
#include "cpu_state.h"
#include "end.h"
#include "mmio.h"
#include "serial.h"
#include "state.h"
#include "vm.h"

enum { PAGE = 4096 };

/* As good as no memory until it is used, and then only what this machine has. */
static struct vmm_state state;

static int failed(int err, const char *what)
{
	fprintf(stderr, "nsrun-vmm: save: %s: %s\n", what, strerror(err));
	return -err;
}

/* --- saving ------------------------------------------------------------------------------ */

static int check_file(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return failed(errno, "the file");
	return S_ISREG(st.st_mode) && !st.st_size ? 0 : failed(EINVAL, "not an empty file");
}

static int save_machine(const struct vmm_vm *vm)
{
	const char *what;
	int ret;

	for (uint32_t i = 0; i < VMM_STATE_CHIPS; i++) {
		state.chip[i] = (struct kvm_irqchip){ .chip_id = i };
		if (ioctl(vm->vm, KVM_GET_IRQCHIP, &state.chip[i]) < 0)
			return failed(errno, "KVM_GET_IRQCHIP");
	}
	ret = vmm_cpus_save(&state, &what);
	if (ret)
		return failed(-ret, what);
	return ioctl(vm->vm, KVM_GET_CLOCK, &state.clock) < 0 ? failed(errno, "KVM_GET_CLOCK") : 0;
}

static int write_at(int fd, const uint8_t *bytes, size_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pwrite(fd, bytes, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return failed(n ? errno : ENOSPC, "writing the file");
		bytes += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

/* A page begins at a multiple of its size. */
static bool is_zero(const uint8_t *page)
{
	const uint64_t *word = (const uint64_t *)page, *end = word + PAGE / sizeof(*word);

	for (; word < end; word += 8)
		if (word[0] | word[1] | word[2] | word[3] | word[4] | word[5] | word[6] | word[7])
			return false;
	return true;
}

/* Runs of pages that are not zero; the file has holes in between. */
static int write_pages(int fd, const uint8_t *host, uint64_t bytes, uint64_t offset)
{
	uint64_t at = 0;
	int ret = 0;

	while (!ret && at < bytes) {
		uint64_t end = at;

		while (end < bytes && !is_zero(host + end))
			end += PAGE;
		ret = write_at(fd, host + at, end - at, offset + at);
		at = end;
		while (at < bytes && is_zero(host + at))
			at += PAGE;
	}
	return ret;
}

/*
 * To look at what was never touched costs a fault a page, or one for a whole
 * stretch of zeros where pages may be huge.  The guest's own are not to be: a
 * write to one byte would take 2 MiB.
 */
static int write_memory(int fd, uint8_t *host, uint64_t bytes, uint64_t offset)
{
	int ret;

	(void)madvise(host, bytes, MADV_HUGEPAGE);
	ret = write_pages(fd, host, bytes, offset);
	(void)madvise(host, bytes, MADV_NOHUGEPAGE);
	return ret;
}

static int write_state(int fd, uint64_t *memory_at)
{
	uint8_t *bytes = malloc(vmm_state_most());
	size_t len;
	int ret;

	if (!bytes)
		return failed(ENOMEM, "the state");
	len = vmm_state_write(&state, bytes);
	*memory_at = vmm_state_memory_at(len);
	ret = write_at(fd, bytes, len, 0);
	free(bytes);
	return ret;
}

static int write_all(const struct vmm_memory *memory, int fd)
{
	uint64_t at;
	int ret = write_state(fd, &at);

	if (!ret && ftruncate(fd, (off_t)(at + state.memory_bytes)) < 0)
		return failed(errno, "the file's size");
	for (uint32_t i = 0; !ret && i < memory->n; i++) {
		ret = write_memory(fd, memory->region[i].host, memory->region[i].size, at);
		at += memory->region[i].size;
	}
	return ret;
}

void vmm_snapshot_prepare(const struct vmm_vm *vm)
{
	int ret = vmm_cpu_prepare(vm);

	if (ret)
		vmm_fail(-ret, "KVM_GET_MSR_INDEX_LIST");
}

int vmm_snapshot_save(const struct vmm_vm *vm, int fd)
{
	int ret = vmm_cpus_paused() ? check_file(fd) : failed(EINVAL, "the machine isn't paused");

	state.memory_bytes = 0;
	for (uint32_t i = 0; i < vm->memory.n; i++)
		state.memory_bytes += vm->memory.region[i].size;
	if (!ret)
		ret = vmm_mmio_save(&state);
	if (ret)
		return ret;
	vmm_serial_save(&state.serial);
	ret = save_machine(vm);
	return ret ? ret : write_all(&vm->memory, fd);
}

/* --- restoring --------------------------------------------------------------------------- */

static void read_state(int fd, uint64_t size, size_t *used)
{
	size_t len = size < vmm_state_most() ? (size_t)size : vmm_state_most();
	uint8_t *bytes = mmap(NULL, len ? len : 1, PROT_READ, MAP_PRIVATE, fd, 0);
	const char *why;

	if (bytes == MAP_FAILED)
		vmm_fail(errno, "--restore %d", fd);
	*used = vmm_state_read(&state, bytes, len, &why);
	if (!*used)
		vmm_fail(0, "--restore %d: %s", fd, why);
	munmap(bytes, len ? len : 1);
}

void vmm_snapshot_open(struct vmm_vm *vm, int fd)
{
	struct stat st;
	uint64_t at;
	size_t used;
	int ret;

	if (fstat(fd, &st) < 0)
		vmm_fail(errno, "--restore %d", fd);
	if (!S_ISREG(st.st_mode))
		vmm_fail(0, "--restore %d: not a file", fd);
	read_state(fd, (uint64_t)st.st_size, &used);
	at = vmm_state_memory_at(used);
	if (at + state.memory_bytes != (uint64_t)st.st_size)
		vmm_fail(0, "--restore %d: the file has not the size of the saved memory", fd);
	ret = vmm_memory_map(&vm->memory, state.memory_bytes, fd, at);
	if (ret)
		vmm_fail(-ret, "--restore %d: its memory", fd);
}

/* The guest's clock goes on from where it stood: its timers don't all expire at once. */
static void load_clock(const struct vmm_vm *vm)
{
	struct kvm_clock_data clock = { .clock = state.clock.clock };

	if (ioctl(vm->vm, KVM_SET_CLOCK, &clock) < 0)
		vmm_fail(errno, "--restore: KVM_SET_CLOCK");
}

void vmm_snapshot_load(struct vmm_vm *vm)
{
	for (uint32_t i = 0; i < VMM_STATE_CHIPS; i++)
		if (ioctl(vm->vm, KVM_SET_IRQCHIP, &state.chip[i]) < 0)
			vmm_fail(errno, "--restore: KVM_SET_IRQCHIP");
	vmm_cpus_restore(vm, &state);
	load_clock(vm);
	vmm_serial_load(&state.serial);
	vmm_mmio_load(&state);
}
