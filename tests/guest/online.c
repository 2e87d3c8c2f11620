/* SPDX-License-Identifier: MIT */
/*
 * online.c - a guest's first process that uses the network, as words of the kernel's
 * command line say, and tells on the console what came of it:
 *   get=PORT   read all that this port of the host sends
 *   put=PORT   send so many bytes there, and read the answer
 *   name=NAME  resolve it
 *   to=ADDRESS,PORT  connect there
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "addresses.h"
#include "net_up.h"

enum { CHUNK = 1 << 16, SENT = 1 << 20 };

static uint32_t crc_table[256];
static uint8_t chunk[CHUNK];

static void make_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		crc_table[i] = i;
		for (int bit = 0; bit < 8; bit++)
			crc_table[i] = crc_table[i] >> 1 ^ (crc_table[i] & 1 ? 0xedb88320 : 0);
	}
}

static uint32_t crc32(uint32_t crc, const uint8_t *data, size_t len)
{
	crc = ~crc;
	while (len--)
		crc = crc_table[(crc ^ *data++) & 255] ^ crc >> 8;
	return ~crc;
}

static void load_modules(void)
{
	FILE *order = fopen("/lib/modules/order", "re");
	char name[256], path[300];

	while (order && fgets(name, sizeof(name), order)) {
		int fd;

		name[strcspn(name, "\n")] = '\0';
		snprintf(path, sizeof(path), "/lib/modules/%s", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			perror(path);
	}
}

/* Both families' addresses can be given. */
static int connect_to(const char *address, const char *port)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	const int tries = 1;
	struct addrinfo *found = NULL;
	int fd;

	if (getaddrinfo(address, port, &hints, &found))
		return -1;
	fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	/* what nobody answers is no use to wait for */
	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &tries, sizeof(tries)) ||
	    connect(fd, found->ai_addr, found->ai_addrlen)) {
		printf("no way to %s: %s\n", address, strerror(errno));
		return -1;
	}
	printf("connected to %s\n", address);
	return fd;
}

static void get(const char *port)
{
	int fd = connect_to(NSR_NET_GATEWAY4, port);
	uint32_t crc = 0;
	size_t all = 0;
	ssize_t n;

	if (fd < 0)
		return;
	while ((n = read(fd, chunk, sizeof(chunk))) > 0) {
		crc = crc32(crc, chunk, (size_t)n);
		all += (size_t)n;
	}
	printf("got %zu bytes, crc %08x%s\n", all, crc, n ? ", and an error" : "");
	close(fd);
}

static void put(const char *port)
{
	int fd = connect_to(NSR_NET_GATEWAY4, port);
	uint32_t crc = 0;
	ssize_t n;

	if (fd < 0)
		return;
	for (size_t all = 0; all < SENT; all += (size_t)n) {
		for (size_t i = 0; i < sizeof(chunk); i++)
			chunk[i] = (uint8_t)((all + i) * 7 >> 3);
		n = write(fd, chunk, sizeof(chunk));
		if (n <= 0)
			break;
		crc = crc32(crc, chunk, (size_t)n);
	}
	shutdown(fd, SHUT_WR);
	n = read(fd, chunk, sizeof(chunk) - 1);
	chunk[n > 0 ? n : 0] = 0;
	printf("put crc %08x, answer %s\n", crc, (char *)chunk);
	close(fd);
}

static void resolve(const char *name)
{
	const struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM };
	struct addrinfo *found = NULL;
	FILE *file = fopen("/etc/resolv.conf", "we");
	int ret;

	if (!file || fputs("nameserver " NSR_NET_DNS4 "\n", file) < 0 || fclose(file))
		perror("/etc/resolv.conf");
	ret = getaddrinfo(name, NULL, &hints, &found);
	if (ret)
		printf("%s: %s\n", name, gai_strerror(ret));
	else
		printf("%s is %s\n", name,
		       inet_ntoa(((struct sockaddr_in *)(void *)found->ai_addr)->sin_addr));
}

static void obey(char *word)
{
	char *value = strchr(word, '='), *comma;

	if (!value)
		return;
	*value++ = 0;
	if (!strcmp(word, "get")) {
		get(value);
	} else if (!strcmp(word, "put")) {
		put(value);
	} else if (!strcmp(word, "name")) {
		resolve(value);
	} else if (!strcmp(word, "to") && (comma = strchr(value, ','))) {
		*comma = 0;
		close(connect_to(value, comma + 1));
	}
}

int main(void)
{
	char line[4096] = "";
	const char *failed;
	FILE *file;

	setvbuf(stdout, NULL, _IOLBF, 0);
	mount("proc", "/proc", "proc", 0, NULL);
	file = fopen("/proc/cmdline", "re");
	if (!file || !fgets(line, sizeof(line), file))
		return 1;
	make_table();
	load_modules();
	failed = nsr_guest_net_up();
	if (failed)
		printf("%s: %s\n", failed, strerror(errno));
	else
		puts("the network is up");
	line[strcspn(line, "\n")] = 0;
	for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
		obey(word);
	puts("online: ended");
	reboot(RB_POWER_OFF);
	return 1;
}
