/* SPDX-License-Identifier: MIT */
/*
 * clone.S - clone(2) with a stack of the child's own.
 *
 *   long nsr_clone(int (*fn)(void *), void *stack, unsigned long flags, void *arg,
 *                  void *parent_tid, void *child_tid)
 *
 * A libc's clone() sets errno, which may be another process's, and may refuse flags that it has
 * no use for: musl's does with CLONE_CHILD_CLEARTID since 1.2.5.
 */
	.text
	.globl nsr_clone
	.hidden nsr_clone
	.type nsr_clone, %function
#if defined(__x86_64__)
nsr_clone:
	and $-16, %rsi
	sub $16, %rsi
	mov %rdi, (%rsi)
	mov %rcx, 8(%rsi)
	mov %rdx, %rdi
	mov %r8, %rdx
	mov %r9, %r10
	xor %r8d, %r8d          /* no thread pointer of its own */
	mov $56, %eax           /* SYS_clone */
	syscall
	test %rax, %rax
	jnz 1f
	xor %ebp, %ebp
	pop %rax
	pop %rdi
	call *%rax
	mov %eax, %edi
	mov $60, %eax           /* SYS_exit */
	syscall
	hlt
1:	ret
#elif defined(__aarch64__)
nsr_clone:
	and x1, x1, #-16
	stp x0, x3, [x1, #-16]!
	mov x0, x2
	mov x2, x4
	mov x3, xzr             /* no thread pointer of its own */
	mov x4, x5
	mov x8, #220            /* SYS_clone */
	svc #0
	cbnz x0, 1f
	mov x29, xzr
	ldp x1, x0, [sp], #16
	blr x1
	mov x8, #93             /* SYS_exit */
	svc #0
	brk #0
1:	ret
#endif
	.size nsr_clone, . - nsr_clone
	.section .note.GNU-stack,"",%progbits
