/* SPDX-License-Identifier: MIT */
/* The reaper's program, made by the build, as bytes of the library. */
	.section .rodata
	.balign 16
	.globl nsr_reaper_elf
	.hidden nsr_reaper_elf
nsr_reaper_elf:
	.incbin NSR_REAPER_ELF
	.globl nsr_reaper_elf_end
	.hidden nsr_reaper_elf_end
nsr_reaper_elf_end:
	.section .note.GNU-stack,"",%progbits
