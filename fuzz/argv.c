/* SPDX-License-Identifier: MIT */
/* argv: the command line parser on words that are split at NULs.
 *
 * The numbers FIRST_FD and up are open files, so that --args and its kin have
 * something to read; lower ones are refused as long as they would be the
 * fuzzer's own. The plan that comes out is checked and sent through bytes. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nsrun.h"

enum { FIRST_FD = 20, N_FDS = 4, MOST_WORDS = 512, MOST_BYTES = 1 << 16 };

#define CONTENT(text) { text, sizeof(text) - 1 }
static const struct {
	const char *text;
	size_t length;
} contents[N_FDS] = {
	CONTENT("--ro-bind\0/a\0/b\0--args\0" "20"),   /* refused: a list within a list */
	CONTENT("--tmpfs\0/t\0--perms\0" "0700\0--dir\0/d"),
	CONTENT("12345678"),    /* one BPF instruction */
	CONTENT(""),
};

static void fill_fd(int i)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0 || write(fd, contents[i].text, contents[i].length) < 0 ||
	    lseek(fd, 0, SEEK_SET) || dup2(fd, FIRST_FD + i) < 0)
		abort();
	if (fd != FIRST_FD + i)
		close(fd);
}

/* 0, 1, 2 and what libFuzzer holds must not be read from or closed. */
static int names_foreign_fd(const char *word)
{
	char *end;
	long n = strtol(word, &end, 10);
	int fd = (int)n;

	return *word && !*end && n >= 0 && fd >= 0 && (fd < FIRST_FD || fd >= FIRST_FD + N_FDS) &&
	       fcntl(fd, F_GETFD) >= 0;
}

static int split(char *words, size_t size, const char *argv[MOST_WORDS + 2])
{
	int argc = 0;

	argv[argc++] = "nsrun";
	for (size_t at = 0; at < size && argc <= MOST_WORDS; at += strlen(words + at) + 1) {
		if (names_foreign_fd(words + at))
			return -1;
		argv[argc++] = words + at;
	}
	argv[argc] = NULL;
	return argc;
}

static void check_bytes(const struct nsr_plan *plan)
{
	static struct nsr_diag diag;
	int64_t len = nsr_plan_write(plan, NULL, 0);
	uint8_t *bytes = malloc((size_t)len);
	struct nsr_plan *again = nsr_plan_new();

	if (!bytes || !again || nsr_plan_write(plan, bytes, (uint64_t)len) != len)
		abort();
	/* what the parser takes, the reader takes */
	if (nsr_plan_read(again, bytes, (uint64_t)len, &diag))
		abort();
	nsr_plan_free(again);
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const env[] = { "PATH=/bin", "HOME=/h", NULL };
	static char words[MOST_BYTES + 1];
	static struct nsr_diag diag;
	const char *argv[MOST_WORDS + 2];
	struct nsr_plan *plan;
	int argc;

	if (size > MOST_BYTES)
		return 0;
	memcpy(words, data, size);
	words[size] = '\0';
	argc = split(words, size, argv);
	if (argc < 0)
		return 0;
	for (int i = 0; i < N_FDS; i++)
		fill_fd(i);
	plan = nsr_plan_new();
	if (!plan)
		abort();
	diag.text[0] = '\0';
	switch (nsr_plan_parse(plan, argc, argv, env, NULL, NULL, &diag)) {
	case NSR_PARSE_OK:
		check_bytes(plan);
		break;
	case NSR_PARSE_ERROR:
		if (!diag.text[0])
			abort();        /* refused without a word */
		break;
	}
	nsr_plan_free(plan);
	return 0;
}
