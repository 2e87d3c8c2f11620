/* observer: a payload that tells everything it can see, as one JSON object.
 *
 *   observer [--out FD] [--tree PATH]... [--stat PATH]...   observe
 *   observer exit N | signal N | ...                        see actions.c
 *   observer launch OPTIONS -- PROGRAM ARGS...              see launch.c
 *
 * What the kernel tells as text is passed on as text: the harness parses and
 * normalises it, in one place. The fds are read before anything is opened. */
#define _GNU_SOURCE
#include "actions.h"
#include "json.h"
#include "network.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    HIGHEST_FD = 1024,
    LARGEST_TEXT = 1 << 18,
    LARGEST_CONTENT = 256,
    DEEPEST = 9,
    MOST_ENTRIES = 600,
    SIGNALS = 64,
};

/* Newer than the oldest kernel headers that this must build with. */
enum {
    NR_PIDFD_OPEN = 434,
    NR_STATMOUNT = 457,
    NR_LISTMOUNT = 458,
    NS_GET_USERNS_REQUEST = 0xb701,
    PIDFD_NAMESPACE_REQUEST = 0xff00,
};
#define LISTMOUNT_ROOT 0xffffffffffffffffULL
#define STATMOUNT_WANTED 0x2bfULL

extern char **environ;

struct options {
    int out;
    int trees;
    int stats;
    char **tree;
    char **stat;
};

/* ---- text files ------------------------------------------------------- */

static ssize_t read_all(const char *path, char *buffer, size_t room)
{
    size_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        return -errno;
    }
    for (;;) {
        ssize_t got = read(fd, buffer + length, room - length);
        if (got <= 0) {
            int error = errno;
            close(fd);
            return got < 0 ? -error : (ssize_t)length;
        }
        length += (size_t)got;
    }
}

static void json_error(struct json *out, const char *key, int error)
{
    char text[32];

    snprintf(text, sizeof text, "errno %d", error);
    json_string(out, key, text);
}

static void file_text(struct json *out, const char *key, const char *path)
{
    char *text = malloc(LARGEST_TEXT);
    ssize_t length = text == NULL ? -ENOMEM : read_all(path, text, LARGEST_TEXT);

    if (length < 0) {
        json_error(out, key, (int)-length);
    } else {
        json_bytes(out, key, text, (size_t)length);
    }
    free(text);
}

static void link_text(struct json *out, const char *key, const char *path)
{
    char target[4096];
    ssize_t length = readlink(path, target, sizeof target);

    if (length < 0) {
        json_error(out, key, errno);
    } else {
        json_bytes(out, key, target, (size_t)length);
    }
}

/* ---- open files ------------------------------------------------------- */

static const char *type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG: return "file";
    case S_IFDIR: return "dir";
    case S_IFLNK: return "link";
    case S_IFCHR: return "char";
    case S_IFBLK: return "block";
    case S_IFIFO: return "fifo";
    case S_IFSOCK: return "socket";
    default: return "other";
    }
}

static void one_fd(struct json *out, int fd)
{
    struct stat info;

    json_open(out, NULL, '{');
    json_number(out, "fd", fd);
    json_hex(out, "flags", (unsigned)fcntl(fd, F_GETFL));
    if (fstat(fd, &info) == 0) {
        json_string(out, "type", type_name(info.st_mode));
        json_number(out, "rdev", (long long)info.st_rdev);
        json_number(out, "tty", isatty(fd));
        /* a pipe's or terminal's position has no meaning: it is -1 */
        json_number(out, "position", S_ISREG(info.st_mode) ? (long long)lseek(fd, 0, SEEK_CUR) : -1);
    }
    json_close(out, '}');
}

static void open_fds(struct json *out)
{
    json_open(out, "fds", '[');
    for (int fd = 0; fd < HIGHEST_FD; fd++) {
        if (fcntl(fd, F_GETFD) >= 0) {
            one_fd(out, fd);
        }
    }
    json_close(out, ']');
}

/* ---- who ---------------------------------------------------------------- */

static void three_ids(struct json *out, const char *key, int call)
{
    unsigned real = 0, effective = 0, saved = 0;

    syscall(call, &real, &effective, &saved);
    json_open(out, key, '[');
    json_number(out, NULL, real);
    json_number(out, NULL, effective);
    json_number(out, NULL, saved);
    json_close(out, ']');
}

static void groups(struct json *out)
{
    gid_t list[256];
    int count = getgroups(256, list);

    json_open(out, "groups", '[');
    for (int i = 0; i < count; i++) {
        json_number(out, NULL, list[i]);
    }
    json_close(out, ']');
}

static void identity(struct json *out)
{
    json_open(out, "identity", '{');
    three_ids(out, "uid", SYS_getresuid);
    three_ids(out, "gid", SYS_getresgid);
    json_number(out, "fsuid", syscall(SYS_setfsuid, -1));
    json_number(out, "fsgid", syscall(SYS_setfsgid, -1));
    groups(out);
    file_text(out, "uid_map", "/proc/self/uid_map");
    file_text(out, "gid_map", "/proc/self/gid_map");
    file_text(out, "setgroups", "/proc/self/setgroups");
    json_close(out, '}');
}

static unsigned long long probe_caps(int option, unsigned long first)
{
    unsigned long long set = 0;

    for (unsigned long cap = 0; cap < 64; cap++) {
        int answer = option == PR_CAP_AMBIENT ? prctl(option, first, cap, 0, 0) : prctl(option, cap, 0, 0, 0);
        if (answer == 1) {
            set |= 1ULL << cap;
        }
    }
    return set;
}

static unsigned long long joined(__u32 low, __u32 high)
{
    return (unsigned long long)high << 32 | low;
}

static void capabilities(struct json *out)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};

    syscall(SYS_capget, &header, data);
    json_open(out, "caps", '{');
    json_hex(out, "effective", joined(data[0].effective, data[1].effective));
    json_hex(out, "permitted", joined(data[0].permitted, data[1].permitted));
    json_hex(out, "inheritable", joined(data[0].inheritable, data[1].inheritable));
    json_hex(out, "bounding", probe_caps(PR_CAPBSET_READ, 0));
    json_hex(out, "ambient", probe_caps(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET));
    json_close(out, '}');
}

static void process_flags(struct json *out)
{
    int death = 0, subreaper = 0;

    prctl(PR_GET_PDEATHSIG, &death);
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
    json_open(out, "prctl", '{');
    json_number(out, "securebits", prctl(PR_GET_SECUREBITS));
    json_number(out, "no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    json_number(out, "seccomp", prctl(PR_GET_SECCOMP));
    json_number(out, "dumpable", prctl(PR_GET_DUMPABLE));
    json_number(out, "keepcaps", prctl(PR_GET_KEEPCAPS));
    json_number(out, "death_signal", death);
    json_number(out, "subreaper", subreaper);
    json_number(out, "speculation", prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0));
    json_number(out, "timer_slack", prctl(PR_GET_TIMERSLACK));
    json_number(out, "personality", personality(0xffffffff));
    json_close(out, '}');
}

/* ---- namespaces ------------------------------------------------------- */

struct ns_kind {
    const char *name;
    int request; /* of the pidfd, numbered from PIDFD_NAMESPACE_REQUEST */
};

static int open_namespace(const struct ns_kind *kind)
{
    char path[64];
    int fd;

    snprintf(path, sizeof path, "/proc/self/ns/%s", kind->name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        /* no /proc: newer kernels answer by pidfd */
        int self = (int)syscall(NR_PIDFD_OPEN, getpid(), 0);
        fd = self < 0 ? -1 : ioctl(self, PIDFD_NAMESPACE_REQUEST + kind->request, 0);
        close(self);
    }
    return fd;
}

/* The user namespace that owns this one: its inode, or why it is not told
 * (EPERM: it lies outside the payload's own). */
static void owner_of(struct json *out, int fd)
{
    struct stat info;
    int owner = ioctl(fd, NS_GET_USERNS_REQUEST);

    if (owner < 0 || fstat(owner, &info) != 0) {
        json_error(out, "owner", errno);
    } else {
        json_number(out, "owner", (long long)info.st_ino);
    }
    close(owner);
}

static void one_namespace(struct json *out, const struct ns_kind *kind)
{
    struct stat info;
    int fd = open_namespace(kind);

    json_open(out, kind->name, '{');
    if (fd >= 0 && fstat(fd, &info) == 0) {
        json_number(out, "inode", (long long)info.st_ino);
        owner_of(out, fd);
    } else {
        json_error(out, "inode", errno);
    }
    json_close(out, '}');
    close(fd);
}

static void namespaces(struct json *out)
{
    static const struct ns_kind kinds[] = {
        {"cgroup", 1}, {"ipc", 2}, {"mnt", 3}, {"net", 4}, {"pid", 5}, {"pid_for_children", 6},
        {"time", 7}, {"time_for_children", 8}, {"user", 9}, {"uts", 10},
    };

    json_open(out, "namespaces", '{');
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        one_namespace(out, &kinds[i]);
    }
    json_close(out, '}');
}

/* ---- mounts without /proc ---------------------------------------------- */

struct mount_request {
    __u32 size, spare;
    __u64 id, param;
};

struct mount_answer {
    __u32 size, options;
    __u64 mask;
    __u32 major, minor;
    __u64 magic;
    __u32 super_flags, type;
    __u64 id, parent;
    __u32 old_id, old_parent;
    __u64 attributes, propagation, peer_group, master, propagate_from;
    __u32 root, point;
    __u64 namespace_id;
    __u32 subtype, source;
    char rest[384];
    char strings[8192];
};

struct flag_name {
    __u64 flag;
    const char *name;
};

static void attribute_text(__u64 attributes, char *text, size_t room)
{
    static const struct flag_name names[] = {
        {0x2, ",nosuid"}, {0x4, ",nodev"}, {0x8, ",noexec"}, {0x80, ",nodiratime"}, {0x200000, ",nosymfollow"},
    };
    __u64 atime = attributes & 0x70;

    snprintf(text, room, "%s", attributes & 1 ? "ro" : "rw");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (attributes & names[i].flag) {
            strncat(text, names[i].name, room - strlen(text) - 1);
        }
    }
    strncat(text, atime == 0x10 ? ",noatime" : atime == 0 ? ",relatime" : "", room - strlen(text) - 1);
}

static void propagation_text(const struct mount_answer *mount, char *text, size_t room)
{
    size_t used = 0;

    text[0] = '\0';
    if (mount->peer_group != 0) {
        used += (size_t)snprintf(text, room, " shared:%llu", (unsigned long long)mount->peer_group);
    }
    if (mount->master != 0) {
        snprintf(text + used, room - used, " master:%llu", (unsigned long long)mount->master);
    }
}

/* In the form of mountinfo, so that one parser does for both. */
static void mount_line(FILE *lines, const struct mount_answer *mount)
{
    char attributes[128], propagation[64];
    const char *options = mount->mask & 0x80 ? mount->strings + mount->options : "";

    attribute_text(mount->attributes, attributes, sizeof attributes);
    propagation_text(mount, propagation, sizeof propagation);
    fprintf(lines, "%u %u %u:%u %s %s %s%s - %s %s %s%s%s\n", mount->old_id, mount->old_parent, mount->major,
            mount->minor, mount->strings + mount->root, mount->strings + mount->point, attributes, propagation,
            mount->strings + mount->type, mount->mask & 0x200 ? mount->strings + mount->source : "none",
            mount->super_flags & 1 ? "ro" : "rw", options[0] ? "," : "", options);
}

static void list_mounts(struct json *out)
{
    __u64 ids[1024];
    struct mount_request request = {.size = sizeof request, .id = LISTMOUNT_ROOT};
    long count = syscall(NR_LISTMOUNT, &request, ids, 1024, 0);
    char *text = NULL;
    size_t length = 0;
    FILE *lines = open_memstream(&text, &length);

    for (long i = 0; i < count && lines != NULL; i++) {
        struct mount_answer mount = {0};
        struct mount_request one = {.size = sizeof one, .id = ids[i], .param = STATMOUNT_WANTED};
        if (syscall(NR_STATMOUNT, &one, &mount, sizeof mount, 0) == 0) {
            mount_line(lines, &mount);
        }
    }
    if (count < 0 || lines == NULL || fclose(lines) != 0) {
        json_error(out, "listmount", errno);
    } else {
        json_bytes(out, "listmount", text, length);
    }
    free(text);
}

static void mounts(struct json *out)
{
    if (access("/proc/self/mountinfo", R_OK) == 0) {
        file_text(out, "mountinfo", "/proc/self/mountinfo");
    } else {
        list_mounts(out);
    }
}

static void file_systems(struct json *out, const struct options *options)
{
    json_open(out, "stat", '{');
    for (int i = 0; i < options->stats; i++) {
        struct statvfs info;
        struct statfs raw;
        json_open(out, options->stat[i], '{');
        if (statvfs(options->stat[i], &info) != 0 || statfs(options->stat[i], &raw) != 0) {
            json_error(out, "error", errno);
        } else {
            json_hex(out, "flags", info.f_flag);
            json_hex(out, "type", (unsigned long long)raw.f_type);
            json_number(out, "bytes", (long long)info.f_blocks * (long long)info.f_frsize);
        }
        json_close(out, '}');
    }
    json_close(out, '}');
}

/* ---- file trees ---------------------------------------------------------- */

struct walk {
    struct json *out;
    int entries;
    int everything; /* also below directories that are not the sandbox's own */
};

/* The sandbox's own file systems. A bind of the host's /usr is on a disk. */
static int own_file_system(const char *path)
{
    struct statfs info;

    if (statfs(path, &info) != 0) {
        return 0;
    }
    switch ((unsigned)info.f_type) {
    case 0x01021994: /* tmpfs */
    case 0x00001cd1: /* devpts */
    case 0x19800202: /* mqueue */
        return 1;
    default:
        return 0;
    }
}

static void content(struct json *out, const char *path)
{
    char bytes[LARGEST_CONTENT];
    ssize_t length = read_all(path, bytes, sizeof bytes);

    if (length < 0) {
        json_error(out, "content", (int)-length);
    } else {
        json_bytes(out, "content", bytes, (size_t)length);
    }
}

static void entry_details(struct json *out, const char *path, const struct stat *info)
{
    if (S_ISLNK(info->st_mode)) {
        link_text(out, "target", path);
    } else if (S_ISCHR(info->st_mode) || S_ISBLK(info->st_mode)) {
        char device[32];
        snprintf(device, sizeof device, "%u:%u", major(info->st_rdev), minor(info->st_rdev));
        json_string(out, "device", device);
    } else if (S_ISREG(info->st_mode)) {
        json_number(out, "size", (long long)info->st_size);
        json_number(out, "links", (long long)info->st_nlink);
        if (info->st_size <= LARGEST_CONTENT) {
            content(out, path);
        }
    }
}

static void walk_entry(struct walk *walk, const char *path, int depth);

static int visible_name(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static void walk_directory(struct walk *walk, const char *path, int depth)
{
    struct dirent **names = NULL;
    int count = scandir(path, &names, visible_name, alphasort);

    for (int i = 0; i < count; i++) {
        char below[4096];
        int length = snprintf(below, sizeof below, "%s/%s", strcmp(path, "/") == 0 ? "" : path, names[i]->d_name);
        if (length < (int)sizeof below) {
            walk_entry(walk, below, depth + 1);
        }
        free(names[i]);
    }
    free(names);
}

static void walk_entry(struct walk *walk, const char *path, int depth)
{
    struct stat info;

    if (walk->entries++ >= MOST_ENTRIES || lstat(path, &info) != 0) {
        return;
    }
    json_open(walk->out, path, '{');
    json_string(walk->out, "type", type_name(info.st_mode));
    json_octal(walk->out, "mode", info.st_mode & 07777);
    json_number(walk->out, "uid", info.st_uid);
    json_number(walk->out, "gid", info.st_gid);
    entry_details(walk->out, path, &info);
    json_close(walk->out, '}');
    if (S_ISDIR(info.st_mode) && depth < DEEPEST && (walk->everything || own_file_system(path))) {
        walk_directory(walk, path, depth);
    }
}

static void trees(struct json *out, const struct options *options)
{
    struct walk walk = {.out = out};

    json_open(out, "tree", '{');
    if (own_file_system("/")) {
        walk_entry(&walk, "/", 0);
    }
    walk.everything = 1;
    json_close(out, '}');
    json_open(out, "asked_tree", '{');
    for (int i = 0; i < options->trees; i++) {
        walk_entry(&walk, options->tree[i], 0);
    }
    json_close(out, '}');
}

/* ---- this process --------------------------------------------------------- */

static void words(struct json *out, const char *key, char **list)
{
    json_open(out, key, '[');
    for (; *list != NULL; list++) {
        json_string(out, NULL, *list);
    }
    json_close(out, ']');
}

/* The raw calls: a C library hides the signals that it keeps for itself. */
static void signal_state(struct json *out)
{
    unsigned long long blocked = 0, pending = 0, ignored = 0;

    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &blocked, sizeof blocked);
    syscall(SYS_rt_sigpending, &pending, sizeof pending);
    for (int number = 1; number <= SIGNALS; number++) {
        struct {
            void (*handler)(int);
            unsigned long flags;
            void (*restorer)(void);
            unsigned long long mask;
        } action = {0};
        syscall(SYS_rt_sigaction, number, NULL, &action, sizeof action.mask);
        if (action.handler == SIG_IGN) {
            ignored |= 1ULL << (number - 1);
        }
    }
    json_hex(out, "blocked", blocked);
    json_hex(out, "pending", pending);
    json_hex(out, "ignored", ignored);
}

static void limits(struct json *out)
{
    json_open(out, "rlimits", '[');
    for (int i = 0; i < 16; i++) {
        struct rlimit limit;
        if (getrlimit(i, &limit) == 0) {
            json_hex(out, NULL, limit.rlim_cur);
            json_hex(out, NULL, limit.rlim_max);
        }
    }
    json_close(out, ']');
}

static void terminal(struct json *out)
{
    int fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);

    if (fd < 0) {
        json_error(out, "dev_tty", errno);
    } else {
        json_string(out, "dev_tty", "ok");
        close(fd);
    }
}

static void process(struct json *out, char **argv)
{
    char directory[4096];
    mode_t mask = umask(0);

    umask(mask);
    json_open(out, "process", '{');
    json_number(out, "pid", getpid());
    json_number(out, "ppid", getppid());
    json_number(out, "sid", getsid(0));
    json_number(out, "pgid", getpgid(0));
    json_octal(out, "umask", mask);
    json_number(out, "nice", getpriority(PRIO_PROCESS, 0));
    json_number(out, "scheduler", syscall(SYS_sched_getscheduler, 0));
    json_string(out, "execfn", (const char *)getauxval(AT_EXECFN));
    json_number(out, "secure", (long long)getauxval(AT_SECURE));
    words(out, "argv", argv);
    words(out, "environ", environ);
    if (syscall(SYS_getcwd, directory, sizeof directory) < 0) {
        json_error(out, "cwd", errno);
    } else {
        json_string(out, "cwd", directory);
    }
    link_text(out, "exe", "/proc/self/exe");
    file_text(out, "comm", "/proc/self/comm");
    file_text(out, "status", "/proc/self/status");
    file_text(out, "stat", "/proc/self/stat");
    file_text(out, "cgroup", "/proc/self/cgroup");
    file_text(out, "oom_score_adj", "/proc/self/oom_score_adj");
    signal_state(out);
    limits(out);
    terminal(out);
    json_close(out, '}');
}

/* ---- the other processes -------------------------------------------------- */

static void links_of(struct json *out, const char *key, const char *directory)
{
    struct dirent **names = NULL;
    int count = scandir(directory, &names, visible_name, versionsort);

    if (count < 0) {
        json_error(out, key, errno);
        return;
    }
    json_open(out, key, '{');
    for (int i = 0; i < count; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", directory, names[i]->d_name);
        link_text(out, names[i]->d_name, path);
        free(names[i]);
    }
    free(names);
    json_close(out, '}');
}

static void reachable(struct json *out, const char *key, const char *path)
{
    char target[4096];

    json_error(out, key, readlink(path, target, sizeof target) < 0 ? errno : 0);
}

static char state_of(int pid)
{
    char path[64], text[512] = "";
    const char *name_end;

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    if (read_all(path, text, sizeof text - 1) <= 0) {
        return 'X';
    }
    name_end = strrchr(text, ')');
    return name_end == NULL || name_end[1] == '\0' ? 'X' : name_end[2];
}

/* Pid 1 and the payload start at the same time: what pid 1 lays down (its
 * capabilities, a filter) counts once it has come to rest. */
static void settle(int pid)
{
    struct timespec moment = {.tv_nsec = 200000};

    for (int tries = 0, still = 0; pid != getpid() && tries < 5000 && still < 2; tries++) {
        char state = state_of(pid);
        still = state == 'R' || state == 'D' ? 0 : still + 1;
        nanosleep(&moment, NULL);
    }
}

static void other_process(struct json *out, const char *key, int pid)
{
    char path[64];

    json_open(out, key, '{');
    settle(pid);
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    file_text(out, "status", path);
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    file_text(out, "cmdline", path);
    snprintf(path, sizeof path, "/proc/%d/environ", pid);
    file_text(out, "environ", path);
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    reachable(out, "exe", path);
    snprintf(path, sizeof path, "/proc/%d/root", pid);
    link_text(out, "root", path);
    snprintf(path, sizeof path, "/proc/%d/cwd", pid);
    link_text(out, "cwd", path);
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    links_of(out, "fds", path);
    json_close(out, '}');
}

static int process_name(const struct dirent *entry)
{
    return entry->d_name[0] >= '1' && entry->d_name[0] <= '9';
}

static void processes(struct json *out)
{
    struct dirent **names = NULL;
    int count = scandir("/proc", &names, process_name, versionsort);

    json_open(out, "pids", '[');
    for (int i = 0; i < count; i++) {
        json_number(out, NULL, atoi(names[i]->d_name));
        free(names[i]);
    }
    free(names);
    json_close(out, ']');
    other_process(out, "pid1", 1);
    if (getppid() > 1) {
        other_process(out, "parent", getppid());
    }
}

/* ---- what may be done ------------------------------------------------------ */

static void try_open(struct json *out, const char *path)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);

    json_error(out, path, fd < 0 ? errno : 0);
    close(fd);
}

static int make_user_namespace(void)
{
    return unshare(CLONE_NEWUSER) == 0 ? 0 : errno;
}

static int make_mount_namespace(void)
{
    return unshare(CLONE_NEWNS) == 0 ? 0 : errno;
}

static int mount_over_root(void)
{
    if (unshare(CLONE_NEWNS) != 0) {
        return 255;
    }
    return mount("none", "/", "tmpfs", 0, NULL) == 0 ? 0 : errno;
}

static int change_host_name(void)
{
    char name[256];

    /* the name it has: nothing changes where this is allowed */
    gethostname(name, sizeof name);
    return sethostname(name, strlen(name)) == 0 ? 0 : errno;
}

static void in_child(struct json *out, const char *key, int (*attempt)(void))
{
    int status = 0;
    pid_t child = fork();

    if (child == 0) {
        _exit(attempt());
    }
    if (child < 0 || waitpid(child, &status, 0) < 0) {
        json_error(out, key, errno);
    } else {
        json_error(out, key, WEXITSTATUS(status));
    }
}

static void permissions(struct json *out)
{
    json_open(out, "may", '{');
    in_child(out, "user_namespace", make_user_namespace);
    in_child(out, "mount_namespace", make_mount_namespace);
    in_child(out, "mount", mount_over_root);
    in_child(out, "hostname", change_host_name);
    try_open(out, "/proc/sys/kernel/hostname");
    try_open(out, "/proc/sysrq-trigger");
    try_open(out, "/proc/self/mem");
    try_open(out, "/proc/1/mem");
    try_open(out, "/dev/null");
    try_open(out, "/dev/ptmx");
    json_close(out, '}');
}

static void names(struct json *out)
{
    struct utsname name;

    uname(&name);
    json_string(out, "hostname", name.nodename);
    json_string(out, "domainname", name.domainname);
}

/* ---- all of it ---------------------------------------------------------------- */

static int parse(int argc, char **argv, struct options *options)
{
    options->tree = calloc((size_t)argc, sizeof *options->tree);
    options->stat = calloc((size_t)argc, sizeof *options->stat);
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc) {
            return -1;
        }
        if (strcmp(argv[i], "--out") == 0) {
            options->out = atoi(argv[i + 1]);
        } else if (strcmp(argv[i], "--tree") == 0) {
            options->tree[options->trees++] = argv[i + 1];
        } else if (strcmp(argv[i], "--stat") == 0) {
            options->stat[options->stats++] = argv[i + 1];
        } else {
            return -1;
        }
    }
    return 0;
}

static int observe(char **argv, const struct options *options)
{
    struct json out = {0};

    json_open(&out, NULL, '{');
    open_fds(&out);
    process(&out, argv);
    identity(&out);
    capabilities(&out);
    process_flags(&out);
    namespaces(&out);
    mounts(&out);
    file_systems(&out, options);
    trees(&out, options);
    processes(&out);
    permissions(&out);
    names(&out);
    network(&out);
    json_close(&out, '}');
    return json_flush(&out, options->out) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct options options = {.out = 1};

    if (argc > 1 && argv[1][0] != '-') {
        return act(argc - 1, argv + 1);
    }
    if (parse(argc, argv, &options) != 0) {
        fprintf(stderr, "observer: bad arguments\n");
        return 125;
    }
    return observe(argv, &options);
}
