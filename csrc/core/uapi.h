/* SPDX-License-Identifier: MIT */
/*
 * uapi.h - the kernel's numbers that libc headers lack or hide.
 *
 * musl's headers come without <linux/...>, and the headers of an older
 * distribution lack younger calls, so what is used is written down here.
 * Values: linux/mount.h, linux/openat2.h, linux/sched.h, linux/capability.h.
 */
#ifndef NSR_UAPI_H
#define NSR_UAPI_H

#include <stdint.h>

#define NSR_CLONE_VM 0x00000100
#define NSR_CLONE_PIDFD 0x00001000
#define NSR_CLONE_VFORK 0x00004000
#define NSR_CLONE_PARENT_SETTID 0x00100000
#define NSR_CLONE_CHILD_CLEARTID 0x00200000
#define NSR_CLONE_NEWNS 0x00020000
#define NSR_CLONE_NEWCGROUP 0x02000000
#define NSR_CLONE_NEWUTS 0x04000000
#define NSR_CLONE_NEWIPC 0x08000000
#define NSR_CLONE_NEWUSER 0x10000000
#define NSR_CLONE_NEWPID 0x20000000
#define NSR_CLONE_NEWNET 0x40000000

#define NSR_AT_FDCWD (-100)
#define NSR_AT_SYMLINK_NOFOLLOW 0x100
#define NSR_AT_EMPTY_PATH 0x1000
#define NSR_AT_RECURSIVE 0x8000

#define NSR_OPEN_TREE_CLONE 1
#define NSR_OPEN_TREE_CLOEXEC 02000000
#define NSR_MOVE_MOUNT_F_EMPTY_PATH 0x04
#define NSR_MOVE_MOUNT_T_EMPTY_PATH 0x40

#define NSR_MOUNT_ATTR_RDONLY 0x1
#define NSR_MOUNT_ATTR_NOSUID 0x2
#define NSR_MOUNT_ATTR_NODEV 0x4

struct nsr_mount_attr {
	uint64_t attr_set;
	uint64_t attr_clr;
	uint64_t propagation;
	uint64_t userns_fd;
};

struct nsr_open_how {
	uint64_t flags;
	uint64_t mode;
	uint64_t resolve;
};
#define NSR_RESOLVE_NO_MAGICLINKS 0x02
#define NSR_RESOLVE_NO_SYMLINKS 0x04
#define NSR_RESOLVE_IN_ROOT 0x10

/* mount(2) */
#define NSR_MS_RDONLY 0x1
#define NSR_MS_NOSUID 0x2
#define NSR_MS_NODEV 0x4
#define NSR_MS_NOEXEC 0x8
#define NSR_MS_REMOUNT 0x20
#define NSR_MS_NOATIME 0x400
#define NSR_MS_NODIRATIME 0x800
#define NSR_MS_BIND 0x1000
#define NSR_MS_MOVE 0x2000
#define NSR_MS_REC 0x4000
#define NSR_MS_SILENT 0x8000
#define NSR_MS_UNBINDABLE 0x20000
#define NSR_MS_PRIVATE 0x40000
#define NSR_MS_SLAVE 0x80000
#define NSR_MS_RELATIME 0x200000
#define NSR_MNT_DETACH 2

#define NSR_STATX_TYPE 0x1u
#define NSR_STATX_UID 0x8u
#define NSR_STATX_INO 0x100u
#define NSR_STATX_MNT_ID 0x1000u
#define NSR_STATX_ATTR_MOUNT_ROOT 0x2000u

/* The part of struct statx that is read; the kernel fills 256 bytes. */
struct nsr_statx {
	uint32_t mask;
	uint32_t blksize;
	uint64_t attributes;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint16_t mode;
	uint16_t pad0;
	uint64_t ino;
	uint64_t size;
	uint64_t blocks;
	uint64_t attributes_mask;
	uint64_t times[8];
	uint32_t rdev_major;
	uint32_t rdev_minor;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint64_t mnt_id;
	uint64_t rest[13];
};
_Static_assert(sizeof(struct nsr_statx) == 256, "statx(2) writes 256 bytes");

struct nsr_cap_header {
	uint32_t version;
	int32_t pid;
};
struct nsr_cap_data {
	uint32_t effective;
	uint32_t permitted;
	uint32_t inheritable;
};
#define NSR_CAP_SYS_CHROOT 18
#define NSR_CAP_SYS_ADMIN 21
#define NSR_CAP_VERSION_3 0x20080522

/* landlock(7): what each ABI added; linux/landlock.h */
#define NSR_LANDLOCK_CREATE_RULESET_VERSION 1
#define NSR_LANDLOCK_RULE_PATH_BENEATH 1
#define NSR_LANDLOCK_RULE_NET_PORT 2
#define NSR_LANDLOCK_EXECUTE 0x1u
#define NSR_LANDLOCK_WRITE_FILE 0x2u
#define NSR_LANDLOCK_READ_FILE 0x4u
#define NSR_LANDLOCK_READ_DIR 0x8u
#define NSR_LANDLOCK_REMOVE_DIR 0x10u
#define NSR_LANDLOCK_REMOVE_FILE 0x20u
#define NSR_LANDLOCK_MAKE_CHAR 0x40u
#define NSR_LANDLOCK_MAKE_DIR 0x80u
#define NSR_LANDLOCK_MAKE_REG 0x100u
#define NSR_LANDLOCK_MAKE_SOCK 0x200u
#define NSR_LANDLOCK_MAKE_FIFO 0x400u
#define NSR_LANDLOCK_MAKE_BLOCK 0x800u
#define NSR_LANDLOCK_MAKE_SYM 0x1000u
#define NSR_LANDLOCK_FS_ABI1 0x1fffu
#define NSR_LANDLOCK_REFER 0x2000u              /* ABI 2 */
#define NSR_LANDLOCK_TRUNCATE 0x4000u           /* ABI 3 */
#define NSR_LANDLOCK_BIND_TCP 0x1u              /* ABI 4 */
#define NSR_LANDLOCK_CONNECT_TCP 0x2u
#define NSR_LANDLOCK_IOCTL_DEV 0x8000u          /* ABI 5 */
#define NSR_LANDLOCK_SCOPE_ABSTRACT_UNIX 0x1u   /* ABI 6 */
#define NSR_LANDLOCK_SCOPE_SIGNAL 0x2u

struct nsr_landlock_ruleset_attr {
	uint64_t handled_access_fs;
	uint64_t handled_access_net;
	uint64_t scoped;
};
struct nsr_landlock_path_attr {
	uint64_t allowed_access;
	int32_t parent_fd;
} __attribute__((packed));
struct nsr_landlock_port_attr {
	uint64_t allowed_access;
	uint64_t port;
};

#define NSR_PR_SET_PDEATHSIG 1
#define NSR_PR_SET_DUMPABLE 4
#define NSR_PR_SET_NAME 15
#define NSR_PR_SET_SECCOMP 22
#define NSR_PR_CAPBSET_READ 23
#define NSR_PR_CAPBSET_DROP 24
#define NSR_PR_SET_SECUREBITS 28
#define NSR_PR_SET_CHILD_SUBREAPER 36
#define NSR_PR_SET_NO_NEW_PRIVS 38
#define NSR_PR_CAP_AMBIENT 47
#define NSR_PR_CAP_AMBIENT_RAISE 2
#define NSR_SECCOMP_MODE_FILTER 2

struct nsr_sock_filter {
	uint16_t code;
	uint8_t jt;
	uint8_t jf;
	uint32_t k;
};
struct nsr_sock_fprog {
	unsigned short len;
	const struct nsr_sock_filter *filter;
};

#endif
