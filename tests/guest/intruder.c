/*
 * intruder.c - a guest's root, with no agent above it, after what the host keeps from it.
 *
 * It tries each way that the kernel knows to each path that is protected, and
 * prints what it could read.  What comes of the rest, the host sees in its files.
 */
#define _GNU_SOURCE
#include "intruder.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define FILES "/mnt/0"

enum { NODES = 256, GENERATIONS = 2, FUSE_HANDLE = 0x81 };

/* As the kernel's FUSE client makes them: a node's number and generation. */
struct fuse_handle {
	struct file_handle head;
	uint32_t node_high, node_low, generation;
};

static const char *const protected[] = {
	"hidden", "hidden/key", "hidden/inner/key", "way/rule", "way/rule/key", "token",
	"open/token", "open/alias", "ro", "ro/file", "ro/inner/file",
};
static const char *const roots[] = { FILES, "/mnt/bound", "/mnt/again", "/mnt/over" };

/* musl has no function of that name. */
static long rename_with(const char *from, const char *to, unsigned int flags)
{
	return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
}

static void show(const char *how, const char *path, int fd)
{
	char data[64] = "";
	ssize_t n = pread(fd, data, sizeof(data) - 1, 0);
	char *seen = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

	if (n > 0)
		printf("%s %s: %s\n", how, path, data);
	/* a page that is read in is a read of its own, and may have to fail as one */
	if (n > 0 && seen != MAP_FAILED)
		printf("mapped %s: %.16s\n", path, seen);
	if (seen != MAP_FAILED)
		munmap(seen, 4096);
}

static void read_path(const char *path)
{
	char again[64], stolen[] = FILES "/open/stolen";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int place = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	int to;

	if (fd >= 0) {
		show("read", path, fd);
		to = open(stolen, O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);
		if (copy_file_range(fd, NULL, to, NULL, 64, 0) > 0 || sendfile(to, fd, NULL, 64) > 0)
			show("copied", path, to);
		close(to);
		close(fd);
	}
	if (place < 0)
		return;
	snprintf(again, sizeof(again), "/proc/self/fd/%d", place);
	fd = open(again, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		show("opened anew", path, fd);
	close(fd);
	close(place);
}

/* Nodes that no lookup has named. */
static void read_nodes(void)
{
	struct fuse_handle handle = { .head = { .handle_bytes = 12, .handle_type = FUSE_HANDLE } };
	int root = open(FILES, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd;

	for (uint32_t node = 1; node < NODES; node++)
		for (uint32_t generation = 0; generation < GENERATIONS; generation++) {
			handle.node_low = node;
			handle.generation = generation;
			fd = open_by_handle_at(root, &handle.head, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				continue;
			show("by its handle", "", fd);
			close(fd);
		}
	close(root);
}

static void read_all(void)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < sizeof(roots) / sizeof(roots[0]); i++)
		for (size_t j = 0; j < sizeof(protected) / sizeof(protected[0]); j++) {
			snprintf(path, sizeof(path), "%s/%s", roots[i], protected[j]);
			read_path(path);
		}
	read_nodes();
}

static void spoil_data(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC), flags = FS_IMMUTABLE_FL | FS_APPEND_FL;
	char *data;

	if (fd < 0)
		fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && pwrite(fd, "spoilt", 6, 0) > 0)
		printf("wrote %s\n", path);
	data = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (data != MAP_FAILED && !msync(data, 4096, MS_SYNC)) {
		memcpy(data, "mapped", 6);
		msync(data, 4096, MS_SYNC);
		munmap(data, 4096);
	}
	fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2);
	close(fd);
	/* what takes a file that is only read */
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ioctl(fd, FS_IOC_SETFLAGS, &flags);
	fchmod(fd, 0777);
	fsetxattr(fd, "user.spoilt", "x", 1, 0);
	close(fd);
	if (!truncate(path, 1))
		printf("cut %s\n", path);
	close(open(path, O_WRONLY | O_TRUNC | O_CLOEXEC));
}

static void spoil_inode(const char *path)
{
	const struct timespec times[2] = { { .tv_sec = 1 }, { .tv_sec = 1 } };

	if (!chmod(path, 0777) || !lchown(path, 7, 7) || !utimensat(AT_FDCWD, path, times, 0))
		printf("changed %s\n", path);
	lsetxattr(path, "user.spoilt", "x", 1, 0);
}

static void spoil_below(const char *path)
{
	static const char *const names[] = { "made", "node", "link", "folder", "linked", "moved" };
	char below[sizeof(names) / sizeof(names[0])][PATH_MAX + 16];
	int fd = open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		snprintf(below[i], sizeof(below[i]), "%s/%s", path, names[i]);
	close(open(below[0], O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
	mknod(below[1], S_IFBLK | 0666, makedev(8, 0));
	symlink("/", below[2]);
	mkdir(below[3], 0777);
	link(FILES "/open/file", below[4]);
	rename(FILES "/open/mine", below[5]);
	if (fd >= 0)
		linkat(fd, "", AT_FDCWD, below[4], AT_EMPTY_PATH);
	close(fd);
}

static void spoil_names(const char *path)
{
	const char *const there[] = { FILES "/open/moved", FILES "/open/linked" };

	if (!link(path, there[1]))
		printf("linked %s\n", path);
	read_path(there[1]);
	rename_with(path, FILES "/open/file", RENAME_EXCHANGE);
	rename_with(path, there[0], RENAME_WHITEOUT);
	rename(FILES "/open/mine", path);
	if (!rename(path, there[0]))
		printf("moved %s\n", path);
	read_path(there[0]);
	unlink(path);
	rmdir(path);
}

/* The way to a rule, and the top itself. */
static void spoil_ways(void)
{
	rename(FILES "/way", FILES "/elsewhere");
	read_path(FILES "/elsewhere/rule/key");
	rename_with(FILES "/way", FILES "/open", RENAME_EXCHANGE);
	read_path(FILES "/open/rule/key");
	rename(FILES, "/mnt/other");
	mkdir("/mnt/made", 0777);
	symlink("/etc", "/mnt/made");
	/* a link is followed in here, where there is nothing of the host's */
	symlink("../hidden/key", FILES "/open/way");
	symlink("/../../../etc/hostname", FILES "/open/out");
	read_path(FILES "/open/way");
	read_path(FILES "/open/out");
	read_path(FILES "/../../../../etc/hostname");
}

static void mount_all(void)
{
	for (size_t i = 0; i < sizeof(roots) / sizeof(roots[0]); i++)
		mkdir(roots[i], 0755);
	mkdir("/mnt/tag", 0755);
	/* the device's second client: it knows of one */
	mount("files", "/mnt/tag", "virtiofs", 0, NULL);
	mount(FILES, "/mnt/bound", NULL, MS_BIND | MS_REC, NULL);
	mount("over", "/mnt/over", "overlay", 0, "lowerdir=" FILES ":/mnt/tag");
	mount(FILES "/hidden", "/mnt/again", NULL, MS_BIND, NULL);
}

void intrude(void)
{
	char path[PATH_MAX];

	mkdir("/mnt", 0755);
	if (mount("files", "/mnt", "virtiofs", 0, NULL)) {
		printf("first: mount: %s\n", strerror(errno));
		return;
	}
	mount_all();
	read_all();
	/* what nothing below moves: the host sees that this works at all */
	spoil_data(FILES "/open/witness");
	for (size_t i = 0; i < sizeof(protected) / sizeof(protected[0]); i++) {
		snprintf(path, sizeof(path), FILES "/%s", protected[i]);
		spoil_inode(path);
		spoil_data(path);
		spoil_below(path);
	}
	for (size_t i = sizeof(protected) / sizeof(protected[0]); i--;) {
		snprintf(path, sizeof(path), FILES "/%s", protected[i]);
		spoil_names(path);
	}
	spoil_ways();
	read_all();
	sync();
	puts("first: intruded");
}
