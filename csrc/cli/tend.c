/* SPDX-License-Identifier: MIT */
/*
 * tend.c - nsrun --tend FD: the process that outlives a program of ours, to
 * remove the cgroups that it could not remove itself.
 *
 * FD is one end of an AF_UNIX SOCK_SEQPACKET pair that the parent made.  Over
 * it comes a record "+PATHS" before cgroups are made and "-PATHS" once they are
 * gone, with NULs between the paths.  The first record goes the other way: "!", with a pidfd of this
 * process.  When the parent is gone, or has closed the socket, everything that
 * is still known is killed and removed.  The parent's end alone is not enough
 * to tell: a fork of the parent holds it too.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cgroups.h"
#include "diag.h"
#include "tend.h"

/* Where the two descriptors are that this process keeps. */
enum { RECORDS, OWNER, KEPT };

enum {
	MAX_PATHS = 65536,
	MAX_RECORD = 1 + 8 * NSR_CGROUP_PATH,
	LONGEST_NAP_MS = 100,
	ROUNDS = 600,               /* a minute: what no SIGKILL ends by then stays */
};

struct known {
	struct known *next;
	char path[];
};

static struct known *list;
static unsigned int n_known;

static int add(const char *path)
{
	struct known *new;

	if (n_known == MAX_PATHS || !nsr_cgroup_name_ok(path))
		return -1;
	new = malloc(sizeof(*new) + strlen(path) + 1);
	if (!new)
		return -1;
	strcpy(new->path, path);
	new->next = list;
	list = new;
	n_known++;
	return 0;
}

static void drop(struct known **at)
{
	struct known *gone = *at;

	*at = gone->next;
	free(gone);
	n_known--;
}

static int forget(const char *path)
{
	for (struct known **at = &list; *at; at = &(*at)->next) {
		if (strcmp((*at)->path, path))
			continue;
		drop(at);
		return 0;
	}
	return -1;
}

/* The paths of a record; end points at the NUL behind the last. */
static int obey(char word, const char *paths, const char *end)
{
	int (*const act)(const char *) = word == '+' ? add : forget;

	if (word != '+' && word != '-')
		return -EBADMSG;
	for (; paths <= end; paths += strlen(paths) + 1)
		if (act(paths))
			return -EBADMSG;
	return 1;
}

/* 1: took one, 0: no more will come, -EAGAIN: none yet, -EBADMSG: not a record. */
static int take_record(void)
{
	char record[MAX_RECORD + 1];
	ssize_t n;

	do
		n = recv(RECORDS, record, MAX_RECORD, MSG_DONTWAIT | MSG_TRUNC);
	/* a reset is told once, ahead of the records that are still there */
	while (n < 0 && (errno == EINTR || errno == ECONNRESET));
	if (n < 0)
		return errno == EAGAIN ? -EAGAIN : 0;
	if (!n)
		return 0;
	if (n > MAX_RECORD)
		return -EBADMSG;
	record[n] = '\0';
	return obey(record[0], record + 1, record + n);
}

/* Until the parent is gone; -EBADMSG if it is there but speaks nonsense. */
static int listen_to_parent(void)
{
	struct pollfd fds[KEPT] = { { .fd = RECORDS, .events = POLLIN },
				    { .fd = OWNER, .events = POLLIN } };
	int ret, over = 0;

	do {
		if (poll(fds, KEPT, -1) < 0 && errno != EINTR)
			return 0;
		/* it can write no more when this is read, so the queue is whole */
		over = fds[OWNER].revents != 0;
		do
			ret = take_record();
		while (ret > 0);
	} while (ret == -EAGAIN && !over);
	return ret == -EBADMSG ? ret : 0;
}

static void nap(long ms)
{
	const struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

static void remove_known(void)
{
	long ms = 1;

	for (struct known *k = list; k; k = k->next)
		nsr_cgroup_hold(k->path);
	for (int i = 0; i < ROUNDS && list; i++) {
		for (struct known **at = &list; *at;) {
			if (nsr_cgroup_remove((*at)->path))
				at = &(*at)->next;
			else
				drop(at);
		}
		if (!list)
			break;
		nap(ms);
		ms = ms * 2 < LONGEST_NAP_MS ? ms * 2 : LONGEST_NAP_MS;
	}
}

/* "!" and the means to watch this process, which is nobody's child. */
static int say_hello(void)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char word = '!';
	struct iovec iov = { &word, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *head;
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	ssize_t n;

	if (self < 0)
		return -1;
	memset(&control, 0, sizeof(control));
	head = CMSG_FIRSTHDR(&msg);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &self, sizeof(self));
	n = sendmsg(RECORDS, &msg, MSG_NOSIGNAL);
	close(self);
	return n == 1 ? 0 : -1;
}

/* Keep nothing of the caller's: descriptors, terminal, directory. */
static int detach(int records, int owner)
{
	static const int ignored[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP,
				       SIGTTIN, SIGTTOU, SIGPIPE };

	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		signal(ignored[i], SIG_IGN);
	prctl(PR_SET_NAME, "nsrun-tend");
	return setsid() < 0 || chdir("/") || dup2(records, RECORDS) < 0 ||
	       dup2(owner, OWNER) < 0 || syscall(SYS_close_range, KEPT, ~0u, 0) < 0;
}

static _Noreturn void tend(int records, int owner)
{
	int ret = detach(records, owner) || say_hello();

	if (!ret)
		ret = listen_to_parent();
	/* one that can't understand leaves the work to the next, who is told everything */
	if (!ret)
		remove_known();
	_exit(ret ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* A pidfd of the process that made the socket, which must be our parent. */
static int open_owner(int fd, struct nsr_diag *diag)
{
	struct ucred maker;
	socklen_t len = sizeof(maker);
	int type = 0, owner;
	socklen_t type_len = sizeof(type);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_len) ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &maker, &len))
		return nsr_diag_errno(diag, errno, "--tend: fd %d", fd);
	if (type != SOCK_SEQPACKET || maker.pid <= 0)
		return nsr_diag_set(diag, "--tend: fd %d is not half of a SEQPACKET pair", fd);
	owner = (int)syscall(SYS_pidfd_open, maker.pid, 0);
	if (owner < 0)
		return nsr_diag_errno(diag, errno, "--tend: pidfd_open of process %d", maker.pid);
	/* it was our parent after the pidfd was opened, so the pidfd is its */
	if (getppid() != maker.pid)
		return nsr_diag_set(diag, "--tend: fd %d was not made by the parent", fd);
	return owner;
}

int nsr_tend(int fd, struct nsr_diag *diag)
{
	int records, owner = open_owner(fd, diag);
	pid_t pid;

	if (owner < 0)
		return owner;
	/* out of the way of the numbers that they get later */
	records = fcntl(fd, F_DUPFD_CLOEXEC, KEPT);
	owner = fcntl(owner, F_DUPFD_CLOEXEC, KEPT);
	if (records < 0 || owner < 0)
		return nsr_diag_errno(diag, errno, "--tend: fd %d", fd);
	/* a grandchild of the caller: its wait(2) for any child never sees this process */
	pid = fork();
	if (!pid)
		tend(records, owner);
	return pid < 0 ? nsr_diag_errno(diag, errno, "--tend: fork") : 0;
}
