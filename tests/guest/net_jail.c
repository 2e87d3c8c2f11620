/* SPDX-License-Identifier: MIT */
/* net_jail.c - tries, in the jail of nsrun-slirp, each call by name; prints its errno or 0. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "jail.h"

static void say(const char *name, long ret)
{
	printf("%s %d\n", name, ret < 0 ? errno : 0);
}

static void try_sockets(void)
{
	int bytes, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	say("tcp", fd);
	say("listen", listen(fd, 1));
	say("accept", accept(fd, NULL, NULL));
	say("bind", bind(fd, NULL, 0));
	say("fionread", ioctl(fd, FIONREAD, &bytes) < 0 && errno == EPERM ? -1 : 0);
	say("tiocsti", ioctl(0, TIOCSTI, ""));
	say("udp6", socket(AF_INET6, SOCK_DGRAM, 0));
	say("raw", socket(AF_INET, SOCK_RAW, 1));
	say("unix", socket(AF_UNIX, SOCK_STREAM, 0));
	say("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
	say("packet", socket(AF_PACKET, SOCK_DGRAM, 0));
}

static void try_files(void)
{
	say("resolv.conf", open("/etc/resolv.conf", O_RDONLY));
	say("program", open("/proc/self/exe", O_RDONLY));
	say("write", open("/etc/resolv.conf", O_WRONLY));
	say("create", open("/tmp/net_jail", O_RDONLY | O_CREAT, 0600));
	say("unlink", unlink("/tmp/net_jail"));
}

static void try_code(void)
{
	char *const none[] = { NULL };
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	say("mmap", page == MAP_FAILED ? -1 : 0);
	say("mmap-exec", mmap(NULL, 4096, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
			 MAP_FAILED ? -1 : 0);
	say("mprotect-exec", mprotect(page, 4096, PROT_READ | PROT_EXEC));
	say("execve", execve("/bin/true", none, none));
	say("fork", syscall(SYS_clone, 0, NULL, NULL, NULL, NULL));
	say("ptrace", syscall(SYS_ptrace, 0, 0, NULL, NULL));
	say("kill", kill(getppid(), 0));
	say("prctl", prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
}

int main(void)
{
	const char *failed = nsr_net_jail(STDERR_FILENO);

	/* which later calls need no more */
	setvbuf(stdout, malloc(BUFSIZ), _IOFBF, BUFSIZ);
	if (!failed)
		failed = nsr_net_jail_calls();
	if (failed) {
		perror(failed);
		return 1;
	}
	try_sockets();
	try_files();
	try_code();
	return 0;
}
