/* SPDX-License-Identifier: MIT */
/* walls: what a confined program tries. Each attempt prints "NAME ERRNO", 0 where it
 * succeeded; the tests say what has to fail.
 *
 *   walls files OUTSIDE SECRET OWN   a directory and a file of others, a directory of ours
 *   walls process PID                a process outside, of the same user
 *   walls unix PATH ABSTRACT         sockets that somebody listens at
 *   walls tcp CONNECT BIND           ports
 *   walls calls                      what needs no object
 *   walls wait                       be a victim: nothing, until killed
 *   walls runner                     leave a process that is always another one
 *   walls deep DIR LEVELS            directories within each other, without any mode */
#define _GNU_SOURCE
#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { URING_SETUP = 425 };

static long tell(const char *name, long ret)
{
    printf("%s %d\n", name, ret < 0 ? errno : 0);
    fflush(stdout);
    return ret;
}

static const char *in(const char *dir, const char *name)
{
    char *path = NULL;

    /* never freed: the program ends soon */
    return asprintf(&path, "%s/%s", dir, name) < 0 ? "" : path;
}

static long opens(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC | O_NOCTTY, 0600);

    if (fd >= 0) {
        close(fd);
    }
    return fd;
}

static long lists(const char *path)
{
    DIR *dir = opendir(path);

    if (dir == NULL) {
        return -1;
    }
    closedir(dir);
    return 0;
}

static int files(char **arg)
{
    const char *outside = arg[0], *secret = arg[1], *own = arg[2];

    tell("read", opens(secret, O_RDONLY));
    tell("list", lists(outside));
    tell("read-by-root", opens(in("/proc/self/root", secret), O_RDONLY));
    tell("read-by-dots", opens(in(own, in("../../../../../../../..", secret)), O_RDONLY));
    tell("link-to-it", symlink(secret, in(own, "link")));
    tell("read-by-link", opens(in(own, "link"), O_RDONLY));
    tell("hard-link", link(secret, in(own, "hard")));
    tell("write", opens(in(outside, "file"), O_WRONLY));
    tell("append", opens(in(outside, "file"), O_WRONLY | O_APPEND));
    tell("create", opens(in(outside, "new"), O_WRONLY | O_CREAT | O_EXCL));
    tell("mkdir", mkdir(in(outside, "newdir"), 0700));
    tell("symlink", symlink("x", in(outside, "newlink")));
    tell("fifo", mkfifo(in(outside, "newfifo"), 0600));
    tell("truncate", truncate(in(outside, "file"), 0));
    tell("move-in", rename(in(outside, "file"), in(own, "taken")));
    tell("own-create", opens(in(own, "mine"), O_WRONLY | O_CREAT));
    tell("own-mkdir", mkdir(in(own, "dir"), 0700));
    tell("own-move", rename(in(own, "mine"), in(own, "dir/mine")));
    tell("move-out", rename(in(own, "dir/mine"), in(outside, "planted")));
    tell("remove", unlink(in(outside, "file2")));
    tell("remove-dir", rmdir(in(outside, "sub")));
    tell("null", opens("/dev/null", O_RDWR));
    return 0;
}

/* At an address that is mapped in any copy of this program. */
static long reads_memory(pid_t pid)
{
    static const char there_too = 'x';
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)(uintptr_t)&there_too, 1};

    return process_vm_readv(pid, &here, 1, &there, 1, 0);
}

static int process(char **arg)
{
    pid_t pid = atoi(arg[0]);
    struct rlimit limit = {64, 64};
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/environ", pid);
    tell("environ", opens(path, O_RDONLY));
    snprintf(path, sizeof(path), "/proc/%d/mem", pid);
    tell("mem", opens(path, O_RDONLY));
    tell("vm-read", reads_memory(pid));
    tell("limit", prlimit(pid, RLIMIT_NOFILE, &limit, NULL));
    tell("own-limit", prlimit(0, RLIMIT_NOFILE, &limit, NULL));
    if (tell("trace", ptrace(PTRACE_ATTACH, pid, NULL, NULL)) >= 0) {
        waitpid(pid, NULL, __WALL);
        ptrace(PTRACE_DETACH, pid, NULL, NULL);
    }
    tell("signal", kill(pid, SIGUSR1));
    return 0;
}

static int connects(const char *name, int abstract)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int ret;

    if (fd < 0) {
        return -1;
    }
    snprintf(to.sun_path + abstract, sizeof(to.sun_path) - 1, "%s", name);
    ret = connect(fd, (struct sockaddr *)&to,
                  (socklen_t)(offsetof(struct sockaddr_un, sun_path) + abstract + strlen(name)));
    close(fd);
    return ret;
}

static int unix_sockets(char **arg)
{
    int pair[2];

    tell("path", connects(arg[0], 0));
    tell("abstract", connects(arg[1], 1));
    tell("pair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    return 0;
}

static int tcp(char **arg)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    at.sin_port = htons((uint16_t)atoi(arg[0]));
    tell("connect", connect(fd, (struct sockaddr *)&at, sizeof(at)));
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    at.sin_port = htons((uint16_t)atoi(arg[1]));
    tell("bind", bind(fd, (struct sockaddr *)&at, sizeof(at)));
    return 0;
}

static int calls(char **arg)
{
    unsigned char params[120] = {0};

    (void)arg;
    tell("uring", syscall(URING_SETUP, 1, params));
    tell("new-user", unshare(CLONE_NEWUSER | CLONE_NEWNS));
    tell("mount", mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
    tell("tmpfs", mount("none", "/tmp", "tmpfs", 0, NULL));
    return 0;
}

/* The first one ends at once; another is there when anybody looks. */
static int runner(char **arg)
{
    (void)arg;
    if (fork() != 0) {
        usleep(20000);
        return 0;
    }
    setsid();
    for (;;) {
        if (fork() > 0) {
            _exit(0);
        }
    }
}

static int victim(char **arg)
{
    (void)arg;
    signal(SIGUSR1, SIG_IGN);
    tell("waiting", 0);
    while (pause() < 0) {
        continue;
    }
    return 0;
}

static int deep(char **arg)
{
    int levels = atoi(arg[1]), ret = chdir(arg[0]);

    for (int i = 0; i < levels && ret == 0; i++) {
        ret = mkdir("d", 0700) || chdir("d") || close(creat("f", 0)) ? -1 : 0;
    }
    for (int i = 0; i < levels && ret == 0; i++) {
        ret = chdir("..") || chmod("d", 0) ? -1 : 0;
    }
    tell("deep", ret);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int args;
        int (*run)(char **arg);
    } modes[] = {
        {"files", 3, files}, {"process", 1, process}, {"unix", 2, unix_sockets},
        {"tcp", 2, tcp},     {"calls", 0, calls},     {"runner", 0, runner},
        {"deep", 2, deep},   {"wait", 0, victim},
    };

    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (argc > 1 && strcmp(modes[i].name, argv[1]) == 0 && argc == modes[i].args + 2) {
            return modes[i].run(argv + 2);
        }
    }
    fprintf(stderr, "walls: no such attempt\n");
    return 125;
}
