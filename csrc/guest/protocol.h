/* SPDX-License-Identifier: MIT */
/*
 * protocol.h - what host and agent say to each other, byte by byte.
 *
 * The agent listens on vsock port 1024 (or on a Unix socket).  One command is
 * several streams.  Each begins with a hello, which the agent answers with one
 * byte 0; the streams of one command have the same token, which the host draws
 * at random.  A stream that the agent does not take is closed without an answer.
 *
 * On the data streams follow raw bytes.  The host ends stdin by shutdown(2); the
 * agent ends stdout and stderr once all writers are gone.  A data stream that
 * the host leaves out is /dev/null to the command.
 *
 * On the control stream follow frames: a head, then its payload.  The host sends
 * SETTINGS, then PLAN once the agent has taken all data streams, and then what
 * it likes.  The agent answers with STARTED and EXITED, or with FAILED (also
 * after STARTED, where the program could not be executed).  Whatever is wrong
 * with the stream itself is told by FAILED with EPROTO, and ends it.  After
 * EXITED, processes that the command left go on.  The end of the control
 * stream kills all that there is of the command; what was written to the data
 * streams until then can still be read from them.
 *
 * A command with NSR_SETTINGS_OUTLET has a network of its own in which the agent
 * listens, as nsrun does for a sandbox with a proxy outside (NSR_PORT_HTTP and
 * NSR_PORT_SOCKS of 127.0.0.1).  For each connection that comes there the agent
 * sends OUTGOING, and the host opens one more stream for it: the hello has the
 * command's token, NSR_ROLE_OUTGOING and the connection's number.  Then follow
 * raw bytes both ways; the end of one way is passed on alone.  Nothing in the
 * guest opens a stream to the host, so nothing there can be a way around this.
 *
 * A command with NSR_SETTINGS_WARM is a program that does its start ahead, such
 * as an interpreter that loads libraries.  It has no stream for stdin, which is a
 * socket of the agent's (AF_UNIX, SOCK_SEQPACKET).  A packet that the program
 * sends there says that it is ready, and the host is told by WARM.  Then the end
 * of the control stream does not end it: it stays, without any stream, and the
 * machine can be saved.  In a clone the host begins a command with the same
 * caller in its settings, and CONTINUE in place of PLAN: that is the kept
 * program from then on.  The bytes of CONTINUE are sent to it as one packet, with
 * three descriptors (SCM_RIGHTS) for its standard streams, and the socket's end.
 *
 * POWER_OFF and GET_INFO come on a control stream of their own.
 *
 * All numbers are in the byte order of the machine, which is the host's.
 */
#ifndef NSR_GUEST_PROTOCOL_H
#define NSR_GUEST_PROTOCOL_H

#include <stdint.h>

enum {
	NSR_AGENT_PORT = 1024,
	NSR_AGENT_MAGIC = 0x4152534e,   /* "NSRA" */
	NSR_AGENT_VERSION = 2,
	NSR_SETTINGS_VERSION = 2,
	NSR_TOKEN_BYTES = 16,
	NSR_ENTROPY_BYTES = 32,
	NSR_FRAME_MAX = 64 << 10,       /* of any frame but PLAN, ... */
	NSR_PLAN_FRAME_MAX = 64 << 20,  /* ... which may have so many bytes */
	NSR_SETTINGS_GROUPS = 4096,
	NSR_RELEASE_BYTES = 72,
	NSR_OUTGOING = 256,             /* connections of one command; more wait in the backlog */
	NSR_OUTGOING_WAITING = 64,      /* of them, those for which the host has not come yet */
};

enum nsr_role {
	NSR_ROLE_CONTROL,
	NSR_ROLE_STDIN,
	NSR_ROLE_STDOUT,
	NSR_ROLE_STDERR,
	NSR_ROLE_TERMINAL,              /* both ways, in place of the three above */
	NSR_ROLE_OUTGOING,              /* both ways, a connection that OUTGOING told of */
	NSR_ROLE_END,
};

struct nsr_hello {
	uint32_t magic;
	uint32_t version;
	uint32_t role;                  /* enum nsr_role */
	uint32_t connection;            /* of NSR_ROLE_OUTGOING; else 0 */
	uint8_t token[NSR_TOKEN_BYTES];
};
_Static_assert(sizeof(struct nsr_hello) == 32, "on the wire");

struct nsr_frame {
	uint32_t type;                  /* enum nsr_frame_type */
	uint32_t length;                /* bytes behind this head */
};

enum nsr_frame_type {
	/* from the host */
	NSR_FRAME_SETTINGS = 1,         /* struct nsr_settings and the groups */
	NSR_FRAME_PLAN,                 /* the bytes of nsr_plan_write */
	NSR_FRAME_SIGNAL,               /* uint32_t: the number, see nsr_child_signal */
	NSR_FRAME_RESIZE,               /* uint32_t rows, columns */
	NSR_FRAME_DEADLINE,             /* uint64_t: milliseconds from now; 0: none */
	NSR_FRAME_POWER_OFF,
	NSR_FRAME_GET_INFO,
	NSR_FRAME_CONTINUE,             /* what the program that was kept is told */
	NSR_FRAME_HOST_END,
	/* from the agent */
	NSR_FRAME_STARTED = 65,         /* struct nsr_started */
	NSR_FRAME_EXITED,               /* struct nsr_exited */
	NSR_FRAME_FAILED,               /* struct nsr_failed, the path, the text */
	NSR_FRAME_INFO,                 /* struct nsr_info */
	NSR_FRAME_OUTGOING,             /* uint32_t: the connection's number */
	NSR_FRAME_WARM,                 /* nothing: the program is ready, and stays */
};

enum nsr_settings_flag {
	NSR_SETTINGS_CLOCK = 1 << 0,    /* clock_ns is the time; ignored but by pid 1 */
	NSR_SETTINGS_ENTROPY = 1 << 1,  /* mix entropy in; ignored but by pid 1 */
	NSR_SETTINGS_OUTLET = 1 << 2,   /* connections of the command are carried to the host */
	NSR_SETTINGS_WARM = 1 << 3,     /* the program does its start, and waits */
	NSR_SETTINGS_FLAG_ALL = (1 << 4) - 1,
};

struct nsr_settings {
	uint32_t version;               /* NSR_SETTINGS_VERSION */
	uint32_t flags;                 /* enum nsr_settings_flag */
	uint32_t uid;                   /* who runs the plan */
	uint32_t gid;
	uint32_t umask;
	uint32_t rows;                  /* of the terminal, below 65536; 0: not known */
	uint32_t columns;
	uint32_t n_groups;              /* uint32_t each, behind this struct */
	uint64_t memory;                /* limits of all its processes together: bytes, ... */
	uint64_t processes;             /* ... how many, ... */
	uint64_t cpu_thousandths;       /* ... and of one processor's time; 0: no limit */
	uint64_t deadline_ms;           /* from the start on; 0: none */
	int64_t clock_ns;               /* since 1970 */
	uint64_t bounding;              /* capabilities that the caller's bounding set has */
	uint8_t entropy[NSR_ENTROPY_BYTES];
};
_Static_assert(sizeof(struct nsr_settings) == 112, "on the wire");

struct nsr_started {
	uint32_t pid;                   /* of the process that all others descend from */
};

enum nsr_exited_flag {
	NSR_EXITED_TIMED_OUT = 1 << 0,  /* its deadline, or the plan's, ended it */
};

struct nsr_exited {
	uint32_t status;                /* 0 to 255: 128+n for signal n, 124 if timed out */
	uint32_t flags;                 /* enum nsr_exited_flag */
	uint64_t cpu_ns;                /* user and system */
	uint64_t peak;                  /* bytes, at most in use at one time; 0: not known */
	uint32_t oom_kills;             /* processes killed for the memory limit */
	uint32_t pids_refused;          /* processes and threads refused by the limit of them */
};
_Static_assert(sizeof(struct nsr_exited) == 32, "on the wire");

/* As struct nsr_diag.  Text and path have no NUL behind them. */
struct nsr_failed {
	uint32_t step;
	int32_t err;                    /* errno */
	uint32_t path_length;
	uint32_t text_length;
};

enum nsr_info_flag {
	NSR_INFO_PID_1 = 1 << 0,        /* it is a guest's first process */
	NSR_INFO_LIMITS = 1 << 1,       /* limits can be kept: it has cgroups */
};

struct nsr_info {
	uint32_t version;               /* NSR_AGENT_VERSION */
	uint32_t flags;                 /* enum nsr_info_flag */
	uint32_t commands;              /* that there are now, this stream among them */
	uint32_t reserved;              /* 0 */
	char release[NSR_RELEASE_BYTES]; /* of the kernel; ends with a NUL, as does ... */
	char machine[NSR_RELEASE_BYTES];
};

#endif
