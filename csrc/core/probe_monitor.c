/* SPDX-License-Identifier: MIT */
/* probe_monitor.c - which walls a microVM's monitor has here: csrc/vmm/walls.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "diag.h"
#include "probe.h"
#include "spawn.h"
#include "sys.h"
#include "uapi.h"

enum { ABI_TCP = 4, ABI_SCOPE = 6, NET = 1, IPC = 2, UTS = 4 };

static int own_namespaces(void)
{
	return (SYS1(SYS_unshare, NSR_CLONE_NEWNET) ? 0 : NET) |
	       (SYS1(SYS_unshare, NSR_CLONE_NEWIPC) ? 0 : IPC) |
	       (SYS1(SYS_unshare, NSR_CLONE_NEWUTS) ? 0 : UTS);
}

/* A child's, since there is no way back; none where it can't be made. */
static int try_namespaces(void)
{
	int pidfd = -1, status;
	int pid = nsr_fork(&pidfd);

	if (!pid)
		_exit(own_namespaces());
	status = pid < 0 ? -1 : nsr_wait_bounded(pid, pidfd, NSR_PROBE_DEADLINE_MS);
	return status >= 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

static void describe_namespaces(char *out, size_t size)
{
	int found = try_namespaces();

	if (found)
		snprintf(out, size, "namespaces of its own:%s%s%s", found & NET ? " net" : "",
			 found & IPC ? " ipc" : "", found & UTS ? " uts" : "");
	else
		snprintf(out, size, "no namespaces of its own, which only root may make here");
}

void nsr_probe_monitor(struct nsr_probe *out, const struct nsr_probe *landlock)
{
	static const char jail[] = "seccomp by thread, no new privileges, limits, closed descriptors";
	int abi = nsr_landlock_abi();
	char namespaces[128];

	describe_namespaces(namespaces, sizeof(namespaces));
	if (landlock->verdict != NSR_OK)
		nsr_probe_say(out, (enum nsr_verdict)landlock->verdict, landlock->err,
			      landlock->remedy, "%s; no Landlock (%s); %s", jail,
			      landlock->evidence, namespaces);
	else
		nsr_probe_say(out, NSR_OK, 0, NULL, "%s; Landlock for files%s%s; %s", jail,
			      abi >= ABI_TCP ? ", TCP" : ", not TCP (Linux 6.7)",
			      abi >= ABI_SCOPE ? ", signals and abstract sockets" :
			      ", not signals or abstract sockets (Linux 6.12)", namespaces);
}
