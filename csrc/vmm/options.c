/* SPDX-License-Identifier: MIT */
/* options.c - the monitor's command line. */
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "end.h"
#include "net.h"

enum { TAG_MAX = 36, CID_FIRST = 3 };

_Noreturn static void usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

_Noreturn static void usage(const char *format, ...)
{
	va_list args;

	fputs("nsrun-vmm: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(VMM_USAGE);
}

/* A decimal number that ends at one of the characters of ends. */
static uint64_t number(const char *option, const char *text, const char **rest, const char *ends,
		       uint64_t least, uint64_t most)
{
	char *end;
	unsigned long long value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || errno || value < least || value > most ||
	    (*end && !strchr(ends, *end)))
		usage("%s %s: a number from %llu to %llu is wanted", option, text,
		      (unsigned long long)least, (unsigned long long)most);
	if (rest)
		*rest = end;
	return value;
}

/* An open descriptor, which no child of ours may get. */
static int descriptor(const char *option, const char *text, const char **rest, const char *ends)
{
	int fd = (int)number(option, text, rest, ends, 0, 1 << 30);

	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		usage("%s %s: %s", option, text, strerror(errno));
	return fd;
}

static void take_blk(struct vmm_options *options, const char *option, const char *text)
{
	struct vmm_blk_option *blk = &options->blk[options->n_blk];
	const char *rest;

	*blk = (struct vmm_blk_option){ .cow = -1 };
	blk->fd = descriptor(option, text, &rest, ":");
	options->n_blk++;
	if (!*rest)
		return;
	if (!strcmp(rest, ":ro"))
		blk->read_only = true;
	else if (!strncmp(rest, ":cow=", 5))
		blk->cow = descriptor(option, rest + 5, NULL, "");
	else
		usage("%s %s: FD, FD:ro or FD:cow=FD is wanted", option, text);
}

static void take_fs(struct vmm_options *options, const char *option, char *text)
{
	struct vmm_fs_option *fs = &options->fs[options->n_fs++];
	char *equals = strchr(text, '=');

	if (!equals || equals == text || equals - text > TAG_MAX)
		usage("%s %s: TAG=FD is wanted, with a tag of 1 to %d bytes", option, text,
		      TAG_MAX);
	*equals = 0;
	fs->tag = text;
	fs->view = descriptor(option, equals + 1, NULL, "");
}

static void take_net(struct vmm_options *options, const char *option, const char *text)
{
	const char *rest;

	options->net = descriptor(option, text, &rest, ":");
	if (!*rest)
		return;
	if (strncmp(rest, ":mtu=", 5))
		usage("%s %s: FD or FD:mtu=BYTES is wanted", option, text);
	options->net_mtu = (uint32_t)number(option, rest + 5, NULL, "", VMM_NET_MTU_MIN,
					    VMM_NET_MTU_MAX);
}

static uint32_t n_devices(const struct vmm_options *options)
{
	return options->n_blk + options->n_fs + options->rng + options->balloon + options->vsock +
	       (options->net >= 0);
}

/* Whether this option has no value. */
static bool take_flag(struct vmm_options *options, const char *option)
{
	if (!strcmp(option, "--rng"))
		options->rng = true;
	else if (!strcmp(option, "--paused"))
		options->paused = true;
	else if (!strcmp(option, "--balloon"))
		options->balloon = true;
	else if (!strcmp(option, "--no-jail"))
		options->jail = false;
	else
		return false;
	return true;
}

static void take_value(struct vmm_options *options, const char *option, char *value)
{
	const struct {
		const char *name;
		int *fd;
	} fds[] = {
		{ "--kernel-fd", &options->kernel }, { "--initrd-fd", &options->initrd },
		{ "--control-fd", &options->control }, { "--console-fd", &options->console },
		{ "--restore", &options->restore }, { "--zygote", &options->zygote },
	};

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		if (!strcmp(option, fds[i].name)) {
			*fds[i].fd = descriptor(option, value, NULL, "");
			return;
		}
	}
	if (!strcmp(option, "--cmdline")) {
		options->cmdline = value;
	} else if (!strcmp(option, "--memory")) {
		options->memory_mib = number(option, value, NULL, "", VMM_MEMORY_MIN_MIB,
					     VMM_MEMORY_MAX_MIB);
	} else if (!strcmp(option, "--cpus")) {
		options->cpus = (uint32_t)number(option, value, NULL, "", 1, VMM_CPUS);
	} else if (!strcmp(option, "--vsock")) {
		options->cid = (uint32_t)number(option, value, NULL, "", CID_FIRST, UINT32_MAX - 1);
		options->vsock = true;
	} else if (!strcmp(option, "--blk")) {
		take_blk(options, option, value);
	} else if (!strcmp(option, "--net")) {
		take_net(options, option, value);
	} else if (!strcmp(option, "--fs")) {
		take_fs(options, option, value);
	} else {
		usage("there is no option %s", option);
	}
}

/* A machine is booted, restored, or restored by forks when they are asked for. */
static void check_sources(const struct vmm_options *options)
{
	bool restore = options->restore >= 0, zygote = options->zygote >= 0;

	if (options->kernel < 0 && !restore)
		usage("--kernel-fd or --restore is needed");
	if (options->kernel >= 0 && restore)
		usage("--kernel-fd or --restore, but not both");
	if (zygote && !restore)
		usage("--zygote needs --restore");
	if (zygote && (options->control >= 0 || options->console >= 0))
		usage("--zygote: each machine gets a control socket and a console of its own");
	if (zygote && options->net >= 0)
		usage("--zygote: machines can't share the network card of --net");
	if (!zygote && options->control < 0)
		usage("--control-fd is needed");
}

void vmm_options(struct vmm_options *options, char **words)
{
	*options = (struct vmm_options){
		.kernel = -1, .initrd = -1, .control = -1, .console = -1, .restore = -1,
		.zygote = -1, .cmdline = "",
		.memory_mib = 256, .cpus = 1, .jail = true,
		.net = -1, .net_mtu = VMM_NET_MTU,
	};
	while (*words) {
		char *option = *words++;

		if (take_flag(options, option))
			continue;
		if (!*words)
			usage("%s: there is no such option, or its value is missing", option);
		take_value(options, option, *words++);
		if (n_devices(options) >= VMM_DEVICES)
			usage("%s: fewer than %d devices can be had", option, VMM_DEVICES);
	}
	check_sources(options);
	if (strlen(options->cmdline) >= VMM_CMDLINE)
		usage("--cmdline: at most %d bytes", VMM_CMDLINE - 1);
}
