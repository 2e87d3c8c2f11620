/* SPDX-License-Identifier: MIT */
/*
 * slirp.c - nsrun-slirp: the network of one microVM, by libslirp.
 *
 * Frames of the guest's Ethernet come and go on a socket; what they carry of TCP,
 * UDP and echo goes on by ordinary sockets of this process.  It ends with status 0
 * when the other side of that socket is gone.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "addresses.h"
#include "jail.h"
#include "reach.h"
#include "refuse.h"

enum { STATUS_ERROR = 1, STATUS_USAGE = 2 };
enum { MTU_MIN = 1280, MTU = 1500, MTU_MAX = 65520, HEAD = 14 };
enum { BATCH = 64 };            /* frames, before the sockets have a turn */
enum { TIMERS = 4, POLLS = 1024 };

/* One that libslirp asked for; cb NULL: free. */
struct timer {
	SlirpTimerCb cb;
	void *arg;
	int64_t at;                 /* milliseconds of the clock; -1: not set */
};

struct network {
	int fd;
	size_t mtu;
	bool loopback, link_local;
	Slirp *slirp;
	struct timer timer[TIMERS];
	struct pollfd poll[POLLS];  /* the first is fd */
	nfds_t n_polls;
	uint8_t frame[HEAD + MTU_MAX];
};

static struct network network = { .fd = -1, .mtu = MTU };

_Noreturn static void fail(int status, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

_Noreturn static void fail(int status, const char *format, ...)
{
	va_list args;

	fputs("nsrun-slirp: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(status);
}

/* --- what libslirp asks of us --------------------------------------------------------------- */

/*
 * Waits while the guest is slow: then all of its network is.  The monitor never
 * waits for us in turn.
 */
static ssize_t send_packet(const void *frame, size_t len, void *opaque)
{
	struct pollfd room = { .fd = network.fd, .events = POLLOUT };
	ssize_t n;

	(void)opaque;
	while ((n = send(network.fd, frame, len, MSG_NOSIGNAL)) < 0 &&
	       (errno == EAGAIN || errno == EINTR))
		poll(&room, 1, -1);
	if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
		exit(0);
	/* what is too long for the socket is lost, as on any wire */
	return (ssize_t)len;
}

/* The guest's mistakes are its own business. */
static void guest_error(const char *text, void *opaque)
{
	(void)text, (void)opaque;
}

static int64_t clock_get_ns(void *opaque)
{
	struct timespec now;

	(void)opaque;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t now_ms(void)
{
	return clock_get_ns(NULL) / 1000000;
}

static void *timer_new(SlirpTimerCb cb, void *arg, void *opaque)
{
	(void)opaque;
	for (size_t i = 0; i < TIMERS; i++) {
		if (network.timer[i].cb)
			continue;
		network.timer[i] = (struct timer){ .cb = cb, .arg = arg, .at = -1 };
		return &network.timer[i];
	}
	fail(STATUS_ERROR, "libslirp wants more than %d timers", TIMERS);
}

static void timer_free(void *timer, void *opaque)
{
	(void)opaque;
	((struct timer *)timer)->cb = NULL;
}

static void timer_mod(void *timer, int64_t at, void *opaque)
{
	(void)opaque;
	((struct timer *)timer)->at = at;
}

/* All is asked for anew before each poll(). */
static void about_fd(int fd, void *opaque)
{
	(void)fd, (void)opaque;
}

static void notify(void *opaque)
{
	(void)opaque;
}

static const SlirpCb callbacks = {
	.send_packet = send_packet, .guest_error = guest_error, .clock_get_ns = clock_get_ns,
	.timer_new = timer_new, .timer_free = timer_free, .timer_mod = timer_mod,
	.register_poll_fd = about_fd, .unregister_poll_fd = about_fd, .notify = notify,
};

static struct in_addr address4(const char *text)
{
	struct in_addr address = { 0 };

	inet_pton(AF_INET, text, &address);
	return address;
}

static struct in6_addr address6(const char *text)
{
	struct in6_addr address = { 0 };

	inet_pton(AF_INET6, text, &address);
	return address;
}

static Slirp *start(void)
{
	const SlirpConfig config = {
		.version = SLIRP_CONFIG_VERSION_MAX,
		.in_enabled = true,
		.vnetwork = address4(NSR_NET_PREFIX4),
		.vnetmask = address4(NSR_NET_MASK4),
		.vhost = address4(NSR_NET_GATEWAY4),
		.vnameserver = address4(NSR_NET_DNS4),
		.vdhcp_start = address4(NSR_NET_GUEST4),
		.in6_enabled = true,
		.vprefix_addr6 = address6(NSR_NET_PREFIX6),
		.vprefix_len = NSR_NET_PREFIX6_LEN,
		.vhost6 = address6(NSR_NET_GATEWAY6),
		.vnameserver6 = address6(NSR_NET_DNS6),
		.if_mtu = network.mtu,
		.if_mru = network.mtu,
		.disable_host_loopback = !network.loopback,
#if SLIRP_CONFIG_VERSION_MAX >= 4
		.disable_dhcp = true,
#endif
	};

	return slirp_new(&config, &callbacks, NULL);
}

/* --- the loop --------------------------------------------------------------------------------- */

static const struct {
	int slirp;
	short poll;
} event_bits[] = {
	{ SLIRP_POLL_IN, POLLIN }, { SLIRP_POLL_OUT, POLLOUT }, { SLIRP_POLL_PRI, POLLPRI },
	{ SLIRP_POLL_ERR, POLLERR }, { SLIRP_POLL_HUP, POLLHUP },
};

static int add_poll(int fd, int events, void *opaque)
{
	struct pollfd *poll = &network.poll[network.n_polls];

	(void)opaque;
	/* there are no more descriptors than that */
	if (network.n_polls == POLLS)
		fail(STATUS_ERROR, "more than %d sockets", POLLS);
	*poll = (struct pollfd){ .fd = fd };
	for (size_t i = 0; i < sizeof(event_bits) / sizeof(event_bits[0]); i++)
		if (events & event_bits[i].slirp)
			poll->events |= event_bits[i].poll;
	return (int)network.n_polls++;
}

static int get_revents(int index, void *opaque)
{
	short events = network.poll[index].revents;
	int ret = 0;

	(void)opaque;
	for (size_t i = 0; i < sizeof(event_bits) / sizeof(event_bits[0]); i++)
		if (events & event_bits[i].poll)
			ret |= event_bits[i].slirp;
	return ret;
}

static void run_timers(void)
{
	int64_t now = now_ms();

	for (size_t i = 0; i < TIMERS; i++) {
		struct timer *timer = &network.timer[i];

		if (!timer->cb || timer->at < 0 || timer->at > now)
			continue;
		timer->at = -1;
		timer->cb(timer->arg);
	}
}

/* Milliseconds for poll(): what libslirp says, or until the first timer. */
static int until_timer(uint32_t timeout)
{
	int64_t now = now_ms(), least = timeout == UINT32_MAX ? INT32_MAX : timeout;

	for (size_t i = 0; i < TIMERS; i++) {
		const struct timer *timer = &network.timer[i];

		if (timer->cb && timer->at >= 0 && timer->at - now < least)
			least = timer->at > now ? timer->at - now : 0;
	}
	return least < INT32_MAX ? (int)least : INT32_MAX;
}

static void take_frame(size_t len)
{
	uint8_t answer[NSR_NET_REFUSAL];

	if (nsr_net_reaches(network.frame, len, network.link_local)) {
		slirp_input(network.slirp, network.frame, (int)len);
		return;
	}
	len = nsr_net_refusal(network.frame, len, answer);
	if (len)
		send_packet(answer, len, NULL);
}

static void take_frames(void)
{
	for (int i = 0; i < BATCH; i++) {
		ssize_t n = recv(network.fd, network.frame, sizeof(network.frame),
				 MSG_DONTWAIT | MSG_TRUNC);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0 && errno != ECONNRESET)
			fail(STATUS_ERROR, "recv of a frame: %s", strerror(errno));
		if (n <= 0)
			exit(0);
		if ((size_t)n <= HEAD + network.mtu)
			take_frame((size_t)n);
	}
}

_Noreturn static void serve(void)
{
	for (;;) {
		uint32_t timeout = UINT32_MAX;
		int ret;

		network.poll[0] = (struct pollfd){ .fd = network.fd, .events = POLLIN };
		network.n_polls = 1;
		slirp_pollfds_fill(network.slirp, &timeout, add_poll, NULL);
		ret = poll(network.poll, network.n_polls, until_timer(timeout));
		if (ret < 0 && errno != EINTR)
			fail(STATUS_ERROR, "poll: %s", strerror(errno));
		slirp_pollfds_poll(network.slirp, ret < 0, get_revents, NULL);
		run_timers();
		if (ret > 0 && network.poll[0].revents)
			take_frames();
	}
}

/* --- the command line ------------------------------------------------------------------------ */

static long number(const char *option, const char *text, long least, long most)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value < least || value > most)
		fail(STATUS_USAGE, "%s %s: a number from %ld to %ld is wanted", option, text,
		     least, most);
	return value;
}

static void take_options(char **words)
{
	for (; *words; words++) {
		const char *option = *words;

		if (!strcmp(option, "--allow-loopback"))
			network.loopback = true;
		else if (!strcmp(option, "--allow-link-local"))
			network.link_local = true;
		else if (!words[1])
			fail(STATUS_USAGE, "%s: there is no such option, or its value is missing",
			     option);
		else if (!strcmp(option, "--fd"))
			network.fd = (int)number(option, *++words, 0, 1 << 30);
		else if (!strcmp(option, "--mtu"))
			network.mtu = (size_t)number(option, *++words, MTU_MIN, MTU_MAX);
		else
			fail(STATUS_USAGE, "there is no option %s", option);
	}
}

static void check_socket(void)
{
	int type = 0;
	socklen_t len = sizeof(type);

	if (network.fd < 0)
		fail(STATUS_USAGE, "--fd is needed");
	if (getsockopt(network.fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		fail(STATUS_USAGE, "--fd %d: %s", network.fd, strerror(errno));
	if (type != SOCK_SEQPACKET)
		fail(STATUS_USAGE, "--fd %d: it must be a connected SOCK_SEQPACKET socket",
		     network.fd);
}

int main(int argc, char **argv)
{
	const struct sigaction ignore = { .sa_handler = SIG_IGN };
	const char *failed;

	(void)argc;
	take_options(argv + 1);
	check_socket();
	sigaction(SIGPIPE, &ignore, NULL);
	sigaction(SIGXFSZ, &ignore, NULL);
	failed = nsr_net_jail(network.fd);
	if (failed)
		fail(STATUS_ERROR, "%s: %s", failed, strerror(errno));
	network.slirp = start();
	if (!network.slirp)
		fail(STATUS_ERROR, "libslirp %s does not start", slirp_version_string());
	failed = nsr_net_jail_calls();
	if (failed)
		fail(STATUS_ERROR, "%s: %s", failed, strerror(errno));
	serve();
}
