/* SPDX-License-Identifier: MIT */
/* caps.c - capability sets: capabilities(7). */
#include <string.h>
#include <strings.h>

#include "caps.h"
#include "sys.h"
#include "uapi.h"

static const char *const cap_names[] = {
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill",
	"setgid", "setuid", "setpcap", "linux_immutable", "net_bind_service",
	"net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
	"sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
	"sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time",
	"sys_tty_config", "mknod", "lease", "audit_write", "audit_control",
	"setfcap", "mac_override", "mac_admin", "syslog", "wake_alarm",
	"block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
};

enum { N_CAP_NAMES = sizeof(cap_names) / sizeof(cap_names[0]), CAP_BITS = 64 };

static int cap_by_digits(const char *s)
{
	int n = 0;

	do {
		if (*s < '0' || *s > '9')
			return -1;
		n = n * 10 + (*s - '0');
	} while (*++s && n < CAP_BITS);
	return n < CAP_BITS && !*s ? n : -1;
}

int nsr_cap_by_name(const char *name)
{
	/* cap_from_name(3) stops at a comma: of a list it takes the first */
	size_t len = strcspn(name, ",");

	if (strncasecmp(name, "cap_", 4))
		return cap_by_digits(name);
	for (int i = 0; i < N_CAP_NAMES; i++)
		if (strlen(cap_names[i]) + 4 == len && !strncasecmp(name + 4, cap_names[i], len - 4))
			return i;
	return -1;
}

int nsr_caps_read(uint64_t *effective, uint64_t *inheritable)
{
	struct nsr_cap_header header = { NSR_CAP_VERSION_3, 0 };
	struct nsr_cap_data data[2];
	long ret = SYS2(SYS_capget, &header, data);

	if (ret < 0)
		return (int)ret;
	*effective = data[0].effective | (uint64_t)data[1].effective << 32;
	*inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
	return 0;
}

int nsr_caps_write(uint64_t caps)
{
	struct nsr_cap_header header = { NSR_CAP_VERSION_3, 0 };
	uint32_t low = (uint32_t)caps;
	uint32_t high = (uint32_t)(caps >> 32);
	struct nsr_cap_data data[2] = { { low, low, low }, { high, high, high } };

	return (int)SYS2(SYS_capset, &header, data);
}

int nsr_caps_bound(uint64_t keep)
{
	for (int i = 0; i < CAP_BITS; i++) {
		long ret;

		if (keep >> i & 1)
			continue;
		ret = SYS5(SYS_prctl, NSR_PR_CAPBSET_DROP, i, 0, 0, 0);
		/* EINVAL: past the kernel's last; EPERM: not ours to drop, as for bwrap */
		if (ret == -EINVAL || ret == -EPERM)
			break;
		if (ret < 0)
			return (int)ret;
	}
	return 0;
}

int nsr_caps_no_root(void)
{
	/* capabilities(7): SECBIT_NOROOT, _NO_SETUID_FIXUP, _NO_CAP_AMBIENT_RAISE, all locked */
	enum { NOROOT = 1, NO_SETUID_FIXUP = 4, KEEP_CAPS = 0x10, NO_AMBIENT = 0x40 };
	const int set = NOROOT | NO_SETUID_FIXUP | NO_AMBIENT;
	const int locked = (set | KEEP_CAPS) << 1;

	return (int)SYS5(SYS_prctl, NSR_PR_SET_SECUREBITS, set | locked, 0, 0, 0);
}

int nsr_caps_limit(uint64_t keep)
{
	struct nsr_cap_header header = { NSR_CAP_VERSION_3, 0 };
	struct nsr_cap_data data[2];
	long ret = SYS2(SYS_capget, &header, data);

	if (ret < 0)
		return (int)ret;
	for (int i = 0; i < 2; i++) {
		uint32_t half = (uint32_t)(keep >> 32 * i);

		data[i].effective &= half;
		data[i].permitted &= half;
		data[i].inheritable &= half;
	}
	return (int)SYS2(SYS_capset, &header, data);
}

void nsr_caps_raise_ambient(uint64_t caps)
{
	for (int i = 0; i < CAP_BITS; i++)
		if (caps >> i & 1)
			SYS5(SYS_prctl, NSR_PR_CAP_AMBIENT, NSR_PR_CAP_AMBIENT_RAISE, i, 0, 0);
}
