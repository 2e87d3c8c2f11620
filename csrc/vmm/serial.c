/* SPDX-License-Identifier: MIT */
/* serial.c - the guest's serial port: an 8250 that only sends, and is always ready to. */
#include "serial.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "state.h"

/* The registers, by their offset; DLL and DLM are there while LCR_DLAB is set. */
enum { DATA = 0, IER = 1, IIR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };
enum {
	IER_THRI = 0x02, IIR_NONE = 0x01, IIR_THRE = 0x02, IIR_FIFO = 0xc0, FCR_ENABLE = 0x01,
	LCR_DLAB = 0x80, MCR_LOOP = 0x10, LSR_EMPTY = 0x60, MSR_PRESENT = 0xb0, BUFFER = 256,
};

static struct {
	int console, interrupt;
	uint8_t ier, lcr, mcr, scr, divisor[2];
	bool fifo;
	bool empty_pending;         /* the interrupt for an empty transmitter */
	size_t used;
	char buffer[BUFFER];
} serial = { .console = -1, .interrupt = -1, .divisor = { 12, 0 } };

void vmm_serial_start(int console, int interrupt)
{
	serial.console = console;
	serial.interrupt = interrupt;
}

void vmm_serial_flush(void)
{
	size_t used = serial.used;

	/* a console that is full or gone must not hold up the guest */
	serial.used = 0;
	if (used && serial.console >= 0)
		(void)!write(serial.console, serial.buffer, used);
}

static void put(char c)
{
	serial.buffer[serial.used++] = c;
	if (c == '\n' || serial.used == BUFFER)
		vmm_serial_flush();
}

/* The transmitter is empty again at once. */
static void empty(void)
{
	const uint64_t one = 1;

	if (!(serial.ier & IER_THRI))
		return;
	serial.empty_pending = true;
	(void)!write(serial.interrupt, &one, sizeof(one));
}

static uint8_t identify(void)
{
	uint8_t why = serial.empty_pending ? IIR_THRE : IIR_NONE;

	/* reading it is the acknowledgement */
	serial.empty_pending = false;
	return why | (serial.fifo ? IIR_FIFO : 0);
}

/* In the loop, drivers look for their own outputs here. */
static uint8_t modem_status(void)
{
	uint8_t mcr = serial.mcr;

	if (!(mcr & MCR_LOOP))
		return MSR_PRESENT;
	return (uint8_t)((mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4);
}

uint8_t vmm_serial_read(uint16_t offset)
{
	bool dlab = serial.lcr & LCR_DLAB;

	switch (offset) {
	case DATA:
		return dlab ? serial.divisor[0] : 0;
	case IER:
		return dlab ? serial.divisor[1] : serial.ier;
	case IIR:
		return identify();
	case LCR:
		return serial.lcr;
	case MCR:
		return serial.mcr;
	case LSR:
		return LSR_EMPTY;
	case MSR:
		return modem_status();
	default:
		return serial.scr;
	}
}

static void write_ier(uint8_t value)
{
	bool was = serial.ier & IER_THRI;

	serial.ier = value & 0x0f;
	if (!was)
		empty();
	else if (!(serial.ier & IER_THRI))
		serial.empty_pending = false;
}

void vmm_serial_write(uint16_t offset, uint8_t value)
{
	bool dlab = serial.lcr & LCR_DLAB;

	switch (offset) {
	case DATA:
	case IER:
		if (dlab) {
			serial.divisor[offset] = value;
		} else if (offset == IER) {
			write_ier(value);
		} else if (!(serial.mcr & MCR_LOOP)) {
			put((char)value);
			empty();
		}
		break;
	case IIR: /* written, it is the FIFO's control */
		serial.fifo = value & FCR_ENABLE;
		break;
	case LCR:
		serial.lcr = value;
		break;
	case MCR:
		serial.mcr = value & 0x1f;
		break;
	case SCR:
		serial.scr = value;
		break;
	default:
		break;
	}
}

void vmm_serial_save(struct vmm_serial_state *state)
{
	vmm_serial_flush();
	*state = (struct vmm_serial_state){
		.ier = serial.ier, .lcr = serial.lcr, .mcr = serial.mcr, .scr = serial.scr,
		.fifo = serial.fifo, .empty_pending = serial.empty_pending,
	};
	memcpy(state->divisor, serial.divisor, sizeof(serial.divisor));
}

void vmm_serial_load(const struct vmm_serial_state *state)
{
	/* as a guest would write them */
	serial.ier = state->ier & 0x0f;
	serial.lcr = state->lcr;
	serial.mcr = state->mcr & 0x1f;
	serial.scr = state->scr;
	serial.fifo = state->fifo;
	memcpy(serial.divisor, state->divisor, sizeof(serial.divisor));
	/* KVM may have had the interrupt under way; one too many does no harm */
	if (state->empty_pending)
		empty();
}
