/* SPDX-License-Identifier: MIT */
/* ports.h - what is behind IN and OUT: the serial port, and the switches for power and reset. */
#ifndef VMM_PORTS_H
#define VMM_PORTS_H

#include <stdint.h>

/* As the ACPI tables say them. */
enum {
	VMM_SLEEP_CONTROL = 0x600,
	VMM_SLEEP_STATUS = 0x601,
	VMM_RESET = 0x602,
	VMM_RESET_VALUE = 1,
	VMM_SLEEP_S5 = 5,           /* SLP_TYP of power off */
};

/* One access of size bytes, 1, 2 or 4; what isn't there reads as ones. */
void vmm_port_read(uint16_t port, void *data, uint32_t size);
void vmm_port_write(uint16_t port, const void *data, uint32_t size);

#endif
