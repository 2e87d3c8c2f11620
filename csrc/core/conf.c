/* SPDX-License-Identifier: MIT */
/*
 * conf.c - /etc/nsrun.conf, the installation's word.
 *
 *   bwrap-fallback = yes      the program called bwrap may hand over to another
 *
 * It counts only if it is root's, and nobody else can write to it.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "select.h"

#define CONF "/etc/nsrun.conf"

enum { CONF_SIZE = 8192 };

static int trusted(int fd)
{
	struct stat st;

	return !fstat(fd, &st) && S_ISREG(st.st_mode) && !st.st_uid &&
	       !(st.st_mode & (S_IWGRP | S_IWOTH));
}

/* The text behind this word and blanks, or NULL if it does not begin so. */
static const char *behind(const char *at, const char *word)
{
	size_t len = strlen(word);

	if (!at || strncmp(at, word, len))
		return NULL;
	return at + len + strspn(at + len, " \t\r");
}

/* A line "key = value", blanks as one likes. */
static int says_yes(const char *line)
{
	const char *at = behind(behind(behind(behind(line, ""), "bwrap-fallback"), "="), "yes");

	return at && !*at;
}

int nsr_conf_bwrap_fallback(void)
{
	char text[CONF_SIZE], *line = text, *end;
	int fd = open(CONF, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t n = -1;
	int yes = 0;

	if (fd >= 0 && trusted(fd))
		n = read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	do {
		end = strchr(line, '\n');
		if (end)
			*end = '\0';
		yes |= says_yes(line);
		line = end + 1;
	} while (end);
	return yes;
}
