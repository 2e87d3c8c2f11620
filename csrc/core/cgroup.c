/* SPDX-License-Identifier: MIT */
/* cgroup.c - enter the cgroups of the plan, and then a namespace of them; child. */
#include <fcntl.h>

#include "spawn.h"
#include "sys.h"

/*
 * Before any id map is written, so with the caller's right to these files.  The
 * namespace comes after: its root is the cgroup that its maker is in.
 */
int nsr_cgroup_enter(struct nsr_ctx *ctx)
{
	long ret;

	if (!ctx->cgroup_procs)
		return 0;
	for (const char **file = ctx->cgroup_procs; *file; file++) {
		long fd = SYS3(SYS_openat, NSR_AT_FDCWD, *file, O_WRONLY | O_CLOEXEC);

		ret = fd;
		if (fd >= 0) {
			ret = SYS3(SYS_write, fd, "0", 1);
			SYS1(SYS_close, fd);
		}
		if (ret < 0)
			return nsr_fail_text(ctx, NSR_STEP_CGROUP, ret, *file);
	}
	if (!(ctx->facts.unshare & NSR_CLONE_NEWCGROUP))
		return 0;
	ret = SYS1(SYS_unshare, NSR_CLONE_NEWCGROUP);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_CGROUP_NAMESPACE, ret) : 0;
}
