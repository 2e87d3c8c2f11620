/* SPDX-License-Identifier: MIT */
/*
 * boot.c - what the first process of a guest does beside running commands.
 *
 * What fails here is said on the console, and the guest goes on: a command that
 * needs what is missing says so itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <linux/random.h>

#include "agent.h"
#include "net_up.h"
#include "probe.h"

#define MODULES "/lib/modules"
#define EXPORTS "/run/nsrun/exports"
#define EXPORTS_TAG "nsrun"
#define EXPORTS_WORD "nsrun.fs"
#define NETWORK_WORD "nsrun.net"

enum {
	LINE_SIZE = 4096,
	CMDLINE_SIZE = 4096,
	FILES = 1 << 19,            /* what systemd gives, too */
	FILES_SOFT = 1024,
	TRIES = 200,
	NAP_NS = 10000000,
	END_MS = 5000,
	CLOCK_TOLERANCE_NS = 100000000,
};

void nsr_say(const char *format, ...)
{
	char line[512] = "nsrun-agent: ";
	const size_t start = strlen(line);
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line + start, sizeof(line) - start - 1, format, args);
	va_end(args);
	if (n < 0)
		return;
	strcat(line, "\n");
	if (write(STDERR_FILENO, line, strlen(line)) < 0)
		return;         /* nowhere left to say it */
}

static void must(const char *what, int failed)
{
	if (failed)
		nsr_say("%s: %s", what, strerror(errno));
}

static void make_dir(const char *path)
{
	must(path, mkdir(path, 0755) && errno != EEXIST);
}

/*
 * An initramfs is the root of all mounts, which pivot_root(2) can't move away.
 * A mount of it on top of itself can be: sandboxes are built as on any system.
 */
static void leave_rootfs(void)
{
	make_dir("/run");
	if (mount("/", "/run", NULL, MS_BIND, NULL) || chdir("/run") ||
	    mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		must("/", 1);
}

static void mount_all(void)
{
	static const struct {
		const char *type;
		const char *at;
		unsigned long flags;
		const char *options;
	} all[] = {
		{ "proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
		{ "sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
		{ "devtmpfs", "/dev", MS_NOSUID, "mode=0755" },
		{ "devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666" },
		{ "tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777" },
		{ "mqueue", "/dev/mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
		{ "tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755" },
		{ "tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777" },
		{ "cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		/* in the sysfs the kernel has made it */
		if (strncmp(all[i].at, "/sys/", 5))
			make_dir(all[i].at);
		must(all[i].at, mount(all[i].type, all[i].at, all[i].type, all[i].flags,
				      all[i].options));
	}
}

/* An initramfs may come without the node that the kernel opens for us. */
static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	for (int to = 0; fd >= 0 && to < 3; to++)
		dup2(fd, to);
	if (fd > 2)
		close(fd);
}

static const char *const links[][2] = {
	{ "/proc/self/fd", "/dev/fd" },
	{ "/proc/self/fd/0", "/dev/stdin" },
	{ "/proc/self/fd/1", "/dev/stdout" },
	{ "/proc/self/fd/2", "/dev/stderr" },
};

static void link_all(void)
{
	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
		must(links[i][1], symlink(links[i][0], links[i][1]) && errno != EEXIST);
}

static void load_module(const char *name)
{
	char path[LINE_SIZE];
	int fd;

	snprintf(path, sizeof(path), "%s%s", *name == '/' ? "" : MODULES "/", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
		must(path, 1);
	if (fd >= 0)
		close(fd);
}

/* One name a line, each behind those that it needs. */
static void load_modules(void)
{
	FILE *order = fopen(MODULES "/order", "re");
	char line[LINE_SIZE];

	if (!order)
		return;         /* all is built in */
	while (fgets(line, sizeof(line), order)) {
		line[strcspn(line, "\n")] = '\0';
		if (line[0])
			load_module(line);
	}
	fclose(order);
}

static int cmdline_has(const char *word)
{
	char text[CMDLINE_SIZE];
	char *rest = text, *one;

	if (nsr_fact_read("/proc/cmdline", text, sizeof(text)) <= 0)
		return 0;
	while ((one = strsep(&rest, " ")))
		if (!strcmp(one, word))
			return 1;
	return 0;
}

/* Its device may be found a moment later than its driver is loaded. */
static void mount_exports(void)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	int ret = -1;

	if (!cmdline_has(EXPORTS_WORD))
		return;
	make_dir("/run/nsrun");
	make_dir(EXPORTS);
	for (int i = 0; ret && i < TRIES; i++) {
		ret = mount(EXPORTS_TAG, EXPORTS, "virtiofs", MS_NOSUID | MS_NODEV, NULL);
		if (ret)
			nanosleep(&nap, NULL);
	}
	must(EXPORTS, ret);
}

static void loopback_up(void)
{
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	must("lo", fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo));
	if (fd >= 0)
		close(fd);
}

static void network_up(void)
{
	const char *failed = cmdline_has(NETWORK_WORD) ? nsr_guest_net_up() : NULL;

	if (failed)
		must(failed, 1);
}

static void raise_limits(void)
{
	const struct rlimit own = { FILES, FILES };

	nsr_agent.nofile = (struct rlimit){ FILES_SOFT, FILES };
	must("nofile", setrlimit(RLIMIT_NOFILE, &own));
}

void nsr_boot(void)
{
	leave_rootfs();
	mount_all();
	open_console();
	link_all();
	raise_limits();
	load_modules();
	mount_exports();
	loopback_up();
	network_up();
	nsr_agent.cgroups = nsr_limits_open("/sys/fs/cgroup");
}

_Noreturn void nsr_power_off(void)
{
	nsr_commands_end(END_MS);
	if (!nsr_agent.pid_1)
		_exit(EXIT_SUCCESS);
	kill(-1, SIGKILL);
	sync();
	umount2(EXPORTS, MNT_DETACH);
	reboot(RB_POWER_OFF);
	nsr_say("the machine can't be switched off: %s", strerror(errno));
	_exit(EXIT_FAILURE);
}

/* Not for the little that the message took: time would go to and fro. */
void nsr_set_clock(int64_t ns)
{
	const int64_t second = 1000000000;
	const struct timespec to = { .tv_sec = ns / second, .tv_nsec = ns % second };
	struct timespec is;
	int64_t off;

	if (ns < 0 || clock_gettime(CLOCK_REALTIME, &is))
		return;
	off = ns - (is.tv_sec * second + is.tv_nsec);
	if (off < -CLOCK_TOLERANCE_NS || off > CLOCK_TOLERANCE_NS)
		must("clock", clock_settime(CLOCK_REALTIME, &to));
}

void nsr_add_entropy(const uint8_t entropy[NSR_ENTROPY_BYTES])
{
	struct {
		int bits;
		int bytes;
		uint8_t data[NSR_ENTROPY_BYTES];
	} pool = { 8 * NSR_ENTROPY_BYTES, NSR_ENTROPY_BYTES, { 0 } };
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);

	memcpy(pool.data, entropy, sizeof(pool.data));
	must("entropy", fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG));
	if (fd >= 0)
		close(fd);
}
