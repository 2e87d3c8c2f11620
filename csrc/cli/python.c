/* SPDX-License-Identifier: MIT */
/* python.c - the words that Python carries out. */
#include "python.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_SIZE = 4096 + 16 };

/* "python3" in the directory that this program lies in. */
static int beside(char out[PATH_SIZE])
{
	static const char name[] = "python3";
	ssize_t n = readlink("/proc/self/exe", out, 4096);
	char *slash;

	if (n <= 0)
		return -1;
	out[n] = '\0';
	slash = strrchr(out, '/');
	if (!slash)
		return -1;
	memcpy(slash + 1, name, sizeof(name));
	return 0;
}

int nsr_python(char **argv)
{
	static char module_flag[] = "-m", module[] = "cowork_nsrun.cli", isolated[] = "-I";
	static char python[PATH_SIZE];
	size_t n = 0;
	char **words;

	while (argv[n])
		n++;
	words = calloc(n + 4, sizeof(*words));
	if (!words || beside(python)) {
		fprintf(stderr, "nsrun: %s: no Python beside this program; install the "
			"cowork-nsrun package\n", argv[1]);
		return EXIT_FAILURE;
	}
	words[0] = python;
	words[1] = isolated;
	words[2] = module_flag;
	words[3] = module;
	memcpy(words + 4, argv + 1, (n - 1) * sizeof(*words));
	execv(python, words);
	fprintf(stderr, "nsrun: %s: can't start %s: %s; '%s' is not an option, and words need "
		"the cowork-nsrun package\n", argv[1], python, strerror(errno), argv[1]);
	return EXIT_FAILURE;
}
