/*
 * The control of test_in_process.py: what nsrun does from Python, in the wrong
 * order.  Pid 1 of a new pid namespace shares this program's memory, and the
 * payload runs while it does.
 *
 *   early PROGRAM [ARG...]
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[1 << 16];

static int pid_1(void *arg)
{
	char **argv = arg;
	int status;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("proc", "/proc", "proc", 0, NULL))
		_exit(100);
	if (vfork() == 0) {
		execv(argv[1], argv + 1);
		_exit(101);
	}
	wait(&status);
	_exit(WEXITSTATUS(status));
}

int main(int argc, char **argv)
{
	const int flags = CLONE_VM | CLONE_NEWPID | CLONE_NEWNS | SIGCHLD;
	int status;
	pid_t pid;

	if (argc < 2)
		return 102;
	pid = clone(pid_1, stack + sizeof(stack), flags, argv);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 103;
	return WEXITSTATUS(status);
}
