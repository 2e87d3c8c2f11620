/* SPDX-License-Identifier: MIT */
/* end.c - how a monitor ends. */
#include "end.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "control.h"
#include "serial.h"

enum { LINE = 512 };

/* Two threads may come here at once; the first one's reason counts. */
static pthread_mutex_t ending = PTHREAD_MUTEX_INITIALIZER;

_Noreturn static void leave(enum vmm_status status)
{
	static const uint32_t reasons[] = {
		[VMM_OVER] = VMM_ENDED_POWER_OFF, [VMM_ERROR] = VMM_ENDED_BROKEN,
		[VMM_USAGE] = VMM_ENDED_BROKEN, [VMM_CRASHED] = VMM_ENDED_CRASHED,
	};

	vmm_serial_flush();
	vmm_control_ended(reasons[status]);
	_exit((int)status);
}

_Noreturn void vmm_end(enum vmm_status status)
{
	pthread_mutex_lock(&ending);
	leave(status);
}

/* The whole line in one write, so that none comes between. */
static void say(int err, const char *format, va_list args)
{
	char line[LINE] = "nsrun-vmm: ";
	size_t used = strlen(line);

	vsnprintf(line + used, sizeof(line) - used - 1, format, args);
	used = strlen(line);
	if (err)
		snprintf(line + used, sizeof(line) - used - 1, ": %s", strerror(err));
	used = strlen(line);
	line[used] = '\n';
	(void)!write(STDERR_FILENO, line, used + 1);
}

_Noreturn void vmm_fail(int err, const char *format, ...)
{
	va_list args;

	pthread_mutex_lock(&ending);
	va_start(args, format);
	say(err, format, args);
	va_end(args);
	leave(VMM_ERROR);
}

_Noreturn void vmm_crashed(const char *format, ...)
{
	va_list args;

	pthread_mutex_lock(&ending);
	va_start(args, format);
	say(0, format, args);
	va_end(args);
	leave(VMM_CRASHED);
}
