/* SPDX-License-Identifier: MIT */
/* walls.c - what the kernel's Landlock and namespaces keep from the monitor. */
#include "walls.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../core/uapi.h"
#include "end.h"

/* younger than the headers that we may be built with */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

enum {
	ABI_WANTED = 2,             /* ABI 1 forbids every rename between directories */
	ABI_TRUNCATE = 3,
	ABI_TCP = 4,
	ABI_IOCTL = 5,
	ABI_SCOPE = 6,
};

/* What no file server needs: the guest's devices are its own kernel's. */
#define NEVER (NSR_LANDLOCK_EXECUTE | NSR_LANDLOCK_MAKE_CHAR | NSR_LANDLOCK_MAKE_BLOCK)
#define READ (NSR_LANDLOCK_READ_FILE | NSR_LANDLOCK_READ_DIR)
#define WRITE (NSR_LANDLOCK_WRITE_FILE | NSR_LANDLOCK_TRUNCATE)
#define CHANGE                                                                               \
	(NSR_LANDLOCK_REMOVE_DIR | NSR_LANDLOCK_REMOVE_FILE | NSR_LANDLOCK_MAKE_DIR |        \
	 NSR_LANDLOCK_MAKE_REG | NSR_LANDLOCK_MAKE_SOCK | NSR_LANDLOCK_MAKE_FIFO |           \
	 NSR_LANDLOCK_MAKE_SYM | NSR_LANDLOCK_REFER)

static int landlock_abi(void)
{
	return (int)syscall(SYS_landlock_create_ruleset, NULL, 0,
			    NSR_LANDLOCK_CREATE_RULESET_VERSION);
}

/* All that this kernel can keep from us. */
static uint64_t all_files(int abi)
{
	return NSR_LANDLOCK_FS_ABI1 | NSR_LANDLOCK_REFER |
	       (abi >= ABI_TRUNCATE ? NSR_LANDLOCK_TRUNCATE : 0) |
	       (abi >= ABI_IOCTL ? NSR_LANDLOCK_IOCTL_DEV : 0);
}

static int create(const struct nsr_landlock_ruleset_attr *attr)
{
	int rules = (int)syscall(SYS_landlock_create_ruleset, attr, sizeof(*attr), 0);

	return rules < 0 ? -errno : rules;
}

static int add(int rules, int fd, uint64_t access)
{
	const struct nsr_landlock_path_attr attr = { .allowed_access = access, .parent_fd = fd };

	return syscall(SYS_landlock_add_rule, rules, NSR_LANDLOCK_RULE_PATH_BENEATH, &attr, 0) < 0
	       ? -errno : 0;
}

/* Any rule about files forbids moves between directories, unless they are allowed. */
static void allow_moves(int rules)
{
	int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int ret = root < 0 ? -errno : add(rules, root, NSR_LANDLOCK_REFER);

	if (ret)
		vmm_fail(-ret, "Landlock: a rule for /");
	close(root);
}

static uint32_t begin_landlock(bool serves_files)
{
	int abi = landlock_abi(), rules, ret;
	/* the kernel tells from the size which parts are meant: zeros are none */
	struct nsr_landlock_ruleset_attr attr = {
		.handled_access_fs = serves_files ? NEVER | NSR_LANDLOCK_REFER : all_files(abi),
		.handled_access_net = abi >= ABI_TCP ?
			NSR_LANDLOCK_BIND_TCP | NSR_LANDLOCK_CONNECT_TCP : 0,
		.scoped = abi >= ABI_SCOPE ?
			NSR_LANDLOCK_SCOPE_ABSTRACT_UNIX | NSR_LANDLOCK_SCOPE_SIGNAL : 0,
	};

	if (abi < ABI_WANTED)
		return 0;
	rules = create(&attr);
	if (rules < 0)
		vmm_fail(-rules, "landlock_create_ruleset");
	if (serves_files)
		allow_moves(rules);
	ret = vmm_walls_enter(rules);
	if (ret)
		vmm_fail(-ret, "landlock_restrict_self");
	close(rules);
	return VMM_WALL_FILES | (attr.handled_access_net ? VMM_WALL_TCP : 0) |
	       (attr.scoped ? VMM_WALL_SCOPES : 0);
}

/*
 * No user namespace, which would let anybody have the others: the file server
 * would be told other owners of files than those of the host.
 */
static uint32_t begin_namespaces(void)
{
	const struct {
		int flag;
		enum vmm_wall wall;
	} kinds[] = {
		{ CLONE_NEWNET, VMM_WALL_NET }, { CLONE_NEWIPC, VMM_WALL_IPC },
		{ CLONE_NEWUTS, VMM_WALL_UTS },
	};
	uint32_t holds = 0;

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (!unshare(kinds[i].flag))
			holds |= kinds[i].wall;
		/* not allowed, not built in, or no more of them: user_namespaces(7) */
		else if (errno != EPERM && errno != EINVAL && errno != ENOSPC)
			vmm_fail(errno, "a namespace of its own");
	}
	return holds;
}

uint32_t vmm_walls_begin(bool serves_files)
{
	uint32_t holds = begin_namespaces();

	return holds | begin_landlock(serves_files);
}

int vmm_walls_rules(void)
{
	int abi = landlock_abi();
	const struct nsr_landlock_ruleset_attr attr = { .handled_access_fs = all_files(abi) };

	return abi < ABI_WANTED ? -EOPNOTSUPP : create(&attr);
}

int vmm_walls_allow(int rules, int fd, bool directory, bool writable)
{
	uint64_t access = READ | (writable ? WRITE | CHANGE : 0);

	if (!directory)
		access &= NSR_LANDLOCK_READ_FILE | WRITE;
	return add(rules, fd, access & all_files(landlock_abi()));
}

int vmm_walls_enter(int rules)
{
	return syscall(SYS_landlock_restrict_self, rules, 0) < 0 ? -errno : 0;
}
