/* SPDX-License-Identifier: MIT */
/* boot.c - a kernel, its initrd and what it wants to know, in the guest's memory. */
#include "boot.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "end.h"
#include "options.h"

#define INITRD_END 0x7fffffffULL    /* the highest byte that every kernel takes */
enum { PAGE = 4096, SEGMENTS = 64, PRESENT_WRITABLE = 3, LARGE_PAGE = 0x80 };

/* A file that the guest's memory is filled from. */
struct source {
	int fd;
	const char *option;
	uint64_t size;
};

static struct source open_source(int fd, const char *option)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		vmm_fail(errno, "%s %d", option, fd);
	if (!S_ISREG(st.st_mode))
		vmm_fail(0, "%s %d: not a file", option, fd);
	return (struct source){ .fd = fd, .option = option, .size = (uint64_t)st.st_size };
}

static void copy(const struct source *from, uint64_t offset, uint8_t *to, uint64_t len)
{
	while (len) {
		ssize_t n = pread(from->fd, to, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			vmm_fail(n ? errno : 0, "%s %d: it can't be read to its end", from->option,
				 from->fd);
		to += n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
}

/*
 * len bytes of the file to a place within the guest's memory.  Whole pages are
 * the file's own until they are written to: most of a kernel is never touched,
 * and what is only read is shared by all machines.
 */
static void load(const struct vmm_memory *memory, const struct source *from, uint64_t offset,
		 uint64_t gpa, uint64_t len)
{
	uint8_t *to = vmm_memory_at(memory, gpa, len);
	uint64_t head = -offset & (PAGE - 1), pages;

	if (!to)
		vmm_fail(0, "%s %d: it does not fit into the guest's memory; give more by --memory",
			 from->option, from->fd);
	if (offset > from->size || len > from->size - offset)
		vmm_fail(0, "%s %d: it ends before its last segment", from->option, from->fd);
	if (offset % PAGE != gpa % PAGE || len < head + PAGE) {
		copy(from, offset, to, len);
		return;
	}
	pages = (len - head) & ~(uint64_t)(PAGE - 1);
	if (mmap(to + head, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
		 from->fd, (off_t)(offset + head)) == MAP_FAILED)
		vmm_fail(errno, "%s %d: mmap", from->option, from->fd);
	copy(from, offset, to, head);
	copy(from, offset + head + pages, to + head + pages, len - head - pages);
}

static void load_segment(const struct vmm_memory *memory, const struct source *from,
			 const Elf64_Phdr *segment, uint64_t *end)
{
	int fd = from->fd;

	if (segment->p_filesz > segment->p_memsz || segment->p_paddr < VMM_KERNEL_LEAST ||
	    segment->p_offset > INT64_MAX)
		vmm_fail(0, "--kernel-fd %d: a segment for address %#llx", fd,
			 (unsigned long long)segment->p_paddr);
	if (!vmm_memory_at(memory, segment->p_paddr, segment->p_memsz))
		vmm_fail(0, "--kernel-fd %d: a segment of %llu bytes at %#llx does not fit into "
			 "the guest's memory; give more by --memory", fd,
			 (unsigned long long)segment->p_memsz,
			 (unsigned long long)segment->p_paddr);
	load(memory, from, segment->p_offset, segment->p_paddr, segment->p_filesz);
	if (segment->p_paddr + segment->p_memsz > *end)
		*end = segment->p_paddr + segment->p_memsz;
}

/* All segments of an ELF; its entry, and the first address behind it. */
static uint64_t load_kernel(const struct vmm_memory *memory, int fd, uint64_t *end)
{
	struct source from = open_source(fd, "--kernel-fd");
	Elf64_Ehdr head;
	Elf64_Phdr segment[SEGMENTS];
	size_t size;

	if (pread(fd, &head, sizeof(head), 0) != sizeof(head) ||
	    memcmp(head.e_ident, ELFMAG, SELFMAG) || head.e_ident[EI_CLASS] != ELFCLASS64 ||
	    head.e_machine != EM_X86_64 || head.e_type != ET_EXEC)
		vmm_fail(0, "--kernel-fd %d: not an x86-64 vmlinux; a bzImage must be unpacked "
			 "first", fd);
	size = head.e_phnum * sizeof(segment[0]);
	if (head.e_phentsize != sizeof(segment[0]) || !head.e_phnum || head.e_phnum > SEGMENTS ||
	    head.e_phoff > INT64_MAX ||
	    pread(fd, segment, size, (off_t)head.e_phoff) != (ssize_t)size)
		vmm_fail(0, "--kernel-fd %d: its program headers can't be read", fd);
	for (uint32_t i = 0; i < head.e_phnum; i++)
		/* an empty one is nowhere */
		if (segment[i].p_type == PT_LOAD && segment[i].p_memsz)
			load_segment(memory, &from, &segment[i], end);
	if (!*end)
		vmm_fail(0, "--kernel-fd %d: it has no segments", fd);
	return head.e_entry;
}

/* As high as it may be, out of the way of a kernel that unpacks things behind itself. */
static void load_initrd(const struct vmm_memory *memory, int fd, uint64_t kernel_end,
			struct setup_header *header)
{
	struct source from = open_source(fd, "--initrd-fd");
	uint64_t top = memory->region[0].size, size = from.size, at;

	if (top > INITRD_END)
		top = INITRD_END;
	if (size > top || ((top - size) & ~(uint64_t)(PAGE - 1)) < kernel_end)
		vmm_fail(0, "--initrd-fd %d: %llu bytes do not fit beside the kernel; give more "
			 "by --memory", fd, (unsigned long long)size);
	at = (top - size) & ~(uint64_t)(PAGE - 1);
	load(memory, &from, 0, at, size);
	header->ramdisk_image = (uint32_t)at;
	header->ramdisk_size = (uint32_t)size;
}

static void add_e820(struct boot_params *zero, uint64_t from, uint64_t to, uint32_t type)
{
	zero->e820_table[zero->e820_entries++] = (struct boot_e820_entry){
		.addr = from, .size = to - from, .type = type,
	};
}

static void fill_zero_page(const struct vmm_memory *memory, struct boot_params *zero)
{
	enum { RAM = 1, RESERVED = 2 };

	zero->hdr.boot_flag = 0xaa55;
	zero->hdr.header = 0x53726448; /* HdrS */
	zero->hdr.version = 0x020f;
	zero->hdr.type_of_loader = 0xff;
	zero->hdr.loadflags = LOADED_HIGH;
	zero->hdr.cmd_line_ptr = VMM_CMDLINE_AT;
	zero->hdr.cmdline_size = VMM_CMDLINE - 1;
	zero->hdr.kernel_alignment = 0x1000000;
	zero->hdr.initrd_addr_max = (uint32_t)INITRD_END;
	zero->acpi_rsdp_addr = VMM_ACPI;
	add_e820(zero, 0, VMM_LOW_RAM_END, RAM);
	add_e820(zero, VMM_ACPI, VMM_ACPI_END, RESERVED);
	add_e820(zero, VMM_KERNEL_LEAST, memory->region[0].size, RAM);
	if (memory->n > 1)
		add_e820(zero, memory->region[1].base,
			 memory->region[1].base + memory->region[1].size, RAM);
}

static void fill_tables(uint8_t *low)
{
	static const uint64_t gdt[] = {
		/* __BOOT_CS is 0x10, __BOOT_DS 0x18 */
		0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff,
	};
	uint64_t *pml4 = (uint64_t *)(low + VMM_PAGE_TABLES);
	uint64_t *pdpt = pml4 + PAGE / sizeof(*pml4), *pd = pdpt + PAGE / sizeof(*pdpt);

	memcpy(low + VMM_GDT, gdt, sizeof(gdt));
	pml4[0] = (VMM_PAGE_TABLES + PAGE) | PRESENT_WRITABLE;
	for (uint64_t i = 0; i < 4; i++)
		pdpt[i] = (VMM_PAGE_TABLES + (2 + i) * PAGE) | PRESENT_WRITABLE;
	for (uint64_t i = 0; i < 4 * 512; i++)
		pd[i] = i << 21 | LARGE_PAGE | PRESENT_WRITABLE;
}

uint64_t vmm_boot(const struct vmm_memory *memory, const struct vmm_options *options)
{
	/* the least memory is more than what lies in here */
	uint8_t *low = memory->region[0].host;
	struct boot_params *zero = (struct boot_params *)(low + VMM_ZERO_PAGE);
	uint64_t end = 0, entry;

	fill_tables(low);
	fill_zero_page(memory, zero);
	strcpy((char *)low + VMM_CMDLINE_AT, options->cmdline);
	entry = load_kernel(memory, options->kernel, &end);
	if (options->initrd >= 0)
		load_initrd(memory, options->initrd, end, &zero->hdr);
	return entry;
}
