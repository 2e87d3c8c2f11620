/* SPDX-License-Identifier: MIT */
/*
 * driver.c - the server, given requests that no kernel would make.
 *
 *   driver VIEW
 *
 * On stdin, for each request: u32 length, u32 room for the reply, u32 piece, and
 * its bytes.  On stdout: i64 what fs_request returned, then the reply.  Both are
 * given to the server in pieces of so many bytes, each its own memory, so that a
 * sanitizer sees one byte too many.  Without a piece the second number is an
 * enum order, and on stdout are then i64 what came of it, u32 length and bytes:
 * those of what was saved, or of an error.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server.h"

enum { MOST = 4 << 20 };

enum order {
	ADD,                            /* the bytes are a view */
	KEEP,
	SAVE,
	LOAD,                           /* the bytes are what SAVE gave */
	CHECK,
};

static struct iovec *pieces(const char *data, uint32_t len, uint32_t piece, int *n)
{
	struct iovec *iov = calloc(len / piece + 1, sizeof(*iov));

	*n = 0;
	for (uint32_t at = 0; iov && at < len; at += piece) {
		uint32_t part = len - at < piece ? len - at : piece;
		char *copy = malloc(part);

		if (!copy)
			abort();
		memcpy(copy, data + at, part);
		iov[(*n)++] = (struct iovec){ copy, part };
	}
	return iov;
}

static void free_pieces(struct iovec *iov, int n)
{
	for (int i = 0; i < n; i++)
		free(iov[i].iov_base);
	free(iov);
}

static void write_reply(const struct iovec *iov, int n, int64_t len)
{
	fwrite(&len, sizeof(len), 1, stdout);
	for (int i = 0; i < n && len > 0; i++) {
		size_t part = (size_t)len < iov[i].iov_len ? (size_t)len : iov[i].iov_len;

		fwrite(iov[i].iov_base, 1, part, stdout);
		len -= (int64_t)part;
	}
	fflush(stdout);
}

static void serve(struct fs_server *server, const uint32_t head[3], char *data)
{
	static char zero[MOST];
	struct iovec *in, *out;
	int n_in, n_out;

	in = pieces(data, head[0], head[2], &n_in);
	out = pieces(zero, head[1], head[2], &n_out);
	if (!in || !out)
		abort();
	write_reply(out, n_out, fs_request(server, in, n_in, out, n_out));
	free_pieces(in, n_in);
	free_pieces(out, n_out);
}

static void obey(struct fs_server *server, enum order order, const char *data, uint32_t given)
{
	static char saved[MOST];
	char error[512] = "";
	const char *said = error;
	int64_t value = 0;
	uint32_t len;

	if (order == ADD)
		value = fs_server_add(server, data, given, error, sizeof(error));
	else if (order == KEEP)
		fs_server_keep(server);
	else if (order == SAVE)
		value = fs_server_save(server, saved, sizeof(saved), error, sizeof(error));
	else if (order == LOAD)
		value = fs_server_load(server, data, given, error, sizeof(error));
	else
		value = fs_server_check(server, error, sizeof(error));
	len = (uint32_t)strlen(error);
	if (order == SAVE && value >= 0) {
		said = saved;
		len = (uint32_t)value;
	}
	fwrite(&value, sizeof(value), 1, stdout);
	fwrite(&len, sizeof(len), 1, stdout);
	fwrite(said, 1, len, stdout);
	fflush(stdout);
}

static size_t read_view(const char *path, char *data)
{
	FILE *file = fopen(path, "re");
	size_t len;

	if (!file)
		return 0;
	len = fread(data, 1, MOST, file);
	fclose(file);
	return len;
}

int main(int argc, char **argv)
{
	static char data[MOST];
	struct fs_server *server;
	uint32_t head[3];
	char error[512];
	size_t len;

	if (argc != 2)
		return 2;
	len = read_view(argv[1], data);
	server = fs_server_new(data, len, error, sizeof(error));
	if (!server) {
		fprintf(stderr, "%s\n", error);
		return 1;
	}
	while (fread(head, sizeof(head), 1, stdin) == 1) {
		if (head[0] > MOST || head[1] > MOST || fread(data, 1, head[0], stdin) != head[0])
			return 2;
		if (head[2])
			serve(server, head, data);
		else
			obey(server, head[1], data, head[0]);
	}
	fs_server_free(server);
	return 0;
}
