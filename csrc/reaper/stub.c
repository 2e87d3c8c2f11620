/* SPDX-License-Identifier: MIT */
/*
 * stub.c - stands where the payload of a parked sandbox will stand.
 *
 *   nsrun-stub PARK STATUS SECCOMP
 *
 * It waits on PARK for one message (hand.h), and then execs what that names.
 * The message comes from the sandbox's owner, who may do more to it anyway;
 * still, every count and length is checked.
 */
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "exec_loop.h"
#include "hand.h"
#include "small.h"
#include "terminal.h"

enum { ARGC = 4, STDIO = 3, CLOSE_RANGE_CLOEXEC_BIT = 4 };

static union {
	struct nsr_hand head;
	char bytes[NSR_HAND_MAX];
} packet;
static const char *words[NSR_HAND_WORDS + 8];

struct command {
	const struct nsr_hand_rlimit *rlimits;
	const char *dir;
	const char **programs;
	const char **argv;
	const char **sh_argv;
	const char **envp;
	int fds[STDIO];
};

static long receive(int park, int fds[STDIO])
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(STDIO * sizeof(int))];
	} control;
	struct iovec iov = { packet.bytes, sizeof(packet.bytes) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	long n;

	do
		n = SYS3(SYS_recvmsg, park, &msg, MSG_CMSG_CLOEXEC);
	while (n == -EINTR);
	if (n <= 0)
		return n;
	if (n < (long)sizeof(packet.head) || n != (long)packet.head.size ||
	    msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ||
	    msg.msg_controllen < CMSG_LEN(STDIO * sizeof(int)) ||
	    control.align.cmsg_type != SCM_RIGHTS ||
	    control.align.cmsg_len != CMSG_LEN(STDIO * sizeof(int)))
		return -EPROTO;
	for (int i = 0; i < STDIO; i++)
		fds[i] = ((const int *)(const void *)CMSG_DATA(&control.align))[i];
	return n;
}

/* The next n strings go to out, and a NULL behind them; NULL: they aren't there. */
static const char *take_words(const char *at, const char *end, const char **out, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		out[i] = at;
		while (at < end && *at)
			at++;
		if (at == end)
			return NULL;
		at++;
	}
	out[n] = NULL;
	return at;
}

/* Take the packet apart; -1: it is none of ours. */
static int parse(struct command *command)
{
	const struct nsr_hand *head = &packet.head;
	const char *at = packet.bytes + sizeof(*head), *end = packet.bytes + head->size;
	const char **next = words;
	const char *dir[2] = { NULL, NULL };

	if (head->n_rlimits > NSR_HAND_RLIMITS || !head->n_programs || !head->n_argv ||
	    !head->n_env || head->n_programs > NSR_HAND_WORDS || head->n_argv > NSR_HAND_WORDS ||
	    head->n_env > NSR_HAND_WORDS ||
	    head->n_programs + 2 * head->n_argv + head->n_env > NSR_HAND_WORDS ||
	    (uint64_t)(end - at) < head->n_rlimits * sizeof(*command->rlimits))
		return -1;
	command->rlimits = (const struct nsr_hand_rlimit *)(const void *)at;
	at += head->n_rlimits * sizeof(*command->rlimits);
	if (head->flags & NSR_HAND_CHDIR)
		at = take_words(at, end, dir, 1);
	command->dir = dir[0];
	command->programs = next;
	next += head->n_programs + 1;
	command->argv = next;
	next += head->n_argv + 1;
	command->envp = next;
	next += head->n_env + 1;
	command->sh_argv = next;
	at = at ? take_words(at, end, command->programs, head->n_programs) : NULL;
	at = at ? take_words(at, end, command->argv, head->n_argv) : NULL;
	at = at ? take_words(at, end, command->envp, head->n_env) : NULL;
	return at == end ? 0 : -1;
}

static void make_sh_argv(const struct command *command, uint32_t n)
{
	command->sh_argv[0] = "/bin/sh";
	for (uint32_t i = 1; i <= n; i++)
		command->sh_argv[i + 1] = command->argv[i];
}

/* The directory, and the PWD that goes with it: where no other was named, ours. */
static long enter_dir(const struct command *command, uint32_t n_env, const char **envp)
{
	if (command->dir)
		return SYS1(SYS_chdir, command->dir);
	for (; *envp; envp++)
		if ((*envp)[0] == 'P' && (*envp)[1] == 'W' && (*envp)[2] == 'D' &&
		    (*envp)[3] == '=')
			command->envp[n_env - 1] = *envp;
	return 0;
}

static long take_stdio(const int fds[STDIO])
{
	long ret = 0;

	/* received fds are above 2, since all three of those are open */
	for (int i = 0; i < STDIO && ret >= 0; i++)
		ret = SYS3(SYS_dup3, fds[i], i, 0);
	return ret < 0 ? ret : SYS3(SYS_close_range, STDIO, ~0u, CLOSE_RANGE_CLOEXEC_BIT);
}

static void set_rlimits(const struct command *command, int status_fd)
{
	for (uint32_t i = 0; i < packet.head.n_rlimits; i++) {
		const struct nsr_hand_rlimit *limit = &command->rlimits[i];
		char name[8] = "no. ";
		long ret = SYS4(SYS_prlimit64, 0, limit->resource, &limit->soft, 0);

		name[4] = (char)('0' + limit->resource / 10 % 10);
		name[5] = (char)('0' + limit->resource % 10);
		if (ret < 0)
			nsr_small_fail(status_fd, NSR_STEP_RLIMIT, ret, name);
	}
}

static void tell(int status_fd, enum nsr_record_type type)
{
	struct nsr_record record = { .type = type, .op = -1 };
	struct { int64_t sec, nsec; } now = { 0, 0 };
	const long clock_monotonic = 1;

	SYS2(SYS_clock_gettime, clock_monotonic, &now);
	record.value = now.sec * 1000000000 + now.nsec;
	SYS3(SYS_write, status_fd, &record, sizeof(record));
}

static _Noreturn void run(struct command *command, int status_fd, int filters, const char **envp)
{
	const struct nsr_hand *head = &packet.head;
	long ret = take_stdio(command->fds);

	if (ret < 0)
		nsr_small_fail(status_fd, NSR_STEP_STDIO, ret, "");
	ret = enter_dir(command, head->n_env, envp);
	if (ret < 0)
		nsr_small_fail(status_fd, NSR_STEP_CHDIR, ret, command->dir);
	ret = head->flags & NSR_HAND_TERMINAL ? nsr_terminal_take() : 0;
	if (ret < 0)
		nsr_small_fail(status_fd, NSR_STEP_TERMINAL, ret, "");
	set_rlimits(command, status_fd);
	nsr_small_load_filters(filters, status_fd);
	tell(status_fd, NSR_RECORD_EXEC);
	ret = nsr_exec_programs(command->programs, command->argv, command->sh_argv,
				command->envp);
	nsr_small_fail(status_fd, NSR_STEP_EXEC, ret, command->argv[0]);
}

_Noreturn void nsr_stub_main(long argc, const char *const *argv, const char **envp)
{
	struct command command = { .dir = NULL };
	int status_fd, park;
	long n;

	if (argc != ARGC)
		nsr_small_leave(1);
	park = nsr_small_number(argv[1]);
	status_fd = nsr_small_number(argv[2]);
	tell(status_fd, NSR_RECORD_PARKED);
	n = receive(park, command.fds);
	/* nobody wants this sandbox any more */
	if (!n || n == -ECONNRESET)
		nsr_small_leave(1);
	if (n < 0 || parse(&command))
		nsr_small_fail(status_fd, NSR_STEP_STUB, n < 0 ? n : -EPROTO, "");
	make_sh_argv(&command, packet.head.n_argv);
	run(&command, status_fd, nsr_small_number(argv[3]), envp);
}
