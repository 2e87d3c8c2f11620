/* SPDX-License-Identifier: MIT */
/* attacker: a payload, or a neighbour outside, that tries to get out.
 *
 *   attacker MODE ARGS...
 *
 * Each attempt prints "NAME ERRNO", 0 where it succeeded; the tests say what
 * has to fail. The modes that run outside the sandbox go on until killed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EXCHANGE = 2, LAST_SIGNAL = 64, MANY_LEVELS = 64, LONGEST_LIFE = 300 };

struct mode {
    const char *name;
    int args;
    int (*run)(char **arg);
};

/* A handle is read by the kernel as this header and the bytes behind it. */
struct handle {
    struct file_handle head;
    unsigned char bytes[MAX_HANDLE_SZ];
};

static int tell(const char *name, long ret)
{
    printf("%s %d\n", name, ret < 0 ? errno : 0);
    fflush(stdout);
    return 0;
}

static int open_and_close(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd >= 0) {
        close(fd);
    }
    return fd;
}

/* ---- neighbours outside ------------------------------------------------------ */

/* swap A B: exchange two names for ever. */
static int swap(char **arg)
{
    for (;;) {
        if (syscall(SYS_renameat2, AT_FDCWD, arg[0], AT_FDCWD, arg[1], EXCHANGE) != 0) {
            return 1;
        }
    }
}

/* churn DIR: mounts and unmounts without end, in a mount namespace of its own. */
static int churn(char **arg)
{
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
        return 1;
    }
    for (;;) {
        if (mount("churn", arg[0], "tmpfs", 0, NULL) != 0 || umount(arg[0]) != 0) {
            return 1;
        }
    }
}

/* unsafe-mkdir PATH N: what a program does that trusts names, as a control. */
static int unsafe_mkdir(char **arg)
{
    for (int i = 0; i < atoi(arg[1]); i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/%d", arg[0], i);
        mkdir(path, 0755);
    }
    return 0;
}

/* ---- pid 1 ---------------------------------------------------------------------- */

static void look_at_fd(const char *directory, const char *name)
{
    char path[64 + NAME_MAX], target[PATH_MAX];
    struct stat info;
    ssize_t length;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    length = readlink(path, target, sizeof target - 1);
    if (length < 0 || stat(path, &info) != 0) {
        return;
    }
    target[length] = '\0';
    printf("%s %s %s\n", S_ISDIR(info.st_mode) ? "directory" : "other", path, target);
}

/* What pid 1 holds open, one line each. */
static int fds_of_pid_1(char **arg)
{
    DIR *directory = opendir("/proc/1/fd");
    struct dirent *entry;

    (void)arg;
    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        if (entry->d_name[0] != '.') {
            look_at_fd("/proc/1/fd", entry->d_name);
        }
    }
    return tell("enumerate", directory == NULL ? -1 : 0);
}

/* reach-by-pid-1 PATH: a file of the host by every door that pid 1 could be. */
static int reach_by_pid_1(char **arg)
{
    static const char *const doors[] = {"root", "cwd", "root/..", "cwd/..", "cwd/../../../.."};
    char path[PATH_MAX];

    for (size_t i = 0; i < sizeof doors / sizeof doors[0]; i++) {
        snprintf(path, sizeof path, "/proc/1/%s/%s", doors[i], arg[0]);
        tell(doors[i], open_and_close(path, O_RDONLY));
    }
    for (int fd = 0; fd < 64; fd++) {
        snprintf(path, sizeof path, "/proc/1/fd/%d/%s", fd, arg[0]);
        if (open_and_close(path, O_RDONLY) >= 0) {
            tell("fd", 0);
        }
    }
    return 0;
}

static void change_memory(pid_t pid)
{
    char path[64], line[256];
    unsigned long start = 0;
    FILE *maps;
    int fd;

    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    maps = fopen(path, "r");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL && strstr(line, "[stack]") == NULL) {
    }
    start = maps == NULL ? 0 : strtoul(line, NULL, 16);
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    fd = open(path, O_RDWR | O_CLOEXEC);
    tell("mem", fd < 0 ? -1 : pwrite(fd, "", 1, (off_t)start));
    struct iovec from = {line, 1}, to = {(void *)start, 1};
    tell("process_vm_writev", process_vm_writev(pid, &from, 1, &to, 1, 0));
}

/* touch-pid-1: it may be ptraced, as bwrap's may: then it must have nothing. */
static int touch_pid_1(char **arg)
{
    (void)arg;
    change_memory(1);
    tell("ptrace", ptrace(PTRACE_SEIZE, 1, NULL, NULL));
    return 0;
}

static int signal_pid_1(char **arg)
{
    (void)arg;
    for (int number = 1; number <= LAST_SIGNAL; number++) {
        kill(1, number);
    }
    return 7;
}

/* The same on a process that is not pid 1: dies of the first that kills. */
static int signal_a_child(char **arg)
{
    pid_t child = fork();
    int status = 0;

    (void)arg;
    if (child == 0) {
        pause();
        _exit(0);
    }
    for (int number = 1; number <= LAST_SIGNAL; number++) {
        kill(child, number);
    }
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? 9 : 0;
}

/* forge BYTES_OF_RECORD LAST_STEP LAST_OP: say in pid 1's name that all failed. */
static int forge(char **arg)
{
    size_t size = (size_t)atoi(arg[0]);
    int32_t *record = calloc(1, size);

    for (int fd = 3; record != NULL && fd < 64; fd++) {
        char path[64];
        int pipe;
        snprintf(path, sizeof path, "/proc/1/fd/%d", fd);
        pipe = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
        for (int step = -1; pipe >= 0 && step <= atoi(arg[1]); step++) {
            for (int op = -1; op <= atoi(arg[2]); op++) {
                int32_t head[4] = {1, step, 1, op};
                memcpy(record, head, sizeof head);
                memset(record + 6, 'x', size - 24);
                if (write(pipe, record, size) < 0) {
                    usleep(1000);
                }
            }
        }
    }
    return 0;
}

/* ---- processes --------------------------------------------------------------------- */

/* fork-bomb: deaf to every signal that can be ignored, as many as there may be. */
static int fork_bomb(char **arg)
{
    (void)arg;
    for (int number = 1; number <= LAST_SIGNAL; number++) {
        signal(number, SIG_IGN);
    }
    alarm(0);
    printf("started\n");
    fflush(stdout);
    for (const time_t end = time(NULL) + LONGEST_LIFE; time(NULL) < end;) {
        if (fork() == 0) {
            setsid();
        }
        usleep(5000);
    }
    return 0;
}

/* linger: tell that it runs, then wait. */
static int linger(char **arg)
{
    (void)arg;
    printf("started\n");
    fflush(stdout);
    sleep(LONGEST_LIFE);
    return 0;
}

/* ---- ways out ------------------------------------------------------------------------ */

static int reach(char **arg)
{
    return tell("reach", open_and_close(arg[0], O_RDONLY));
}

static int write_to(char **arg)
{
    return tell("write", open_and_close(arg[0], O_WRONLY));
}

static int make_file(char **arg)
{
    return tell("create", open_and_close(arg[0], O_WRONLY | O_CREAT));
}

/* The classic: keep a directory, chroot below it, climb. */
static int climb_out_of_chroot(char **arg)
{
    int kept = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    mkdir("/below", 0755);
    if (chroot("/below") != 0 || fchdir(kept) != 0) {
        return tell("climb", -1);
    }
    for (int i = 0; i < MANY_LEVELS; i++) {
        if (chdir("..") != 0) {
            return tell("climb", -1);
        }
    }
    return tell("climb", open_and_close(arg[0] + 1, O_RDONLY));
}

/* in-chroot DIR FILE: the same from a plain chroot, which does not hold. */
static int in_chroot(char **arg)
{
    if (chroot(arg[0]) != 0 || chdir("/") != 0) {
        return 1;
    }
    return climb_out_of_chroot(arg + 1);
}

static int pivot(char **arg)
{
    if (chdir("/") != 0 || mount("pivot", "/tmp", "tmpfs", 0, NULL) != 0 || mkdir("/tmp/old", 0755) != 0) {
        return tell("pivot", -1);
    }
    tell("pivot", syscall(SYS_pivot_root, "/tmp", "/tmp/old"));
    return reach(arg);
}

/* enter-own-namespace FILE: what lies below the root once that is gone. */
static int enter_own_namespace(char **arg)
{
    int own = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);

    tell("detach", umount2("/", MNT_DETACH));
    tell("enter", setns(own, CLONE_NEWNS));
    return reach(arg);
}

/* on-rootfs FD WORDS...: run the program open at FD where "/" is the kernel's
 * first file system, as in an initramfs. */
static int on_rootfs(char **arg)
{
    int own;

    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
        return tell("prepare", -1);
    }
    own = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (umount2("/", MNT_DETACH) != 0 || setns(own, CLONE_NEWNS) != 0) {
        return tell("prepare", -1);
    }
    mkdir("/proc", 0755);
    if (mount("proc", "/proc", "proc", 0, NULL) != 0) {
        return tell("prepare", -1);
    }
    syscall(SYS_execveat, atoi(arg[0]), "", arg + 1, environ, AT_EMPTY_PATH);
    return tell("exec", -1);
}

static int uncover(char **arg)
{
    return tell("umount", umount2(arg[0], MNT_DETACH));
}

static int make_writable(char **arg)
{
    return tell("remount", mount(NULL, arg[0], NULL, MS_REMOUNT | MS_BIND, NULL));
}

static void write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, text, strlen(text)) < 0) {
        perror(path);
    }
    close(fd);
}

/* nested uncover|make-writable PATH: as root of a user namespace of its own. */
static int nested(char **arg)
{
    char map[64];

    snprintf(map, sizeof map, "0 %d 1", (int)getuid());
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
        return tell("nest", -1);
    }
    write_text("/proc/self/uid_map", map);
    return strcmp(arg[0], "uncover") == 0 ? uncover(arg + 1) : make_writable(arg + 1);
}

/* handle DIR FILE: any file of a file system by its handle, whatever is bound. */
static int by_handle(char **arg)
{
    struct handle handle = {.head = {.handle_bytes = MAX_HANDLE_SZ}};
    int mount_id, fd, directory = open(arg[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (directory < 0 || name_to_handle_at(AT_FDCWD, arg[1], &handle.head, &mount_id, 0) != 0) {
        return tell("name", -1);
    }
    fd = open_by_handle_at(directory, &handle.head, O_RDONLY);
    return tell("handle", fd);
}

static int device(char **arg)
{
    tell("mknod", mknod(arg[0], S_IFCHR | 0666, makedev(1, 5)));
    return tell("open", open_and_close(arg[0], O_RDONLY));
}

/* Everything that was inherited, as a namespace to enter or a place to climb from. */
static int leftover_fds(char **arg)
{
    for (int fd = 3; fd < 1024; fd++) {
        char name[32];
        int above = openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        if (above >= 0) {
            tell("climb", openat(above, arg[0], O_RDONLY | O_CLOEXEC));
            close(above);
        }
        if (setns(fd, 0) == 0) {
            snprintf(name, sizeof name, "setns-%d", fd);
            tell(name, 0);
        }
    }
    return 0;
}

static int inject_input(char **arg)
{
    (void)arg;
    return tell("tiocsti", ioctl(STDIN_FILENO, TIOCSTI, "x"));
}

/* no-mkdir: a system call that the test's filter forbids, here and through pid 1. */
static int filtered(char **arg)
{
    (void)arg;
    tell("self", mkdir("/filtered", 0755));
    FILE *status = fopen("/proc/1/status", "r");
    char line[256];
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        if (strncmp(line, "Seccomp", 7) == 0 || strncmp(line, "CapEff", 6) == 0) {
            fputs(line, stdout);
        }
    }
    return 0;
}

/* mounts PROC: the table as the payload sees it. */
static int show_mounts(char **arg)
{
    char text[65536];
    char path[PATH_MAX];
    ssize_t got;
    int fd;

    snprintf(path, sizeof path, "%s/self/mountinfo", arg[0]);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    while ((got = read(fd, text, sizeof text)) > 0) {
        if (write(STDOUT_FILENO, text, (size_t)got) != got) {
            return 1;
        }
    }
    return fd < 0 || got < 0;
}

static const struct mode modes[] = {
    {"swap", 2, swap},
    {"churn", 1, churn},
    {"unsafe-mkdir", 2, unsafe_mkdir},
    {"fds-of-pid-1", 0, fds_of_pid_1},
    {"reach-by-pid-1", 1, reach_by_pid_1},
    {"touch-pid-1", 0, touch_pid_1},
    {"signal-pid-1", 0, signal_pid_1},
    {"signal-a-child", 0, signal_a_child},
    {"forge", 3, forge},
    {"fork-bomb", 0, fork_bomb},
    {"linger", 0, linger},
    {"reach", 1, reach},
    {"write", 1, write_to},
    {"create", 1, make_file},
    {"climb", 1, climb_out_of_chroot},
    {"in-chroot", 2, in_chroot},
    {"pivot", 1, pivot},
    {"enter-own-namespace", 1, enter_own_namespace},
    {"uncover", 1, uncover},
    {"on-rootfs", 2, on_rootfs},
    {"make-writable", 1, make_writable},
    {"nested", 2, nested},
    {"handle", 2, by_handle},
    {"device", 1, device},
    {"leftover-fds", 1, leftover_fds},
    {"tiocsti", 0, inject_input},
    {"filtered", 0, filtered},
    {"mounts", 1, show_mounts},
};

int main(int argc, char **argv)
{
    /* nothing of an attack outlives the suite */
    alarm(LONGEST_LIFE);
    for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof modes[0]; i++) {
        if (strcmp(argv[1], modes[i].name) == 0 && argc >= 2 + modes[i].args) {
            return modes[i].run(argv + 2);
        }
    }
    fprintf(stderr, "attacker: unknown mode\n");
    return 125;
}
