/* SPDX-License-Identifier: MIT */
/* handle.c - a sandbox that was started: hear of it, signal it, hand it a command, end it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child_handle.h"
#include "clock.h"
#include "diag.h"
#include "hand.h"
#include "reaper_loop.h"
#include "spawn.h"
#include "sys.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

void nsr_child_free(struct nsr_ctx *ctx)
{
	const int ends[] = { ctx->status_r, ctx->life_w, ctx->park_w, ctx->exec_r };

	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		if (ends[i] >= 0)
			close(ends[i]);
	nsr_arena_free(&ctx->own_arena);
	nsr_shared_free(ctx);
}

/* The kernel counts what a process shared before its exec: what is below that says nothing. */
static void take_peak(struct nsr_child *child, int64_t peak)
{
	child->peak_rss = peak > child->floor_rss ? peak : 0;
}

/* The started process's own end; 1: it has ended. */
static int wait_process(struct nsr_child *child, int options)
{
	siginfo_t info = { .si_pid = 0 };
	struct nsr_record used = { .cpu_ns = 0 };
	struct rusage usage;
	long ret;

	do
		ret = SYS5(SYS_waitid, P_PIDFD, child->pidfd, &info, WEXITED | options, &usage);
	while (ret == -EINTR);
	if (ret) {
		/* somebody else's wait(2) was faster */
		if (child->exit_status < 0)
			child->exit_status = nsr_pidfd_wait(child->pidfd);
		return 1;
	}
	if (!info.si_pid)
		return 0;
	if (child->exit_status >= 0)
		return 1;
	child->exit_status = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
	nsr_add_usage(&used, &usage);
	child->cpu_ns = used.cpu_ns;
	take_peak(child, used.peak_rss);
	return 1;
}

/* Whoever shares our memory told the time of its exec by that, if not by a record. */
static void take_exec(struct nsr_child *child)
{
	const struct nsr_ctx *ctx = child->shared;

	if (!child->exec_ns)
		child->exec_ns = __atomic_load_n(&ctx->exec_ns, __ATOMIC_ACQUIRE);
}

/* Without a reaper, or without a living one, the process itself tells its end. */
static int read_process(struct nsr_child *child)
{
	struct pollfd end = { .fd = child->pidfd, .events = POLLIN };

	child->status_fd = child->pidfd;
	if (poll(&end, 1, 0) != 1 || !wait_process(child, WNOHANG))
		return 0;
	take_exec(child);
	child->exit_ns = nsr_now();
	return 1;
}

/*
 * A pidfd of a process that was told by number.  The number may be another's by
 * now, so its parent must be one that we hold; -1: it is gone.
 */
static int open_told(int pid, int parent)
{
	int fd = (int)SYS2(SYS_pidfd_open, pid, 0);

	if (fd >= 0 && nsr_parent_of(pid) != parent) {
		close(fd);
		return -1;
	}
	return fd;
}

static int is_program(const struct nsr_ctx *ctx)
{
	return !ctx->share_vm;
}

/* Pid 1 of the sandbox: of its own pid namespace, or its first process. */
static int first_pidfd(const struct nsr_child *child)
{
	return child->inner_pidfd >= 0 ? child->inner_pidfd : child->pidfd;
}

static int signal_payload(const struct nsr_child *child, const struct nsr_ctx *ctx,
			  int signal_number)
{
	int fd, ret;

	if (!ctx->facts.with_reaper)
		return (int)SYS4(SYS_pidfd_send_signal, first_pidfd(child), signal_number, 0, 0);
	/* its parent is pid 1, which is the started process or that one's child */
	fd = (int)SYS2(SYS_pidfd_open, child->payload_pid, 0);
	if (fd < 0)
		return -ESRCH;
	ret = nsr_parent_of(child->payload_pid);
	if (ret != child->pid && (ret < 0 || nsr_parent_of(ret) != child->pid))
		ret = -ESRCH;
	else
		ret = (int)SYS4(SYS_pidfd_send_signal, fd, signal_number, 0, 0);
	close(fd);
	return ret;
}

/* What was sent before the payload's pid was known. */
static void send_early(struct nsr_child *child, const struct nsr_ctx *ctx)
{
	for (int number = 1; child->early; number++, child->early >>= 1)
		if (child->early & 1)
			signal_payload(child, ctx, number);
}

/* The plan may be gone by then, as it may be when a child is closed. */
static void take_exit(struct nsr_child *child, const struct nsr_ctx *ctx,
		      const struct nsr_record *record)
{
	take_exec(child);
	child->exit_status = (int)(record->value & 0xff);
	child->alone = record->alone && ctx->facts.unshare & NSR_CLONE_NEWPID;
	child->cpu_ns = record->cpu_ns;
	take_peak(child, record->peak_rss);
	child->exit_ns = nsr_now();
}

static int take(struct nsr_child *child, struct nsr_ctx *ctx, struct nsr_record *record,
		struct nsr_diag *diag)
{
	switch (record->type) {
	case NSR_RECORD_PARKED:
		child->parked = 1;
		return 0;
	case NSR_RECORD_PID:
		if (child->inner_pidfd < 0)
			child->inner_pidfd = open_told((int)record->value, child->pid);
		return 0;
	case NSR_RECORD_EXEC:
		child->exec_ns = record->value;
		child->payload_pid = record->pid;
		send_early(child, ctx);
		return 0;
	case NSR_RECORD_TIMEOUT:
		child->timed_out = 1;
		record->value = NSR_EXIT_KILLED;
		take_exit(child, ctx, record);
		return 1;
	case NSR_RECORD_EXIT:
		take_exit(child, ctx, record);
		return 1;
	case NSR_RECORD_DIAG:
		nsr_diag_set(diag, "%s", ctx->cold->text);
		diag->err = record->err;
		return record->err ? -record->err : -EPROTO;
	default:
		nsr_failure_text(ctx->plan, record, ctx->cold->text, diag);
		return record->err ? -record->err : -EPROTO;
	}
}

int nsr_child_read(struct nsr_child *child, struct nsr_diag *diag)
{
	struct nsr_ctx *ctx = child->shared;
	int saved_errno = errno;
	int ret = 0;

	/* closed: whoever collects garbage may do that before the last one looks */
	if (child->exit_ns || !ctx)
		return 1;
	while (!ret) {
		struct nsr_record record = { .pid = 0 };
		int got = 0;

		if (child->status_fd == ctx->status_r)
			got = nsr_receive_record(ctx->status_r, &record, ctx->cold->text);
		if (got == -EAGAIN)
			break;
		if (got > 0) {
			ret = take(child, ctx, &record, diag);
			continue;
		}
		ret = read_process(child);
		break;
	}
	errno = saved_errno;
	return ret;
}

/* Pid 1 sends it to all, unless a filter that isn't ours may forbid it that. */
static int can_ask_reaper(const struct nsr_child *child, const struct nsr_ctx *ctx)
{
	const int64_t *n = ctx->plan->number;

	/* the host's reaper is under no filter */
	if (n[NSR_FLAGS] & NSR_ON_HOST)
		return child->life_fd >= 0;
	return child->life_fd >= 0 && n[NSR_UNSHARE] & NSR_CLONE_NEWPID &&
	       !(n[NSR_FLAGS] & NSR_AS_PID_1) && nsr_plan_seccomp_is_ours(ctx->plan);
}

/* Until a record tells who the payload is. */
static int keep_early(struct nsr_child *child, const struct nsr_ctx *ctx, int signal_number)
{
	/* a sandbox that waits for its command has nobody to get it */
	if (child->park_fd >= 0)
		return -ESRCH;
	/* a program always tells, others if they are asked to */
	if (!is_program(ctx) && !ctx->report_exec && ctx->stub_fd < 0)
		return -ENOTSUP;
	child->early |= 1ULL << (signal_number - 1);
	return 0;
}

static int send_order(struct nsr_child *child, const void *order, size_t len)
{
	long ret = nsr_syscall(SYS_sendto, child->life_fd, NSR_A(order), (long)len,
			       MSG_NOSIGNAL | MSG_DONTWAIT, 0, 0);

	if (ret == (long)len)
		return 0;
	return ret == -EPIPE || ret == -ECONNRESET ? -ESRCH : (int)ret;
}

int nsr_child_deadline(struct nsr_child *child, int64_t milliseconds)
{
	const uint64_t order = (uint64_t)milliseconds;
	const struct nsr_ctx *ctx = child->shared;

	if (!ctx || child->exit_ns)
		return -ESRCH;
	if (milliseconds <= 0 || milliseconds > NSR_MAX_TIMEOUT_MS)
		return -EINVAL;
	return can_ask_reaper(child, ctx) ? send_order(child, &order, sizeof(order)) : -ENOTSUP;
}

/* The program tells pid 1 right after its clone; without that word there is no pid 1. */
static void learn_inner(struct nsr_child *child, struct nsr_ctx *ctx)
{
	struct pollfd ends[2] = { { .fd = ctx->status_r, .events = POLLIN },
				  { .fd = child->pidfd, .events = POLLIN } };

	while (child->inner_pidfd < 0) {
		struct nsr_record record = { .pid = 0 };
		int got;

		if (poll(ends, 2, -1) < 0 && errno == EINTR)
			continue;
		got = nsr_receive_record(ctx->status_r, &record, ctx->cold->text);
		if (got > 0 && record.type == NSR_RECORD_PID) {
			child->inner_pidfd = open_told((int)record.value, child->pid);
			return;
		}
		if (!got || (got == -EAGAIN && ends[1].revents))
			return;
	}
}

int nsr_child_signal(struct nsr_child *child, int signal_number)
{
	const uint8_t order = (uint8_t)signal_number;
	struct nsr_ctx *ctx = child->shared;

	if (!ctx)
		return -ESRCH;
	if (signal_number <= 0 || signal_number > 64)
		return -EINVAL;
	/* also after the payload's end, for what that left running */
	if (signal_number == SIGKILL) {
		/* a program that dies too early tells nobody of its sandbox */
		if (is_program(ctx) && !child->exit_ns)
			learn_inner(child, ctx);
		return (int)SYS4(SYS_pidfd_send_signal, first_pidfd(child), SIGKILL, 0, 0);
	}
	if (child->exit_ns)
		return -ESRCH;
	if (can_ask_reaper(child, ctx))
		return send_order(child, &order, sizeof(order));
	/* of a first process that is the payload the kernel keeps it: all are blocked till then */
	if (!child->payload_pid && (is_program(ctx) || ctx->facts.with_reaper))
		return keep_early(child, ctx, signal_number);
	return signal_payload(child, ctx, signal_number);
}

/* --- a parked sandbox gets its command ------------------------------------------------- */

struct packet {
	char *bytes;
	size_t len;
	uint32_t words;
	int full;
};

static void put(struct packet *packet, const void *data, size_t len)
{
	if (len > NSR_HAND_MAX - packet->len)
		packet->full = 1;
	if (packet->full)
		return;
	memcpy(packet->bytes + packet->len, data, len);
	packet->len += len;
}

static uint32_t put_words(struct packet *packet, const char *const *words)
{
	uint32_t n = 0;

	for (; words[n]; n++)
		put(packet, words[n], strlen(words[n]) + 1);
	packet->words += n;
	if (packet->words > NSR_HAND_WORDS)
		packet->full = 1;
	return n;
}

/* The packet's bytes are the scratch that the set-up no longer needs. */
static int make_packet(struct nsr_ctx *ctx, const struct nsr_plan *command, struct packet *packet,
		       struct nsr_diag *diag)
{
	struct nsr_ctx words = { .plan = command, .arena = ctx->arena, .cold = ctx->cold };
	const char *dir[2] = { command->string[NSR_CHDIR], NULL };
	struct nsr_hand head = { .n_rlimits = command->n_rlimits };

	if (nsr_prepare_words(&words, diag))
		return -ENOMEM;
	if (dir[0])
		*words.pwd_slot = words.pwd_chdir;
	head.flags = (dir[0] ? NSR_HAND_CHDIR : 0) |
		     (command->number[NSR_FLAGS] & NSR_TERMINAL ? NSR_HAND_TERMINAL : 0);
	packet->len = sizeof(head);
	for (uint32_t i = 0; i < command->n_rlimits; i++) {
		const struct nsr_rlimit *limit = &command->rlimits[i];
		const struct nsr_hand_rlimit one = { limit->resource, limit->soft, limit->hard };

		put(packet, &one, sizeof(one));
	}
	put_words(packet, dir);
	head.n_programs = put_words(packet, words.programs);
	head.n_argv = put_words(packet, words.argv);
	packet->words += head.n_argv;
	head.n_env = put_words(packet, words.envp);
	head.size = (uint32_t)packet->len;
	memcpy(packet->bytes, &head, sizeof(head));
	if (packet->full || command->n_rlimits > NSR_HAND_RLIMITS || !head.n_programs)
		return nsr_diag_errno(diag, E2BIG, "The command doesn't fit into one message");
	return 0;
}

static long send_packet(int fd, const struct packet *packet, const int stdio[3])
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(3 * sizeof(int))];
	} control = { .align = { .cmsg_len = CMSG_LEN(3 * sizeof(int)), .cmsg_level = SOL_SOCKET,
				 .cmsg_type = SCM_RIGHTS } };
	struct iovec iov = { packet->bytes, packet->len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	long ret;

	memcpy(CMSG_DATA(&control.align), stdio, 3 * sizeof(int));
	do
		ret = SYS3(SYS_sendmsg, fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (ret == -EINTR);
	return ret;
}

int nsr_child_hand(struct nsr_child *child, const struct nsr_plan *command, const int stdio[3],
		   struct nsr_diag *diag)
{
	struct nsr_ctx *ctx = child->shared;
	struct packet packet = { .bytes = NULL };
	long ret;

	_Static_assert(NSR_HAND_MAX <= sizeof(ctx->cold->mountinfo), "the packet's place");
	if (!child->parked || child->park_fd < 0)
		return nsr_diag_errno(diag, EINVAL, "The sandbox waits for no command");
	if (!nsr_sources_fresh(ctx))
		return nsr_diag_errno(diag, ESTALE, "A source is not what it was");
	packet.bytes = ctx->cold->mountinfo;
	ret = make_packet(ctx, command, &packet, diag);
	if (ret)
		return (int)ret;
	child->start_ns = nsr_now();
	ret = send_packet(child->park_fd, &packet, stdio);
	if (ret < 0)
		return nsr_diag_errno(diag, (int)-ret, "Can't hand over the command");
	/* the stub's end of it goes with its exec */
	child->exec_fd = child->park_fd;
	child->park_fd = -1;
	return 0;
}

/* --- its end ---------------------------------------------------------------------------- */

/* The kernel clears the word, and wakes us, when a child is done with this memory. */
static void wait_memory(uint32_t *word)
{
	uint32_t value;

	while ((value = __atomic_load_n(word, __ATOMIC_ACQUIRE)))
		SYS4(SYS_futex, word, FUTEX_WAIT, value, 0);
}

static void end_inner(struct nsr_child *child)
{
	struct pollfd end = { .fd = child->inner_pidfd, .events = POLLIN };

	if (child->inner_pidfd < 0)
		return;
	SYS4(SYS_pidfd_send_signal, child->inner_pidfd, SIGKILL, 0, 0);
	while (poll(&end, 1, -1) < 0 && errno == EINTR)
		;
	close(child->inner_pidfd);
}

static void forget(struct nsr_child *child)
{
	nsr_child_free(child->shared);
	close(child->pidfd);
	child->shared = NULL;
	child->pidfd = child->inner_pidfd = child->status_fd = child->life_fd = -1;
	child->park_fd = child->exec_fd = -1;
}

void nsr_child_close(struct nsr_child *child)
{
	struct nsr_ctx *ctx = child->shared;
	int saved_errno = errno;

	if (!ctx)
		return;
	if (is_program(ctx)) {
		learn_inner(child, ctx);
		end_inner(child);
	}
	/*
	 * Without a pid namespace it is this process that ends the others, and then
	 * itself.  The plan itself may be gone: a collector of garbage asks nobody
	 * which of two goes first.
	 */
	if (!ctx->facts.on_host && !wait_process(child, WNOHANG)) {
		SYS4(SYS_pidfd_send_signal, child->pidfd, SIGKILL, 0, 0);
		wait_process(child, 0);
	}
	wait_memory(&ctx->clear_tid[0]);
	wait_memory(&ctx->clear_tid[1]);
	forget(child);
	errno = saved_errno;
}

int nsr_child_try_close(struct nsr_child *child)
{
	struct pollfd end = { .fd = child->pidfd, .events = POLLIN };
	const struct nsr_ctx *ctx = child->shared;

	if (ctx && (is_program(ctx) || poll(&end, 1, 0) != 1))
		return 0;
	nsr_child_close(child);
	return 1;
}

void nsr_child_forget(struct nsr_child *child)
{
	int saved_errno = errno;

	if (!child->shared)
		return;
	if (child->inner_pidfd >= 0)
		close(child->inner_pidfd);
	forget(child);
	errno = saved_errno;
}
