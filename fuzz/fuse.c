/* SPDX-License-Identifier: MIT */
/*
 * fuse: whole requests, to a server over a scratch directory with a view.
 *
 * The input is a list of requests, each behind its length (u16).  Node numbers
 * are left as they are: they are small and so are easily met.  What the view
 * hides or protects must be as before, whatever was asked for.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server.h"

enum { ROOM = 4096, REQUEST_MOST = 4096 };

static char scratch[64];
static int scratch_fd = -1;
/*
 * Another one for each input: the fuzzer learns what strings are compared with,
 * and would write a lasting one into a file of its own, and find it there.
 */
static char secret[24];

static void put_number(uint8_t **at, uint64_t value, int bytes)
{
	for (int i = 0; i < bytes; i++)
		*(*at)++ = (uint8_t)(value >> (8 * i));
}

static void put_text(uint8_t **at, const char *text)
{
	size_t len = strlen(text);

	put_number(at, len, 4);
	memcpy(*at, text, len);
	*at += len;
}

static void put_rule(uint8_t **at, uint32_t access, const char *path)
{
	put_number(at, access, 4);
	put_text(at, path);
}

static struct fs_server *serve(void)
{
	uint8_t view[512], *at = view, *length;
	struct fs_server *server;
	char error[256];

	put_number(&at, 0x5652534e, 4);
	put_number(&at, 1, 4);
	length = at;
	put_number(&at, 0, 4);
	put_number(&at, 2, 4);
	for (uint32_t read_only = 0; read_only < 2; read_only++) {
		put_number(&at, read_only, 4);
		put_number(&at, 3, 4);
		put_number(&at, 0, 8);
		put_number(&at, 0, 8);
		put_text(&at, scratch);
		put_rule(&at, 0, "s");
		put_rule(&at, 1, "p/q");
		put_rule(&at, 1, "n/m");
	}
	put_number(&length, (uint64_t)(at - view), 4);
	server = fs_server_new(view, (size_t)(at - view), error, sizeof(error));
	if (!server) {
		fprintf(stderr, "%s\n", error);
		abort();
	}
	return server;
}

static void write_file(const char *name, const char *text)
{
	int fd = openat(scratch_fd, name, O_CREAT | O_TRUNC | O_WRONLY, 0600);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		abort();
	close(fd);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)ftw;
	/* what was made unreadable comes as FTW_DNR, before it was emptied */
	if (type == FTW_DNR)
		return chmod(path, 0700) || nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	remove(path);
	return 0;
}

static void remove_scratch(void)
{
	nftw(scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* In memory where that can be, since it is made and removed so often. */
static void make_scratch(void)
{
	const char *where = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";

	snprintf(scratch, sizeof(scratch), "%s/nsrun-fuzz-fuse-%d", where, (int)getpid());
	if (scratch_fd >= 0)
		close(scratch_fd);
	if (mkdir(scratch, 0700))
		abort();
	scratch_fd = open(scratch, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (mkdirat(scratch_fd, "p", 0700) || mkdirat(scratch_fd, "p/q", 0700))
		abort();
}

static void start(void)
{
	const struct rlimit size = { 1 << 20, 1 << 20 }, files = { 256, 256 };

	/* a request can ask for files as large as the disk; tables are as large as files allow */
	if (setrlimit(RLIMIT_FSIZE, &size) || setrlimit(RLIMIT_NOFILE, &files))
		abort();
	make_scratch();
	atexit(remove_scratch);
}

static void refresh(void)
{
	static unsigned long long runs;

	/* what the requests made, before it is too much */
	if (++runs % 256 == 0) {
		remove_scratch();
		make_scratch();
	}
	snprintf(secret, sizeof(secret), "secret-%016llx", runs * 0x9e3779b97f4a7c15ULL);
	write_file("s", secret);
	write_file("p/q/f", "kept");
}

static void check_kept(const char *name, const char *text)
{
	char data[32] = "";
	int fd = openat(scratch_fd, name, O_RDONLY);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) || read(fd, data, sizeof(data) - 1) < 0)
		abort();
	close(fd);
	if (strcmp(data, text) || st.st_nlink != 1)
		abort();
}

/* FSYNC, FSYNCDIR and SYNCFS wait for the whole machine's disks. */
static bool is_slow(const uint8_t *data, size_t len)
{
	return len >= 8 && (data[4] == 20 || data[4] == 30 || data[4] == 50);
}

static void give(struct fs_server *server, const uint8_t *data, size_t len)
{
	uint8_t *in = malloc(len), *out = malloc(ROOM);
	struct iovec parts[2], room = { out, ROOM };
	size_t half = len / 2;
	ssize_t filled;

	if (!in || !out)
		abort();
	memcpy(in, data, len);
	parts[0] = (struct iovec){ in, half };
	parts[1] = (struct iovec){ in + half, len - half };
	filled = fs_request(server, parts, 2, &room, 1);
	if (filled > ROOM || (filled > 0 && memmem(out, (size_t)filled, secret, strlen(secret))))
		abort();
	free(in);
	free(out);
}

static void begin(struct fs_server *server)
{
	const uint32_t init[14] = { 56, 26, [10] = 7, 39, 4096, 0xffffffff };

	give(server, (const uint8_t *)init, sizeof(init));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fs_server *server;

	if (!scratch[0])
		start();
	refresh();
	server = serve();
	begin(server);
	while (size > 2) {
		size_t len = (size_t)data[0] | (size_t)data[1] << 8;

		data += 2;
		size -= 2;
		len = len < size ? len : size;
		if (len && len <= REQUEST_MOST && !is_slow(data, len))
			give(server, data, len);
		data += len;
		size -= len;
	}
	fs_server_free(server);
	check_kept("s", secret);
	check_kept("p/q/f", "kept");
	return 0;
}
