/* SPDX-License-Identifier: MIT */
/* nested: run a program where no further user namespace can be made.
 *
 *   nested LIMIT UID GID PROGRAM ARGS...
 *
 * In a new user and mount namespace with all of the host's ids, where
 * user.max_user_namespaces is LIMIT; set-user-id programs work there. To be
 * run by root. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FAILED = 125 };

static void fail(const char *what)
{
    perror(what);
    _exit(FAILED);
}

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, text, strlen(text)) < 0) {
        fail(path);
    }
    close(fd);
}

static void become(uid_t uid, gid_t gid)
{
    if (setgroups(0, NULL) != 0 || setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0) {
        fail("ids");
    }
    /* lost by the change of ids; an ordinary user's process has it */
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static void inside(char **argv, int ready, int mapped)
{
    char byte;

    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0 || write(ready, "", 1) != 1 ||
        read(mapped, &byte, 1) != 1) {
        fail("unshare");
    }
    close(ready);
    close(mapped);
    if (setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
        fail("root inside");
    }
    put("/proc/sys/user/max_user_namespaces", argv[1]);
    become((uid_t)atoi(argv[2]), (gid_t)atoi(argv[3]));
    execv(argv[4], argv + 4);
    fail(argv[4]);
}

int main(int argc, char **argv)
{
    int ready[2], mapped[2], status;
    char path[64], byte;
    pid_t pid;

    if (argc < 5 || pipe2(ready, O_CLOEXEC) != 0 || pipe2(mapped, O_CLOEXEC) != 0) {
        fail("nested");
    }
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        inside(argv, ready[1], mapped[0]);
    }
    close(ready[1]);
    if (pid < 0 || read(ready[0], &byte, 1) != 1) {
        fail("child");
    }
    snprintf(path, sizeof(path), "/proc/%d/uid_map", pid);
    put(path, "0 0 65536\n");
    snprintf(path, sizeof(path), "/proc/%d/gid_map", pid);
    put(path, "0 0 65536\n");
    if (write(mapped[1], "", 1) != 1 || waitpid(pid, &status, 0) != pid) {
        fail("wait");
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
