/* SPDX-License-Identifier: MIT */
/*
 * kvm_guest.S - what any kernel does, as a guest of a hundred instructions.
 *
 * Placed at 0x10000 and run in 64-bit mode at CPL 0; see probe_kvm_guest.c for
 * the memory around it.  In r8: 1: xsave is there, 2: cmpxchg16b, 4: popcnt.
 * At its end it says 0x2a to port 0xf4; whatever fails ends in a triple fault.
 */
#if defined(__x86_64__)
	.section .rodata
	.global nsr_kvm_guest, nsr_kvm_guest_int3, nsr_kvm_guest_syscall, nsr_kvm_guest_end
	.code64
	.balign 16
nsr_kvm_guest:
	/* a trap through the IDT and back */
	xor %r15d, %r15d
	int3
	cmp $1, %r15d
	jne fault

	test $1, %r8d
	jz 1f
	mov $3, %eax
	xor %edx, %edx
	mov $0x9000, %edi
	xsave (%rdi)
	xrstor (%rdi)
1:
	test $2, %r8d
	jz 2f
	xor %eax, %eax
	xor %edx, %edx
	mov $1, %ebx
	xor %ecx, %ecx
	mov $0xb000, %edi
	lock cmpxchg16b (%rdi)
	jnz fault
2:
	test $4, %r8d
	jz 3f
	mov $0xff, %eax
	popcnt %eax, %eax
	cmp $8, %eax
	jne fault
3:
	/* to CPL 3, where system calls come from */
	xor %r14d, %r14d
	pushq $0x23
	pushq $0x7000
	pushq $2
	pushq $0x2b
	lea user(%rip), %rax
	push %rax
	iretq

user:
	syscall
	syscall
	jmp fault

nsr_kvm_guest_int3:
	inc %r15d
	iretq

nsr_kvm_guest_syscall:
	inc %r14d
	cmp $2, %r14d
	je 4f
	sysretq
4:
	/* a stretch of plain work at CPL 0 */
	mov $5000, %ecx
5:
	dec %ecx
	jnz 5b
	mov $0x2a, %al
	out %al, $0xf4
6:
	hlt
	jmp 6b

fault:
	ud2
nsr_kvm_guest_end:
#endif
	.section .note.GNU-stack, "", %progbits
