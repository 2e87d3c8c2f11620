/* Sub-commands: one small thing each, for tests that need a payload which does
 * rather than looks, and for the helpers that the harness runs outside. */
#define _GNU_SOURCE
#include "actions.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct action {
    const char *name;
    int words;
    int (*run)(int argc, char **argv);
};

static int failed(const char *what)
{
    fprintf(stderr, "observer: %s: %s\n", what, strerror(errno));
    return 124;
}

static void pause_for(int milliseconds)
{
    struct timespec time = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000L};

    while (nanosleep(&time, &time) != 0 && errno == EINTR) {
    }
}

static int copy(int from, int to)
{
    char bytes[4096];
    ssize_t got;

    while ((got = read(from, bytes, sizeof bytes)) > 0) {
        if (write(to, bytes, (size_t)got) != got) {
            return failed("write");
        }
    }
    return got == 0 ? 0 : failed("read");
}

static int do_exit(int argc, char **argv)
{
    (void)argc;
    return atoi(argv[1]);
}

static int do_signal(int argc, char **argv)
{
    struct rlimit none = {0};

    (void)argc;
    /* a core file would be a trace on the host */
    setrlimit(RLIMIT_CORE, &none);
    signal(atoi(argv[1]), SIG_DFL);
    raise(atoi(argv[1]));
    return 123;
}

static int do_sleep_then_print(int argc, char **argv)
{
    (void)argc;
    pause_for(atoi(argv[1]));
    puts(argv[2]);
    return 0;
}

/* orphan MS TEXT CODE: exit at once, leaving a child that prints later. */
static int do_orphan(int argc, char **argv)
{
    (void)argc;
    fflush(stdout);
    if (fork() == 0) {
        pause_for(atoi(argv[1]));
        puts(argv[2]);
        return 0;
    }
    return atoi(argv[3]);
}

static int do_write_file(int argc, char **argv)
{
    int fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    (void)argc;
    if (fd < 0 || write(fd, argv[2], strlen(argv[2])) < 0) {
        return failed(argv[1]);
    }
    return 0;
}

static int do_read_file(int argc, char **argv)
{
    int fd = open(argv[1], O_RDONLY | O_CLOEXEC);

    (void)argc;
    return fd < 0 ? failed(argv[1]) : copy(fd, STDOUT_FILENO);
}

static int do_cat_fd(int argc, char **argv)
{
    (void)argc;
    return copy(atoi(argv[1]), STDOUT_FILENO);
}

static int do_arguments(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        puts(argv[i]);
    }
    return 0;
}

/* lock-query PATH: the lock that stands in the way of a write lock. */
static int do_lock_query(int argc, char **argv)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = open(argv[1], O_RDWR | O_CLOEXEC);

    (void)argc;
    if (fd < 0 || fcntl(fd, F_GETLK, &lock) != 0) {
        return failed(argv[1]);
    }
    printf("type %d held by %s\n", lock.l_type, lock.l_type == F_UNLCK         ? "nobody"
                                               : lock.l_pid == getppid() ? "the parent"
                                                                         : "another");
    return 0;
}

/* wait-for-input TEXT: say that it runs, then copy stdin to stdout. */
static int do_wait_for_input(int argc, char **argv)
{
    (void)argc;
    puts(argv[1]);
    fflush(stdout);
    return copy(STDIN_FILENO, STDOUT_FILENO);
}

static int hold_until_told(int pid)
{
    char byte;

    printf("%d\n", pid);
    fflush(stdout);
    return read(STDIN_FILENO, &byte, 1) < 0 ? 1 : 0;
}

/* hold-shared: a mount namespace in which every mount is shared. */
static int do_hold_shared(int argc, char **argv)
{
    (void)argc, (void)argv;
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL) != 0 ||
        mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL) != 0) {
        return failed("shared mounts");
    }
    return hold_until_told(getpid());
}

static int do_hold_user(int argc, char **argv)
{
    (void)argc, (void)argv;
    if (unshare(CLONE_NEWUSER) != 0) {
        return failed("user namespace");
    }
    return hold_until_told(getpid());
}

/* hold-pid: a process that is pid 1 of a new pid namespace. */
static int do_hold_pid(int argc, char **argv)
{
    pid_t child;
    int result;

    (void)argc, (void)argv;
    if (unshare(CLONE_NEWPID) != 0) {
        return failed("pid namespace");
    }
    child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            pause();
        }
    }
    result = hold_until_told(child);
    kill(child, SIGKILL);
    return result;
}

int act(int argc, char **argv)
{
    static const struct action actions[] = {
        {"exit", 2, do_exit},
        {"signal", 2, do_signal},
        {"sleep-then-print", 3, do_sleep_then_print},
        {"orphan", 4, do_orphan},
        {"write-file", 3, do_write_file},
        {"read-file", 2, do_read_file},
        {"cat-fd", 2, do_cat_fd},
        {"arguments", 1, do_arguments},
        {"lock-query", 2, do_lock_query},
        {"wait-for-input", 2, do_wait_for_input},
        {"hold-shared", 1, do_hold_shared},
        {"hold-user", 1, do_hold_user},
        {"hold-pid", 1, do_hold_pid},
        {"launch", 2, launch},
    };

    for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++) {
        if (strcmp(argv[0], actions[i].name) == 0 && argc >= actions[i].words) {
            return actions[i].run(argc, argv);
        }
    }
    fprintf(stderr, "observer: unknown action %s\n", argv[0]);
    return 125;
}
