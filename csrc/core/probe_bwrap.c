/* SPDX-License-Identifier: MIT */
/* probe_bwrap.c - an installed bwrap: where it is, and whether it is allowed to work. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bwrap.h"
#include "diag.h"
#include "probe.h"
#include "sys.h"
#include "uapi.h"

#define CLOSE_RANGE_CLOEXEC (1U << 2)

enum { SAID = 700 };

/* This very program under the other name would be refused the same. */
static int is_ours(const struct stat *st)
{
	struct stat self;

	return !stat("/proc/self/exe", &self) && self.st_dev == st->st_dev &&
	       self.st_ino == st->st_ino;
}

static int usable(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISREG(st.st_mode) && !access(path, X_OK) && !is_ours(&st);
}

/* Absolute directories of PATH alone: what "." holds depends on where one stands. */
static int find(char path[NSR_PROBE_PATH])
{
	const char *dir = getenv("PATH");

	while (dir && *dir) {
		size_t len = strcspn(dir, ":");
		int n = snprintf(path, NSR_PROBE_PATH, "%.*s/bwrap", (int)len, dir);

		if (*dir == '/' && n > 0 && n < NSR_PROBE_PATH && usable(path))
			return 1;
		dir += len + (dir[len] == ':');
	}
	*path = '\0';
	return 0;
}

/* Its words for these namespaces. */
static void add_namespaces(const char **argv, int *n, uint64_t unshare)
{
	static const struct {
		uint64_t flag;
		const char *option;
	} options[] = {
		{ NSR_CLONE_NEWUSER, "--unshare-user" }, { NSR_CLONE_NEWPID, "--unshare-pid" },
		{ NSR_CLONE_NEWIPC, "--unshare-ipc" }, { NSR_CLONE_NEWUTS, "--unshare-uts" },
		{ NSR_CLONE_NEWNET, "--unshare-net" },
		{ NSR_CLONE_NEWCGROUP, "--unshare-cgroup" },
	};

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (unshare & options[i].flag)
			argv[(*n)++] = options[i].option;
}

static void become_bwrap(const char *path, uint64_t unshare, int said_w)
{
	/* what it runs is itself: the one program that is sure to be there */
	const char *const rest[] = { "--ro-bind", "/", "/", "--as-pid-1", "--proc", "/proc",
				     "--dev", "/dev", "--", path, "--version" };
	const char *argv[32] = { path };
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int n = 1;

	add_namespaces(argv, &n, unshare | NSR_CLONE_NEWPID);
	for (size_t i = 0; i < sizeof(rest) / sizeof(rest[0]); i++)
		argv[n++] = rest[i];
	/* as late as that: dup2(2) leaves close-on-exec behind */
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(said_w, 2) < 0)
		_exit(EXIT_FAILURE);
	SYS3(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC);
	if (!setenv(NSR_FALLBACK_MARK, "1", 1))
		execv(path, (char *const *)(uintptr_t)argv);
	dprintf(2, "%s: %s", path, strerror(errno));
	_exit(EXIT_FAILURE);
}

/* What it says, as far as it interests, while it runs; 0 at the deadline. */
static int listen_to(int fd, char said[SAID])
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	char rest[256];
	size_t len = 0;

	for (;;) {
		int full = len == SAID - 1, n = poll(&ready, 1, NSR_PROBE_DEADLINE_MS);
		ssize_t got;

		if (n < 0 && errno == EINTR)
			continue;
		if (n != 1)
			return 0;
		got = read(fd, full ? rest : said + len, full ? sizeof(rest) : SAID - 1 - len);
		if (got <= 0)
			return 1;
		if (!full)
			len += (size_t)got;
	}
}

static void classify(struct nsr_probe *out, const char *path, int status, char *said)
{
	size_t len = strlen(said);

	while (len && said[len - 1] == '\n')
		said[--len] = '\0';
	if (status < 0)
		nsr_probe_say(out, NSR_UNKNOWN, ETIMEDOUT, "bwrap-blocked",
			      "%s did not end in time", path);
	else if (WIFEXITED(status) && !WEXITSTATUS(status))
		nsr_probe_say(out, NSR_OK, 0, NULL, "%s made a sandbox", path);
	else if (WIFSIGNALED(status))
		nsr_probe_say(out, NSR_BLOCKED, 0, "bwrap-blocked", "%s was ended by signal %d%s%s",
			      path, WTERMSIG(status), *said ? ": " : "", said);
	else
		nsr_probe_say(out, NSR_BLOCKED, 0, "bwrap-blocked", "%s ended with %d: %s", path,
			      WEXITSTATUS(status), *said ? said : "it said nothing");
}

void nsr_probe_bwrap_for(struct nsr_probe *out, const char *path, uint64_t unshare)
{
	char said[SAID] = "";
	int pipe_fds[2], pidfd = -1, pid, status;

	if (pipe2(pipe_fds, O_CLOEXEC)) {
		nsr_probe_say(out, NSR_UNKNOWN, errno, NULL, "pipe: %s", nsr_strerror(errno));
		return;
	}
	pid = nsr_fork(&pidfd);
	if (!pid)
		become_bwrap(path, unshare, pipe_fds[1]);
	close(pipe_fds[1]);
	if (pid < 0) {
		nsr_probe_say(out, NSR_UNKNOWN, -pid, NULL, "fork: %s", nsr_strerror(-pid));
	} else {
		int in_time = listen_to(pipe_fds[0], said);

		status = nsr_wait_bounded(pid, pidfd, in_time ? NSR_PROBE_DEADLINE_MS : 0);
		classify(out, path, status, said);
	}
	close(pipe_fds[0]);
}

void nsr_probe_bwrap(struct nsr_probe *out, char path[NSR_PROBE_PATH])
{
	/* no user namespace by name: with more rights than ours it needs none */
	const uint64_t usual = NSR_CLONE_NEWPID | NSR_CLONE_NEWIPC | NSR_CLONE_NEWUTS |
			       NSR_CLONE_NEWNET;

	if (getenv(NSR_FALLBACK_MARK)) {
		*path = '\0';
		nsr_probe_say(out, NSR_BLOCKED, ELOOP, "bwrap-blocked",
			      "the bwrap on PATH is a wrapper that calls nsrun");
	} else if (!find(path)) {
		nsr_probe_say(out, NSR_MISSING, ENOENT, "bwrap-install", "no bwrap on PATH");
	} else {
		nsr_probe_bwrap_for(out, path, usual);
	}
}
