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

int nsr_python(const char *module, const char *what, char **words)
{
	static char python[PATH_SIZE];
	size_t n = 0;
	const char **argv;

	while (words[n])
		n++;
	argv = calloc(n + 5, sizeof(*argv));
	if (!argv || beside(python)) {
		fprintf(stderr, "nsrun: %s: no Python beside this program; install the "
			"cowork-nsrun package\n", what);
		return EXIT_FAILURE;
	}
	argv[0] = python;
	argv[1] = "-I";
	argv[2] = "-m";
	argv[3] = module;
	memcpy(argv + 4, words, n * sizeof(*words));
	execv(python, (char **)argv);
	fprintf(stderr, "nsrun: %s: can't start %s: %s; '%s' is not an option, and words need "
		"the cowork-nsrun package\n", what, python, strerror(errno), what);
	return EXIT_FAILURE;
}
