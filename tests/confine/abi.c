/* SPDX-License-Identifier: MIT */
/* abi: run a program on a kernel whose Landlock says that it is of version N.
 *
 *   abi N -- PROGRAM ARGS...
 *
 * landlock_create_ruleset(2) is answered here where it asks for the version; the
 * kernel answers all else. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CREATE_RULESET = 444, ASK_VERSION = 1, PIDFD_OPEN = 434, PIDFD_GETFD = 438 };

static int install(void)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CREATE_RULESET, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ASK_VERSION, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof(program) / sizeof(program[0]), program};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return -1;
    }
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
                        &filter);
}

/* Until nobody is left who could ask. */
static void answer(int listener, long version)
{
    struct pollfd end = {.fd = listener, .events = POLLIN};

    while (poll(&end, 1, -1) >= 0 && (end.revents & POLLIN) != 0) {
        struct seccomp_notif request;
        struct seccomp_notif_resp response;

        memset(&request, 0, sizeof(request));
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &request) != 0) {
            continue;
        }
        response = (struct seccomp_notif_resp){.id = request.id, .val = version};
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
    }
}

int main(int argc, char **argv)
{
    int told[2], fd = -1, status;
    pid_t pid;

    if (argc < 4 || pipe(told) != 0) {
        return 125;
    }
    pid = fork();
    if (pid == 0) {
        fd = install();
        if (fd < 0 || write(told[1], &fd, sizeof(fd)) != sizeof(fd)) {
            perror("abi");
            _exit(125);
        }
        /* until the other one has a copy of it */
        raise(SIGSTOP);
        close(fd);
        execv(argv[3], argv + 3);
        perror(argv[3]);
        _exit(125);
    }
    if (read(told[0], &fd, sizeof(fd)) != sizeof(fd) || waitpid(pid, &status, WUNTRACED) != pid) {
        return 125;
    }
    fd = (int)syscall(PIDFD_GETFD, (int)syscall(PIDFD_OPEN, pid, 0), fd, 0);
    kill(pid, SIGCONT);
    if (fd < 0) {
        perror("abi");
        return 125;
    }
    answer(fd, strtol(argv[1], NULL, 10));
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : 126;
}
