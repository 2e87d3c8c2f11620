/* SPDX-License-Identifier: MIT */
/*
 * Process 1 of a stock kernel, and the peer of test_vsock.py: listens on
 * vsock port 1024; each stream begins with a struct task.  Those to port 1025
 * are never accepted, and yet connected.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

enum { PORT = 1024, UNATTENDED_PORT = 1025, BACKLOG = 1024 };

enum task_kind {
	SINK = 1,                   /* read to the end; answer: struct result, then the end */
	SOURCE = 2,                 /* send value bytes and their CRC, then the end */
	ECHO = 3,                   /* send back what comes, to the end */
	DIAL = 4,                   /* echo on a stream to the host's port; answer: its errno */
	STALL = 5,                  /* read nothing, ever */
	REBIND = 6,                 /* take the driver from its device, and give it back */
	POWER_OFF = 7,
};

struct task {
	uint32_t kind;
	uint32_t port;
	uint64_t value;
};

struct result {
	uint64_t bytes;
	uint32_t crc;
	uint32_t error;
};

static uint32_t crc_table[256];
static uint8_t buffer[1 << 16];

static void die(const char *what)
{
	printf("vsock_peer: %s: %s\n", what, strerror(errno));
	_exit(1);
}

/* As zlib's crc32. */
static void make_crc_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
		crc_table[i] = crc;
	}
}

static uint32_t add_crc(uint32_t crc, const uint8_t *bytes, size_t len)
{
	crc = ~crc;
	while (len--)
		crc = crc >> 8 ^ crc_table[(crc ^ *bytes++) & 255];
	return ~crc;
}

static void send_all(int fd, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	while (len) {
		ssize_t n = send(fd, at, len, MSG_NOSIGNAL);

		if (n < 0)
			die("send");
		at += n;
		len -= (size_t)n;
	}
}

static void receive_all(int fd, void *bytes, size_t len)
{
	if (recv(fd, bytes, len, MSG_WAITALL) != (ssize_t)len)
		die("a task is cut short");
}

static void sink(int fd)
{
	struct result result = { .bytes = 0 };
	ssize_t n;

	while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0) {
		result.crc = add_crc(result.crc, buffer, (size_t)n);
		result.bytes += (uint64_t)n;
	}
	result.error = n < 0 ? (uint32_t)errno : 0;
	send_all(fd, &result, sizeof(result));
}

static void source(int fd, uint64_t bytes)
{
	uint64_t state = 0x9e3779b97f4a7c15u;
	uint32_t crc = 0;

	while (bytes) {
		size_t len = bytes < sizeof(buffer) ? (size_t)bytes : sizeof(buffer);

		for (size_t i = 0; i < sizeof(buffer); i += sizeof(state)) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			memcpy(buffer + i, &state, sizeof(state));
		}
		crc = add_crc(crc, buffer, len);
		send_all(fd, buffer, len);
		bytes -= len;
	}
	send_all(fd, &crc, sizeof(crc));
}

static void echo(int fd)
{
	ssize_t n;

	while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0)
		send_all(fd, buffer, (size_t)n);
	if (shutdown(fd, SHUT_WR))
		die("shutdown");
}

static void dial(int fd, uint32_t port)
{
	const struct sockaddr_vm host = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port,
	};
	int out = socket(AF_VSOCK, SOCK_STREAM, 0);
	struct result result = { .bytes = 0 };

	if (connect(out, (const struct sockaddr *)&host, sizeof(host)))
		result.error = (uint32_t)errno;
	send_all(fd, &result, sizeof(result));
	if (!result.error)
		echo(out);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

/* Streams end with the device; so does the one by which this was asked for. */
static void rebind(void)
{
	static const char driver[] = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
	char path[256], name[64];

	for (int i = 0; i < 16; i++) {
		snprintf(path, sizeof(path), "%s/virtio%d", driver, i);
		if (access(path, F_OK))
			continue;
		snprintf(name, sizeof(name), "virtio%d", i);
		snprintf(path, sizeof(path), "%s/unbind", driver);
		write_file(path, name);
		snprintf(path, sizeof(path), "%s/bind", driver);
		write_file(path, name);
	}
}

static void serve(int fd)
{
	struct task task;

	receive_all(fd, &task, sizeof(task));
	switch (task.kind) {
	case SINK:
		sink(fd);
		break;
	case SOURCE:
		source(fd, task.value);
		break;
	case ECHO:
		echo(fd);
		break;
	case DIAL:
		dial(fd, task.port);
		break;
	case STALL:
		pause();
		break;
	case REBIND:
		rebind();
		break;
	case POWER_OFF:
		reboot(RB_POWER_OFF);
	}
}

static void load_modules(void)
{
	FILE *order = fopen("/lib/modules/order", "re");
	char line[256], path[512];

	while (order && fgets(line, sizeof(line), order)) {
		int fd;

		line[strcspn(line, "\n")] = 0;
		snprintf(path, sizeof(path), "/lib/modules/%s", line);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			printf("vsock_peer: module %s: %s\n", line, strerror(errno));
	}
}

static int listen_to(uint32_t port)
{
	const struct sockaddr_vm here = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port,
	};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (const struct sockaddr *)&here, sizeof(here)) ||
	    listen(fd, BACKLOG))
		die("vsock");
	return fd;
}

int main(void)
{
	int listener, fd;

	setlinebuf(stdout);
	signal(SIGCHLD, SIG_IGN);
	make_crc_table();
	load_modules();
	if (mount("sysfs", "/sys", "sysfs", 0, NULL))
		die("/sys");
	listen_to(UNATTENDED_PORT);
	listener = listen_to(PORT);
	printf("vsock_peer: listening\n");
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		if (!fork()) {
			close(listener);
			serve(fd);
			_exit(0);
		}
		close(fd);
	}
	die("accept");
}
