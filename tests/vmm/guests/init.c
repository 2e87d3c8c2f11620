/* SPDX-License-Identifier: MIT */
/*
 * Process 1 of a stock kernel: loads the modules that /lib/modules/order names, says what
 * hardware it found, and ends as the word "end=" of its command line says.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { SECTOR = 512 };

static void load_modules(void)
{
	FILE *order = fopen("/lib/modules/order", "re");
	char line[256], path[512];

	while (order && fgets(line, sizeof(line), order)) {
		int fd;

		line[strcspn(line, "\n")] = 0;
		snprintf(path, sizeof(path), "/lib/modules/%s", line);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			printf("module %s: %s\n", line, strerror(errno));
	}
}

static void say_file(const char *what, const char *path)
{
	char text[4096];
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (n < 0) {
		printf("%s: %s\n", what, strerror(errno));
		return;
	}
	text[n] = 0;
	text[strcspn(text, "\n")] = 0;
	printf("%s: %s\n", what, text);
	close(fd);
}

static void say_interrupts(void)
{
	FILE *file = fopen("/proc/interrupts", "re");
	char line[512];

	while (file && fgets(line, sizeof(line), file))
		if (strstr(line, "virtio") || strstr(line, "ttyS0"))
			printf("interrupt %s", line);
	if (file)
		fclose(file);
}

static void try_rng(void)
{
	uint64_t value = 0;
	int fd = open("/dev/hwrng", O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, &value, sizeof(value));

	printf("hwrng: %s\n", n == sizeof(value) && value ? "random" : strerror(errno));
}

static bool transfer(int fd, off_t at, char *bytes, bool out)
{
	ssize_t n = out ? pwrite(fd, bytes, SECTOR * 8, at) : pread(fd, bytes, SECTOR * 8, at);

	if (n < 0)
		printf("disk: %s: %s\n", out ? "write" : "read", strerror(errno));
	return n == SECTOR * 8;
}

/* Each block's first word is its number; turn it around where that can be written. */
static void try_disk(const char *path)
{
	static char bytes[SECTOR * 8] __attribute__((aligned(4096)));
	uint32_t good = 0, written = 0, number;
	int fd = open(path, O_RDWR | O_DIRECT);

	if (fd < 0)
		fd = open(path, O_RDONLY | O_DIRECT);
	if (fd < 0)
		return;
	for (uint32_t i = 0; transfer(fd, (off_t)i * sizeof(bytes), bytes, false); i++) {
		memcpy(&number, bytes, sizeof(number));
		good += number == i;
		number = ~number;
		memcpy(bytes, &number, sizeof(number));
		if (i % 2 && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR)
			written += transfer(fd, (off_t)i * sizeof(bytes), bytes, true);
	}
	printf("disk %s: %u good, %u written, fsync %d\n", path, good, written, fsync(fd));
	close(fd);
}

/* Much memory, used and given back; the guest's kernel tells that it is free. */
static void use_memory(size_t mib)
{
	char *memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		printf("memory: %s\n", strerror(errno));
		return;
	}
	memset(memory, 0x5a, mib << 20);
	printf("memory: used\n");
	/* what it had at its most is looked at outside */
	sleep(1);
	munmap(memory, mib << 20);
	printf("memory: free\n");
}

/* All processors at once, so that each is seen to run. */
static void try_cpus(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	printf("processors: %ld\n", n);
	for (long i = 0; i < n; i++) {
		if (fork())
			continue;
		for (volatile uint32_t j = 0; j < 10000000; j++)
			;
		_exit(0);
	}
	while (wait(NULL) > 0)
		;
}

int main(void)
{
	char cmdline[4096] = "";
	int fd;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("init: here\n");
	load_modules();
	fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, cmdline, sizeof(cmdline) - 1) < 0)
		printf("no command line\n");
	say_file("clocksource", "/sys/devices/system/clocksource/clocksource0/current_clocksource");
	try_cpus();
	try_rng();
	try_disk("/dev/vda");
	try_disk("/dev/vdb");
	if (strstr(cmdline, "use=memory"))
		use_memory(100);
	say_interrupts();
	printf("init: done\n");
	/* what waits for the port would be lost */
	tcdrain(STDOUT_FILENO);
	if (strstr(cmdline, "end=panic"))
		_exit(1);
	while (strstr(cmdline, "end=never"))
		sleep(1);
	sync();
	reboot(strstr(cmdline, "end=reboot") ? RB_AUTOBOOT : RB_POWER_OFF);
	return 1;
}
