/* SPDX-License-Identifier: MIT */
/* The serial port's registers, as a driver looks at them, and its interrupt. */
#include "guest.h"

enum { DATA = SERIAL, IER, IIR, LCR, MCR, LSR, MSR, SCRATCH };

/* The interrupt comes with the instruction that caused it, or a little later. */
static void wait_for(uint32_t n)
{
	for (uint32_t i = 0; i < 30000000 && n_interrupts != n; i++)
		;
}

int guest_main(const uint8_t *zero_page)
{
	(void)zero_page;
	outb(SCRATCH, 0x5a);
	say("scratch %x", inb(SCRATCH));
	outb(LCR, 0x80);
	outb(DATA, 0x34);
	outb(IER, 0x12);
	uint8_t low = inb(DATA), high = inb(IER);
	outb(LCR, 3);
	say("divisor %x %x", low, high);
	outb(IER, 0xff);
	outb(IER, 0);
	say("ier %x lcr %x", inb(IER), inb(LCR));
	outb(MCR, 0x1a);
	outb(DATA, '!');
	uint8_t looped = inb(MSR);
	outb(MCR, 0);
	say("loop %x, else %x, lsr %x", looped, inb(MSR), inb(LSR));
	say("no fifo %x", inb(IIR));
	outb(IIR, 1);
	say("fifo %x", inb(IIR));
	take_interrupts(4);
	outb(IER, 2);
	wait_for(1);
	uint32_t after_enable = n_interrupts;
	uint8_t why = inb(IIR), then = inb(IIR);
	outb(DATA, 'x');
	wait_for(2);
	uint32_t after_byte = n_interrupts;
	outb(IER, 0);
	say("");
	say("interrupts %d %d, why %x then %x", after_enable, after_byte, why, then);
	say("nothing there: %x", inb(0x2f8));
	return 0;
}
