/* SPDX-License-Identifier: MIT */
/* attempt_program.c - a plan tried by the nsrun program, in a process to throw away. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "diag.h"
#include "probe.h"
#include "spawn.h"

struct room {
	struct nsr_ctx ctx;
	struct nsr_cold cold;
};

static void *map(size_t size, int flags)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

static void run_in_child(struct nsr_plan *plan, struct nsr_diag *diag)
{
	struct room *room = map(sizeof(*room), MAP_PRIVATE);

	if (!room) {
		nsr_diag_errno(diag, ENOMEM, "Can't allocate memory");
		return;
	}
	room->ctx.arena = &plan->arena;
	room->ctx.cold = &room->cold;
	nsr_run_command(plan, &room->ctx, diag);
}

void nsr_attempt(struct nsr_plan *plan, struct nsr_diag *diag)
{
	/* the child's answer, and nothing else, is seen by both */
	struct nsr_diag *answer = map(sizeof(*answer), MAP_SHARED);
	int pidfd = -1, pid;

	if (!answer) {
		nsr_diag_errno(diag, ENOMEM, "Can't allocate memory");
		return;
	}
	pid = nsr_fork(&pidfd);
	if (!pid) {
		run_in_child(plan, answer);
		_exit(EXIT_SUCCESS);
	}
	if (pid < 0)
		nsr_diag_errno(answer, -pid, "Can't fork");
	else if (nsr_wait_bounded(pid, pidfd, NSR_PROBE_DEADLINE_MS) < 0)
		nsr_diag_errno(answer, ETIMEDOUT, "The sandbox did not come up");
	memcpy(diag, answer, sizeof(*diag));
	munmap(answer, sizeof(*answer));
}
