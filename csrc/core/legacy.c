/* SPDX-License-Identifier: MIT */
/*
 * legacy.c - mount(2) where the new mount API is missing or refused; child.
 *
 * A recursive bind leaves the mounts below it as they were, so each has to be
 * restricted by name.  The names come from mountinfo, read once, into memory
 * that stood ready: nothing of it is touched where the new API answers.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include "spawn.h"
#include "sys.h"

/* Asked with arguments that can't succeed: only whether somebody answers. */
static int refused(long ret)
{
	return ret == -ENOSYS || ret == -EPERM;
}

static int wanted(void)
{
	return refused(SYS3(SYS_open_tree, -1, "", ~0u)) ||
	       refused(SYS5(SYS_move_mount, -1, "", -1, "", ~0u)) ||
	       refused(SYS5(SYS_mount_setattr, -1, "", ~0u, 0, 0));
}

/* mountinfo writes blanks and backslashes as three octal digits. */
static void unescape(char *s)
{
	char *to = s;

	for (; *s; s++) {
		if (*s == '\\' && s[1] && s[2] && s[3]) {
			*to++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 3;
		} else {
			*to++ = *s;
		}
	}
	*to = '\0';
}

static long read_mountinfo(char *text, size_t size)
{
	long fd = SYS3(SYS_openat, NSR_AT_FDCWD, "/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	long n = fd;

	while (n >= 0 && len < size) {
		n = SYS3(SYS_read, fd, text + len, size - len);
		if (!n)
			break;
		len += n > 0 ? (size_t)n : 0;
	}
	if (fd >= 0)
		SYS1(SYS_close, fd);
	return n < 0 ? n : len == size ? -E2BIG : (long)len;
}

/* Keep of each line its fifth word, the mount point, one behind the other. */
static size_t keep_points(char *text, size_t len)
{
	char *to = text, *end = text + len;

	for (char *line = text; line < end;) {
		char *next = memchr(line, '\n', (size_t)(end - line));
		char *word = line;

		next = next ? next : end - 1;
		*next = '\0';
		for (int i = 0; i < 4; i++)
			word += strcspn(word, " ") + 1;
		word[strcspn(word, " ")] = '\0';
		unescape(word);
		len = strlen(word) + 1;
		memmove(to, word, len);
		to += len;
		line = next + 1;
	}
	return (size_t)(to - text);
}

int nsr_legacy_begin(struct nsr_ctx *ctx)
{
	long n;

	ctx->legacy_mounts = wanted();
	if (!ctx->legacy_mounts)
		return 0;
	ctx->facts.in_place = 0;
	n = read_mountinfo(ctx->cold->mountinfo, sizeof(ctx->cold->mountinfo));
	if (n < 0)
		return nsr_fail(ctx, NSR_STEP_MOUNTINFO, n);
	ctx->mountinfo_len = keep_points(ctx->cold->mountinfo, (size_t)n);
	return 0;
}

static unsigned long kept_flags(const struct statfs *fs)
{
	const long st_relatime = 0x1000;
	const long same = NSR_MS_RDONLY | NSR_MS_NOSUID | NSR_MS_NODEV | NSR_MS_NOEXEC |
			  NSR_MS_NOATIME | NSR_MS_NODIRATIME;
	unsigned long flags = (unsigned long)((long)fs->f_flags & same);

	return (long)fs->f_flags & st_relatime ? flags | NSR_MS_RELATIME : flags;
}

/* Restrict the one mount that fd lies on; what it had already stays. */
int nsr_legacy_remount(int fd, uint32_t flags)
{
	unsigned long add = NSR_MS_NOSUID;
	char path[NSR_FD_PATH];
	struct statfs fs;
	long ret = SYS2(SYS_fstatfs, fd, &fs);

	if (ret < 0)
		return (int)ret;
	if (!(flags & NSR_OP_DEVICES))
		add |= NSR_MS_NODEV;
	if (flags & NSR_OP_RDONLY)
		add |= NSR_MS_RDONLY;
	if ((kept_flags(&fs) & add) == add)
		return 0;
	nsr_fd_path(path, fd);
	return (int)SYS5(SYS_mount, 0, path, 0, NSR_MS_SILENT | NSR_MS_BIND | NSR_MS_REMOUNT |
			 kept_flags(&fs) | add, 0);
}

/* The part of a mount point below the source; NULL if it isn't below. */
static const char *below(const char *point, const char *source)
{
	size_t len = strlen(source);

	if (len == 1)           /* "/" */
		return point[1] ? point + 1 : NULL;
	return !strncmp(point, source, len) && point[len] == '/' ? point + len + 1 : NULL;
}

static int is_mount(int fd)
{
	struct nsr_statx st;

	return SYS5(SYS_statx, fd, "", NSR_AT_EMPTY_PATH, NSR_STATX_TYPE, &st) >= 0 &&
	       st.attributes & NSR_STATX_ATTR_MOUNT_ROOT;
}

/* The name of the source without links, as mountinfo has it. */
static const char *real_name(struct nsr_ctx *ctx, int source)
{
	char link[NSR_FD_PATH];
	long n;

	nsr_fd_path(link, source);
	n = SYS4(SYS_readlinkat, NSR_AT_FDCWD, link, ctx->cold->path[1], NSR_PATH_MAX - 1);
	if (n <= 0)
		return NULL;
	ctx->cold->path[1][n] = '\0';
	return ctx->cold->path[1];
}

static int remount_one(struct nsr_ctx *ctx, int fd, uint32_t flags)
{
	int ret = is_mount(fd) ? nsr_legacy_remount(fd, flags) : 0;

	if (ret == -EACCES || ctx->plan->number[NSR_FLAGS] & NSR_NOT_A_SECURITY_BOUNDARY)
		return 0;
	return ret;
}

static int remount_below(struct nsr_ctx *ctx, int source, int top, uint32_t flags)
{
	const char *real = real_name(ctx, source);
	const char *end = ctx->cold->mountinfo + ctx->mountinfo_len;
	int root = ctx->root_fd, ret = 0;

	if (!real)
		return -ENOENT;
	ctx->root_fd = top;
	for (const char *point = ctx->cold->mountinfo; !ret && point < end; point += strlen(point) + 1) {
		const char *name = below(point, real);
		int fd = name ? nsr_dest_open(ctx, name, 0) : -ENOENT;

		if (fd < 0)     /* elsewhere, covered, or not ours to see */
			continue;
		ret = remount_one(ctx, fd, flags);
		SYS1(SYS_close, fd);
	}
	ctx->root_fd = root;
	return ret;
}

/* Where to bind first: a directory on top of "/", anything else on a hidden file. */
static int open_stage(struct nsr_ctx *ctx, int source)
{
	struct nsr_statx st;
	long ret = SYS5(SYS_statx, source, "", NSR_AT_EMPTY_PATH, NSR_STATX_TYPE, &st);

	if (ret < 0)
		return (int)ret;
	if ((st.mode & S_IFMT) == S_IFDIR)
		return (int)SYS3(SYS_openat, NSR_AT_FDCWD, "/..", O_PATH | O_CLOEXEC);
	return (int)SYS4(SYS_openat, ctx->scratch_fd, NSR_STAGE_NAME,
			 O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
}

static int open_staged(struct nsr_ctx *ctx, int stage)
{
	int on_file = nsr_mount_root_id(stage) == 0;

	return (int)SYS3(SYS_openat, on_file ? ctx->scratch_fd : NSR_AT_FDCWD,
			 on_file ? NSR_STAGE_NAME : "/..", O_PATH | O_CLOEXEC);
}

/* Bind source at stage, and return an fd on what is mounted there then. */
static int bind_at(struct nsr_ctx *ctx, int source, int stage)
{
	char from[NSR_FD_PATH], to[NSR_FD_PATH];
	int ret;

	nsr_fd_path(from, source);
	nsr_fd_path(to, stage);
	ret = (int)SYS5(SYS_mount, from, to, 0, NSR_MS_SILENT | NSR_MS_BIND | NSR_MS_REC, 0);
	return ret < 0 ? ret : open_staged(ctx, stage);
}

int nsr_legacy_bind(struct nsr_ctx *ctx, int source, uint32_t flags)
{
	int stage = open_stage(ctx, source);
	int top = stage < 0 ? stage : bind_at(ctx, source, stage);
	int ret = top;

	if (stage >= 0)
		SYS1(SYS_close, stage);
	if (ret >= 0)
		ret = nsr_legacy_remount(top, flags);
	if (ret >= 0)
		ret = remount_below(ctx, source, top, flags);
	if (ret >= 0)
		return top;
	if (top >= 0)
		SYS1(SYS_close, top);
	return ret;
}
