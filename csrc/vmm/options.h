/* SPDX-License-Identifier: MIT */
/* options.h - the monitor's command line. */
#ifndef VMM_OPTIONS_H
#define VMM_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

enum {
	VMM_DEVICES = 16,           /* slots of the transport */
	VMM_CPUS = 64,
	VMM_CMDLINE = 2048,         /* COMMAND_LINE_SIZE of x86, with its NUL */
	VMM_MEMORY_MIN_MIB = 2,
	VMM_MEMORY_MAX_MIB = 1 << 20,
};

struct vmm_blk_option {
	int fd;
	int cow;                    /* or -1 */
	bool read_only;
};

struct vmm_fs_option {
	const char *tag;
	int view;
};

struct vmm_options {
	int kernel, initrd, control, console; /* -1 without */
	int restore, zygote;        /* the same */
	const char *cmdline;
	uint64_t memory_mib;
	uint32_t cpus;
	bool rng, balloon, vsock, jail, paused;
	uint32_t cid;
	int net;                    /* -1 without */
	uint32_t net_mtu;
	uint32_t n_blk, n_fs;
	struct vmm_blk_option blk[VMM_DEVICES];
	struct vmm_fs_option fs[VMM_DEVICES];
};

/* Takes the words apart; a mistake ends with VMM_USAGE and a line that names the option. */
void vmm_options(struct vmm_options *options, char **words);

#endif
