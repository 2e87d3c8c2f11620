/* SPDX-License-Identifier: MIT */
/* loop.c - the agent's one loop, over epoll(7). */
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "loop.h"

enum { BATCH = 64 };

static struct {
	int fd;
	struct nsr_watch *first;    /* to be called again */
	struct nsr_watch **end;
} loop = { .fd = -1, .end = &loop.first };

int64_t nsr_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int nsr_loop_open(void)
{
	loop.fd = epoll_create1(EPOLL_CLOEXEC);
	return loop.fd < 0 ? -errno : 0;
}

int nsr_loop_add(struct nsr_watch *watch)
{
	struct epoll_event event = {
		.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
		.data.ptr = watch,
	};

	return epoll_ctl(loop.fd, EPOLL_CTL_ADD, watch->fd, &event) ? -errno : 0;
}

void nsr_loop_again(struct nsr_watch *watch)
{
	if (watch->again)
		return;
	watch->again = 1;
	watch->next = NULL;
	*loop.end = watch;
	loop.end = &watch->next;
}

static void not_again(struct nsr_watch *watch)
{
	struct nsr_watch **at = &loop.first;

	while (*at != watch)
		at = &(*at)->next;
	*at = watch->next;
	if (!*at)
		loop.end = at;
	watch->again = 0;
}

int nsr_loop_leave(struct nsr_watch *watch)
{
	int fd = watch->fd;

	if (fd < 0)
		return -1;
	if (watch->again)
		not_again(watch);
	epoll_ctl(loop.fd, EPOLL_CTL_DEL, fd, NULL);
	watch->fd = -1;
	return fd;
}

void nsr_loop_close(struct nsr_watch *watch)
{
	int fd = nsr_loop_leave(watch);

	if (fd >= 0)
		close(fd);
}

/* As many as there are: those that ask for it meanwhile wait for the next turn. */
static void call_again(void)
{
	int n = 0;

	for (const struct nsr_watch *watch = loop.first; watch; watch = watch->next)
		n++;
	for (; n && loop.first; n--) {
		struct nsr_watch *watch = loop.first;

		not_again(watch);
		watch->ready(watch, 0);
	}
}

static int wait_ms(int64_t until_ms)
{
	int64_t left;

	if (loop.first)
		return 0;
	if (until_ms < 0)
		return -1;
	left = until_ms - nsr_now_ms();
	return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

int nsr_loop_turn(int64_t until_ms)
{
	struct epoll_event events[BATCH];
	int n = epoll_wait(loop.fd, events, BATCH, wait_ms(until_ms));

	if (n < 0 && errno != EINTR)
		return -errno;
	for (int i = 0; i < n; i++) {
		struct nsr_watch *watch = events[i].data.ptr;

		/* closed by one that was called before it */
		if (watch->fd >= 0)
			watch->ready(watch, events[i].events);
	}
	call_again();
	return 0;
}
