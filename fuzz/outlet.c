/* SPDX-License-Identifier: MIT */
/*
 * outlet: what comes to a command's way out, from three sides that may do what they like: who
 * sends the listening sockets, programs in the sandbox that connect to them, and the host that
 * comes for their connections, or for others.  Sockets and the loop are real, the clock is not.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int fuzz_clock(clockid_t clock, struct timespec *now);
#define clock_gettime fuzz_clock
/* its functions are nobody else's */
#include "../csrc/guest/loop.c"
#undef clock_gettime
#include "../csrc/guest/outlet.c"

enum action {
	SEND_FDS, CONNECT, COME, SAY, TAKE, SHUT, LEAVE, TURN, PASS_TIME, FILL, END_COMMAND,
	CLOSE_ALL, N_ACTIONS,
};

enum {
	STEPS = 64,                 /* of one input */
	PEERS = 24,
	MOST_FDS = 5,
	SETTLE = 40,                /* turns at most until all has moved that can */
};

/* One end that is not the outlet's: a program's, or the host's for a connection. */
struct peer {
	int fd;                     /* -1: none */
	uint8_t said;               /* the next byte that it says ... */
	uint8_t heard;              /* ... and that it hears, of the other's count */
	bool host;
	bool greeted;               /* the byte that says that the outlet has it */
};

static struct {
	struct nsr_outlet outlet;
	struct nsr_control control;
	struct peer peer[PEERS];
	int line;                   /* whoever sends the listening sockets; -1: gone */
	struct sockaddr_un address[LISTENERS];
	socklen_t length[LISTENERS];
	uint32_t told;              /* the last number that the host was told */
	int64_t now_ms;
	bool full;
} run;

static int fuzz_clock(clockid_t clock, struct timespec *now)
{
	(void)clock;
	now->tv_sec = run.now_ms / 1000;
	now->tv_nsec = run.now_ms % 1000 * 1000000;
	return 0;
}

/* Each connection is told once, by a number of its own. */
void nsr_control_send(struct nsr_control *control, enum nsr_frame_type type, const void *payload,
		      size_t length)
{
	uint32_t number;

	if (control != &run.control || type != NSR_FRAME_OUTGOING || length != sizeof(number) ||
	    run.full)
		abort();
	memcpy(&number, payload, length);
	if (number != ++run.told)
		abort();
}

int nsr_control_has_room(const struct nsr_control *control)
{
	(void)control;
	return !run.full;
}

/* What it counts is what there is, and within its bounds. */
static void check(void)
{
	uint32_t connections = 0, waiting = 0;

	for (const struct nsr_outgoing *one = run.outlet.first; one; one = one->next) {
		if (one->guest.fd < 0)
			continue;
		connections++;
		waiting += one->host.fd < 0;
	}
	if (connections != run.outlet.n_connections || waiting != run.outlet.n_waiting ||
	    connections > NSR_OUTGOING || waiting > NSR_OUTGOING_WAITING)
		abort();
}

static struct peer *peer(uint8_t number)
{
	return &run.peer[number % PEERS];
}

static void keep(struct peer *to, int fd, bool host)
{
	if (to->fd >= 0)
		close(to->fd);
	*to = (struct peer){ .fd = fd, .host = host };
}

static int new_listener(int i)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	/* a name that the kernel chooses: unix(7), autobind */
	run.address[i] = (struct sockaddr_un){ .sun_family = AF_UNIX };
	run.length[i] = sizeof(run.address[i]);
	if (fd < 0 || bind(fd, (struct sockaddr *)&run.address[i], sizeof(sa_family_t)) ||
	    getsockname(fd, (struct sockaddr *)&run.address[i], &run.length[i]) || listen(fd, 4))
		abort();
	return fd;
}

/* So many, of which those above two are none that listen. */
static void send_fds(uint8_t how)
{
	int n = how % (MOST_FDS + 1), fds[MOST_FDS];
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(fds))];
	} control = { .align = { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
				 .cmsg_len = CMSG_LEN((size_t)n * sizeof(int)) } };
	struct iovec iov = { (void *)(uintptr_t)"", 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (run.line < 0)
		return;
	for (int i = 0; i < n; i++)
		fds[i] = i < LISTENERS && !(how & 0x80) ? new_listener(i) : dup(run.line);
	memcpy(CMSG_DATA(&control.align), fds, (size_t)n * sizeof(int));
	if (n) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
	}
	sendmsg(run.line, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	for (int i = 0; i < n; i++)
		close(fds[i]);
	if (how & 0x40) {
		close(run.line);
		run.line = -1;
	}
}

static void connect_to(struct peer *from, int i)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (!run.length[i] ||
	    connect(fd, (struct sockaddr *)&run.address[i], run.length[i])) {
		close(fd);
		return;
	}
	keep(from, fd, false);
}

/* For the connection of that number, which may be none. */
static void come(struct peer *to, uint32_t number)
{
	const int least = 1;
	int ends[2];

	/* little fits into it, so that much has to be kept */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) ||
	    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &least, sizeof(least)))
		abort();
	if (nsr_outlet_join(&run.outlet, number, ends[1])) {
		close(ends[0]);
		close(ends[1]);
		return;
	}
	keep(to, ends[0], true);
}

static void say(struct peer *from, uint8_t how)
{
	static uint8_t bytes[256 << 8];
	size_t length = 1 + (size_t)how * how;
	ssize_t n;

	for (size_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)(from->said + i);
	n = send(from->fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n > 0)
		from->said = (uint8_t)(from->said + n);
}

/* In the order in which it was said, with nothing left out. */
static void take(struct peer *to)
{
	static uint8_t bytes[32 << 10];
	ssize_t n = recv(to->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
	ssize_t at = 0;

	if (n > 0 && to->host && !to->greeted) {
		if (bytes[at++])
			abort();
		to->greeted = true;
	}
	for (; at < n; at++)
		if (bytes[at] != to->heard++)
			abort();
}

static void settle(void)
{
	struct pollfd some = { .fd = loop.fd, .events = POLLIN };

	for (int i = 0; i < SETTLE && (loop.first || poll(&some, 1, 0)); i++)
		if (nsr_loop_turn(run.now_ms))
			abort();
	check();
}

static void pass_time(uint8_t how)
{
	int64_t next;

	run.now_ms += (int64_t)how * how;
	next = nsr_outlet_tend(&run.outlet, run.now_ms);
	/* what is due is done: nobody is called again for it at once */
	if (next >= 0 && next <= run.now_ms)
		abort();
	check();
}

static void step(enum action action, uint8_t who, uint8_t how)
{
	struct peer *one = peer(who);

	if (action == SEND_FDS)
		send_fds(how);
	else if (action == CONNECT)
		connect_to(one, how % LISTENERS);
	else if (action == COME)
		come(one, how & 0x80 ? how : run.told - how % 8);
	else if (action == TURN)
		settle();
	else if (action == PASS_TIME)
		pass_time(how);
	else if (action == FILL)
		run.full = how & 1;
	else if (action == END_COMMAND)
		nsr_outlet_end(&run.outlet);
	else if (action == CLOSE_ALL && how > 0xf0)
		nsr_outlet_close(&run.outlet);
	if (one->fd < 0)
		return;
	if (action == SAY)
		say(one, how);
	else if (action == TAKE)
		take(one);
	else if (action == SHUT)
		shutdown(one->fd, how & 1 ? SHUT_WR : SHUT_RD);
	else if (action == LEAVE)
		keep(one, -1, false);
}

static void begin(void)
{
	memset(&run, 0, sizeof(run));
	run.now_ms = 1;
	for (int i = 0; i < PEERS; i++)
		run.peer[i].fd = -1;
	nsr_outlet_init(&run.outlet, &run.control);
	run.line = nsr_outlet_open(&run.outlet);
	if (run.line < 0)
		abort();
}

/* Nothing is left of it: no memory, no descriptor, nobody to be called. */
static void finish(int lowest)
{
	nsr_outlet_close(&run.outlet);
	nsr_outlet_tend(&run.outlet, run.now_ms);
	if (run.outlet.first || loop.first)
		abort();
	if (run.line >= 0)
		close(run.line);
	for (int i = 0; i < PEERS; i++)
		keep(&run.peer[i], -1, false);
	if (dup(loop.fd) != lowest || close(lowest))
		abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	/* as the agent has it */
	signal(SIGPIPE, SIG_IGN);
	return nsr_loop_open();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int lowest;

	lowest = dup(loop.fd);
	close(lowest);
	begin();
	for (int i = 0; i < STEPS && size >= 3; i++, data += 3, size -= 3)
		step(data[0] % N_ACTIONS, data[1], data[2]);
	settle();
	finish(lowest);
	return 0;
}
