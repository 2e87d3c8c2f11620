/* SPDX-License-Identifier: MIT */
/* userns.c - user, pid and network namespaces from their inside; child. */
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "caps.h"
#include "spawn.h"
#include "sys.h"

enum { LISTEN_BACKLOG = 128 };

static int write_at(int dir, const char *name, const char *text)
{
	long fd = SYS3(SYS_openat, dir, name, O_WRONLY | O_CLOEXEC);
	long ret;

	if (fd < 0)
		return (int)fd;
	ret = SYS3(SYS_write, fd, text, strlen(text));
	SYS1(SYS_close, fd);
	return ret < 0 ? (int)ret : 0;
}

/* One id each; setgroups(2) goes first, or the kernel refuses the group's map. */
static int write_maps(struct nsr_ctx *ctx, int dir, const char *const names[3],
		      const char *uid_map, const char *gid_map, int deny_setgroups)
{
	int ret = write_at(dir, names[0], uid_map);

	if (ret)
		return nsr_fail(ctx, NSR_STEP_UID_MAP, ret);
	if (deny_setgroups) {
		ret = write_at(dir, names[1], "deny\n");
		if (ret)
			return nsr_fail(ctx, NSR_STEP_SETGROUPS, ret);
	}
	ret = write_at(dir, names[2], gid_map);
	return ret ? nsr_fail(ctx, NSR_STEP_GID_MAP, ret) : 0;
}

int nsr_userns_maps(struct nsr_ctx *ctx)
{
	static const char *const names[3] = { "/proc/self/uid_map", "/proc/self/setgroups",
					      "/proc/self/gid_map" };

	return write_maps(ctx, NSR_AT_FDCWD, names, ctx->uid_map, ctx->gid_map, 1);
}

static int forbid_userns(struct nsr_ctx *ctx)
{
	long fd = SYS3(SYS_openat, ctx->proc_fd, "sys/user/max_user_namespaces",
		       O_WRONLY | O_CLOEXEC);
	long ret;

	if (fd < 0)
		return nsr_fail(ctx, NSR_STEP_MAX_USERNS_OPEN, fd);
	ret = SYS3(SYS_write, fd, "1", 1);
	SYS1(SYS_close, fd);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_MAX_USERNS, ret) : 0;
}

/* The mounts are made: leave uid 0, or the right to make namespaces, behind. */
int nsr_userns_second(struct nsr_ctx *ctx)
{
	static const char *const names[3] = { "self/uid_map", NULL, "self/gid_map" };
	long ret;

	if (ctx->plan->number[NSR_FLAGS] & NSR_DISABLE_USERNS && forbid_userns(ctx))
		return -1;
	ret = SYS1(SYS_unshare, NSR_CLONE_NEWUSER);
	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_UNSHARE_USER, ret);
	return write_maps(ctx, ctx->proc_fd, names, ctx->uid_map2, ctx->gid_map2, 0);
}

int nsr_userns_assert(struct nsr_ctx *ctx)
{
	if (SYS1(SYS_unshare, NSR_CLONE_NEWUSER) == 0)
		return nsr_fail(ctx, NSR_STEP_USERNS_ENABLED, 0);
	return 0;
}

/*
 * Bringing lo up gives it 127.0.0.1/8 and ::1 by itself, see inetdev_event()
 * in the kernel, so no address is added by netlink.
 */
int nsr_loopback_up(struct nsr_ctx *ctx)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	const unsigned long siocsifflags = 0x8914;
	long fd = SYS3(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	long ret;

	if (fd < 0)
		return nsr_fail(ctx, NSR_STEP_LO_SOCKET, fd);
	ret = SYS3(SYS_ioctl, fd, siocsifflags, &request);
	SYS1(SYS_close, fd);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_LO_UP, ret) : 0;
}

static int listen_on(struct nsr_ctx *ctx, uint16_t port)
{
	const struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = (uint16_t)(port << 8 | port >> 8),
		.sin_addr = { .s_addr = __builtin_bswap32(0x7f000001) },
	};
	char text[32] = "127.0.0.1:";
	long fd = SYS3(SYS_socket, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	long ret = fd;

	if (fd >= 0)
		ret = SYS3(SYS_bind, fd, &address, sizeof(address));
	if (ret >= 0)
		ret = SYS2(SYS_listen, fd, LISTEN_BACKLOG);
	if (ret >= 0)
		return (int)fd;
	nsr_number_behind(text, port);
	return nsr_fail_text(ctx, NSR_STEP_LISTEN, ret, text);
}

/*
 * The sandbox's own network has nobody but us yet: take the ports of the proxy
 * and pass the sockets out, so that what accepts there runs outside.
 */
int nsr_listen_inside(struct nsr_ctx *ctx)
{
	const int fds[2] = { listen_on(ctx, NSR_PORT_HTTP), listen_on(ctx, NSR_PORT_SOCKS) };
	int to = (int)ctx->plan->number[NSR_LISTEN_FD];
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(fds))];
	} control = { .align = { .cmsg_len = CMSG_LEN(sizeof(fds)), .cmsg_level = SOL_SOCKET,
				 .cmsg_type = SCM_RIGHTS } };
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	long ret;

	if (fds[0] < 0 || fds[1] < 0)
		return -1;
	memcpy(CMSG_DATA(&control.align), fds, sizeof(fds));
	ret = SYS3(SYS_sendmsg, to, &msg, MSG_NOSIGNAL);
	SYS1(SYS_close, fds[0]);
	SYS1(SYS_close, fds[1]);
	SYS1(SYS_close, to);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_LISTEN_SEND, ret) : 0;
}

/* Go on in a child, which is where a joined or unshared pid namespace begins. */
static int fork_over(struct nsr_ctx *ctx)
{
	const long sigchld = 17;
	long pid = SYS5(SYS_clone, sigchld, 0, 0, 0, 0);

	if (pid < 0)
		return nsr_fail(ctx, NSR_STEP_PIDNS_FORK, pid);
	if (pid > 0)
		SYS1(SYS_exit_group, 0);
	return 0;
}

/* Only the kernel can translate our pid for the monitor: SCM_CREDENTIALS does. */
static int send_pid(struct nsr_ctx *ctx)
{
	struct ucred cred = {
		.pid = (pid_t)SYS0(SYS_getpid),
		.uid = (uid_t)SYS0(SYS_geteuid),
		.gid = (gid_t)SYS0(SYS_getegid),
	};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(cred))];
	} control = { .align = { .cmsg_len = CMSG_LEN(sizeof(cred)), .cmsg_level = SOL_SOCKET,
				 .cmsg_type = SCM_CREDENTIALS } };
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	long ret;

	memcpy(CMSG_DATA(&control.align), &cred, sizeof(cred));
	ret = SYS3(SYS_sendmsg, ctx->pid_sock[1], &msg, 0);
	SYS1(SYS_close, ctx->pid_sock[0]);
	SYS1(SYS_close, ctx->pid_sock[1]);
	return ret < 0 ? nsr_fail(ctx, NSR_STEP_PIDNS_SEND, ret) : 0;
}

int nsr_pidns_enter(struct nsr_ctx *ctx)
{
	long ret = SYS2(SYS_setns, ctx->plan->number[NSR_PIDNS_FD], NSR_CLONE_NEWPID);

	if (ret < 0)
		return nsr_fail(ctx, NSR_STEP_PIDNS, ret);
	if (fork_over(ctx))
		return -1;
	if (ctx->facts.unshare & NSR_CLONE_NEWPID) {
		ret = SYS1(SYS_unshare, NSR_CLONE_NEWPID);
		if (ret < 0)
			return nsr_fail(ctx, NSR_STEP_PIDNS, ret);
		if (fork_over(ctx))
			return -1;
	}
	return send_pid(ctx);
}
