/* SPDX-License-Identifier: MIT */
/* terminal.h - a session of one's own on the terminal at stdin: tty_ioctl(4). */
#ifndef NSR_TERMINAL_H
#define NSR_TERMINAL_H

#include "sys.h"

static inline long nsr_terminal_take(void)
{
	const long tiocsctty = 0x540E;
	long ret = SYS0(SYS_setsid);

	/* EPERM: leader of a session already, which does as well */
	if (ret < 0 && ret != -EPERM)
		return ret;
	return SYS3(SYS_ioctl, 0, tiocsctty, 0);
}

#endif
