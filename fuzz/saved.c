/* SPDX-License-Identifier: MIT */
/*
 * saved: what a client knew of files, from anybody, to a server over a scratch directory.
 *
 * Names and numbers are the input's.  What the directory's files are it can't know, so
 * identities are taken as they come and put in place of those that are there: then the
 * reader goes on behind each of its comparisons.  Whatever it took is asked for, and saved.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

enum { ROOM = 4096, SAVED = 1 << 20, HEAD = 40, NODE = 96, NUMBERS = 24, COMPARED = 64 };

static char scratch[64];

static void put_number(uint8_t **at, uint64_t value, int bytes)
{
	for (int i = 0; i < bytes; i++)
		*(*at)++ = (uint8_t)(value >> (8 * i));
}

static struct fs_server *serve(void)
{
	uint8_t view[256], *at = view, *length;
	struct fs_server *server;
	size_t len = strlen(scratch);
	char error[256];

	put_number(&at, FS_VIEW_MAGIC, 4);
	put_number(&at, FS_VIEW_VERSION, 4);
	length = at;
	put_number(&at, 0, 4);
	put_number(&at, 1, 4);
	put_number(&at, 0, 4);
	put_number(&at, 1, 4);
	put_number(&at, 0, 8);
	put_number(&at, 0, 8);
	put_number(&at, len, 4);
	memcpy(at, scratch, len);
	at += len;
	put_number(&at, FS_HIDDEN, 4);
	put_number(&at, 1, 4);
	*at++ = 's';
	put_number(&length, (uint64_t)(at - view), 4);
	server = fs_server_new(view, (size_t)(at - view), error, sizeof(error));
	if (!server)
		abort();
	return server;
}

static void make_file(const char *name)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", scratch, name);
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	if (fd < 0)
		abort();
	close(fd);
}

static void remove_scratch(void)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf %s", scratch);
	(void)!system(command);
}

static void start(void)
{
	const struct rlimit files = { 256, 256 };
	char path[128];

	if (setrlimit(RLIMIT_NOFILE, &files))
		abort();
	snprintf(scratch, sizeof(scratch), "%s/nsrun-fuzz-saved-%d",
		 access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", (int)getpid());
	snprintf(path, sizeof(path), "%s/d", scratch);
	if (mkdir(scratch, 0700) || mkdir(path, 0700))
		abort();
	make_file("f");
	make_file("s");
	make_file("d/g");
	atexit(remove_scratch);
}

/* What is compared, as it is: of "0", "0/f", "0/d", "0/d/g", "0/s" by the name alone. */
static void make_true(uint8_t *node, const uint8_t *name, size_t len)
{
	const char *path = len == 1 && *name == 'g' ? "d/g" : "";
	char whole[128], one[2] = { len == 1 ? (char)*name : 0, 0 };
	struct fs_identity is;
	struct fs_stamp stamp;
	struct fs_stat st;

	snprintf(whole, sizeof(whole), "%s/%s", scratch,
		 *path ? path : strchr("fds", *one) ? one : "");
	if (fs_stat_at(AT_FDCWD, whole, &st))
		return;
	fs_identify(&st, &is);
	fs_stamp(&st, &stamp);
	memcpy(node + NUMBERS, (uint64_t[]){ is.dev, is.ino, is.mount, is.born, is.type,
					     stamp.size, stamp.modified, stamp.changed },
	       COMPARED);
}

static uint64_t number(const uint8_t *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

/* As far as its numbers lead. */
static void make_all_true(uint8_t *data, size_t size)
{
	size_t at = HEAD;

	if (size < HEAD || number(data + 16) > 256)
		return;
	at += (size_t)number(data + 16) * 8;
	for (uint64_t n = number(data + 24); n && at + NODE <= size; n--) {
		uint64_t len = number(data + at + NODE - 8);

		if (len > size - at - NODE)
			return;
		make_true(data + at, data + at + NODE, (size_t)len);
		at += NODE + (size_t)len;
	}
}

static void ask(struct fs_server *server, uint32_t opcode, uint64_t node)
{
	struct fuse_in_header head = { .len = sizeof(head) + 16, .opcode = opcode, .nodeid = node };
	uint8_t in[sizeof(head) + 16] = { 0 }, out[ROOM];
	const struct iovec asked = { in, sizeof(in) }, room = { out, sizeof(out) };

	memcpy(in, &head, sizeof(head));
	if (fs_request(server, &asked, 1, &room, 1) > ROOM)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size + 1), *saved = malloc(SAVED);
	struct fs_server *server;
	char error[512] = "";
	int ret;

	if (!copy || !saved)
		abort();
	if (!*scratch)
		start();
	memcpy(copy, data, size);
	make_all_true(copy, size);
	server = serve();
	fs_server_resume(server, true);
	ret = fs_server_load(server, copy, size, error, sizeof(error));
	if (!ret != !*error)
		abort();                /* refused without a word, or taken with one */
	for (uint64_t node = 1; node < 8; node++) {
		ask(server, FUSE_GETATTR, node);
		ask(server, FUSE_OPEN, node);
	}
	/* what was taken can be saved, and taken again */
	(void)fs_server_save(server, saved, SAVED, error, sizeof(error));
	(void)fs_server_check(server, error, sizeof(error));
	fs_server_free(server);
	free(copy);
	free(saved);
	return 0;
}
