/* SPDX-License-Identifier: MIT */
/* serial.h - the guest's serial port, for its console: an 8250 at 0x3f8 that only sends. */
#ifndef VMM_SERIAL_H
#define VMM_SERIAL_H

#include <stdint.h>

enum { VMM_SERIAL_PORT = 0x3f8, VMM_SERIAL_PORTS = 8, VMM_SERIAL_GSI = 4 };

/* Bytes go to console, or nowhere when it does not take them at once; interrupts to the eventfd. */
void vmm_serial_start(int console, int interrupt);
/* A register of it, 0 to 7.  Locked. */
uint8_t vmm_serial_read(uint16_t offset);
void vmm_serial_write(uint16_t offset, uint8_t value);
/* Its registers. */
struct vmm_serial_state;
void vmm_serial_save(struct vmm_serial_state *state);
void vmm_serial_load(const struct vmm_serial_state *state);
/* Bring out what waits for the end of its line. */
void vmm_serial_flush(void);

#endif
