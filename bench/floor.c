/*
 * The floor: the least program that ends in the same state as one fixed bwrap command line.
 * It exists to be measured against. It parses nothing, and nothing is optional in it.
 *
 *   floor std PROG [ARG...]          --unshare-user --unshare-pid --unshare-ipc --unshare-uts
 *                                    --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp -- PROG
 *   floor net PROG [ARG...]          the same with --unshare-net
 *   floor cowork DIR PROG [ARG...]   the Cowork argv on a merged-/usr system, DIR being the one
 *                                    shared folder; spelled out at build_cowork()
 *
 * PROG is an absolute path. No terminal is looked for: a benchmark's stdout is none.
 * Linux 5.12 and later; open_tree_attr (6.15) is used where the kernel has it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* Kernel interface that musl's headers lack; names of our own, as glibc's headers have some. */
enum {
    NR_OPEN_TREE_ATTR = 467,
    TREE_CLONE = 1,
    TREE_CLOEXEC = O_CLOEXEC,
    TREE_RECURSIVE = 0x8000,
    MOVE_EMPTY_SOURCE = 4,
    RO = 1,
    NOSUID = 2,
    NODEV = 4,
    NOEXEC = 8,
    CAP_VERSION_3 = 0x20080522,
    CAP_LAST = 40,
    PATH_ROOM = 512, /* PATH_MAX would be a page of stack, so a fault or two, for each that is held */
    SIOCGIFFLAGS_ = 0x8913,
    SIOCSIFFLAGS_ = 0x8914,
    IFF_UP_ = 1
};

struct attributes {
    uint64_t set;
    uint64_t clear;
    uint64_t propagation;
    uint64_t userns_fd;
};

struct cap_header {
    uint32_t version;
    int pid;
};

struct cap_sets {
    uint32_t effective;
    uint32_t permitted;
    uint32_t inheritable;
};

struct job {
    bool cowork;
    bool net;
    bool new_user;      /* a user namespace of its own */
    uid_t uid;
    gid_t gid;
    uint64_t keep;      /* capabilities of the payload */
    const char *folder; /* cowork: the shared folder on the host */
    const char *cwd;
    const char *home;
    char **argv;
    char **envp;
    int report;         /* pid 1's end of the status pipe */
    int devices;        /* the host's /dev, to be found when another is mounted over it */
    uint64_t device_clear;
};

static char *put_number(char *out, unsigned value)
{
    char digits[10];
    int n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        *out++ = digits[--n];
    return out;
}

/* No stdio: it would be most of the program, and every page of a program is paid for at its start. */
static _Noreturn void die(const char *step)
{
    char number[12];
    char *end = put_number(number, (unsigned)errno);
    *end++ = '\n';
    struct iovec parts[] = {{"floor: ", 7},
                            {(void *)(uintptr_t)step, strlen(step)},
                            {": errno ", 8},
                            {number, (size_t)(end - number)}};
    if (writev(STDERR_FILENO, parts, 4) < 0)
        _exit(2);
    _exit(1);
}

static long check(long result, const char *step)
{
    if (result < 0)
        die(step);
    return result;
}

/* ---- user namespaces and capabilities ---- */

static void write_file(int at, const char *name, const char *text, size_t length)
{
    int fd = (int)check(openat(at, name, O_WRONLY | O_CLOEXEC), name);
    check(write(fd, text, length), name);
    check(close(fd), name);
}

static void write_map(int at, const char *name, unsigned inside, unsigned outside)
{
    char line[32];
    char *end = put_number(line, inside);
    *end++ = ' ';
    end = put_number(end, outside);
    memcpy(end, " 1\n", 3);
    write_file(at, name, line, (size_t)(end + 3 - line));
}

static void write_maps(unsigned uid, unsigned gid, unsigned outer_uid, unsigned outer_gid, bool deny)
{
    int self = (int)check(open("/proc/self", O_PATH | O_CLOEXEC), "/proc/self");
    write_map(self, "uid_map", uid, outer_uid);
    if (deny)
        write_file(self, "setgroups", "deny", 4);
    write_map(self, "gid_map", gid, outer_gid);
    check(close(self), "/proc/self");
}

static uint64_t effective_capabilities(void)
{
    struct cap_header header = {CAP_VERSION_3, 0};
    struct cap_sets sets[2];
    check(syscall(SYS_capget, &header, sets), "capget");
    return sets[0].effective | (uint64_t)sets[1].effective << 32;
}

static void drop_capabilities(void)
{
    struct cap_header header = {CAP_VERSION_3, 0};
    struct cap_sets none[2] = {{0, 0, 0}, {0, 0, 0}};
    check(syscall(SYS_capset, &header, none), "capset");
}

static void cut_bounding_set(uint64_t keep)
{
    for (int cap = 0; cap <= CAP_LAST; cap++)
        if (!(keep >> cap & 1))
            check(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "PR_CAPBSET_DROP");
}

/* devpts wants gid 0 mapped, the payload wants its own id: so a second namespace maps back. */
static void return_to_own_ids(const struct job *j)
{
    check(unshare(CLONE_NEWUSER), "unshare");
    cut_bounding_set(j->keep);
    write_maps(j->uid, j->gid, 0, 0, false);
    drop_capabilities();
    check(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "PR_SET_DUMPABLE");
}

/* ---- mounts ---- */

static int clone_tree(int at, const char *path, bool recursive, uint64_t set, uint64_t clear)
{
    unsigned flags = TREE_CLONE | TREE_CLOEXEC | (recursive ? TREE_RECURSIVE : 0);
    struct attributes a = {set, clear, 0, 0};
    long fd = syscall(NR_OPEN_TREE_ATTR, at, path, flags, &a, sizeof a);
    if (fd >= 0 || errno != ENOSYS)
        return (int)fd;
    fd = syscall(SYS_open_tree, at, path, flags);
    if (fd >= 0)
        check(syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | (recursive ? TREE_RECURSIVE : 0), &a,
                      sizeof a),
              path);
    return (int)fd;
}

static void attach(int tree, const char *path)
{
    check(syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_EMPTY_SOURCE), path);
}

static void bind_path(const char *source, const char *path, uint64_t set)
{
    attach((int)check(clone_tree(AT_FDCWD, source, true, set, 0), source), path);
}

static void set_recursively(const char *path, uint64_t set, uint64_t propagation)
{
    struct attributes a = {set, 0, propagation, 0};
    check(syscall(SYS_mount_setattr, AT_FDCWD, path, TREE_RECURSIVE, &a, sizeof a), path);
}

/* mount(2): one call where fsopen and its kin take five, and 3 % faster over the whole. */
static void mount_tmpfs(const char *path)
{
    check(mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"), path);
}

/*
 * bwrap asks access(2) for write access to sys, sysrq-trigger, irq and bus. They are host root's, so
 * nobody else has it; and /proc/sys goes by a mode of 0555, whatever the capabilities.
 */
static void mount_proc(const struct job *j)
{
    check(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
    static const char *const writable[] = {"proc/sysrq-trigger", "proc/irq", "proc/bus"};
    for (size_t i = 0; j->uid == 0 && i < sizeof writable / sizeof *writable; i++) {
        int tree = clone_tree(AT_FDCWD, writable[i], true, RO | NOSUID | NODEV | NOEXEC, 0);
        if (tree >= 0)
            attach(tree, writable[i]);
        else if (errno != ENOENT)
            die(writable[i]);
    }
}

static void remember_devices(struct job *j, uint64_t clear)
{
    j->devices = (int)check(open("/dev", O_PATH | O_CLOEXEC), "/dev");
    j->device_clear = clear;
}

static void bind_devices(const struct job *j)
{
    static const char *const names[] = {"null", "zero", "full", "random", "urandom", "tty"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[16] = "dev/";
        strcpy(path + 4, names[i]);
        check(mknod(path, S_IFREG | 0444, 0), path);
        attach((int)check(clone_tree(j->devices, names[i], false, NOSUID, j->device_clear), path), path);
    }
}

static void mount_dev(const struct job *j)
{
    static const char *const links[][2] = {
        {"/proc/self/fd/0", "dev/stdin"}, {"/proc/self/fd/1", "dev/stdout"},
        {"/proc/self/fd/2", "dev/stderr"}, {"/proc/self/fd", "dev/fd"},
        {"/proc/kcore", "dev/core"},      {"pts/ptmx", "dev/ptmx"}};
    mount_tmpfs("dev");
    bind_devices(j);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        check(symlink(links[i][0], links[i][1]), links[i][1]);
    check(mkdir("dev/shm", 0755), "dev/shm");
    check(mkdir("dev/pts", 0755), "dev/pts");
    check(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
                "newinstance,ptmxmode=0666,mode=620"),
          "dev/pts");
}

/*
 * "/" on "/" needs no second copy of the tree: the namespace's own copy is changed in place. So there
 * is nothing to pivot to and nothing to unmount, and no wait for RCU. What a new user namespace copies
 * is locked together, and is a slave of the host's already. The devices' clones have to lose again
 * what the tree is given here.
 */
static void build_std(struct job *j)
{
    remember_devices(j, RO | NODEV);
    set_recursively("/", RO | NOSUID | NODEV, 0);
    check(chdir("/"), "/");
    mount_proc(j);
    mount_dev(j);
    mount_tmpfs("tmp");
}

/* The new root covers "/": paths from "/" still start at the old one below it, and "/.." is the new. */
static void enter_tmpfs_root(void)
{
    mount_tmpfs("/");
    check(chdir("/.."), "/..");
}

static void leave_old_root(void)
{
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "umount2");
}

/* Makes what is missing of an absolute path, below the working directory. */
static void make_directories(const char *absolute, mode_t parents, mode_t last)
{
    char path[PATH_ROOM];
    size_t length = strlen(absolute);
    if (length >= sizeof path) {
        errno = ENAMETOOLONG;
        die(absolute);
    }
    memcpy(path, absolute, length + 1);
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path + 1, parents) && errno != EEXIST)
            die(absolute);
        *slash = '/';
    }
    if (mkdir(path + 1, last) && errno != EEXIST)
        die(absolute);
}

static void bind_directory_of(const char *program)
{
    char directory[PATH_ROOM];
    size_t length = (size_t)(strrchr(program, '/') - program);
    if (length == 0 || length >= sizeof directory) {
        errno = EINVAL;
        die(program);
    }
    memcpy(directory, program, length);
    directory[length] = '\0';
    make_directories(directory, 0700, 0755);
    bind_path(directory, directory + 1, RO | NOSUID | NODEV);
}

/*
 * --chdir /sessions/bench/mnt/work --tmpfs / --ro-bind /usr /usr --ro-bind /etc /etc --dev /dev
 * --proc /proc --tmpfs /tmp --tmpfs /run --symlink usr/{bin,lib,lib64,sbin} /{bin,lib,lib64,sbin}
 * --dir $HOME --ro-bind D D --dir /sessions/bench --dir /sessions/bench/mnt
 * --bind DIR /sessions/bench/mnt/work --unshare-pid --die-with-parent --new-session
 * with D the directory of PROG.
 */
static void build_cowork(struct job *j)
{
    static const char *const made[] = {"usr", "etc", "dev", "proc", "tmp", "run"};
    static const char *const links[][2] = {
        {"usr/bin", "bin"}, {"usr/lib", "lib"}, {"usr/lib64", "lib64"}, {"usr/sbin", "sbin"}};
    if (!j->new_user)
        set_recursively("/", 0, MS_SLAVE);
    remember_devices(j, 0);
    enter_tmpfs_root();
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        check(mkdir(made[i], 0755), made[i]);
    bind_path("/usr", "usr", RO | NOSUID | NODEV);
    bind_path("/etc", "etc", RO | NOSUID | NODEV);
    mount_dev(j);
    mount_proc(j);
    mount_tmpfs("tmp");
    mount_tmpfs("run");
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        check(symlink(links[i][0], links[i][1]), links[i][1]);
    make_directories(j->home, 0755, 0755);
    bind_directory_of(j->argv[0]);
    make_directories("/sessions/bench/mnt/work", 0755, 0755);
    bind_path(j->folder, "sessions/bench/mnt/work", NOSUID | NODEV);
    leave_old_root();
}

/* ---- the rest of the inside ---- */

/* Any socket answers this, a Unix one is made fastest; the kernel adds 127.0.0.1/8 and ::1 itself. */
static void bring_up_loopback(void)
{
    struct {
        char name[16];
        short flags;
        char rest[22];
    } request = {"lo", 0, {0}};
    int fd = (int)check(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    check(ioctl(fd, SIOCGIFFLAGS_, &request), "SIOCGIFFLAGS");
    request.flags |= IFF_UP_;
    check(ioctl(fd, SIOCSIFFLAGS_, &request), "SIOCSIFFLAGS");
    check(close(fd), "socket");
}

static void die_with_parent(const struct job *j)
{
    if (j->cowork)
        check(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG");
}

/* As bwrap does: the caller's directory if it is there inside, else $HOME, else "/". */
static const char *enter_directory(const struct job *j)
{
    if (chdir(j->cwd) == 0)
        return j->cwd;
    if (j->cowork)
        die(j->cwd);
    if (j->home && chdir(j->home) == 0)
        return j->home;
    return "/";
}

/* On the stack, which is there already: the heap would cost its first pages. */
static _Noreturn void run_payload(const struct job *j)
{
    size_t count = 0;
    while (j->envp[count])
        count++;
    const char *cwd = enter_directory(j);
    char pwd[PATH_ROOM + 4];
    memcpy(pwd, "PWD=", 4);
    strncpy(pwd + 4, cwd, PATH_ROOM - 1)[PATH_ROOM - 1] = '\0';
    char *envp[count + 2];
    size_t used = 0;
    bool replaced = false;
    for (size_t i = 0; i < count; i++) {
        bool is_pwd = strncmp(j->envp[i], "PWD=", 4) == 0;
        envp[used++] = is_pwd ? pwd : j->envp[i];
        replaced |= is_pwd;
    }
    if (!replaced)
        envp[used++] = pwd;
    envp[used] = NULL;
    die_with_parent(j);
    execve(j->argv[0], j->argv, envp);
    die(j->argv[0]);
}

/* pid 1 keeps its standard streams and the pipe, whatever else was inherited. */
static void close_all_but(int kept)
{
    if (kept > 3)
        check(syscall(SYS_close_range, 3, kept - 1, 0), "close_range");
    check(syscall(SYS_close_range, kept + 1, UINT_MAX, 0), "close_range");
}

/* The status goes out at once: what comes after, the end of the namespaces, nobody has to wait for. */
static _Noreturn void reap(const struct job *j, pid_t payload)
{
    for (;;) {
        int status;
        pid_t pid = wait4(-1, &status, 0, NULL);
        if (pid == payload)
            check(write(j->report, &status, sizeof status), "report");
        else if (pid < 0 && errno == ECHILD)
            _exit(0);
    }
}

static _Noreturn void run_inside(struct job *j)
{
    if (j->new_user)
        write_maps(0, 0, j->uid, j->gid, true);
    if (j->net)
        bring_up_loopback();
    mode_t mask = umask(0);
    if (j->cowork)
        build_cowork(j);
    else
        build_std(j);
    if (j->new_user && j->uid != 0)
        return_to_own_ids(j);
    else if (j->new_user)
        cut_bounding_set(j->keep);
    umask(mask);
    die_with_parent(j);
    if (j->cowork)
        check(setsid(), "setsid");
    pid_t payload = vfork();
    if (payload == 0)
        run_payload(j);
    check(payload, "vfork");
    if (j->new_user || j->uid != 0 || j->keep)
        drop_capabilities();
    close_all_but(j->report);
    reap(j, payload);
}

/* ---- outside ---- */

/*
 * A copy, not shared memory (which is 4 % faster): pid 1 stays, and a payload with CAP_SYS_PTRACE in
 * its user namespace could else write into the memory of this process outside.
 */
static void start_inside(struct job *j)
{
    unsigned long flags = CLONE_NEWNS | CLONE_NEWPID | SIGCHLD;
    if (j->new_user)
        flags |= CLONE_NEWUSER;
    if (!j->cowork)
        flags |= CLONE_NEWIPC | CLONE_NEWUTS;
    if (j->net)
        flags |= CLONE_NEWNET;
    if (check(syscall(SYS_clone, flags, 0, 0, 0, 0), "clone") == 0)
        run_inside(j);
}

static int wait_for_status(int pipe_end)
{
    int status;
    ssize_t got = read(pipe_end, &status, sizeof status);
    if (got != sizeof status)
        return 1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void read_arguments(struct job *j, int argc, char **argv)
{
    int first = 2;
    errno = EINVAL;
    if (argc < 3)
        die("usage: floor std|net|cowork [DIR] PROG [ARG...]");
    j->net = strcmp(argv[1], "net") == 0;
    j->cowork = strcmp(argv[1], "cowork") == 0;
    if (j->cowork)
        j->folder = argv[first++];
    if (first >= argc || argv[first][0] != '/')
        die("PROG must be an absolute path");
    j->argv = argv + first;
}

static const char *find_home(char **envp)
{
    for (; *envp; envp++)
        if (strncmp(*envp, "HOME=", 5) == 0)
            return *envp + 5;
    return NULL;
}

int main(int argc, char **argv, char **envp)
{
    struct job j = {.envp = envp, .home = find_home(envp), .uid = geteuid(), .gid = getegid()};
    char cwd[PATH_ROOM];
    int pipe_fds[2];
    read_arguments(&j, argc, argv);
    j.new_user = !j.cowork || j.uid != 0;
    j.keep = j.uid == 0 ? effective_capabilities() : 0;
    j.cwd = j.cowork ? "/sessions/bench/mnt/work" : cwd;
    if (j.cowork && (!j.home || j.home[0] != '/'))
        die("HOME");
    if (!j.cowork)
        check(getcwd(cwd, sizeof cwd) ? 0 : -1, "getcwd");
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
    check(pipe2(pipe_fds, O_CLOEXEC), "pipe2");
    j.report = pipe_fds[1];
    die_with_parent(&j);
    start_inside(&j);
    drop_capabilities();
    close_all_but(pipe_fds[0]);
    return wait_for_status(pipe_fds[0]);
}
