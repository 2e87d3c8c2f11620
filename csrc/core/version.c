/* SPDX-License-Identifier: MIT */
#include "nsrun.h"

const char *nsr_version(void)
{
	return NSR_VERSION;
}
