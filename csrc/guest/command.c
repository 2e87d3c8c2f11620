/* SPDX-License-Identifier: MIT */
/* command.c - commands by their tokens, from their first stream to their last process. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "diag.h"
#include "job.h"
#include "reaper_loop.h"

enum { REMOVE_AGAIN_MS = 20 };

static struct nsr_command *commands;
static uint32_t n_commands;

/* --- from the first stream on ----------------------------------------------------------------- */

static struct nsr_command *find(const uint8_t token[NSR_TOKEN_BYTES])
{
	struct nsr_command *command = commands;

	while (command && memcmp(command->token, token, NSR_TOKEN_BYTES))
		command = command->next;
	return command;
}

static void line_ready(struct nsr_watch *watch, uint32_t events);

static struct nsr_command *make(const uint8_t token[NSR_TOKEN_BYTES])
{
	struct nsr_command *command;

	if (n_commands == NSR_AGENT_COMMANDS)
		return NULL;
	command = calloc(1, sizeof(*command));
	if (!command)
		return NULL;
	memcpy(command->token, token, NSR_TOKEN_BYTES);
	command->born_ms = nsr_now_ms();
	command->deadline_ms = -1;
	command->job = -1;
	command->line = (struct nsr_watch){ .fd = -1, .ready = line_ready };
	nsr_control_init(&command->control);
	nsr_outlet_init(&command->outlet, &command->control);
	nsr_warm_init(&command->warm, &command->control);
	for (int role = 0; role < NSR_ROLE_END; role++)
		nsr_stream_init(&command->stream[role], role);
	command->next = commands;
	commands = command;
	n_commands++;
	return command;
}

struct nsr_command *nsr_command_of(struct nsr_control *control)
{
	size_t at = offsetof(struct nsr_command, control);

	return (struct nsr_command *)(void *)((char *)control - at);
}

/* Such a stream has its place, and its time, in the command. */
static int fits(const struct nsr_command *command, enum nsr_role role)
{
	const struct nsr_stream *stream = command->stream;

	if (command->abandoned)
		return 0;
	if (role == NSR_ROLE_CONTROL)
		return command->control.socket.fd < 0;
	if (command->job >= 0 || command->planned || nsr_stream_there(&stream[role]))
		return 0;
	if (role != NSR_ROLE_TERMINAL)
		return !nsr_stream_there(&stream[NSR_ROLE_TERMINAL]);
	return !nsr_stream_there(&stream[NSR_ROLE_STDIN]) &&
	       !nsr_stream_there(&stream[NSR_ROLE_STDOUT]) &&
	       !nsr_stream_there(&stream[NSR_ROLE_STDERR]);
}

/* A command that is left without any stream is swept away later. */
int nsr_command_stream(const struct nsr_hello *hello, int socket)
{
	struct nsr_command *command = find(hello->token);
	int ret;

	if (hello->role == NSR_ROLE_OUTGOING)
		return command ? nsr_outlet_join(&command->outlet, hello->connection, socket) :
				 -ENOENT;
	if (!command)
		command = make(hello->token);
	if (!command)
		return -ENOMEM;
	if (!fits(command, hello->role))
		return -EEXIST;
	/* nothing was sent on it before: there is room for a byte */
	if (write(socket, "", 1) != 1)
		return -EIO;
	if (hello->role == NSR_ROLE_CONTROL)
		ret = nsr_control_take(&command->control, socket);
	else
		ret = nsr_stream_take(&command->stream[hello->role], socket);
	return ret;
}

/* --- frames --------------------------------------------------------------------------------------- */

static int out_of_turn(struct nsr_diag *diag, const char *what)
{
	nsr_diag_set(diag, "%s", what);
	diag->err = EPROTO;
	return -EPROTO;
}

static int take_settings(struct nsr_command *command, const uint8_t *body, size_t length,
			 struct nsr_diag *diag)
{
	if (command->settings)
		return out_of_turn(diag, "A command has settings once");
	command->settings = malloc(sizeof(*command->settings));
	if (!command->settings) {
		nsr_diag_errno(diag, ENOMEM, "The agent has no memory for settings");
		return -ENOMEM;
	}
	if (nsr_settings_read(command->settings, body, length, diag))
		return -EPROTO;
	if (nsr_agent.pid_1 && command->settings->head.flags & NSR_SETTINGS_CLOCK)
		nsr_set_clock(command->settings->head.clock_ns);
	if (nsr_agent.pid_1 && command->settings->head.flags & NSR_SETTINGS_ENTROPY)
		nsr_add_entropy(command->settings->head.entropy);
	return 0;
}

static int write_whole_at(int fd, const uint8_t *bytes, size_t length, off_t at)
{
	while (length) {
		ssize_t n = pwrite(fd, bytes, length, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		bytes += n;
		at += n;
		length -= (size_t)n;
	}
	return 0;
}

int nsr_command_plan(struct nsr_command *command, const uint8_t *bytes, size_t length,
		     struct nsr_diag *diag)
{
	int ret;

	if (command->planned)
		return out_of_turn(diag, "A command has a plan once");
	if (!command->settings)
		return out_of_turn(diag, "A plan comes behind its settings");
	if (command->job < 0)
		command->job = memfd_create("nsrun-job", MFD_CLOEXEC);
	if (command->job < 0)
		return nsr_diag_errno(diag, errno, "The agent has no place for a plan");
	ret = write_whole_at(command->job, bytes, length,
			     (off_t)(NSR_JOB_PLAN + command->plan_length));
	if (ret)
		return nsr_diag_errno(diag, -ret, "The agent has no place for a plan");
	command->plan_length += length;
	return 0;
}

static void fail(struct nsr_command *command, const struct nsr_diag *diag)
{
	if (command->told)
		return;
	command->told = 1;
	nsr_control_fail(&command->control, diag);
}

/* Those of a command that runs can still be read to their end. */
static void close_unused(struct nsr_command *command)
{
	for (int role = 0; role < NSR_ROLE_END; role++)
		if (command->stream[role].local.fd < 0)
			nsr_stream_close(&command->stream[role]);
}

/* Not the stream's fault: it stays, for the host to close. */
static int begin(struct nsr_command *command, int started, struct nsr_diag *diag)
{
	uint64_t deadline = command->settings->head.deadline_ms;

	if (started) {
		close_unused(command);
		nsr_outlet_close(&command->outlet);
		fail(command, diag);
		return 0;
	}
	if (deadline)
		command->deadline_ms = nsr_now_ms() + (int64_t)deadline;
	return 0;
}

static int start(struct nsr_command *command, struct nsr_diag *diag)
{
	command->planned = 1;
	return begin(command, nsr_command_start(command, diag), diag);
}

/* A program that has done its start, and whose host has gone. */
static struct nsr_command *find_kept(void)
{
	struct nsr_command *command = commands;

	while (command && !(command->abandoned && command->warm.ready && command->warden))
		command = command->next;
	return command;
}

static int go_on(struct nsr_command *command, const uint8_t *body, size_t length,
		 struct nsr_diag *diag)
{
	if (command->planned || command->job >= 0)
		return out_of_turn(diag, "A command has a plan once, or goes on with another's");
	if (!command->settings)
		return out_of_turn(diag, "A command goes on behind its settings");
	command->planned = 1;
	return begin(command, nsr_warm_continue(command, find_kept(), body, length, diag), diag);
}

void nsr_command_kill(struct nsr_command *command)
{
	if (command->warden)
		kill(command->warden, SIGKILL);
	nsr_limits_kill(command);
}

static int take_signal(struct nsr_command *command, const uint8_t *body, struct nsr_diag *diag)
{
	uint32_t number;

	memcpy(&number, body, sizeof(number));
	if (!number || number > 64)
		return out_of_turn(diag, "There is no signal of this number");
	if (number == SIGKILL)
		nsr_command_kill(command);
	else if (command->line.fd >= 0)
		/* a warden that has no time for it is ending, or was flooded */
		send(command->line.fd, &number, sizeof(number), MSG_NOSIGNAL | MSG_DONTWAIT);
	return 0;
}

static int take_size(struct nsr_command *command, const uint8_t *body, struct nsr_diag *diag)
{
	int terminal = command->stream[NSR_ROLE_TERMINAL].local.fd;
	uint32_t size[2];
	struct winsize window = { 0 };

	memcpy(size, body, sizeof(size));
	if (size[0] > UINT16_MAX || size[1] > UINT16_MAX)
		return out_of_turn(diag, "No terminal has so many rows or columns");
	if (command->settings && !command->planned) {
		command->settings->head.rows = size[0];
		command->settings->head.columns = size[1];
	}
	window.ws_row = (unsigned short)size[0];
	window.ws_col = (unsigned short)size[1];
	if (terminal >= 0)
		ioctl(terminal, TIOCSWINSZ, &window);
	return 0;
}

static int take_deadline(struct nsr_command *command, const uint8_t *body, struct nsr_diag *diag)
{
	uint64_t left;

	memcpy(&left, body, sizeof(left));
	if (left > NSR_MAX_TIMEOUT_MS)
		return out_of_turn(diag, "A deadline is too far off");
	command->deadline_ms = left ? nsr_now_ms() + (int64_t)left : -1;
	return 0;
}

static void send_info(struct nsr_command *command)
{
	struct nsr_info info = { .version = NSR_AGENT_VERSION, .commands = n_commands };
	struct utsname name;

	info.flags = (nsr_agent.pid_1 ? NSR_INFO_PID_1 : 0) |
		     (nsr_agent.cgroups ? NSR_INFO_LIMITS : 0);
	if (!uname(&name)) {
		_Static_assert(sizeof(name.release) < NSR_RELEASE_BYTES, "with a NUL");
		memcpy(info.release, name.release, sizeof(name.release));
		memcpy(info.machine, name.machine, sizeof(name.machine));
	}
	nsr_control_send(&command->control, NSR_FRAME_INFO, &info, sizeof(info));
}

int nsr_command_frame(struct nsr_command *command, enum nsr_frame_type type, const uint8_t *body,
		      size_t length, struct nsr_diag *diag)
{
	switch (type) {
	case NSR_FRAME_SETTINGS:
		return take_settings(command, body, length, diag);
	case NSR_FRAME_PLAN:
		return start(command, diag);
	case NSR_FRAME_SIGNAL:
		return take_signal(command, body, diag);
	case NSR_FRAME_RESIZE:
		return take_size(command, body, diag);
	case NSR_FRAME_DEADLINE:
		return take_deadline(command, body, diag);
	case NSR_FRAME_POWER_OFF:
		nsr_power_off();
	case NSR_FRAME_GET_INFO:
		send_info(command);
		return 0;
	case NSR_FRAME_CONTINUE:
		return go_on(command, body, length, diag);
	default:
		return out_of_turn(diag, "The agent knows no such frame");
	}
}

/* --- its end ---------------------------------------------------------------------------------------- */

/* A host that knows of the end takes the machine away, with what connections still carry. */
static void tell_when_quiet(struct nsr_command *command)
{
	if (!command->ended || command->told || command->outlet.n_connections)
		return;
	command->told = 1;
	nsr_control_send(&command->control, NSR_FRAME_EXITED, &command->exited,
			 sizeof(command->exited));
}

static void tell_exit(struct nsr_command *command, struct nsr_exited *exited)
{
	if (command->told || command->ended)
		return;
	command->ended = 1;
	if (command->timed_out) {
		exited->status = NSR_EXIT_TIMEOUT;
		exited->flags |= NSR_EXITED_TIMED_OUT;
	}
	nsr_limits_usage(command, exited);
	if (exited->cpu_ns >= command->warm.before_ns)
		exited->cpu_ns -= command->warm.before_ns;
	command->exited = *exited;
	nsr_outlet_end(&command->outlet);
	tell_when_quiet(command);
}

static void tell_failure(struct nsr_command *command, const union nsr_line_message *message,
			 size_t length)
{
	if (command->told)
		return;
	command->told = 1;
	nsr_control_send(&command->control, NSR_FRAME_FAILED, message->bytes + sizeof(message->frame),
			 length - sizeof(message->frame));
}

static void take_message(struct nsr_command *command, union nsr_line_message *message,
			 size_t length)
{
	const struct nsr_started started = { .pid = (uint32_t)command->warden };

	if (length < sizeof(message->frame) ||
	    length != sizeof(message->frame) + message->frame.length)
		return;
	if (message->frame.type == NSR_FRAME_STARTED && !command->told)
		nsr_control_send(&command->control, NSR_FRAME_STARTED, &started, sizeof(started));
	else if (message->frame.type == NSR_FRAME_EXITED && length == sizeof(message->exit))
		tell_exit(command, &message->exit.exited);
	else if (message->frame.type == NSR_FRAME_FAILED)
		tell_failure(command, message, length);
}

static void line_ready(struct nsr_watch *watch, uint32_t events)
{
	size_t at = offsetof(struct nsr_command, line);
	struct nsr_command *command = (struct nsr_command *)(void *)((char *)watch - at);
	static union nsr_line_message message;
	ssize_t n = 1;

	(void)events;
	while (n > 0 || (n < 0 && errno == EINTR)) {
		n = recv(watch->fd, &message, sizeof(message), 0);
		if (n > 0)
			take_message(command, &message, (size_t)n);
	}
	if (!n)
		nsr_loop_close(watch);
}

void nsr_command_reaped(pid_t pid, int status)
{
	struct nsr_command *command = commands;
	struct nsr_exited exited = { .status = (uint32_t)nsr_exit_status(status) };

	while (command && command->warden != pid)
		command = command->next;
	if (!command)
		return;
	command->warden = 0;
	if (command->line.fd >= 0)
		line_ready(&command->line, 0);
	nsr_loop_close(&command->line);
	nsr_outlet_end(&command->outlet);
	tell_exit(command, &exited);
}

void nsr_command_abandon(struct nsr_command *command)
{
	command->abandoned = 1;
	if (command->warm.ready && command->warden && !command->ended) {
		nsr_warm_keep(command);
		return;
	}
	nsr_command_kill(command);
	close_unused(command);
	nsr_outlet_close(&command->outlet);
}

static void due(struct nsr_command *command, int64_t now)
{
	if (command->deadline_ms >= 0 && command->deadline_ms <= now) {
		command->deadline_ms = -1;
		command->timed_out = 1;
		nsr_command_kill(command);
	}
	if (command->control.socket.fd < 0 && !command->abandoned &&
	    command->born_ms + NSR_AGENT_PATIENCE_MS <= now)
		nsr_command_abandon(command);
}

static int has_streams(const struct nsr_command *command)
{
	for (int role = 0; role < NSR_ROLE_END; role++)
		if (nsr_stream_there(&command->stream[role]))
			return 1;
	return command->control.socket.fd >= 0;
}

/* The time by which something of it is due; -1: none. */
static int64_t next_due(const struct nsr_command *command, int64_t now)
{
	int64_t next = command->deadline_ms;

	if (command->control.socket.fd < 0 && !command->abandoned)
		next = command->born_ms + NSR_AGENT_PATIENCE_MS;
	if (!command->warden && command->limits[0])
		next = now + REMOVE_AGAIN_MS;
	return next;
}

static void drop(struct nsr_command *command)
{
	if (command->job >= 0)
		close(command->job);
	nsr_loop_close(&command->line);
	nsr_warm_close(&command->warm);
	nsr_control_close(&command->control);
	free(command->settings);
	free(command);
	n_commands--;
}

int64_t nsr_commands_tend(void)
{
	int64_t now = nsr_now_ms(), next = -1, outgoing;
	struct nsr_command **at = &commands;

	while (*at) {
		struct nsr_command *command = *at;

		due(command, now);
		outgoing = nsr_outlet_tend(&command->outlet, now);
		tell_when_quiet(command);
		if (!command->warden && (!command->limits[0] || nsr_limits_remove(command)) &&
		    !has_streams(command)) {
			*at = command->next;
			drop(command);
			continue;
		}
		next = nsr_earlier(next, nsr_earlier(outgoing, next_due(command, now)));
		at = &command->next;
	}
	return next;
}

void nsr_commands_end(int64_t patience_ms)
{
	const struct timespec nap = { .tv_nsec = 5000000 };
	int64_t until = nsr_now_ms() + patience_ms;

	for (struct nsr_command *command = commands; command; command = command->next)
		nsr_command_kill(command);
	/* those of cgroups vanish a moment after their last process */
	while (commands && nsr_now_ms() < until) {
		struct nsr_command *command = commands;
		pid_t pid = waitpid(-1, NULL, WNOHANG);

		if (pid > 0)
			continue;
		if (pid < 0 && (!command->limits[0] || nsr_limits_remove(command))) {
			commands = command->next;
			continue;
		}
		nanosleep(&nap, NULL);
	}
}
