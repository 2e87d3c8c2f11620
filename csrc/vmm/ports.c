/* SPDX-License-Identifier: MIT */
/* ports.c - what is behind IN and OUT. */
#include "ports.h"

#include <string.h>

#include "device.h"
#include "end.h"
#include "serial.h"

enum { SLEEP_ENABLE = 1 << 5, SLEEP_TYPE_SHIFT = 2, SLEEP_TYPE_MASK = 7 };

static int is_serial(uint16_t port, uint32_t size)
{
	return size == 1 && port >= VMM_SERIAL_PORT &&
	       port < VMM_SERIAL_PORT + VMM_SERIAL_PORTS;
}

void vmm_port_read(uint16_t port, void *data, uint32_t size)
{
	uint8_t value;

	memset(data, 0xff, size);
	if (!is_serial(port, size)) {
		if (port == VMM_SLEEP_STATUS || port == VMM_SLEEP_CONTROL)
			memset(data, 0, size);
		return;
	}
	vmm_lock();
	value = vmm_serial_read(port - VMM_SERIAL_PORT);
	vmm_unlock();
	memcpy(data, &value, 1);
}

void vmm_port_write(uint16_t port, const void *data, uint32_t size)
{
	uint8_t value;

	memcpy(&value, data, 1);
	if (is_serial(port, size)) {
		vmm_lock();
		vmm_serial_write(port - VMM_SERIAL_PORT, value);
		vmm_unlock();
	} else if (port == VMM_SLEEP_CONTROL) {
		if (value & SLEEP_ENABLE &&
		    (value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK) == VMM_SLEEP_S5)
			vmm_end(VMM_OVER);
	} else if (port == VMM_RESET && value == VMM_RESET_VALUE) {
		vmm_crashed("the guest reset itself");
	}
}
