/* SPDX-License-Identifier: MIT */
/* acpi.c - the tables by which the guest finds its hardware. */
#include "acpi.h"

#include <stddef.h>
#include <string.h>

#include "boot.h"
#include "end.h"
#include "mmio.h"
#include "ports.h"
#include "serial.h"

struct header {
	char signature[4];
	uint32_t length;
	uint8_t revision, checksum;
	char oem[6], oem_table[8];
	uint32_t oem_revision;
	char creator[4];
	uint32_t creator_revision;
} __attribute__((packed));

struct rsdp {
	char signature[8];
	uint8_t checksum;
	char oem[6];
	uint8_t revision;
	uint32_t rsdt, length;
	uint64_t xsdt;
	uint8_t extended_checksum, reserved[3];
} __attribute__((packed));

struct xsdt {
	struct header header;
	uint64_t fadt, madt;
} __attribute__((packed));

struct address {
	uint8_t space, bit_width, bit_offset, access_size;
	uint64_t at;
} __attribute__((packed));

/* What a hardware-reduced system leaves zero is not named. */
struct fadt {
	struct header header;
	uint8_t legacy1[73];
	uint16_t boot_arch;
	uint8_t reserved;
	uint32_t flags;
	struct address reset;
	uint8_t reset_value;
	uint16_t arm_boot_arch;
	uint8_t minor;
	uint64_t facs, dsdt;
	struct address legacy2[8];
	struct address sleep_control, sleep_status;
	char hypervisor[8];
} __attribute__((packed));

struct madt {
	struct header header;
	uint32_t apic_address, flags;
} __attribute__((packed));

struct madt_cpu {
	uint8_t type, length, uid, apic_id;
	uint32_t flags;
} __attribute__((packed));

struct madt_ioapic {
	uint8_t type, length, id, reserved;
	uint32_t address, first_gsi;
} __attribute__((packed));

_Static_assert(sizeof(struct header) == 36 && sizeof(struct rsdp) == 36 &&
	       offsetof(struct fadt, boot_arch) == 109 && offsetof(struct fadt, dsdt) == 140 &&
	       offsetof(struct fadt, sleep_control) == 244 && sizeof(struct fadt) == 276,
	       "as ACPI 6.3 lays them out");

enum { FADT_REVISION = 6, FADT_MINOR = 3, DSDT_REVISION = 2, MADT_REVISION = 5 };
/* boot_arch: no VGA, no CMOS clock; 8042 and legacy devices aren't claimed either */
enum { BOOT_NO_VGA = 1 << 2, BOOT_NO_CMOS = 1 << 5 };
enum {
	WBINVD = 1, NO_POWER_BUTTON = 1 << 4, NO_SLEEP_BUTTON = 1 << 5, RESET_SUPPORTED = 1 << 10,
	HW_REDUCED = 1 << 20,
};
enum { SPACE_IO = 1, ACCESS_BYTE = 1 };
enum { IOAPIC_ADDRESS = 0xfec00000u, LAPIC_ADDRESS = 0xfee00000u };

/* AML, written from its start to its end; lengths are filled in when a block is closed. */
struct aml {
	uint8_t *bytes;
	size_t used, size;
};

enum {
	AML_ZERO = 0x00, AML_ONE = 0x01, AML_NAME = 0x08, AML_BYTE = 0x0a, AML_DWORD = 0x0c,
	AML_STRING = 0x0d, AML_SCOPE = 0x10, AML_BUFFER = 0x11, AML_PACKAGE = 0x12,
	AML_EXT = 0x5b, AML_DEVICE = 0x82, AML_ROOT = 0x5c,
};

static void put(struct aml *aml, const void *bytes, size_t n)
{
	if (n > aml->size - aml->used)
		vmm_fail(0, "the ACPI tables have no room for so many devices");
	memcpy(aml->bytes + aml->used, bytes, n);
	aml->used += n;
}

static void byte(struct aml *aml, uint8_t value)
{
	put(aml, &value, 1);
}

static void dword(struct aml *aml, uint32_t value)
{
	put(aml, &value, sizeof(value));
}

/* A length of three bytes, always: 4 bits, then 8, then 8. */
static size_t open_block(struct aml *aml)
{
	size_t at = aml->used;

	put(aml, "\0\0\0", 3);
	return at;
}

static void close_block(struct aml *aml, size_t at)
{
	size_t length = aml->used - at;

	aml->bytes[at] = (uint8_t)(2 << 6 | (length & 0xf));
	aml->bytes[at + 1] = (uint8_t)(length >> 4);
	aml->bytes[at + 2] = (uint8_t)(length >> 12);
}

static void name(struct aml *aml, const char *four)
{
	byte(aml, AML_NAME);
	put(aml, four, 4);
}

static void integer(struct aml *aml, uint8_t value)
{
	byte(aml, AML_BYTE);
	byte(aml, value);
}

static size_t open_device(struct aml *aml, const char *four)
{
	size_t at;

	byte(aml, AML_EXT);
	byte(aml, AML_DEVICE);
	at = open_block(aml);
	put(aml, four, 4);
	return at;
}

/* A name whose value is a buffer of resources. */
static void resources(struct aml *aml, const struct aml *list)
{
	size_t at;

	name(aml, "_CRS");
	byte(aml, AML_BUFFER);
	at = open_block(aml);
	integer(aml, (uint8_t)list->used);
	put(aml, list->bytes, list->used);
	close_block(aml, at);
}

/* Edge-triggered, active high, its own; and the end of the list. */
static void interrupt(struct aml *list, uint32_t gsi)
{
	put(list, "\x89\x06\x00\x03\x01", 5);
	dword(list, gsi);
	put(list, "\x79\x00", 2);
}

static void serial(struct aml *aml)
{
	uint8_t bytes[64];
	struct aml list = { .bytes = bytes, .size = sizeof(bytes) };
	size_t at = open_device(aml, "COM1");

	name(aml, "_HID");
	byte(aml, AML_DWORD);
	dword(aml, 0x0105d041);     /* PNP0501 */
	name(aml, "_UID");
	byte(aml, AML_ONE);
	put(&list, "\x47\x01\xf8\x03\xf8\x03\x01\x08", 8);
	interrupt(&list, VMM_SERIAL_GSI);
	resources(aml, &list);
	close_block(aml, at);
}

static void virtio(struct aml *aml, uint32_t slot)
{
	char four[4] = { 'V', 'R', (char)('0' + slot / 10), (char)('0' + slot % 10) };
	uint8_t bytes[64];
	struct aml list = { .bytes = bytes, .size = sizeof(bytes) };
	size_t at = open_device(aml, four);

	name(aml, "_HID");
	byte(aml, AML_STRING);
	put(aml, "LNRO0005", 9);
	name(aml, "_UID");
	integer(aml, (uint8_t)slot);
	name(aml, "_CCA");
	byte(aml, AML_ONE);
	put(&list, "\x86\x09\x00\x01", 4);
	dword(&list, (uint32_t)(VMM_MMIO_BASE + slot * VMM_MMIO_SIZE));
	dword(&list, VMM_MMIO_SIZE);
	interrupt(&list, VMM_MMIO_GSI + slot);
	resources(aml, &list);
	close_block(aml, at);
}

static void power_off(struct aml *aml)
{
	size_t at;

	name(aml, "_S5_");
	byte(aml, AML_PACKAGE);
	at = open_block(aml);
	byte(aml, 2);
	integer(aml, VMM_SLEEP_S5);
	byte(aml, AML_ZERO);
	close_block(aml, at);
}

static uint8_t checksum(const void *bytes, size_t n)
{
	uint8_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum = (uint8_t)(sum + ((const uint8_t *)bytes)[i]);
	return (uint8_t)-sum;
}

static void seal(void *table, const char *signature, uint8_t revision, size_t length)
{
	struct header *header = table;

	memcpy(header->signature, signature, 4);
	header->length = (uint32_t)length;
	header->revision = revision;
	memcpy(header->oem, "NSRUN ", 6);
	memcpy(header->oem_table, "NSRUNVMM", 8);
	header->oem_revision = 1;
	memcpy(header->creator, "NSRN", 4);
	header->creator_revision = 1;
	header->checksum = 0;
	header->checksum = checksum(table, length);
}

static void write_dsdt(uint8_t *at, size_t room, uint32_t n_devices)
{
	struct aml aml = { .bytes = at, .used = sizeof(struct header), .size = room };
	size_t scope;

	power_off(&aml);
	byte(&aml, AML_SCOPE);
	scope = open_block(&aml);
	byte(&aml, AML_ROOT);
	put(&aml, "_SB_", 4);
	serial(&aml);
	for (uint32_t slot = 0; slot < n_devices; slot++)
		virtio(&aml, slot);
	close_block(&aml, scope);
	seal(at, "DSDT", DSDT_REVISION, aml.used);
}

static struct address port(uint16_t at)
{
	return (struct address){
		.space = SPACE_IO, .bit_width = 8, .access_size = ACCESS_BYTE, .at = at,
	};
}

static void write_fadt(struct fadt *fadt, uint64_t dsdt)
{
	*fadt = (struct fadt){
		.boot_arch = BOOT_NO_VGA | BOOT_NO_CMOS,
		.flags = WBINVD | NO_POWER_BUTTON | NO_SLEEP_BUTTON | RESET_SUPPORTED | HW_REDUCED,
		.reset = port(VMM_RESET), .reset_value = VMM_RESET_VALUE,
		.minor = FADT_MINOR, .dsdt = dsdt,
		.sleep_control = port(VMM_SLEEP_CONTROL), .sleep_status = port(VMM_SLEEP_STATUS),
		.hypervisor = "nsrun",
	};
	seal(fadt, "FACP", FADT_REVISION, sizeof(*fadt));
}

static void write_madt(struct madt *madt, uint32_t n_cpus)
{
	struct madt_cpu *cpu = (struct madt_cpu *)(madt + 1);
	struct madt_ioapic *ioapic = (struct madt_ioapic *)(cpu + n_cpus);

	*madt = (struct madt){ .apic_address = LAPIC_ADDRESS };
	for (uint32_t i = 0; i < n_cpus; i++)
		cpu[i] = (struct madt_cpu){
			.length = sizeof(*cpu), .uid = (uint8_t)i, .apic_id = (uint8_t)i, .flags = 1,
		};
	*ioapic = (struct madt_ioapic){
		.type = 1, .length = sizeof(*ioapic), .address = IOAPIC_ADDRESS,
	};
	seal(madt, "APIC", MADT_REVISION, (size_t)((uint8_t *)(ioapic + 1) - (uint8_t *)madt));
}

void vmm_acpi(const struct vmm_memory *memory, uint32_t n_cpus, uint32_t n_devices)
{
	/* each at a place of its own, far enough from the next for 64 processors */
	enum { XSDT = 0x100, FADT = 0x200, MADT = 0x400, DSDT = 0x1000 };
	uint8_t *at = memory->region[0].host + VMM_ACPI;
	struct xsdt xsdt = { .fadt = VMM_ACPI + FADT, .madt = VMM_ACPI + MADT };
	struct rsdp rsdp = {
		.signature = "RSD PTR ", .oem = "NSRUN ", .revision = 2, .length = sizeof(rsdp),
		.xsdt = VMM_ACPI + XSDT,
	};

	write_dsdt(at + DSDT, VMM_ACPI_END - VMM_ACPI - DSDT, n_devices);
	write_fadt((struct fadt *)(at + FADT), VMM_ACPI + DSDT);
	write_madt((struct madt *)(at + MADT), n_cpus);
	seal(&xsdt, "XSDT", 1, sizeof(xsdt));
	memcpy(at + XSDT, &xsdt, sizeof(xsdt));
	rsdp.checksum = checksum(&rsdp, 20);
	rsdp.extended_checksum = checksum(&rsdp, sizeof(rsdp));
	memcpy(at, &rsdp, sizeof(rsdp));
}
