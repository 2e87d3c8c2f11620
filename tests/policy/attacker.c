/* SPDX-License-Identifier: MIT */
/* attacker: a payload that makes the calls which the seccomp profiles refuse.
 *
 *   attacker [NAME...]
 *
 * Each attempt runs in a process of its own and prints "NAME N": the errno, 0
 * where it succeeded, 1000 + the signal that ended it. Where success would
 * hurt the machine the arguments are wrong in a way that the kernel notices
 * only once the caller was found to have the right. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* calls that the headers of older systems lack */
enum { NR_FCHMODAT2 = 452, NR_OPEN_TREE_ATTR = 467 };
enum { KILLED = 1000, WRONG_MAGIC = 1 };
#define HIGH(n) ((unsigned long)(n) << 32)

/* ---- namespaces ----------------------------------------------------------- */

/* Through clone(2) by itself; the child ends at once. */
static long clone_with(unsigned long flags)
{
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);

    if (pid == 0) {
        _exit(0);
    }
    return pid;
}

static long clone_user(void) { return clone_with(CLONE_NEWUSER); }
static long clone_net(void) { return clone_with(CLONE_NEWNET); }
static long clone_user_high(void) { return clone_with(CLONE_NEWUSER | HIGH(0xffff0000)); }
static long clone_many_high(void) { return clone_with(CLONE_NEWUSER | CLONE_NEWNS | HIGH(1)); }

static long clone3_user(void)
{
    struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, rest[3]; } args = {
        .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };
    long pid = syscall(SYS_clone3, &args, sizeof args);

    if (pid == 0) {
        _exit(0);
    }
    return pid;
}

static long unshare_user(void) { return syscall(SYS_unshare, CLONE_NEWUSER); }
static long unshare_mount(void) { return syscall(SYS_unshare, CLONE_NEWNS); }
static long unshare_time(void) { return syscall(SYS_unshare, 0x80); }

static void *unshare_here(void *result)
{
    *(long *)result = syscall(SYS_unshare, CLONE_NEWNS) < 0 ? errno : 0;
    return NULL;
}

static long unshare_thread(void)
{
    pthread_t thread;
    long result = -1;

    if (pthread_create(&thread, NULL, unshare_here, &result) != 0) {
        _exit(255);
    }
    pthread_join(thread, NULL);
    errno = (int)result;
    return result ? -1 : 0;
}

static long set_ns(void)
{
    int fd = open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC);

    return syscall(SYS_setns, fd, 0);
}

static long set_host_name(void) { return sethostname("attacker", 8); }
static long set_domain_name(void) { return setdomainname("attacker", 8); }
static long change_root(void) { return chroot("/"); }

/* ---- mounts --------------------------------------------------------------- */

static long mount_tmpfs(void) { return mount("attack", "/mnt", "tmpfs", 0, NULL); }
static long unmount(void) { return umount2("/mnt", MNT_DETACH); }
static long pivot(void) { return syscall(SYS_pivot_root, "/absent", "/absent"); }
static long open_tree_(void) { return syscall(SYS_open_tree, AT_FDCWD, "/tmp", 1); }
static long open_tree_attr_(void)
{
    return syscall(NR_OPEN_TREE_ATTR, AT_FDCWD, "/tmp", 1, NULL, 0);
}
static long move_mount_(void) { return syscall(SYS_move_mount, -1, "", -1, "", 4); }
static long mount_setattr_(void) { return syscall(SYS_mount_setattr, AT_FDCWD, "/tmp", 0, NULL, 0); }
static long fsopen_(void) { return syscall(SYS_fsopen, "tmpfs", 0); }
static long fsconfig_(void) { return syscall(SYS_fsconfig, -1, 6, NULL, NULL, 0); }
static long fsmount_(void) { return syscall(SYS_fsmount, -1, 0, 0); }
static long fspick_(void) { return syscall(SYS_fspick, AT_FDCWD, "/tmp", 0); }

/* ---- the kernel's odd corners --------------------------------------------- */

static long bpf_map(void)
{
    union bpf_attr attr = {
        .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1 };

    return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
}

static long perf(void)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_TASK_CLOCK };

    return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}

static long userfault(void) { return syscall(SYS_userfaultfd, O_CLOEXEC); }

static long uring_setup(void)
{
    uint32_t params[30] = {0};

    return syscall(SYS_io_uring_setup, 1, params);
}

static long uring_enter(void) { return syscall(SYS_io_uring_enter, -1, 0, 0, 0, NULL, 0); }
static long uring_register(void) { return syscall(SYS_io_uring_register, -1, 0, NULL, 0); }
static long cookie(void) { return syscall(SYS_lookup_dcookie, 0, NULL, 0); }
static long add_key(void) { return syscall(SYS_add_key, "user", "attack", "x", 1, -2); }
static long request_key(void) { return syscall(SYS_request_key, "user", "absent", NULL, -2); }
static long key_control(void) { return syscall(SYS_keyctl, 0, -2, 1); }
static long get_policy(void) { return syscall(SYS_get_mempolicy, NULL, NULL, 0, NULL, 0); }
static long move_pages_(void) { return syscall(SYS_move_pages, 0, 0, NULL, NULL, NULL, 0); }

static long splice_memory(void)
{
    struct iovec part = {(void *)(uintptr_t)"x", 1};
    int ends[2];

    return pipe(ends) ? -1 : syscall(SYS_vmsplice, ends[1], &part, 1, 0);
}

/* ---- the machine ---------------------------------------------------------- */

static long module_init(void) { return syscall(SYS_init_module, NULL, 0, ""); }
static long module_finit(void) { return syscall(SYS_finit_module, -1, "", 0); }
static long module_delete(void) { return syscall(SYS_delete_module, "absent_module", O_NONBLOCK); }
static long kexec(void) { return syscall(SYS_kexec_load, 0, 1000, NULL, 0); }
static long kexec_file(void) { return syscall(SYS_kexec_file_load, -1, -1, 0, NULL, 0xffff); }
static long reboot_(void) { return syscall(SYS_reboot, WRONG_MAGIC, WRONG_MAGIC, 0, NULL); }
static long swap_on(void) { return syscall(SYS_swapon, "/absent", 0); }
static long swap_off(void) { return syscall(SYS_swapoff, "/absent"); }
static long account(void) { return syscall(SYS_acct, "/absent"); }
static long quota(void) { return syscall(SYS_quotactl, 0x80000100, "/absent", 0, NULL); }
static long set_time(void) { return syscall(SYS_settimeofday, NULL, NULL); }
static long set_clock(void) { return syscall(SYS_clock_settime, 999, NULL); }
static long kernel_log(void) { return syscall(SYS_syslog, 10, NULL, 0); }
static long hang_up(void) { return setsid() < 0 ? -1 : syscall(SYS_vhangup); }

static long read_clock(void)
{
    long room[64] = {0};

    return syscall(SYS_adjtimex, room);
}

/* ---- files ---------------------------------------------------------------- */

static struct {
    struct file_handle head;
    unsigned char bytes[MAX_HANDLE_SZ];
} handle;

static long get_handle(void)
{
    int mount;

    handle.head.handle_bytes = MAX_HANDLE_SZ;
    return syscall(SYS_name_to_handle_at, AT_FDCWD, "/tmp", &handle, &mount, 0);
}

/* Any handle: whether the caller may is asked first. */
static long open_handle(void)
{
    int fd = open("/tmp", O_RDONLY | O_CLOEXEC);

    get_handle();
    handle.head.handle_bytes = handle.head.handle_bytes % MAX_HANDLE_SZ;
    return syscall(SYS_open_by_handle_at, fd, &handle, O_RDONLY);
}

static long fanotify(void) { return syscall(SYS_fanotify_init, 0, O_RDONLY); }

static int new_file(void)
{
    unlink("/tmp/file");
    return open("/tmp/file", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
}

static long set_uid_fchmod(void) { return syscall(SYS_fchmod, new_file(), 04755); }
static long set_gid_fchmod(void) { return syscall(SYS_fchmod, new_file(), 02755); }
static long set_uid_fchmodat(void)
{
    close(new_file());
    return syscall(SYS_fchmodat, AT_FDCWD, "/tmp/file", 04755 | HIGH(1));
}
static long set_uid_fchmodat2(void)
{
    close(new_file());
    return syscall(NR_FCHMODAT2, AT_FDCWD, "/tmp/file", 04755, 0);
}
static long set_uid_openat(void)
{
    unlink("/tmp/file");
    return syscall(SYS_openat, AT_FDCWD, "/tmp/file", O_CREAT | O_WRONLY, 04755);
}
static long set_uid_tmpfile(void)
{
    return syscall(SYS_openat, AT_FDCWD, "/tmp", O_TMPFILE | O_WRONLY, 04755);
}
static long set_uid_openat2(void)
{
    const uint64_t how[3] = {O_CREAT | O_WRONLY, 04755, 0};

    unlink("/tmp/file");
    return syscall(SYS_openat2, AT_FDCWD, "/tmp/file", how, sizeof how);
}
static long set_uid_mknodat(void)
{
    unlink("/tmp/file");
    return syscall(SYS_mknodat, AT_FDCWD, "/tmp/file", S_IFREG | 04755, 0);
}
static long make_device(void)
{
    unlink("/tmp/node");
    return syscall(SYS_mknodat, AT_FDCWD, "/tmp/node", S_IFCHR | 0600, makedev(1, 3));
}
static long make_disk(void)
{
    unlink("/tmp/node");
    return syscall(SYS_mknodat, AT_FDCWD, "/tmp/node", S_IFBLK | 0600, makedev(7, 0));
}

/* ---- terminals ------------------------------------------------------------ */

/* A terminal of our own: what is typed into it goes nowhere. */
static long on_terminal(unsigned long request, void *arg)
{
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), unlock = 0, slave;

    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) != 0 || setsid() < 0) {
        _exit(255);
    }
    slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    if (slave < 0 || ioctl(slave, TIOCSCTTY, 0) != 0) {
        _exit(254);
    }
    return syscall(SYS_ioctl, slave, request, arg);
}

static char typed = 'x';
static int line_discipline; /* N_TTY, the usual one */

static long type(void) { return on_terminal(TIOCSTI, &typed); }
static long type_high(void) { return on_terminal(TIOCSTI | HIGH(1), &typed); }
static long type_all_high(void) { return on_terminal(TIOCSTI | HIGH(0xffffffff), &typed); }
static long paste(void) { return on_terminal(TIOCLINUX, &typed); }
static long paste_high(void) { return on_terminal(TIOCLINUX | HIGH(0x80000000), &typed); }
static long discipline(void) { return on_terminal(TIOCSETD, &line_discipline); }

/* ---- sockets -------------------------------------------------------------- */

static long socket_of(unsigned long family, int kind, int protocol)
{
    return syscall(SYS_socket, family, kind, protocol);
}

static long af_alg(void) { return socket_of(AF_ALG, SOCK_SEQPACKET, 0); }
static long af_packet(void) { return socket_of(AF_PACKET, SOCK_RAW, 0); }
static long af_packet_high(void) { return socket_of(AF_PACKET | HIGH(1), SOCK_RAW, 0); }
static long af_vsock(void) { return socket_of(AF_VSOCK, SOCK_STREAM, 0); }
static long af_key(void) { return socket_of(15, SOCK_RAW, 2); }
static long netlink_events(void) { return socket_of(AF_NETLINK, SOCK_RAW, 15); }

/* ---- other processes ------------------------------------------------------ */

static long trace(void)
{
    pid_t child = fork();
    long ret;

    if (child == 0) {
        pause();
        _exit(0);
    }
    ret = ptrace(PTRACE_SEIZE, child, NULL, NULL);
    int error = errno;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    errno = error;
    return ret;
}

static char own[2] = "ab";
static struct iovec first = {own, 1}, second = {own + 1, 1};

static long read_memory(void)
{
    return syscall(SYS_process_vm_readv, getpid(), &first, 1, &second, 1, 0);
}
static long write_memory(void)
{
    return syscall(SYS_process_vm_writev, getpid(), &first, 1, &second, 1, 0);
}
static long take_fd(void)
{
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);

    return syscall(SYS_pidfd_getfd, self, 1, 0);
}
static long compare(void) { return syscall(SYS_kcmp, getpid(), getpid(), 0, 1, 2); }

/* ---- personalities and ways around the filter ----------------------------- */

static long persona(unsigned long flags) { return syscall(SYS_personality, flags); }
static long persona_exec(void) { return persona(READ_IMPLIES_EXEC); }
static long persona_exec_high(void) { return persona(READ_IMPLIES_EXEC | HIGH(1)); }
static long persona_exec_bit31(void) { return persona(READ_IMPLIES_EXEC | 0x80000000UL); }
static long persona_fixed(void) { return persona(ADDR_NO_RANDOMIZE); }
static long persona_query(void) { return persona(0xffffffff); }

static long x32_getpid(void)
{
#ifdef __x86_64__
    return syscall(0x40000000 | SYS_getpid);
#else
    errno = ENOSYS;
    return -1;
#endif
}

static long i386_getpid(void)
{
#ifdef __x86_64__
    long ret;

    __asm__ volatile("int $0x80" : "=a"(ret) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    return ret < 0 ? (errno = (int)-ret, -1) : 0;
#else
    errno = ENOSYS;
    return -1;
#endif
}

#ifdef __x86_64__
static long set_uid_chmod(void)
{
    close(new_file());
    return syscall(SYS_chmod, "/tmp/file", 04755);
}
static long set_uid_open(void)
{
    unlink("/tmp/file");
    return syscall(SYS_open, "/tmp/file", O_CREAT | O_WRONLY, 04755);
}
static long set_uid_creat(void)
{
    unlink("/tmp/file");
    return syscall(SYS_creat, "/tmp/file", 04755);
}
static long make_device_mknod(void)
{
    unlink("/tmp/node");
    return syscall(SYS_mknod, "/tmp/node", S_IFCHR | 0600, makedev(1, 3));
}
static long io_level(void) { return syscall(SYS_iopl, 0); }
static long io_ports(void) { return syscall(SYS_ioperm, 0x80, 0, 0); }
static long descriptors(void) { return syscall(SYS_modify_ldt, 0, own, 0); }
#endif

static const struct {
    const char *name;
    long (*run)(void);
} attempts[] = {
    {"clone-user", clone_user}, {"clone-net", clone_net}, {"clone-user-high", clone_user_high},
    {"clone-many-high", clone_many_high}, {"clone3-user", clone3_user},
    {"unshare-user", unshare_user}, {"unshare-mount", unshare_mount},
    {"unshare-time", unshare_time}, {"unshare-thread", unshare_thread}, {"setns", set_ns},
    {"sethostname", set_host_name}, {"setdomainname", set_domain_name}, {"chroot", change_root},
    {"mount", mount_tmpfs}, {"umount2", unmount}, {"pivot_root", pivot},
    {"open_tree", open_tree_}, {"open_tree_attr", open_tree_attr_}, {"move_mount", move_mount_},
    {"mount_setattr", mount_setattr_}, {"fsopen", fsopen_}, {"fsconfig", fsconfig_},
    {"fsmount", fsmount_}, {"fspick", fspick_}, {"bpf", bpf_map}, {"perf_event_open", perf},
    {"userfaultfd", userfault}, {"io_uring_setup", uring_setup}, {"io_uring_enter", uring_enter},
    {"io_uring_register", uring_register}, {"lookup_dcookie", cookie}, {"add_key", add_key},
    {"request_key", request_key}, {"keyctl", key_control}, {"get_mempolicy", get_policy},
    {"move_pages", move_pages_}, {"vmsplice", splice_memory}, {"init_module", module_init},
    {"finit_module", module_finit}, {"delete_module", module_delete}, {"kexec_load", kexec},
    {"kexec_file_load", kexec_file}, {"reboot", reboot_}, {"swapon", swap_on},
    {"swapoff", swap_off}, {"acct", account}, {"quotactl", quota}, {"settimeofday", set_time},
    {"clock_settime", set_clock}, {"adjtimex", read_clock}, {"syslog", kernel_log},
    {"vhangup", hang_up}, {"name_to_handle_at", get_handle}, {"open_by_handle_at", open_handle},
    {"fanotify_init", fanotify}, {"fchmod-suid", set_uid_fchmod}, {"fchmod-sgid", set_gid_fchmod},
    {"fchmodat-suid-high", set_uid_fchmodat}, {"fchmodat2-suid", set_uid_fchmodat2},
    {"openat-suid", set_uid_openat}, {"tmpfile-suid", set_uid_tmpfile},
    {"openat2-suid", set_uid_openat2}, {"mknodat-suid", set_uid_mknodat},
    {"mknodat-device", make_device}, {"mknodat-disk", make_disk}, {"tiocsti", type},
    {"tiocsti-high", type_high}, {"tiocsti-all-high", type_all_high}, {"tioclinux", paste},
    {"tioclinux-high", paste_high}, {"tiocsetd", discipline}, {"af_alg", af_alg},
    {"af_packet", af_packet}, {"af_packet-high", af_packet_high}, {"af_vsock", af_vsock},
    {"af_key", af_key}, {"netlink-events", netlink_events}, {"ptrace", trace},
    {"process_vm_readv", read_memory}, {"process_vm_writev", write_memory},
    {"pidfd_getfd", take_fd}, {"kcmp", compare}, {"personality-exec", persona_exec},
    {"personality-exec-high", persona_exec_high}, {"personality-exec-bit31", persona_exec_bit31},
    {"personality-fixed", persona_fixed}, {"personality-query", persona_query},
    {"x32", x32_getpid}, {"i386", i386_getpid},
#ifdef __x86_64__
    {"chmod-suid", set_uid_chmod}, {"open-suid", set_uid_open}, {"creat-suid", set_uid_creat},
    {"mknod-device", make_device_mknod}, {"iopl", io_level}, {"ioperm", io_ports},
    {"modify_ldt", descriptors},
#endif
};

static int asked(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return 1;
        }
    }
    return argc == 1;
}

int main(int argc, char **argv)
{
    umask(0);
    for (size_t i = 0; i < sizeof attempts / sizeof attempts[0]; i++) {
        int status = 0;
        pid_t pid;

        if (!asked(argc, argv, attempts[i].name)) {
            continue;
        }
        pid = fork();
        if (pid == 0) {
            errno = 0;
            _exit(attempts[i].run() < 0 ? errno : 0);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid) {
            return 1;
        }
        printf("%s %d\n", attempts[i].name,
               WIFEXITED(status) ? WEXITSTATUS(status) : KILLED + WTERMSIG(status));
    }
    return 0;
}
