/* SPDX-License-Identifier: MIT */
/* agent.h - what the agent's parts know of each other. */
#ifndef NSR_GUEST_AGENT_H
#define NSR_GUEST_AGENT_H

#include <stddef.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "frames.h"
#include "loop.h"

enum {
	NSR_AGENT_HELLOS = 64,      /* streams that have not said yet what they are */
	NSR_AGENT_COMMANDS = 1024,
	NSR_AGENT_PATIENCE_MS = 10000, /* for a hello, and for a control stream */
	NSR_LIMITS_PATH = 64,
};

/* What the agent is, the same for all commands. */
struct nsr_agent {
	int pid_1;                  /* of a guest, which is ours to arrange */
	int program;                /* our own program, to be executed again */
	const char *cgroups;        /* the directory of a cgroup v2; NULL: no limits */
	struct rlimit nofile;       /* of commands; the agent's own is higher */
};
extern struct nsr_agent nsr_agent;

/* --- stream.c: one data stream between a socket and a pipe or terminal ---------------------- */

struct nsr_way {
	uint8_t *rest;              /* what was read but not yet written */
	size_t at;
	size_t length;
	int ended;
};

enum nsr_moved {
	NSR_MOVED_ALL,              /* until one side had to be waited for */
	NSR_MOVED_SOME,             /* there may be more at once */
	NSR_MOVED_END,              /* the source is at its end, and all is written */
	NSR_MOVED_BROKEN,           /* nobody takes it any more */
};

/* Bytes of one way, as many as can be had and others can wait for. */
enum nsr_moved nsr_way_move(struct nsr_way *flow, int from, int to);

struct nsr_stream {
	struct nsr_watch socket;
	struct nsr_watch local;     /* our end of the pipe, or the terminal; -1: not yet */
	enum nsr_role role;
	struct nsr_way in;         /* from the host */
	struct nsr_way out;
};

void nsr_stream_init(struct nsr_stream *stream, enum nsr_role role);
/* The socket is the stream's from now on, unless it fails: -errno. */
int nsr_stream_take(struct nsr_stream *stream, int socket);
/* The same for our end of what the command has.  Bytes flow from then on. */
int nsr_stream_join(struct nsr_stream *stream, int local);
void nsr_stream_close(struct nsr_stream *stream);
static inline int nsr_stream_there(const struct nsr_stream *stream)
{
	return stream->socket.fd >= 0;
}

/* --- control.c: the control stream's frames -------------------------------------------------- */

struct nsr_control {
	struct nsr_watch socket;
	struct nsr_frame frame;     /* the one that is coming, ... */
	size_t got;                 /* ... as far as it has, its head included */
	uint8_t *body;              /* NULL, or NSR_FRAME_MAX bytes */
	uint8_t out[2 * NSR_FAILED_FRAME_MAX + 2048];
	size_t out_length;
	int closing;                /* nothing that comes on it is looked at any more */
};

struct nsr_command;

void nsr_control_init(struct nsr_control *control);
int nsr_control_take(struct nsr_control *control, int socket);
/* Queue a frame to the host.  Nobody is there to hear of a failure. */
void nsr_control_send(struct nsr_control *control, enum nsr_frame_type type, const void *payload,
		      size_t length);
/* Queue FAILED. */
void nsr_control_fail(struct nsr_control *control, const struct nsr_diag *diag);
void nsr_control_close(struct nsr_control *control);
/* For a frame that nobody has asked for, and for all that may have to be said besides. */
int nsr_control_has_room(const struct nsr_control *control);

/* --- outlet.c: connections of a command to its host's proxy ------------------------------------- */

struct nsr_outgoing;

struct nsr_outlet {
	struct nsr_watch line;      /* to who opens the listening sockets, until they are here */
	struct nsr_watch listener[2];
	struct nsr_control *control; /* where the host is told */
	struct nsr_outgoing *first;
	uint32_t n_connections;
	uint32_t n_waiting;         /* for the host */
	uint32_t number;            /* of the last one */
	int64_t again_ms;           /* when to accept again, for want of something; -1: now */
	int ending;                 /* the command has ended: what it said is carried to its end */
};

void nsr_outlet_init(struct nsr_outlet *outlet, struct nsr_control *control);
/* What the plan's NSR_LISTEN_FD is to be, which the caller closes; or -errno. */
int nsr_outlet_open(struct nsr_outlet *outlet);
/* The host has come for a connection; the socket is taken (0), or left to the caller (-errno). */
int nsr_outlet_join(struct nsr_outlet *outlet, uint32_t number, int socket);
/* The command has ended: no more connections, and of those there are what was said before. */
void nsr_outlet_end(struct nsr_outlet *outlet);
/* Of all that there is; the memory is given back by nsr_outlet_tend. */
void nsr_outlet_close(struct nsr_outlet *outlet);
/* As nsr_commands_tend. */
int64_t nsr_outlet_tend(struct nsr_outlet *outlet, int64_t now);

/* --- command.c: commands by their tokens ------------------------------------------------------ */

struct nsr_warm {
	struct nsr_watch line;      /* to a program that does its start; -1: none */
	struct nsr_control *control; /* where the host is told */
	int ready;                  /* it has done it */
	uint64_t before_ns;         /* processor time that is not the command's, but its start's */
};

struct nsr_command {
	struct nsr_command *next;
	uint8_t token[NSR_TOKEN_BYTES];
	struct nsr_control control;
	struct nsr_stream stream[NSR_ROLE_END]; /* NSR_ROLE_CONTROL's is not used */
	int64_t born_ms;
	int64_t deadline_ms;        /* -1: none */
	int timed_out;
	int planned;                /* the plan has come */
	int abandoned;              /* its host is gone, or never came */
	struct nsr_host_settings *settings; /* NULL: they did not come */
	int job;                    /* a memory file, see job.h; -1: none */
	uint64_t plan_length;
	pid_t warden;               /* 0: not started, or waited for */
	int told;                   /* the host knows how it ended */
	int ended;                  /* it has, as follows; told once its connections are quiet */
	struct nsr_exited exited;
	struct nsr_watch line;      /* to the warden */
	struct nsr_outlet outlet;
	struct nsr_warm warm;
	char limits[NSR_LIMITS_PATH]; /* its cgroup; "": none */
};

/* A stream of this hello; taken (0), or left to the caller (-errno). */
int nsr_command_stream(const struct nsr_hello *hello, int socket);
struct nsr_command *nsr_command_of(struct nsr_control *control);
/* A frame has come whole.  -errno with diag filled: the stream is to end. */
int nsr_command_frame(struct nsr_command *command, enum nsr_frame_type type, const uint8_t *body,
		      size_t length, struct nsr_diag *diag);
/* Bytes of the plan. */
int nsr_command_plan(struct nsr_command *command, const uint8_t *bytes, size_t length,
		     struct nsr_diag *diag);
void nsr_command_kill(struct nsr_command *command);
/* The control stream is at its end. */
void nsr_command_abandon(struct nsr_command *command);
/* A child of ours has ended. */
void nsr_command_reaped(pid_t pid, int status);
/* What is due by now, and what is over: the next time it has to be called, -1: none. */
int64_t nsr_commands_tend(void);
/* Kill all; what is left of them is waited for at most that long. */
void nsr_commands_end(int64_t patience_ms);

/* --- stdio.c ---------------------------------------------------------------------------------- */

struct nsr_stdio {
	int ours[NSR_ROLE_END];     /* by role; -1: none */
	int theirs[3];
};

/* Both: 0, or -errno with diag filled; nsr_stdio_close in either case. */
int nsr_stdio_open(struct nsr_command *command, struct nsr_stdio *stdio, struct nsr_diag *diag);
/* From here on bytes flow, by our ends, which are the streams' then. */
int nsr_stdio_join(struct nsr_command *command, struct nsr_stdio *stdio, struct nsr_diag *diag);
/* What is left of it. */
void nsr_stdio_close(struct nsr_stdio *stdio);

/* --- warm.c: a program that does its start, is saved with the machine, and goes on in a clone --- */

void nsr_warm_init(struct nsr_warm *warm, struct nsr_control *control);
/* The program's standard input, a socket on which it says when it is ready; or -errno. */
int nsr_warm_open(struct nsr_warm *warm);
void nsr_warm_close(struct nsr_warm *warm);
/* Its host has gone as was agreed: it waits, without any stream. */
void nsr_warm_keep(struct nsr_command *command);
/*
 * What was kept (NULL: nothing was) is this command from now on: it has its
 * streams and limits, and gets the message.  -errno with diag filled.
 */
int nsr_warm_continue(struct nsr_command *command, struct nsr_command *kept, const void *message,
		      size_t length, struct nsr_diag *diag);

/* --- start.c ---------------------------------------------------------------------------------- */

/* Give the command its streams and start its warden.  -errno with diag filled. */
int nsr_command_start(struct nsr_command *command, struct nsr_diag *diag);

/* --- limits.c: a cgroup v2 a command ------------------------------------------------------------ */

/* Make the directory of cgroups ready for commands' own; NULL if it is not. */
const char *nsr_limits_open(const char *directory);
int nsr_limits_make(struct nsr_command *command, struct nsr_diag *diag);
/* As the settings have them, in the cgroup that is there. */
int nsr_limits_set(struct nsr_command *command, struct nsr_diag *diag);
void nsr_limits_usage(const struct nsr_command *command, struct nsr_exited *exited);
void nsr_limits_kill(const struct nsr_command *command);
/* 1: it is gone. */
int nsr_limits_remove(struct nsr_command *command);

/* --- hello.c: the listener, and streams that have not said what they are ------------------------- */

/* Take streams from this socket, which listens.  host_only: of vsock's, the host's alone. */
int nsr_hello_listen(int socket, int host_only);
/* As nsr_commands_tend. */
int64_t nsr_hellos_tend(void);

/* --- boot.c: what the first process of a guest does ------------------------------------------------ */

void nsr_boot(void);
_Noreturn void nsr_power_off(void);
void nsr_set_clock(int64_t ns);
void nsr_add_entropy(const uint8_t entropy[NSR_ENTROPY_BYTES]);
/* Say something where a guest's console can be read. */
void nsr_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
