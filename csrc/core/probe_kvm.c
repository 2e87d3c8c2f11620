/* SPDX-License-Identifier: MIT */
/* probe_kvm.c - /dev/kvm: there, ours to open, and KVM. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "diag.h"
#include "probe.h"

/* linux/kvm.h */
#define KVM_GET_API_VERSION 0xae00
#define KVM_CREATE_VM 0xae01
enum { KVM_API = 12, LINE_SIZE = 16384 };

static int has_word(const char *line, const char *word)
{
	size_t len = strlen(word);

	for (const char *at = strstr(line, word); at; at = strstr(at + 1, word))
		if (at[-1] == ' ' && (!at[len] || strchr(" \n", at[len])))
			return 1;
	return 0;
}

/* The processor's own word for it; 1 where it does not have such flags (arm64). */
static int processor_can(void)
{
	FILE *file = fopen("/proc/cpuinfo", "re");
	char line[LINE_SIZE];
	int can = 1;

	while (file && fgets(line, sizeof(line), file)) {
		if (strncmp(line, "flags", 5))
			continue;
		can = has_word(line, "vmx") || has_word(line, "svm");
		break;
	}
	if (file)
		fclose(file);
	return can;
}

static void say_absent(struct nsr_probe *out, int err)
{
	if (processor_can())
		nsr_probe_say(out, NSR_MISSING, err, "kvm-module",
			      "no /dev/kvm; the processor has virtualization, so KVM's module is "
			      "not loaded or the device not passed in");
	else
		nsr_probe_say(out, NSR_MISSING, err, "kvm-virtualization",
			      "no /dev/kvm, and the processor shows no virtualization (no vmx or "
			      "svm in /proc/cpuinfo)");
}

static void say_refused(struct nsr_probe *out, int err)
{
	struct stat st = { .st_mode = 0 };

	stat("/dev/kvm", &st);
	nsr_probe_say(out, NSR_BLOCKED, err, "kvm-permission",
		      "/dev/kvm: %s; it is for uid %u and gid %u, mode %04o", nsr_strerror(err),
		      (unsigned)st.st_uid, (unsigned)st.st_gid, (unsigned)st.st_mode & 07777);
}

static void ask(struct nsr_probe *out, int fd)
{
	int version = ioctl(fd, KVM_GET_API_VERSION, 0);
	int vm;

	if (version < 0) {
		nsr_probe_say(out, NSR_BLOCKED, errno, "kvm-device",
			      "/dev/kvm is not KVM's device (KVM_GET_API_VERSION: %s)",
			      nsr_strerror(errno));
		return;
	}
	if (version != KVM_API) {
		nsr_probe_say(out, NSR_BLOCKED, 0, "kvm-device",
			      "KVM's API has version %d, not %d", version, KVM_API);
		return;
	}
	vm = ioctl(fd, KVM_CREATE_VM, 0);
	if (vm < 0) {
		nsr_probe_say(out, NSR_BLOCKED, errno, "kvm-virtualization",
			      "KVM makes no virtual machine: %s", nsr_strerror(errno));
		return;
	}
	close(vm);
	nsr_probe_say(out, NSR_OK, 0, NULL, "/dev/kvm, API version %d", version);
}

void nsr_probe_kvm(struct nsr_probe *out)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC | O_NOCTTY);

	if (fd >= 0) {
		ask(out, fd);
		close(fd);
	} else if (errno == EACCES || errno == EPERM) {
		say_refused(out, errno);
	} else {
		say_absent(out, errno);
	}
}
