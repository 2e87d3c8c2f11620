/* SPDX-License-Identifier: MIT */
/*
 * state.c - a machine's state as bytes.
 *
 * The format is described once, by the functions named code_*, which write or
 * read: so the two can't differ.  Everything is in the processor's byte order.
 */
#include "state.h"

#include <string.h>

enum { HEADER = 24, PAGE = 4096 };

static const char magic[8] = "NSRVMST";

struct code {
	uint8_t *at;
	size_t left;
	bool reading;
	const char *why;            /* what is wrong; nothing is read any more */
};

static void wrong(struct code *code, const char *why)
{
	if (!code->why)
		code->why = why;
}

static void code_bytes(struct code *code, void *field, size_t len)
{
	if (len > code->left)
		wrong(code, "it is cut short");
	if (code->why)
		return;
	if (code->reading)
		memcpy(field, code->at, len);
	else
		memcpy(code->at, field, len);
	code->at += len;
	code->left -= len;
}

#define CODE(code, field) code_bytes(code, &(field), sizeof(field))

/* A number of things that follow. */
static void code_count(struct code *code, uint32_t *n, uint32_t least, uint32_t most,
		       const char *what)
{
	CODE(code, *n);
	if (!code->why && (*n < least || *n > most)) {
		wrong(code, what);
		*n = least;
	}
}

static void code_bool(struct code *code, uint8_t *value)
{
	CODE(code, *value);
	if (*value > 1)
		wrong(code, "a flag that is neither set nor clear");
}

static void code_cpuid(struct code *code, struct vmm_cpuid *cpuid)
{
	code_count(code, &cpuid->head.nent, 1, VMM_STATE_CPUID, "the number of CPUID's leaves");
	code_bytes(code, cpuid->entry, cpuid->head.nent * sizeof(cpuid->entry[0]));
}

static void code_msrs(struct code *code, struct vmm_msrs *msrs)
{
	code_count(code, &msrs->head.nmsrs, 0, VMM_STATE_MSRS, "the number of MSRs");
	code_bytes(code, msrs->entry, msrs->head.nmsrs * sizeof(msrs->entry[0]));
}

static void code_cpu(struct code *code, struct vmm_cpu_state *cpu)
{
	CODE(code, cpu->mp);
	CODE(code, cpu->regs);
	CODE(code, cpu->sregs);
	CODE(code, cpu->xcrs);
	CODE(code, cpu->lapic);
	CODE(code, cpu->events);
	CODE(code, cpu->debugregs);
	code_count(code, &cpu->xsave_bytes, sizeof(struct kvm_xsave), VMM_STATE_XSAVE,
		   "the size of the extended registers");
	code_bytes(code, cpu->xsave, cpu->xsave_bytes);
	code_cpuid(code, &cpu->cpuid);
	code_msrs(code, &cpu->msrs);
}

static void code_serial(struct code *code, struct vmm_serial_state *serial)
{
	CODE(code, serial->ier);
	CODE(code, serial->lcr);
	CODE(code, serial->mcr);
	CODE(code, serial->scr);
	CODE(code, serial->divisor);
	code_bool(code, &serial->fifo);
	code_bool(code, &serial->empty_pending);
}

static void code_queue(struct code *code, struct vmm_queue_state *queue)
{
	CODE(code, queue->desc);
	CODE(code, queue->avail);
	CODE(code, queue->used);
	CODE(code, queue->size);
	CODE(code, queue->next_avail);
	CODE(code, queue->next_used);
	CODE(code, queue->signalled_used);
	code_bool(code, &queue->ready);
	code_bool(code, &queue->broken);
}

static void code_device(struct code *code, struct vmm_device_state *device)
{
	CODE(code, device->id);
	CODE(code, device->status);
	CODE(code, device->interrupt_status);
	CODE(code, device->device_features_sel);
	CODE(code, device->driver_features_sel);
	CODE(code, device->queue_sel);
	CODE(code, device->driver_features);
	CODE(code, device->acked);
	code_bool(code, &device->running);
	code_count(code, &device->n_queues, 1, VMM_DEVICE_QUEUES,
		   "the number of a device's queues");
	for (uint32_t i = 0; i < device->n_queues; i++)
		code_queue(code, &device->queue[i]);
	code_count(code, &device->own.len, 0, sizeof(device->own.data),
		   "the size of a device's own state");
	code_bytes(code, device->own.data, device->own.len);
}

static void code_state(struct code *code, struct vmm_state *state)
{
	CODE(code, state->memory_bytes);
	if (!state->memory_bytes || state->memory_bytes % PAGE ||
	    state->memory_bytes >> 20 > VMM_MEMORY_MAX_MIB)
		wrong(code, "the size of the memory");
	CODE(code, state->clock);
	for (uint32_t i = 0; i < VMM_STATE_CHIPS; i++) {
		CODE(code, state->chip[i]);
		if (state->chip[i].chip_id != i)
			wrong(code, "the interrupt controllers");
	}
	code_serial(code, &state->serial);
	code_count(code, &state->n_devices, 0, VMM_DEVICES, "the number of devices");
	for (uint32_t i = 0; i < state->n_devices; i++)
		code_device(code, &state->device[i]);
	code_count(code, &state->files.len, 0, sizeof(state->files.data),
		   "the size of what is known of files");
	code_bytes(code, state->files.data, state->files.len);
	code_count(code, &state->n_cpus, 1, VMM_CPUS, "the number of processors");
	for (uint32_t i = 0; i < state->n_cpus; i++)
		code_cpu(code, &state->cpu[i]);
}

/* FNV-1a: against a damaged disk, not against people. */
static uint64_t checksum(const uint8_t *bytes, size_t len)
{
	uint64_t sum = 0xcbf29ce484222325;

	for (size_t i = 0; i < len; i++)
		sum = (sum ^ bytes[i]) * 0x100000001b3;
	return sum;
}

size_t vmm_state_most(void)
{
	return HEADER + sizeof(struct vmm_state);
}

uint64_t vmm_state_memory_at(size_t state_bytes)
{
	return (state_bytes + VMM_STATE_ALIGN - 1) & ~(uint64_t)(VMM_STATE_ALIGN - 1);
}

/* magic, version, bytes of the rest, their checksum */
size_t vmm_state_write(const struct vmm_state *state, uint8_t *bytes)
{
	const uint32_t version = VMM_STATE_VERSION;
	struct code code = { .at = bytes + HEADER, .left = vmm_state_most() - HEADER };
	uint64_t sum;
	uint32_t len;

	/* it is not changed while it is written */
	code_state(&code, (struct vmm_state *)(uintptr_t)state);
	len = (uint32_t)(code.at - bytes) - HEADER;
	sum = checksum(bytes + HEADER, len);
	memcpy(bytes, magic, sizeof(magic));
	memcpy(bytes + 8, &version, sizeof(version));
	memcpy(bytes + 12, &len, sizeof(len));
	memcpy(bytes + 16, &sum, sizeof(sum));
	return HEADER + len;
}

size_t vmm_state_read(struct vmm_state *state, const uint8_t *bytes, size_t len, const char **why)
{
	struct code code = { .at = (uint8_t *)(uintptr_t)bytes + HEADER, .reading = true };
	uint32_t version = 0, rest = 0;
	uint64_t sum = 0;

	if (len < HEADER || memcmp(bytes, magic, sizeof(magic))) {
		*why = "it is no saved machine";
		return 0;
	}
	memcpy(&version, bytes + 8, sizeof(version));
	memcpy(&rest, bytes + 12, sizeof(rest));
	memcpy(&sum, bytes + 16, sizeof(sum));
	if (version != VMM_STATE_VERSION) {
		*why = "another version of nsrun saved it";
		return 0;
	}
	if (rest > len - HEADER)
		wrong(&code, "it is cut short");
	else if (checksum(bytes + HEADER, rest) != sum)
		wrong(&code, "it is damaged");
	code.left = rest;
	code_state(&code, state);
	if (code.left)
		wrong(&code, "it has bytes that mean nothing");
	*why = code.why;
	return code.why ? 0 : HEADER + rest;
}
