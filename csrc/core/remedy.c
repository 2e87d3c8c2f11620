/* SPDX-License-Identifier: MIT */
/*
 * remedy.c - what helps, in a few words for an error's line.
 *
 * Whole commands for each distribution are the doctor's.
 */
#include <string.h>

#include "select.h"

const char *nsr_remedy_text(const char *name)
{
	static const struct {
		const char *name;       /* or how names of the kind begin */
		const char *text;
	} remedies[] = {
		{ "userns-sysctl", "set the sysctl kernel.unprivileged_userns_clone to 1" },
		{ "userns-max-", "raise that sysctl" },
		{ "userns-limit", "end sandboxes, or raise user.max_user_namespaces" },
		{ "userns-apparmor", "load a profile for nsrun" },
		{ "userns-seccomp", "start the container with a wider seccomp profile" },
		{ "userns-chroot", "don't run it in a chroot" },
		{ "userns-kernel", "use a kernel with CONFIG_USER_NS" },
		{ "userns-unknown", "ask the kernel's log what refused it" },
		{ "proc-masked", "start the container with its /proc unmasked" },
		{ "proc-missing", "mount /proc" },
		{ "bwrap-install", "install bubblewrap" },
		{ "kvm-module", "load KVM's module, or pass /dev/kvm in" },
		{ "kvm-permission", "join the group of /dev/kvm" },
		{ "kvm-virtualization", "turn virtualization on in the firmware's set-up" },
		{ "kvm-unfit", "use a machine with hardware virtualization" },
		{ "guest-kernel-install", "install a kernel package" },
		{ "guest-kernel-unfit", "see 'nsrun vm kernels'" },
		{ "guest-kernel-permission", "make a copy of the kernel that is yours to read" },
		{ "landlock-", "use a kernel with Landlock enabled" },
		{ "not-built", "ask for another backend" },
	};

	for (size_t i = 0; i < sizeof(remedies) / sizeof(remedies[0]); i++)
		if (!strncmp(name, remedies[i].name, strlen(remedies[i].name)))
			return remedies[i].text;
	return NULL;
}
