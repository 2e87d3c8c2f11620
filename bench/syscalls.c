/* SPDX-License-Identifier: MIT */
/*
 * syscalls.c - time of a few system calls, in nanoseconds a call.
 *
 *   syscalls ROUNDS
 *
 * Prints "NAME NANOSECONDS" a line.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int zero;

static void call_getpid(void)
{
	syscall(SYS_getpid);
}

static void call_read(void)
{
	char byte;

	syscall(SYS_read, zero, &byte, 1);
}

static void call_openat(void)
{
	close((int)syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY | O_CLOEXEC));
}

static void call_ioctl(void)
{
	syscall(SYS_ioctl, zero, FIOCLEX, 0);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*call)(void);
	} calls[] = { { "getpid", call_getpid }, { "read", call_read },
		      { "openat+close", call_openat }, { "ioctl", call_ioctl } };
	long rounds = argc == 2 ? atol(argv[1]) : 0;

	zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	if (rounds <= 0 || zero < 0)
		return EXIT_FAILURE;
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		double begin = now();

		for (long n = 0; n < rounds; n++)
			calls[i].call();
		printf("%s %.1f\n", calls[i].name, (now() - begin) / (double)rounds);
	}
	return EXIT_SUCCESS;
}
