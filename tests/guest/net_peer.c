/* SPDX-License-Identifier: MIT */
/*
 * net_peer.c - a kernel's own TCP on one side, a socket of frames on the other.
 *   net_peer FD MTU COMMAND...
 * Runs the command in a network namespace that has nothing but a loopback and a TAP
 * device, which is set up as an agent does it; its frames are the socket's records.
 * The status is the command's.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/guest/net_up.h"
#include "../../csrc/net/addresses.h"

enum { FRAME = 65536 };

static void must(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "net_peer: %s: %s\n", what, strerror(errno));
	exit(99);
}

static void link_up(int socket_fd, const char *name)
{
	struct ifreq link = { .ifr_flags = 0 };

	strcpy(link.ifr_name, name);
	must(!ioctl(socket_fd, SIOCGIFFLAGS, &link), "SIOCGIFFLAGS");
	link.ifr_flags |= IFF_UP;
	must(!ioctl(socket_fd, SIOCSIFFLAGS, &link), "SIOCSIFFLAGS");
}

static int make_tap(int mtu)
{
	static const uint8_t mac[6] = NSR_NET_MAC;
	struct ifreq link = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	int socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	must(tap >= 0, "/dev/net/tun");
	strcpy(link.ifr_name, "eth0");
	must(!ioctl(tap, TUNSETIFF, &link), "TUNSETIFF");
	link.ifr_hwaddr.sa_family = ARPHRD_ETHER;
	memcpy(link.ifr_hwaddr.sa_data, mac, sizeof(mac));
	must(!ioctl(socket_fd, SIOCSIFHWADDR, &link), "SIOCSIFHWADDR");
	link.ifr_mtu = mtu;
	must(!ioctl(socket_fd, SIOCSIFMTU, &link), "SIOCSIFMTU");
	link_up(socket_fd, "lo");
	close(socket_fd);
	return tap;
}

/* Everything that is there, one way; the receiver may make us wait. */
static void pump(int from, int to)
{
	static uint8_t frame[FRAME];
	struct pollfd room = { .fd = to, .events = POLLOUT };
	ssize_t n;

	while ((n = read(from, frame, sizeof(frame))) > 0)
		while (write(to, frame, (size_t)n) < 0 && errno == EAGAIN)
			poll(&room, 1, -1);
}

int main(int argc, char **argv)
{
	const char *failed;
	struct pollfd polls[3] = { { .events = POLLIN }, { .events = POLLIN }, { .events = POLLIN } };
	int status, tap, frames;
	pid_t child;

	if (argc < 4)
		return 98;
	frames = atoi(argv[1]);
	must(!fcntl(frames, F_SETFD, FD_CLOEXEC), "FD");
	must(!fcntl(frames, F_SETFL, O_NONBLOCK), "FD");
	must(!unshare(CLONE_NEWNET), "a network namespace");
	tap = make_tap(atoi(argv[2]));
	failed = nsr_guest_net_up();
	must(!failed, failed);
	signal(SIGPIPE, SIG_IGN);
	child = fork();
	must(child >= 0, "fork");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGPIPE, SIG_DFL);
		execvp(argv[3], argv + 3);
		must(0, argv[3]);
	}
	polls[0].fd = tap;
	polls[1].fd = frames;
	polls[2].fd = (int)syscall(SYS_pidfd_open, child, 0);
	must(polls[2].fd >= 0, "pidfd_open");
	while (!polls[2].revents) {
		must(poll(polls, 3, -1) > 0, "poll");
		pump(tap, frames);
		pump(frames, tap);
		if (polls[1].revents & POLLHUP)
			polls[1].fd = -1;
	}
	must(waitpid(child, &status, 0) == child, "waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
