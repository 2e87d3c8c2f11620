/*
 * no_root [bar]: as uid 0 of a new user namespace, with all its capabilities; become a shell
 * that tells its own. "bar": after csrc/core/caps.c has barred that, and a try to lift it.
 */
#define _GNU_SOURCE
#include "caps.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static int map_root(uid_t uid)
{
    char line[32];
    int length = snprintf(line, sizeof line, "0 %u 1", uid);
    int fd = open("/proc/self/uid_map", O_WRONLY);

    return fd >= 0 && write(fd, line, (size_t)length) == length ? close(fd) : -1;
}

int main(int argc, char **argv)
{
    uid_t uid = geteuid();

    if (unshare(CLONE_NEWUSER) != 0 || map_root(uid) != 0) {
        return 1;
    }
    if (argc > 1 && strcmp(argv[1], "bar") == 0) {
        if (nsr_caps_no_root() != 0) {
            return 2;
        }
        /* SECBIT_NOROOT off again, as someone would who got hold of this process */
        printf("lift %d\n", prctl(PR_SET_SECUREBITS, 0, 0, 0, 0) == 0 ? 0 : errno);
        fflush(stdout);
    }
    execl("/bin/sh", "sh", "-c", "id -u; grep -E '^Cap(Prm|Eff)' /proc/self/status", (char *)NULL);
    return 3;
}
