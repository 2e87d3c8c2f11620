/* SPDX-License-Identifier: MIT */
/*
 * main.c - nsrun-agent: runs plans for a host that is at the other end of
 * streams.  As pid 1 it is the first process of a guest and listens on vsock.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "agent.h"
#include "job.h"

enum { BACKLOG = 128, USAGE = 2 };

struct nsr_agent nsr_agent = { .program = -1 };

static _Noreturn void die(const char *what)
{
	nsr_say("%s: %s", what, strerror(errno));
	exit(EXIT_FAILURE);
}

/* Numbers that a warden gives to what it begins with: none of ours is among them. */
static void take_first_fds(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (fd < 0)
			fd = open("/", O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			die("/dev/null");
	} while (fd < NSR_JOB_END);
	close(fd);
}

static int listen_vsock(void)
{
	const struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = NSR_AGENT_PORT,
					     .svm_cid = VMADDR_CID_ANY };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof(address)) ||
	    listen(fd, BACKLOG))
		die("vsock");
	return fd;
}

/* Whoever may connect runs what he likes: the path is its owner's alone. */
static int listen_unix(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		die(path);
	}
	strcpy(address.sun_path, path);
	umask(0077);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof(address)) ||
	    listen(fd, BACKLOG))
		die(path);
	return fd;
}

static void keep_limits(void)
{
	struct rlimit own;

	if (getrlimit(RLIMIT_NOFILE, &own))
		die("nofile");
	nsr_agent.nofile = own;
	own.rlim_cur = own.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &own))
		die("nofile");
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		nsr_command_reaped(pid, status);
}

static void signal_ready(struct nsr_watch *watch, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)events;
	while (read(watch->fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
		if (info.ssi_signo != SIGCHLD)
			nsr_power_off();
	reap();
}

static void watch_signals(void)
{
	static struct nsr_watch watch = { .ready = signal_ready };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* a caller that ignores it would make our children unwaitable */
	signal(SIGCHLD, SIG_DFL);
	watch.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (watch.fd < 0 || nsr_loop_add(&watch))
		die("signals");
}

static _Noreturn void serve(int listener, int host_only)
{
	if (nsr_loop_open())
		die("epoll");
	watch_signals();
	if (nsr_hello_listen(listener, host_only))
		die("epoll");
	for (;;) {
		int64_t next = nsr_earlier(nsr_hellos_tend(), nsr_commands_tend());

		if (nsr_loop_turn(next))
			die("epoll");
	}
}

static int usage(void)
{
	fputs("usage: nsrun-agent --listen-unix PATH\n"
	      "Runs plans for whoever connects; by itself the first process of a microVM.\n", stderr);
	return USAGE;
}

static _Noreturn void be_first(const char *program)
{
	nsr_agent.pid_1 = 1;
	/* before the root changes */
	nsr_agent.program = open(program, O_PATH | O_CLOEXEC);
	if (nsr_agent.program < 0)
		die(program);
	nsr_boot();
	serve(listen_vsock(), 1);
}

static _Noreturn void be_server(const char *path)
{
	nsr_agent.program = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	if (nsr_agent.program < 0)
		die("/proc/self/exe");
	keep_limits();
	serve(listen_unix(path), 0);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], NSR_WARDEN_OPTION))
		return nsr_warden_main();
	take_first_fds();
	if (argc == 3 && !strcmp(argv[1], "--listen-unix"))
		be_server(argv[2]);
	/* words of the kernel's command line may be among our arguments */
	if (getpid() == 1 && argc)
		be_first(argv[0]);
	return usage();
}
