/* first.c - a guest's first process: does what the kernel's command line says by "do=". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "intruder.h"

static void load_modules(void)
{
	FILE *order = fopen("/lib/modules/order", "re");
	char name[256], path[300];

	while (order && fgets(name, sizeof(name), order)) {
		name[strcspn(name, "\n")] = '\0';
		snprintf(path, sizeof(path), "/lib/modules/%s", name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			perror(path);
		else
			printf("loaded %s\n", name);
	}
}

int main(void)
{
	char line[4096] = "";
	FILE *file;

	setvbuf(stdout, NULL, _IONBF, 0);
	mount("proc", "/proc", "proc", 0, NULL);
	file = fopen("/proc/cmdline", "re");
	if (!file || !fgets(line, sizeof(line), file))
		return 1;
	puts("first: started");
	if (strstr(line, "do=modules") || strstr(line, "do=intrude"))
		load_modules();
	if (strstr(line, "do=intrude"))
		intrude();
	if (strstr(line, "do=crash"))
		return 1;
	if (strstr(line, "do=stay"))
		for (;;)
			pause();
	if (strstr(line, "do=flood"))
		for (;;)
			puts("first: flood");
	puts("first: ended");
	reboot(RB_POWER_OFF);
	return 1;
}
