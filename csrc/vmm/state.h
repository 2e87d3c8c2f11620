/* SPDX-License-Identifier: MIT */
/*
 * state.h - all of a machine but its memory, as a value and as bytes.
 *
 * The bytes are those of this machine's KVM: they are for the same kernel on
 * the same kind of processor.  They may come from anybody: what KVM is given it
 * checks by itself, as from any program, and the rest is checked here and by
 * the devices that take it.
 */
#ifndef VMM_STATE_H
#define VMM_STATE_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "device.h"
#include "options.h"

enum {
	VMM_STATE_VERSION = 2,
	VMM_STATE_CPUID = 256,      /* entries */
	VMM_STATE_MSRS = 768,
	VMM_STATE_XSAVE = 16 << 10,
	VMM_STATE_CHIPS = 3,        /* both halves of the PIC, the IOAPIC */
	VMM_STATE_ALIGN = 4096,     /* where memory begins in the file */
};

struct vmm_cpuid {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entry[VMM_STATE_CPUID];
};

struct vmm_msrs {
	struct kvm_msrs head;
	struct kvm_msr_entry entry[VMM_STATE_MSRS];
};

struct vmm_cpu_state {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debugregs;
	uint32_t xsave_bytes;
	uint8_t xsave[VMM_STATE_XSAVE];
	struct vmm_cpuid cpuid;
	struct vmm_msrs msrs;       /* the deadline of the local APIC's timer is the last */
};

struct vmm_serial_state {
	uint8_t ier, lcr, mcr, scr, divisor[2];
	uint8_t fifo, empty_pending; /* 0 or 1 */
};

struct vmm_queue_state {
	uint64_t desc, avail, used;
	uint16_t size, next_avail, next_used, signalled_used;
	uint8_t ready, broken;      /* 0 or 1 */
};

struct vmm_device_state {
	uint32_t id, n_queues;
	uint32_t status, interrupt_status;
	uint32_t device_features_sel, driver_features_sel, queue_sel;
	uint64_t driver_features, acked;
	uint8_t running;            /* 0 or 1 */
	struct vmm_queue_state queue[VMM_DEVICE_QUEUES];
	struct vmm_own_state own;
};

struct vmm_state {
	uint64_t memory_bytes;
	uint32_t n_cpus, n_devices;
	struct kvm_clock_data clock;
	struct kvm_irqchip chip[VMM_STATE_CHIPS];
	struct vmm_serial_state serial;
	struct vmm_device_state device[VMM_DEVICES];
	struct vmm_files_state files;
	struct vmm_cpu_state cpu[VMM_CPUS];
};

/* The most bytes that a state has. */
size_t vmm_state_most(void);
/* Where memory begins, behind so many bytes of state. */
uint64_t vmm_state_memory_at(size_t state_bytes);
/* As bytes, of which there is room for vmm_state_most(); how many they are. */
size_t vmm_state_write(const struct vmm_state *state, uint8_t *bytes);
/*
 * Out of the first bytes of a file, of which more may be given; how many the
 * state has, or 0 and *why: what is wrong.
 */
size_t vmm_state_read(struct vmm_state *state, const uint8_t *bytes, size_t len, const char **why);

#endif
