/*
 * The floor of a microVM's start: the ioctls that make a machine with interrupt controllers, one
 * processor in 64-bit mode and memory, and its first OUT. It exists to be measured against.
 *
 *   kvmfloor GUEST MEMORY_MIB [FILE]
 *
 * GUEST is an ELF whose segments are loaded at their physical addresses. Its first OUT is written
 * to stdout, and is the end. With FILE it is not written: the machine is saved to that file. With
 * FILE, and "-" as GUEST, the machine in FILE is restored up to its next OUT.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { TABLES = 0x9000, PAGE = 4096, CPUID_ENTRIES = 256, LVT0 = 0x350, LVT1 = 0x360 };

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t load(const char *path, uint8_t *memory, uint64_t size)
{
    Elf64_Ehdr head;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || pread(fd, &head, sizeof head, 0) != sizeof head)
        die(path);
    for (int i = 0; i < head.e_phnum; i++) {
        Elf64_Phdr part;
        off_t at = (off_t)(head.e_phoff + (uint64_t)i * sizeof part);
        if (pread(fd, &part, sizeof part, at) != sizeof part)
            die(path);
        if (part.p_type != PT_LOAD)
            continue;
        if (part.p_paddr > size || part.p_filesz > size - part.p_paddr ||
            pread(fd, memory + part.p_paddr, part.p_filesz, (off_t)part.p_offset) !=
                (ssize_t)part.p_filesz)
            die(path);
    }
    return head.e_entry;
}

/* The first GiB at its own addresses. */
static void map(uint8_t *memory)
{
    uint64_t *table = (uint64_t *)(memory + TABLES);
    table[0] = (TABLES + PAGE) | 3;
    table[512] = (TABLES + 2 * PAGE) | 3;
    for (uint64_t i = 0; i < 512; i++)
        table[1024 + i] = i << 21 | 0x83;
}

static void set_cpuid(int kvm, int cpu)
{
    static struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entry[CPUID_ENTRIES];
    } cpuid = {.head.nent = CPUID_ENTRIES};
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0 || ioctl(cpu, KVM_SET_CPUID2, &cpuid) < 0)
        die("CPUID");
}

static void set_apic(int cpu)
{
    const uint32_t extint = 0x700, nmi = 0x400;
    struct kvm_lapic_state apic;
    if (ioctl(cpu, KVM_GET_LAPIC, &apic) < 0)
        die("KVM_GET_LAPIC");
    memcpy(apic.regs + LVT0, &extint, sizeof extint);
    memcpy(apic.regs + LVT1, &nmi, sizeof nmi);
    if (ioctl(cpu, KVM_SET_LAPIC, &apic) < 0)
        die("KVM_SET_LAPIC");
}

static void set_registers(int cpu, uint64_t entry)
{
    struct kvm_segment code = {.limit = ~0u, .selector = 16, .type = 11, .present = 1, .s = 1,
                               .l = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = 24, .type = 3, .present = 1, .s = 1,
                               .db = 1, .g = 1};
    struct kvm_regs regs = {.rip = entry, .rflags = 2};
    struct kvm_sregs s;
    if (ioctl(cpu, KVM_GET_SREGS, &s) < 0)
        die("KVM_GET_SREGS");
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.tr = (struct kvm_segment){.limit = 0xffff, .type = 11, .present = 1};
    s.cr0 = 0x80050033;
    s.cr3 = TABLES;
    s.cr4 = 0x20;
    s.efer = 0x500;
    if (ioctl(cpu, KVM_SET_SREGS, &s) < 0 || ioctl(cpu, KVM_SET_REGS, &regs) < 0)
        die("registers");
}

/* All that a processor has to get back, as far as this guest could tell. */
struct state {
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entry[CPUID_ENTRIES];
    } cpuid;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_xsave xsave;
    struct kvm_lapic_state apic;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp;
    struct kvm_irqchip chip[3];
};

enum { STATE_BYTES = (sizeof(struct state) + PAGE - 1) / PAGE * PAGE };

static void transfer(int vm, int cpu, struct state *state, bool save)
{
    const struct {
        unsigned long get, set;
        void *arg;
    } parts[] = {
        {KVM_GET_CPUID2, KVM_SET_CPUID2, &state->cpuid}, {KVM_GET_SREGS, KVM_SET_SREGS, &state->sregs},
        {KVM_GET_REGS, KVM_SET_REGS, &state->regs}, {KVM_GET_XSAVE, KVM_SET_XSAVE, &state->xsave},
        {KVM_GET_LAPIC, KVM_SET_LAPIC, &state->apic},
        {KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, &state->events},
        {KVM_GET_MP_STATE, KVM_SET_MP_STATE, &state->mp},
    };
    if (save)
        state->cpuid.head.nent = CPUID_ENTRIES;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (ioctl(cpu, save ? parts[i].get : parts[i].set, parts[i].arg) < 0)
            die("a part of the processor");
    for (uint32_t i = 0; i < 3; i++) {
        state->chip[i].chip_id = i;
        if (ioctl(vm, save ? KVM_GET_IRQCHIP : KVM_SET_IRQCHIP, &state->chip[i]) < 0)
            die("an interrupt controller");
    }
}

/* The OUT is done first. */
static int save(const char *path, int vm, int cpu, struct kvm_run *run, const uint8_t *memory,
                uint64_t size)
{
    static struct state state;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    run->immediate_exit = 1;
    if (fd < 0 || ioctl(cpu, KVM_RUN, 0) == 0)
        die(path);
    transfer(vm, cpu, &state, true);
    if (pwrite(fd, &state, sizeof state, 0) != sizeof state ||
        pwrite(fd, memory, size, STATE_BYTES) != (ssize_t)size)
        die(path);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 3 && argc != 4)
        return 2;
    bool restore = argc == 4 && !strcmp(argv[1], "-");
    uint64_t size = strtoull(argv[2], NULL, 10) << 20;
    int file = restore ? open(argv[3], O_RDONLY | O_CLOEXEC) : -1;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0)
        die("/dev/kvm");
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_NORESERVE | (restore ? 0 : MAP_ANONYMOUS), file,
                           restore ? STATE_BYTES : 0);
    if (memory == MAP_FAILED)
        die("memory");
    struct kvm_userspace_memory_region region = {.memory_size = size,
                                                 .userspace_addr = (uintptr_t)memory};
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        die("KVM_SET_USER_MEMORY_REGION");
    /* behind the memory, which takes milliseconds otherwise */
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL) < 0 || ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0)
        die("KVM_CREATE_IRQCHIP");
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    size_t run_size = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    if (cpu < 0 || run == MAP_FAILED)
        die("KVM_CREATE_VCPU");
    if (restore) {
        struct state *state = mmap(NULL, STATE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
        if (state == MAP_FAILED)
            die(argv[3]);
        transfer(vm, cpu, state, false);
    } else {
        map(memory);
        uint64_t entry = load(argv[1], memory, size);
        set_cpuid(kvm, cpu);
        set_apic(cpu);
        set_registers(cpu, entry);
    }
    if (ioctl(cpu, KVM_RUN, 0) < 0 || run->exit_reason != KVM_EXIT_IO)
        die("KVM_RUN");
    if (argc == 4 && !restore)
        return save(argv[3], vm, cpu, run, memory, size);
    return write(STDOUT_FILENO, (uint8_t *)run + run->io.data_offset, 1) != 1;
}
