/* SPDX-License-Identifier: MIT */
/*
 * snapshot: the state of a machine, from anybody.  What the reader takes, the writer gives
 * back byte for byte; and what the devices take of it they can work with: their queues are
 * kicked, whatever they are.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "../csrc/vmm/cpu.h"
#include "../csrc/vmm/end.h"
#include "../csrc/vmm/loop.h"
#include "../csrc/vmm/mmio.h"
#include "../csrc/vmm/rng.h"
#include "../csrc/vmm/serial.h"
#include "../csrc/vmm/state.h"
#include "../csrc/vmm/vm.h"

enum { MEMORY = 1 << 14, HEADER = 24 };

static struct vmm_vm vm;
static jmp_buf refused;

void vmm_lock(void)
{
}

void vmm_unlock(void)
{
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
	(void)loop, (void)event;
	return 0;
}

_Noreturn void vmm_fail(int err, const char *format, ...)
{
	(void)err, (void)format;
	longjmp(refused, 1);
}

/* The header is made right: what is behind it is of interest. */
static uint8_t *with_header(const uint8_t *data, size_t size)
{
	const uint32_t version = VMM_STATE_VERSION, len = (uint32_t)size;
	uint64_t sum = 0xcbf29ce484222325;
	uint8_t *bytes = malloc(HEADER + size);

	if (!bytes)
		abort();
	for (size_t i = 0; i < size; i++)
		sum = (sum ^ data[i]) * 0x100000001b3;
	memcpy(bytes, "NSRVMST", 8);
	memcpy(bytes + 8, &version, sizeof(version));
	memcpy(bytes + 12, &len, sizeof(len));
	memcpy(bytes + 16, &sum, sizeof(sum));
	memcpy(bytes + HEADER, data, size);
	return bytes;
}

static void check_same(const struct vmm_state *state, const uint8_t *bytes, size_t len)
{
	uint8_t *again = malloc(vmm_state_most());

	if (!again || vmm_state_write(state, again) != len || memcmp(again, bytes, len))
		abort();
	free(again);
}

static void make(void)
{
	vm.memory.region[0] = (struct vmm_region){ .size = MEMORY, .host = malloc(MEMORY) };
	vm.memory.n = 1;
	vmm_mmio_attach(&vm, NULL, vmm_rng_new());
}

/* Rings of random values are the state's own bytes. */
static void work(const struct vmm_state *state, const uint8_t *data, size_t size)
{
	struct vmm_serial_state serial;

	memset(vm.memory.region[0].host, 0, MEMORY);
	memcpy(vm.memory.region[0].host, data, size < MEMORY ? size : MEMORY);
	vmm_serial_load(&state->serial);
	vmm_serial_save(&serial);
	if (!setjmp(refused))
		vmm_mmio_load(state);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vmm_state state;
	const char *why = NULL;
	uint8_t *bytes = with_header(data, size);
	size_t used;

	if (!vm.memory.n)
		make();
	used = vmm_state_read(&state, bytes, HEADER + size, &why);
	if (!used != !!why)
		abort();                /* refused without a word, or taken with one */
	if (used) {
		check_same(&state, bytes, used);
		work(&state, data, size);
	}
	/* a file that is cut short anywhere is no machine */
	if (size && vmm_state_read(&state, bytes, HEADER + size - 1, &why))
		abort();
	free(bytes);
	return 0;
}
