/* SPDX-License-Identifier: MIT */
/* attempt_library.c - a plan tried from inside another program, as nsr_spawn does it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "diag.h"
#include "probe.h"

void nsr_attempt(struct nsr_plan *plan, struct nsr_diag *diag)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	const int stdio[3] = { null, null, null };
	struct nsr_child child;
	int ret = 0;

	if (null < 0) {
		nsr_diag_errno(diag, errno, "Can't open /dev/null");
		return;
	}
	if (!nsr_spawn(plan, stdio, &child, diag)) {
		while (!ret) {
			struct pollfd ready = { .fd = child.status_fd, .events = POLLIN };
			int n = poll(&ready, 1, NSR_PROBE_DEADLINE_MS);

			if (n < 0 && errno == EINTR)
				continue;
			if (n != 1)
				nsr_diag_errno(diag, ETIMEDOUT, "The sandbox did not come up");
			ret = n == 1 ? nsr_child_read(&child, diag) : -ETIMEDOUT;
		}
		nsr_child_close(&child);
	}
	close(null);
}
