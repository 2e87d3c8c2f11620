/* SPDX-License-Identifier: MIT */
/* main.c - the monitor of one virtual machine. */
#include <stdio.h>

int main(void)
{
	fputs("nsrun-vmm: nothing yet\n", stderr);
	return 2;
}
