/* launch: become a program in a state that the caller describes exactly. It
 * runs before the program under test, outside of any sandbox, and leaves
 * nothing open behind. Options are carried out in the order given. */
#define _GNU_SOURCE
#include "actions.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PARKED = 400, LAST_CAP = 63 };

struct option {
    const char *name;
    int (*carry_out)(const char *word);
};

/* fd FROM=TO, first half: out of the way of every number that is asked for. */
static int park_fd(const char *word)
{
    int from = atoi(word), to = atoi(strchr(word, '=') + 1);

    if (dup2(from, PARKED + to) < 0) {
        return -1;
    }
    return close(from);
}

static int place_fd(const char *word)
{
    int to = atoi(strchr(word, '=') + 1);

    if (dup2(PARKED + to, to) < 0) {
        return -1;
    }
    return close(PARKED + to);
}

static int close_fd(const char *word)
{
    return close(atoi(word));
}

static int change_mask(int how, const char *word)
{
    unsigned long long set = 1ULL << (atoi(word) - 1);

    return (int)syscall(SYS_rt_sigprocmask, how, &set, NULL, sizeof set);
}

static int block_signal(const char *word)
{
    return change_mask(SIG_BLOCK, word);
}

/* The raw call: a C library refuses the signals that it keeps for itself. */
static int ignore_signal(const char *word)
{
    struct {
        void (*handler)(int);
        unsigned long flags;
        void (*restorer)(void);
        unsigned long long mask;
    } action = {.handler = SIG_IGN};

    return (int)syscall(SYS_rt_sigaction, atoi(word), &action, NULL, sizeof action.mask);
}

static int set_umask(const char *word)
{
    umask((mode_t)strtoul(word, NULL, 8));
    return 0;
}

static int set_groups(const char *word)
{
    gid_t groups[64];
    size_t count = 0;
    char *rest = NULL, *copy = strdup(word);

    for (char *one = strtok_r(copy, ",", &rest); one != NULL && count < 64; one = strtok_r(NULL, ",", &rest)) {
        groups[count++] = (gid_t)atoi(one);
    }
    free(copy);
    return setgroups(count, groups);
}

static int set_gid(const char *word)
{
    gid_t gid = (gid_t)atoi(word);

    return setresgid(gid, gid, gid);
}

static int set_uid(const char *word)
{
    uid_t uid = (uid_t)atoi(word);

    return setresuid(uid, uid, uid);
}

static int take_terminal(const char *word)
{
    return ioctl(atoi(word), TIOCSCTTY, 0);
}

static int join_namespace(const char *word)
{
    int fd = atoi(word);

    return setns(fd, 0) == 0 ? close(fd) : -1;
}

static int keep_bounding(const char *word)
{
    unsigned long long kept = strtoull(word, NULL, 16);

    for (unsigned long cap = 0; cap <= LAST_CAP; cap++) {
        if ((kept >> cap & 1) == 0 && prctl(PR_CAPBSET_READ, cap) == 1 && prctl(PR_CAPBSET_DROP, cap) != 0) {
            return -1;
        }
    }
    return 0;
}

static int limit_files(const char *word)
{
    struct rlimit limit = {.rlim_cur = strtoul(word, NULL, 10), .rlim_max = 4096};

    return setrlimit(RLIMIT_NOFILE, &limit);
}

static int be_nice(const char *word)
{
    return setpriority(PRIO_PROCESS, 0, atoi(word));
}

static int write_file(const char *file, const char *text)
{
    int fd = open(file, O_WRONLY);

    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? close(fd) : -1;
}

static int map_id(const char *file, const char *word, unsigned outside)
{
    char line[32];

    snprintf(line, sizeof line, "%s %u 1", word, outside);
    return write_file(file, line);
}

/* The caller's ids under another number, in a user namespace of their own. */
static int call_it(const char *word)
{
    uid_t uid = geteuid();
    gid_t gid = getegid();

    if (unshare(CLONE_NEWUSER) != 0 || map_id("/proc/self/uid_map", word, uid) != 0 ||
        write_file("/proc/self/setgroups", "deny") != 0) {
        return -1;
    }
    return map_id("/proc/self/gid_map", word, gid);
}

static int carry_out(const char *name, const char *word)
{
    static const struct option options[] = {
        {"park-fd", park_fd}, {"place-fd", place_fd}, {"close", close_fd}, {"block", block_signal},
        {"ignore", ignore_signal}, {"umask", set_umask}, {"groups", set_groups}, {"gid", set_gid},
        {"uid", set_uid}, {"terminal", take_terminal}, {"namespace", join_namespace}, {"chdir", chdir},
        {"bounding", keep_bounding}, {"files", limit_files}, {"nice", be_nice}, {"called", call_it},
    };

    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        if (strcmp(name, options[i].name) == 0) {
            return options[i].carry_out(word);
        }
    }
    errno = EINVAL;
    return -1;
}

int launch(int argc, char **argv)
{
    int i = 1;

    for (; i + 1 < argc && strcmp(argv[i], "--") != 0; i += 2) {
        if (carry_out(argv[i], argv[i + 1]) != 0) {
            fprintf(stderr, "observer: launch %s %s: %s\n", argv[i], argv[i + 1], strerror(errno));
            return 125;
        }
    }
    if (i + 2 >= argc) {
        fprintf(stderr, "observer: launch what?\n");
        return 125;
    }
    /* "-- PROGRAM ARGV0 ARGS...": the name is the caller's choice */
    execv(argv[i + 1], argv + i + 2);
    fprintf(stderr, "observer: launch %s: %s\n", argv[i + 1], strerror(errno));
    return 125;
}
