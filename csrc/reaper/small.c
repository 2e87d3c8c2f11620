/* SPDX-License-Identifier: MIT */
/* small.c - a start and a few functions for a program without libc. */
#include "small.h"

#include <sys/uio.h>

static uint8_t bpf[NSR_MAX_BPF];

_Noreturn void nsr_small_leave(int status)
{
	for (;;)
		SYS1(SYS_exit_group, status);
}

int nsr_small_number(const char *word)
{
	int n = 0;

	if (!*word)
		return -1;
	for (; *word; word++)
		n = n * 10 + (*word - '0');
	return n;
}

size_t nsr_small_len(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

_Noreturn void nsr_small_fail(int status_fd, enum nsr_step step, long err, const char *text)
{
	const struct nsr_record record = { .type = NSR_RECORD_FAIL, .step = step,
					   .err = (int32_t)-err, .op = -1 };
	size_t len = nsr_small_len(text);
	const struct iovec parts[3] = {
		{ (void *)(uintptr_t)&record, sizeof(record) },
		{ (void *)(uintptr_t)text, len < NSR_RECORD_TEXT ? len : NSR_RECORD_TEXT - 1 },
		{ (void *)(uintptr_t)"", 1 },
	};

	SYS3(SYS_writev, status_fd, parts, 3);
	nsr_small_leave(1);
}

static long read_at(int fd, void *to, uint64_t len, uint64_t offset)
{
	uint8_t *at = to;
	uint64_t left = len;

	while (left) {
		long n = SYS4(SYS_pread64, fd, at, left, offset);

		if (n == -EINTR)
			continue;
		if (n < 0)
			return n;
		if (!n)
			break;
		at += n;
		offset += (uint64_t)n;
		left -= (uint64_t)n;
	}
	return (long)(len - left);
}

/* By offset: the reaper and the stub share the file's position. */
void nsr_small_load_filters(int fd, int status_fd)
{
	uint64_t offset = 0;
	uint32_t len;

	while (fd >= 0 && read_at(fd, &len, sizeof(len), offset) == sizeof(len)) {
		struct nsr_sock_fprog program = {
			.len = (unsigned short)(len / sizeof(struct nsr_sock_filter)),
			.filter = (const struct nsr_sock_filter *)(const void *)bpf,
		};
		long ret;

		offset += sizeof(len);
		if (len > sizeof(bpf) || read_at(fd, bpf, len, offset) != (long)len)
			nsr_small_fail(status_fd, NSR_STEP_SECCOMP_READ, -EIO, "");
		offset += len;
		ret = SYS5(SYS_prctl, NSR_PR_SET_SECCOMP, NSR_SECCOMP_MODE_FILTER, &program, 0, 0);
		if (ret < 0)
			nsr_small_fail(status_fd, NSR_STEP_SECCOMP, ret, "");
	}
	if (fd >= 0)
		SYS1(SYS_close, fd);
}

/* The compiler may call these for a loop or an assignment; there is no libc to have them. */
void *memset(void *to, int value, size_t len);
void *memset(void *to, int value, size_t len)
{
	volatile uint8_t *at = to;

	while (len--)
		*at++ = (uint8_t)value;
	return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t len);
void *memcpy(void *restrict to, const void *restrict from, size_t len)
{
	volatile uint8_t *at = to;
	const uint8_t *source = from;

	while (len--)
		*at++ = *source++;
	return to;
}

/* Named by its first word: "nsrun-reaper" or "nsrun-stub". */
static _Noreturn __attribute__((used)) void small_main(const long *stack)
{
	const char **argv = (const char **)(uintptr_t)(stack + 1);

	if (stack[0] > 1 && argv[0][sizeof("nsrun-") - 1] == 's')
		nsr_stub_main(stack[0], argv, argv + stack[0] + 1);
	nsr_reaper_main(stack[0], argv);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n"
	"\tcall small_main\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x29,#0\n\tmov x0,sp\n\tbl small_main\n");
#endif
