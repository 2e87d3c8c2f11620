/* SPDX-License-Identifier: MIT */
/*
 * hello.c - the listener, and streams that have not said yet what they are.
 *
 * There is a fixed number of those, each for a limited time.  While all places
 * are taken nobody is accepted, and waits in the kernel's queue.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "agent.h"

enum { HELLOS_A_TURN = 16 };

struct half_open {
	struct nsr_watch socket;
	int64_t until_ms;
	size_t got;
	union {
		struct nsr_hello hello;
		uint8_t bytes[sizeof(struct nsr_hello)];
	} said;
};

static struct half_open half_open[NSR_AGENT_HELLOS];
static struct nsr_watch listener = { .fd = -1 };
static int only_host;
static int starved;                 /* nobody could be accepted for want of something */

static struct half_open *free_place(void)
{
	for (size_t i = 0; i < NSR_AGENT_HELLOS; i++)
		if (half_open[i].socket.fd < 0)
			return &half_open[i];
	return NULL;
}

static void drop(struct half_open *place)
{
	nsr_loop_close(&place->socket);
	/* its place is free for one that waits */
	nsr_loop_again(&listener);
}

/* The socket becomes the command's, or nobody's. */
static void pass_on(struct half_open *place)
{
	int socket = nsr_loop_leave(&place->socket);

	if (nsr_hello_check(&place->said.hello) ||
	    nsr_command_stream(&place->said.hello, socket))
		close(socket);
	nsr_loop_again(&listener);
}

static void hello_ready(struct nsr_watch *watch, uint32_t events)
{
	struct half_open *place = (struct half_open *)(void *)watch;
	ssize_t n;

	(void)events;
	while (place->got < sizeof(place->said)) {
		n = read(watch->fd, place->said.bytes + place->got,
			 sizeof(place->said) - place->got);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			drop(place);
			return;
		}
		place->got += (size_t)n;
	}
	pass_on(place);
}
_Static_assert(offsetof(struct half_open, socket) == 0, "its watch is its beginning");

/* A process of the guest may find a way to this port too. */
static int is_host(int socket)
{
	struct sockaddr_vm peer;
	socklen_t length = sizeof(peer);

	if (!only_host)
		return 1;
	return !getpeername(socket, (struct sockaddr *)&peer, &length) &&
	       length >= sizeof(peer) && peer.svm_family == AF_VSOCK &&
	       peer.svm_cid == VMADDR_CID_HOST;
}

static void admit(struct half_open *place, int socket)
{
	*place = (struct half_open){
		.socket = { .fd = socket, .ready = hello_ready },
		.until_ms = nsr_now_ms() + NSR_AGENT_PATIENCE_MS,
	};
	if (!is_host(socket) || nsr_loop_add(&place->socket))
		nsr_loop_close(&place->socket);
}

static void listener_ready(struct nsr_watch *watch, uint32_t events)
{
	struct half_open *place;

	(void)events;
	for (int i = 0; i < HELLOS_A_TURN; i++) {
		int socket;

		place = free_place();
		if (!place)
			return;
		socket = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (socket >= 0) {
			admit(place, socket);
			continue;
		}
		if (errno == EAGAIN)
			return;
		starved = errno != ECONNABORTED && errno != EINTR;
		if (starved)
			return;
	}
	nsr_loop_again(watch);
}

int nsr_hello_listen(int socket, int host_only)
{
	for (size_t i = 0; i < NSR_AGENT_HELLOS; i++)
		half_open[i].socket.fd = -1;
	only_host = host_only;
	listener = (struct nsr_watch){ .fd = socket, .ready = listener_ready };
	return nsr_loop_add(&listener);
}

int64_t nsr_hellos_tend(void)
{
	int64_t now = nsr_now_ms(), next = -1;

	if (starved) {
		starved = 0;
		nsr_loop_again(&listener);
	}
	for (size_t i = 0; i < NSR_AGENT_HELLOS; i++) {
		struct half_open *place = &half_open[i];

		if (place->socket.fd >= 0 && place->until_ms <= now)
			drop(place);
		else if (place->socket.fd >= 0 && (next < 0 || place->until_ms < next))
			next = place->until_ms;
	}
	return next;
}
