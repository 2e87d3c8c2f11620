/* SPDX-License-Identifier: MIT */
/* The first instructions of a test's guest, as the 64-bit boot protocol leaves the processor. */
	.globl _start
_start:
	cld
	mov	%rsi, %rdi
	call	guest_main
	mov	%eax, %edi
	call	power_off

/* The one interrupt handler: it counts. */
	.globl interrupted
interrupted:
	push	%rax
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	cld
	call	count_interrupt
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%rcx
	pop	%rax
	iretq
	.section .note.GNU-stack, "", @progbits
