/* SPDX-License-Identifier: MIT */
/* disk.c - the bytes of a disk: an image, or an image and what was written since. */
#include "disk.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 4096, SECTOR = 512 };

typedef ssize_t transfer(int fd, const struct iovec *iov, int n, off_t offset);

static int size_of(int fd, uint64_t *size)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISREG(st.st_mode))
		*size = (uint64_t)st.st_size;
	else if (!S_ISBLK(st.st_mode))
		return -ENOTBLK;
	else if (ioctl(fd, BLKGETSIZE64, size) < 0)
		return -errno;
	return 0;
}

int vmm_disk_open(struct vmm_disk *disk, int image, int overlay)
{
	uint64_t used, blocks;
	int ret;

	*disk = (struct vmm_disk){ .image = image, .overlay = overlay };
	ret = size_of(image, &disk->size);
	disk->size &= ~(uint64_t)(SECTOR - 1);
	if (ret || overlay < 0)
		return ret;
	ret = size_of(overlay, &used);
	if (ret || used)
		return ret ? ret : -EINVAL;
	blocks = (disk->size + BLOCK - 1) / BLOCK;
	disk->written = calloc(blocks / 64 + 1, sizeof(*disk->written));
	return disk->written ? 0 : -ENOMEM;
}

/* Forget n bytes of the front; the places that are used up. */
static int advance(struct iovec *iov, int n_iov, size_t n)
{
	int used = 0;

	while (used < n_iov && n >= iov[used].iov_len)
		n -= iov[used++].iov_len;
	if (used < n_iov) {
		iov[used].iov_base = (uint8_t *)iov[used].iov_base + n;
		iov[used].iov_len -= n;
	}
	return used;
}

static int move_all(transfer *move, int fd, struct iovec *iov, int n, uint64_t offset)
{
	while (n) {
		ssize_t moved = move(fd, iov, n, (off_t)offset);
		int used;

		if (moved < 0 && errno == EINTR)
			continue;
		if (moved <= 0)
			return moved ? -errno : -EIO;
		offset += (uint64_t)moved;
		used = advance(iov, n, (size_t)moved);
		iov += used;
		n -= used;
	}
	return 0;
}

static bool is_written(const struct vmm_disk *disk, uint64_t block)
{
	return disk->written[block / 64] >> block % 64 & 1;
}

/* How many bytes from there on, up to most, lie in the same file. */
static size_t run_of(const struct vmm_disk *disk, uint64_t offset, size_t most)
{
	uint64_t block = offset / BLOCK;
	bool written = is_written(disk, block);
	size_t run = BLOCK - offset % BLOCK;

	while (run < most && is_written(disk, ++block) == written)
		run += BLOCK;
	return run < most ? run : most;
}

/* One buffer, piece by piece of where it lies. */
static int read_pieces(struct vmm_disk *disk, uint8_t *to, size_t len, uint64_t offset)
{
	while (len) {
		size_t run = run_of(disk, offset, len);
		struct iovec piece = { .iov_base = to, .iov_len = run };
		int fd = is_written(disk, offset / BLOCK) ? disk->overlay : disk->image;
		int ret = move_all(preadv, fd, &piece, 1, offset);

		if (ret)
			return ret;
		to += run;
		offset += run;
		len -= run;
	}
	return 0;
}

int vmm_disk_read(struct vmm_disk *disk, struct iovec *iov, int n, uint64_t offset)
{
	if (disk->overlay < 0)
		return move_all(preadv, disk->image, iov, n, offset);
	for (int i = 0; i < n; offset += iov[i++].iov_len) {
		int ret = read_pieces(disk, iov[i].iov_base, iov[i].iov_len, offset);

		if (ret)
			return ret;
	}
	return 0;
}

/* Bring a block that will be written in part into the overlay; the image may end within it. */
static int bring_block(struct vmm_disk *disk, uint64_t block)
{
	uint8_t bytes[BLOCK];
	uint64_t offset = block * BLOCK;
	size_t len = disk->size - offset < BLOCK ? disk->size - offset : BLOCK;
	struct iovec iov = { .iov_base = bytes, .iov_len = len };
	int ret;

	if (is_written(disk, block))
		return 0;
	ret = move_all(preadv, disk->image, &iov, 1, offset);
	if (ret)
		return ret;
	iov = (struct iovec){ .iov_base = bytes, .iov_len = len };
	ret = move_all(pwritev, disk->overlay, &iov, 1, offset);
	if (!ret)
		disk->written[block / 64] |= 1ULL << block % 64;
	return ret;
}

static int bring_edges(struct vmm_disk *disk, uint64_t offset, uint64_t end)
{
	int ret = offset % BLOCK ? bring_block(disk, offset / BLOCK) : 0;

	return ret || end % BLOCK == 0 ? ret : bring_block(disk, end / BLOCK);
}

int vmm_disk_write(struct vmm_disk *disk, struct iovec *iov, int n, uint64_t offset)
{
	uint64_t end = offset;
	int ret;

	if (disk->overlay < 0)
		return move_all(pwritev, disk->image, iov, n, offset);
	for (int i = 0; i < n; i++)
		end += iov[i].iov_len;
	ret = bring_edges(disk, offset, end);
	if (!ret)
		ret = move_all(pwritev, disk->overlay, iov, n, offset);
	for (uint64_t block = offset / BLOCK; !ret && block * BLOCK < end; block++)
		disk->written[block / 64] |= 1ULL << block % 64;
	return ret;
}

int vmm_disk_flush(struct vmm_disk *disk)
{
	return fdatasync(disk->overlay < 0 ? disk->image : disk->overlay) < 0 ? -errno : 0;
}
