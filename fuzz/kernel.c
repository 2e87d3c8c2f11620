/* SPDX-License-Identifier: MIT */
/* kernel: an ELF file, as nsrun-vmm loads the segments of a guest's kernel into its memory. */
#include <setjmp.h>
#include <stdlib.h>
#include <unistd.h>

/* its functions are nobody else's */
#include "../csrc/vmm/boot.c"

enum { MIB = 1 << 20, MEMORY = 4 * MIB };

static jmp_buf refused;

/* Ends the process there, and this input here. */
_Noreturn void vmm_fail(int err, const char *format, ...)
{
	(void)err, (void)format;
	longjmp(refused, 1);
}

static int file_of(const uint8_t *data, size_t size)
{
	int fd = memfd_create("kernel", MFD_CLOEXEC);

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		abort();
	return fd;
}

/* So much, with nothing before and behind it: a byte too far is seen. */
static uint8_t *new_memory(struct vmm_memory *memory)
{
	uint8_t *all = mmap(NULL, MEMORY + 2 * MIB, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (all == MAP_FAILED || mprotect(all + MIB, MEMORY, PROT_READ | PROT_WRITE))
		abort();
	*memory = (struct vmm_memory){ .region = { { 0, MEMORY, all + MIB } }, .n = 1 };
	return all;
}

/* Nobody has written to it, or mapped a file there. */
static void check_untouched(const uint8_t *from)
{
	unsigned char pages[MIB / PAGE];

	if (mincore((void *)(uintptr_t)from, MIB, pages))
		abort();
	for (size_t i = 0; i < sizeof(pages); i++)
		if (pages[i] & 1)
			abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = file_of(data, size);
	struct vmm_memory memory;
	uint8_t *all = new_memory(&memory);
	uint64_t end = 0;

	_Static_assert(VMM_KERNEL_LEAST == MIB, "what lies below the kernel");
	if (!setjmp(refused)) {
		load_kernel(&memory, fd, &end);
		if (end <= VMM_KERNEL_LEAST || end > MEMORY)
			abort();
	}
	check_untouched(all);
	check_untouched(all + MIB);
	check_untouched(all + MIB + MEMORY);
	munmap(all, MEMORY + 2 * MIB);
	close(fd);
	return 0;
}
