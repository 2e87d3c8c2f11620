/* SPDX-License-Identifier: MIT */
/* data.c - files made from what an fd or the plan holds; child. */
#include <fcntl.h>
#include <string.h>

#include "spawn.h"
#include "sys.h"

static int write_all(int fd, const uint8_t *data, uint64_t len)
{
	while (len) {
		long n = SYS3(SYS_write, fd, data, len);

		if (n == -EINTR)
			continue;
		if (n < 0)
			return (int)n;
		data += n;
		len -= (uint64_t)n;
	}
	return 0;
}

static int copy_fd(struct nsr_ctx *ctx, int from, int to)
{
	for (;;) {
		long n = SYS3(SYS_read, from, ctx->cold->copy, sizeof(ctx->cold->copy));
		int ret;

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return (int)n;
		ret = write_all(to, ctx->cold->copy, (uint64_t)n);
		if (ret)
			return ret;
	}
}

static int fill(struct nsr_ctx *ctx, const struct nsr_op *op, int to)
{
	int ret = op->data ? write_all(to, op->data, op->data_len) : copy_fd(ctx, op->fd, to);

	if (op->fd >= 0)
		SYS1(SYS_close, op->fd);
	SYS1(SYS_close, to);
	return ret ? nsr_fail(ctx, NSR_STEP_DATA, ret) : 0;
}

int nsr_op_file(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	int fd = nsr_dest_create(ctx, op, O_TRUNC, op->perms, NSR_STEP_FILE);

	return fd < 0 ? -1 : fill(ctx, op, fd);
}

/* A file on the hidden tmpfs; it has no name when the payload starts. */
static int data_file(struct nsr_ctx *ctx, const struct nsr_op *op, char name[32])
{
	long fd, ret;

	memcpy(name, "bindfile", 9);
	nsr_number_behind(name, (uint64_t)ctx->op);
	fd = SYS4(SYS_openat, ctx->scratch_fd, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0)
		return nsr_fail(ctx, NSR_STEP_DATA_FILE, fd);
	ret = SYS2(SYS_fchmod, fd, op->perms);
	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_DATA_MODE, ret);
	return fill(ctx, op, (int)fd);
}

int nsr_op_bind_data(struct nsr_ctx *ctx, const struct nsr_op *op)
{
	char name[32];
	int target, ret;

	if (data_file(ctx, op, name))
		return -1;
	target = nsr_dest_file(ctx, op);
	if (target < 0)
		return -1;
	ret = nsr_mount_bind(ctx, ctx->scratch_fd, name, target, "", op->flags);
	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_BIND, ret);
	ret = (int)SYS3(SYS_unlinkat, ctx->scratch_fd, name, 0);
	SYS1(SYS_close, target);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_DATA_FILE, ret) : 0;
}
