/*
 * A guest that says one byte, for monitors that load an ELF kernel: nsrun-vmm enters it in 64-bit
 * mode, QEMU in 32-bit mode by the note, and the instructions are the same in both. Then it powers
 * off as nsrun's machine does, and where that is not a port, ends by a triple fault.
 */
	.globl _start
	.text
	.code64
_start:
	mov	$0x3f8, %dx
	mov	$0x0a, %al
	out	%al, %dx
	mov	$0x600, %dx
	mov	$0x34, %al
	out	%al, %dx
	ud2

	.section .note.PVH, "a", @note
	.balign 4
	.long	4, 8, 18                /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.quad	_start
	.section .note.GNU-stack, "", @progbits
