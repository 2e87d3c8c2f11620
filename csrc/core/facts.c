/* SPDX-License-Identifier: MIT */
/* facts.c - what small files of the kernel say. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"

enum { STATUS_SIZE = 8192, LINE_SIZE = 8192 };

long nsr_fact_read(const char *path, char *out, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	size_t len = 0;
	ssize_t n = 0;

	*out = '\0';
	if (fd < 0)
		return -errno;
	while (len < size - 1 && (n = read(fd, out + len, size - 1 - len)) > 0)
		len += (size_t)n;
	if (n < 0) {
		n = -errno;
		close(fd);
		*out = '\0';
		return n;
	}
	close(fd);
	while (len && out[len - 1] == '\n')
		len--;
	out[len] = '\0';
	return (long)len;
}

long nsr_fact_number(const char *path, long otherwise)
{
	char text[32], *end;
	long n;

	if (nsr_fact_read(path, text, sizeof(text)) <= 0)
		return otherwise;
	n = strtol(text, &end, 10);
	return end == text ? otherwise : n;
}

long nsr_fact_status(const char *name, long otherwise)
{
	char text[STATUS_SIZE];
	size_t len = strlen(name);
	char *line = text;

	if (nsr_fact_read("/proc/self/status", text, sizeof(text)) <= 0)
		return otherwise;
	while (line && *line) {
		if (!strncmp(line, name, len) && line[len] == ':')
			return strtol(line + len + 1, NULL, 10);
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return otherwise;
}

/* The fifth word of a line of mountinfo, in place: proc(5). */
static char *fifth_word(char *line)
{
	for (int i = 0; line && i < 4; i++) {
		line = strchr(line, ' ');
		line = line ? line + 1 : NULL;
	}
	if (line)
		line[strcspn(line, " \n")] = '\0';
	return line;
}

static int each_mount_point(int (*visit)(void *arg, const char *point), void *arg)
{
	FILE *file = fopen("/proc/self/mountinfo", "re");
	char line[LINE_SIZE];
	int stop = 0;

	if (!file)
		return -errno;
	while (!stop && fgets(line, sizeof(line), file)) {
		const char *point = fifth_word(line);

		if (point)
			stop = visit(arg, point);
	}
	fclose(file);
	return stop;
}

struct names {
	char *at;
	size_t left;
};

static int add_cover(void *arg, const char *point)
{
	struct names *names = arg;
	int n;

	if (strncmp(point, "/proc/", 6))
		return 0;
	n = snprintf(names->at, names->left, "%s%s", names->at[-1] ? ", " : "", point);
	if (n < 0 || (size_t)n >= names->left) {
		*names->at = '\0';
		return 1;
	}
	names->at += n;
	names->left -= (size_t)n;
	return 0;
}

void nsr_fact_proc_covers(char *out, size_t size)
{
	/* one byte in front tells the first name from the others */
	struct names names = { out + 1, size - 1 };

	memset(out, 0, size);
	each_mount_point(add_cover, &names);
	memmove(out, out + 1, size - 1);
}

static int is_root(void *arg, const char *point)
{
	(void)arg;
	return !strcmp(point, "/");
}

int nsr_fact_chrooted(void)
{
	return each_mount_point(is_root, NULL) == 0;
}
