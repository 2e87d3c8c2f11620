/* SPDX-License-Identifier: MIT */
/*
 * loop.h - the agent's one loop: who is called when a descriptor has something.
 *
 * Everything is edge-triggered: whoever is called goes on until the kernel says
 * EAGAIN, or asks to be called again and lets others have their turn.  A watch
 * may be called for nothing, so no descriptor may block.
 */
#ifndef NSR_GUEST_LOOP_H
#define NSR_GUEST_LOOP_H

#include <stdint.h>

struct nsr_watch {
	int fd;                     /* -1: closed */
	void (*ready)(struct nsr_watch *watch, uint32_t events);
	struct nsr_watch *next;     /* among those to be called again */
	int again;
};

/* 0 or -errno. */
int nsr_loop_open(void);

/* Watch watch->fd for everything; 0 or -errno. */
int nsr_loop_add(struct nsr_watch *watch);

/* Call it again after all others. */
void nsr_loop_again(struct nsr_watch *watch);

/* Stop watching; the descriptor is the caller's again. */
int nsr_loop_leave(struct nsr_watch *watch);

/* Close its descriptor.  It must stay in memory until nsr_loop_turn returns. */
void nsr_loop_close(struct nsr_watch *watch);

/* Wait until a time of nsr_now_ms (-1: for good) and call whoever has something. */
int nsr_loop_turn(int64_t until_ms);

/* CLOCK_MONOTONIC. */
int64_t nsr_now_ms(void);

/* Of two such times, of which -1 never comes. */
static inline int64_t nsr_earlier(int64_t a, int64_t b)
{
	return a < 0 || (b >= 0 && b < a) ? b : a;
}

#endif
