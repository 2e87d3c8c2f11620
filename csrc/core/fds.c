/* SPDX-License-Identifier: MIT */
/* fds.c - file descriptors of our own. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "diag.h"
#include "spawn.h"
#include "sys.h"

enum { FIRST_FREE = 3 };

static unsigned int next_kept(const int *keep, int n, unsigned int from)
{
	unsigned int next = ~0u;

	for (int i = 0; i < n; i++)
		if (keep[i] >= 0 && (unsigned int)keep[i] >= from && (unsigned int)keep[i] < next)
			next = (unsigned int)keep[i];
	return next;
}

/* Close all fds from 3 on but those listed; -1 in the list stands for none. */
int nsr_close_but(const int *keep, int n)
{
	unsigned int from = FIRST_FREE;

	for (;;) {
		unsigned int next = next_kept(keep, n, from);
		long ret = 0;

		if (next > from)
			ret = SYS3(SYS_close_range, from, next == ~0u ? next : next - 1, 0);
		if (ret < 0)
			return (int)ret;
		if (next == ~0u)
			return 0;
		from = next + 1;
	}
}

/* Where the caller left stdio closed, a new fd would land there: move it up. */
int nsr_lift(int fd)
{
	int moved;

	if (fd < 0 || fd >= FIRST_FREE)
		return fd;
	moved = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FREE);
	close(fd);
	return moved;
}

/*
 * A number that the plan names but the caller left closed must not become one
 * of our own fds.  An O_PATH fd keeps the place: to all that is done with it,
 * it is EBADF, just as if it were closed.
 */
static int reserve(int fd, struct nsr_diag *diag)
{
	int place;

	if (fd < 0 || fcntl(fd, F_GETFD) >= 0)
		return 0;
	place = open("/", O_PATH | O_CLOEXEC);
	if (place == fd)
		return 0;
	if (place < 0 || dup3(place, fd, O_CLOEXEC) < 0) {
		/* beyond the limit for fds: nobody gets it, so it can stay closed */
		int err = errno;

		if (place >= 0)
			close(place);
		return err == EBADF ? 0 : nsr_diag_errno(diag, err, "Can't reserve fd %d", fd);
	}
	close(place);
	return 0;
}

int nsr_reserve_fds(const struct nsr_plan *plan, struct nsr_diag *diag)
{
	for (int i = NSR_USERNS_FD; i < NSR_NUMBER_END; i++)
		if (reserve((int)plan->number[i], diag))
			return -1;
	for (uint32_t i = 0; i < plan->n_ops; i++)
		if (reserve(plan->ops[i].fd, diag))
			return -1;
	return 0;
}

/* Both above stdio, or none. */
static int lift_both(int fds[2])
{
	fds[0] = nsr_lift(fds[0]);
	fds[1] = nsr_lift(fds[1]);
	if (fds[0] >= 0 && fds[1] >= 0)
		return 0;
	for (int i = 0; i < 2; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return -EMFILE;
}

/* pipe2(2), close-on-exec, never 0, 1 or 2. */
int nsr_stream(int fds[2])
{
	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	return lift_both(fds);
}

/* The same packet by packet. */
int nsr_pipe(int fds[2])
{
	if (pipe2(fds, O_CLOEXEC | O_DIRECT))
		return -errno;
	return lift_both(fds);
}

/* The same as sockets. */
int nsr_packets(int fds[2])
{
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds))
		return -errno;
	return lift_both(fds);
}

/* The same; what is read from the first one says who sent it. */
int nsr_record_packets(int fds[2])
{
	const int on = 1;
	int ret = nsr_packets(fds);

	if (!ret && setsockopt(fds[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on))) {
		ret = -errno;
		close(fds[0]);
		close(fds[1]);
	}
	return ret;
}

int nsr_write_whole(int fd, const void *data, size_t len)
{
	const char *at = data;

	while (len) {
		ssize_t n = write(fd, at, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

/* 1: a record, 0: the end.  The text that came with it ends with a NUL. */
static int took(ssize_t n, char text[NSR_RECORD_TEXT])
{
	if (n > (ssize_t)sizeof(struct nsr_record))
		text[(size_t)n - sizeof(struct nsr_record) - 1] = '\0';
	return n >= (ssize_t)sizeof(struct nsr_record);
}

int nsr_receive_record(int fd, struct nsr_record *record, char text[NSR_RECORD_TEXT])
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec parts[2] = { { record, sizeof(*record) }, { text, NSR_RECORD_TEXT } };
	struct msghdr msg = { .msg_iov = parts, .msg_iovlen = 2, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *header;
	struct ucred cred;
	ssize_t n;

	do
		n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	header = CMSG_FIRSTHDR(&msg);
	if (header && header->cmsg_type == SCM_CREDENTIALS && !record->pid) {
		memcpy(&cred, CMSG_DATA(header), sizeof(cred));
		record->pid = cred.pid;
	}
	return took(n, text);
}

/* From a pipe; -errno. */
int nsr_read_record(int fd, struct nsr_record *record, char text[NSR_RECORD_TEXT])
{
	const struct iovec parts[2] = { { record, sizeof(*record) },
					{ text, NSR_RECORD_TEXT } };
	ssize_t n;

	do
		n = readv(fd, parts, 2);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return took(n, text);
}
