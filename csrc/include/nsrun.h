/* SPDX-License-Identifier: MIT */
/*
 * nsrun.h - the one public header of the native core.
 *
 * A *plan* is everything that one sandbox is, as one value.  It is made from a
 * bwrap command line (nsr_plan_parse), field by field (nsr_plan_set_*,
 * nsr_plan_add_*), or from bytes (nsr_plan_read); it is run by nsr_spawn or
 * nsr_run_command.
 *
 * CFFI reads the declarations of this file: lines that begin with '#' are
 * dropped for it, so constants are enums and declarations use no macros.
 */
#ifndef NSRUN_H
#define NSRUN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
	NSR_PLAN_VERSION = 2,
	NSR_MAX_WORDS = 9000,       /* bwrap's limit for argv and --args together */
	NSR_MAX_PLAN_BYTES = 1 << 26,
	NSR_DIAG_TEXT = 9216,       /* two PATH_MAX names and the words around them */
	NSR_ID_UNSET = -1,
	NSR_MAX_TIMEOUT_MS = 2000000000, /* 23 days */
	NSR_PORT_HTTP = 3128,       /* on 127.0.0.1 inside, where the plan has NSR_LISTEN_FD */
	NSR_PORT_SOCKS = 1080,
};

/* What one filesystem operation does; they run in the order of the plan. */
enum nsr_op_type {
	NSR_OP_BIND = 1,
	NSR_OP_REMOUNT_RO,
	NSR_OP_PROC,
	NSR_OP_DEV,
	NSR_OP_TMPFS,
	NSR_OP_MQUEUE,
	NSR_OP_DIR,
	NSR_OP_FILE,
	NSR_OP_BIND_DATA,
	NSR_OP_SYMLINK,
	NSR_OP_CHMOD,
	NSR_OP_OVERLAY,
	NSR_OP_TMP_OVERLAY,
	NSR_OP_RO_OVERLAY,
	NSR_OP_HOSTNAME,
	NSR_OP_GUARD,               /* dest becomes a mount of itself: it can't be moved away */
	NSR_OP_TYPE_END,
};

enum nsr_op_flag {
	NSR_OP_RDONLY = 1 << 0,
	NSR_OP_DEVICES = 1 << 1,    /* device nodes stay usable */
	NSR_OP_TRY = 1 << 2,        /* an absent source skips the operation */
	NSR_OP_SOURCE_FD = 1 << 3,  /* the source is the directory or file open at fd */
	NSR_OP_NO_LINKS = 1 << 4,   /* no symbolic link may lie on the way to dest */
	NSR_OP_FLAG_ALL = (1 << 5) - 1,
};

/* Life-cycle and policy switches of a plan. */
enum nsr_plan_flag {
	NSR_UNSHARE_USER_TRY = 1 << 0,
	NSR_UNSHARE_CGROUP_TRY = 1 << 1,
	NSR_DISABLE_USERNS = 1 << 2,
	NSR_ASSERT_USERNS_DISABLED = 1 << 3,
	NSR_NEW_SESSION = 1 << 4,
	NSR_DIE_WITH_PARENT = 1 << 5,
	NSR_AS_PID_1 = 1 << 6,
	NSR_CAPS_TOUCHED = 1 << 7,  /* --cap-add or --cap-drop was given */
	NSR_LEVEL_PREFIX = 1 << 8,
	NSR_NOT_A_SECURITY_BOUNDARY = 1 << 9,
	NSR_CLOSE_FDS = 1 << 10,    /* the payload gets stdin, stdout and stderr only */
	NSR_DEFAULT_SIGNALS = 1 << 11, /* SIGPIPE, SIGXFSZ back to their defaults */
	NSR_TERMINAL = 1 << 12,     /* stdin is the payload's controlling terminal */
	NSR_PARKED = 1 << 13,       /* the command comes later, see nsr_child_hand */
	NSR_TELL_EXEC = 1 << 14,    /* exec_fd is wanted; exec_ns and payload_pid before the end */
	NSR_LANDLOCK = 1 << 15,     /* a second wall around what the mounts allow */
	NSR_ON_HOST = 1 << 16,      /* no namespaces: the host backend */
	NSR_UNCONFINED = 1 << 17,   /* ... and no Landlock either */
	NSR_PRIVATE_TMP = 1 << 18,  /* on the host: a TMPDIR of its own, removed at the end */
	NSR_PLAN_FLAG_ALL = (1 << 19) - 1,
};

struct nsr_op {
	uint32_t type;              /* enum nsr_op_type */
	uint32_t flags;             /* enum nsr_op_flag */
	int32_t fd;                 /* data to copy, or the source; -1: none */
	uint32_t perms;             /* mode bits; 0 where the operation has none */
	uint64_t size;              /* bytes of a tmpfs; 0: the kernel's default */
	const char *source;         /* NULL where the operation has none */
	const char *dest;
	const char *work;           /* overlay: the work directory */
	const uint8_t *data;        /* content instead of fd */
	uint64_t data_len;
	const char *const *layers;  /* overlay: lower directories, bottom first */
	uint32_t n_layers;
};

/* A word of the plan that is a number. */
enum nsr_number {
	NSR_FLAGS,                  /* enum nsr_plan_flag, or-ed */
	NSR_UNSHARE,                /* CLONE_NEW* bits */
	NSR_CAPS_SET,               /* capabilities added to the caller's set, ... */
	NSR_CAPS_CLEAR,             /* ... and those taken from it */
	NSR_TIMEOUT_MS,             /* the sandbox's life, from the payload's start; 0: no end */
	NSR_UID,                    /* ids inside; NSR_ID_UNSET: the caller's */
	NSR_GID,
	NSR_USERNS_FD,              /* from here on file descriptors, -1: none */
	NSR_USERNS2_FD,
	NSR_PIDNS_FD,
	NSR_SYNC_FD,
	NSR_BLOCK_FD,
	NSR_USERNS_BLOCK_FD,
	NSR_INFO_FD,
	NSR_JSON_STATUS_FD,
	NSR_SECCOMP_FD,
	NSR_LISTEN_FD,              /* a Unix socket that sockets listening inside are sent to */
	NSR_REPORT_FD,              /* a Unix socket for records, instead of stderr */
	NSR_LIFE_FD,                /* its end ends the sandbox; bytes are signals to send */
	NSR_PARK_FD,                /* a Unix socket that the command of a parked one comes by, */
	NSR_STUB_FD,                /* ... and the program that waits for it */
	NSR_EXEC_FD,                /* the payload's copy ends with its exec; no other has one */
	NSR_NUMBER_END,
};

enum nsr_string {
	NSR_HOSTNAME,               /* the last --hostname, for its check */
	NSR_CHDIR,
	NSR_ARGV0,
	NSR_STRING_END,
};

enum nsr_list {
	NSR_ARGV,
	NSR_ENV,
	NSR_LOCK_FILES,
	NSR_CGROUPS,                /* directories of the cgroups to enter: cgroups(7) */
	NSR_TCP_CONNECT,            /* ports that Landlock lets through, or "none" */
	NSR_TCP_BIND,
	NSR_LIST_END,
};

/* A resource limit of the payload: getrlimit(2). */
struct nsr_rlimit {
	uint32_t resource;          /* RLIMIT_* */
	uint64_t soft;              /* ~0: none */
	uint64_t hard;
};

/* Why something failed.  text is complete, errno's meaning included. */
struct nsr_diag {
	int step;                   /* enum nsr_step; 0: the request itself is wrong */
	int err;                    /* errno, 0: none */
	char path[4096];            /* the path it failed at, may be empty */
	char text[NSR_DIAG_TEXT];
};

struct nsr_plan;

struct nsr_plan *nsr_plan_new(void);
void nsr_plan_free(struct nsr_plan *plan);
/* A copy that has what it does not change in common with the other, which has to outlive it. */
struct nsr_plan *nsr_plan_derive(const struct nsr_plan *base);

/*
 * The same for a command: its words, n_argv of them, and behind those what is added to its
 * environment; each ends with a NUL byte, and so does the whole of len bytes.  dir: where to
 * start in, NULL: as the other says.  flags: enum nsr_plan_flag, to be added.  NULL: no such
 * plan can be, diag says why.
 */
struct nsr_plan *nsr_plan_for_command(const struct nsr_plan *base, const char *words, uint64_t len,
				      uint32_t n_argv, const char *dir, int64_t flags,
				      struct nsr_diag *diag);

/* All of these copy what they are given; -ENOMEM or -EINVAL on failure. */
int nsr_plan_set_number(struct nsr_plan *plan, enum nsr_number which, int64_t value);
int nsr_plan_set_string(struct nsr_plan *plan, enum nsr_string which, const char *value);
int nsr_plan_add_word(struct nsr_plan *plan, enum nsr_list which, const char *value);
int nsr_plan_add_op(struct nsr_plan *plan, const struct nsr_op *op);
/* Many at once: each of them ends with a NUL byte, and so does data. */
int nsr_plan_add_words(struct nsr_plan *plan, enum nsr_list which, const char *data, uint64_t len);
/* Take all words of a list away; -EINVAL. */
int nsr_plan_clear(struct nsr_plan *plan, enum nsr_list which);
/* Take all operations away. */
void nsr_plan_clear_ops(struct nsr_plan *plan);
int nsr_plan_add_seccomp(struct nsr_plan *plan, const uint8_t *bpf, uint64_t len);
/* By name, such as "nofile"; -EINVAL: there is no such limit. */
int nsr_plan_add_rlimit(struct nsr_plan *plan, const char *name, uint64_t soft, uint64_t hard);

int64_t nsr_plan_number(const struct nsr_plan *plan, enum nsr_number which);
const char *nsr_plan_string(const struct nsr_plan *plan, enum nsr_string which);
uint32_t nsr_plan_words(const struct nsr_plan *plan, enum nsr_list which);
const char *nsr_plan_word(const struct nsr_plan *plan, enum nsr_list which, uint32_t i);
uint32_t nsr_plan_ops(const struct nsr_plan *plan);
const struct nsr_op *nsr_plan_op(const struct nsr_plan *plan, uint32_t i);

/*
 * Parse a bwrap command line (argv[0] is the program's name) into an empty
 * plan.  envp is the environment that --setenv and its kin act on.  The plan
 * keeps pointers into argv and envp.
 */
enum nsr_parse_result {
	NSR_PARSE_OK = 0,
	NSR_PARSE_ERROR = -1,       /* diag says why */
	NSR_PARSE_HELP = 1,         /* --help was reached */
	NSR_PARSE_VERSION = 2,      /* --version was reached */
	NSR_PARSE_USAGE = 3,        /* no command */
	NSR_PARSE_TEND = 4,         /* --tend was reached; its FD is NSR_SYNC_FD */
};
typedef void (*nsr_warn_fn)(void *arg, const char *text);
int nsr_plan_parse(struct nsr_plan *plan, int argc, const char *const *argv,
		   const char *const *envp, nsr_warn_fn warn, void *warn_arg,
		   struct nsr_diag *diag);

/* What no plan may ask for, in any builder: 0, or -EINVAL with diag filled. */
int nsr_plan_check(const struct nsr_plan *plan, struct nsr_diag *diag);

/*
 * Bytes.  nsr_plan_write returns the length needed and writes at most cap
 * bytes; writing what was read gives the same bytes.  The reader takes nothing
 * that the writer would not have written.
 */
int64_t nsr_plan_write(const struct nsr_plan *plan, uint8_t *out, uint64_t cap);
int nsr_plan_read(struct nsr_plan *plan, const uint8_t *in, uint64_t len,
		  struct nsr_diag *diag);

/* A sandbox that this process started; times are CLOCK_MONOTONIC ns. */
struct nsr_child {
	pid_t pid;                  /* of the process that pidfd is of, as the caller sees it */
	int pidfd;                  /* pid 1 inside, or the nsrun program outside */
	int inner_pidfd;            /* pid 1 inside where that is another; -1: not known */
	int status_fd;              /* readable when nsr_child_read has something */
	int life_fd;                /* orders go in here, and its end ends the sandbox; -1: none */
	int park_fd;                /* a command can be handed over here; -1: no, or done */
	int exec_fd;                /* ends once the exec has succeeded, or failed; -1: untold */
	int parked;                 /* it is ready for one */
	int payload_pid;            /* as the caller sees it; 0: not known */
	uint64_t early;             /* signals for it that wait until it is; bit n - 1: signal n */
	int64_t start_ns;           /* just before the clone, or the hand-over */
	int64_t exec_ns;            /* just before the payload's exec; 0: not yet */
	int64_t exit_ns;            /* when its end was learnt; 0: not yet */
	int exit_status;            /* 0-255, 128+n for signal n; -1: not yet */
	int timed_out;              /* NSR_TIMEOUT_MS ended it */
	int64_t cpu_ns;             /* user and system, of what has been waited for inside */
	int64_t peak_rss;           /* bytes, of the largest process among those; 0: not known */
	int64_t floor_rss;          /* the caller's own, which a shared memory counts as peak */
	int alone;                  /* no process but pid 1 was left at the payload's end */
	void *shared;               /* stacks, freed when nobody runs on them */
};

/*
 * Start a plan without a helper program.  The child shares the caller's memory
 * until its exec.  stdio: the three fds that become 0, 1 and 2 inside.
 * Returns 0 or -errno with diag filled; -ENOTSUP: the plan changes ids, joins
 * namespaces or enters cgroups, so the nsrun program has to run it.
 */
int nsr_spawn(const struct nsr_plan *plan, const int stdio[3], struct nsr_child *child,
	      struct nsr_diag *diag);

/* The same by the nsrun program at this path: for every plan, and slower. */
int nsr_spawn_program(const struct nsr_plan *plan, const char *program, const int stdio[3],
		      struct nsr_child *child, struct nsr_diag *diag);

/*
 * Take what status_fd has, without blocking.  1: the payload has ended and
 * exit_status is set; 0: not yet; -errno with diag filled: the set-up or the
 * exec failed.  nsr_child_close is due in any case.
 */
int nsr_child_read(struct nsr_child *child, struct nsr_diag *diag);

/*
 * Send a signal to every process of a sandbox with a pid namespace of its own;
 * to the payload alone where there is none, or where a seccomp program may
 * forbid pid 1 to do it.  0 or -errno, -ESRCH: it has ended, or waits for its
 * command; -ENOTSUP: the payload's pid is needed, and NSR_TELL_EXEC not set.
 * SIGKILL goes to pid 1 and so always reaches all.  What is for a payload that
 * is not there yet waits for it, and is sent by nsr_child_read.
 */
int nsr_child_signal(struct nsr_child *child, int signal_number);

/* As NSR_TIMEOUT_MS, from now on; for a sandbox whose pid 1 takes signals. 0 or -errno. */
int nsr_child_deadline(struct nsr_child *child, int64_t milliseconds);

/*
 * Parked: a plan with NSR_PARKED waits, set up, for its command.  Hand over
 * argv, environment, directory, limits and the terminal flag of another plan,
 * and stdio.  -ESTALE: a source is no longer what it was when the sandbox was
 * made; -E2BIG: the command doesn't fit into one message.  In both cases
 * nothing was sent.
 */
int nsr_child_hand(struct nsr_child *child, const struct nsr_plan *command, const int stdio[3],
		   struct nsr_diag *diag);

/* Kill what is left and free everything.  Safe after any start that returned 0. */
void nsr_child_close(struct nsr_child *child);

/* The same where that takes no time: 1; 0: not yet, nothing was done. */
int nsr_child_try_close(struct nsr_child *child);

/* For a forked copy of the process that started it: free, but kill nothing. */
void nsr_child_forget(struct nsr_child *child);

/* One stream of a command's, as far as it was read. */
struct nsr_output {
	int fd;                     /* -1: there is none, or it is at its end */
	uint8_t *bytes;
	uint64_t len;
	uint64_t room;
};

/* What goes to a command and what comes from it.  Fds that are not listed stay the caller's. */
struct nsr_flow {
	int to;                     /* must not block; -1: none */
	const uint8_t *data;        /* what is still to be written to it */
	uint64_t left;
	struct nsr_output out[2];
	int stdio[3];               /* of nsr_flow_open: what becomes 0, 1 and 2 inside, */
	int ours[3];                /* ... and our ends of the pipes among them */
	unsigned int theirs;        /* bit i: stdio[i] is to be closed */
	unsigned int held;          /* bit i: ours[i] is to be closed */
};

enum {
	NSR_FLOW_WATCHED = 1,       /* the watched fd has something */
	NSR_FLOW_FED = 2,           /* all is written, or nobody reads it any more */
	NSR_FLOW_MOVED = 4,         /* something was read or written */
};

/*
 * Open the streams of a command, for an empty flow: pipes for its input and for its output,
 * or the caller's own, /dev/null where that is closed.  0 or -errno, and nothing is open.
 */
int nsr_flow_open(struct nsr_flow *flow, int input, int output);
/* The command has its copies: from now on the ends of its streams are seen. */
void nsr_flow_started(struct nsr_flow *flow);
/* All is written: the command reads an end of file. */
void nsr_flow_end_input(struct nsr_flow *flow);

/*
 * Feed and collect until something of the above is so; the result is those, or-ed.
 * 0: not yet, but a signal came, the time of CLOCK_MONOTONIC was reached (0: no end), or a
 * twentieth of a second is over.  -errno.
 * Whoever calls this has started the command.
 */
int nsr_flow_serve(struct nsr_flow *flow, int watch, int64_t deadline_ns);
/* The same where the command's ends stay open, so that the end of its output wakes nobody. */
int nsr_flow_wait(struct nsr_flow *flow, int watch, int64_t deadline_ns);
/* What can be done at once; NSR_FLOW_FED, 0 or -errno. */
int nsr_flow_step(struct nsr_flow *flow);
/* Take what is there; 0 or -errno. */
int nsr_flow_drain(struct nsr_flow *flow);
/* Close what is open of its own. */
void nsr_flow_shut(struct nsr_flow *flow);
/* The same, and free what was collected. */
void nsr_flow_free(struct nsr_flow *flow);

/* A command of which its end and its output are wanted, and nothing else.  All zero before. */
struct nsr_run {
	int input;                  /* of nsr_flow_open */
	int output;
	const uint8_t *data;        /* for its input: the caller keeps it */
	uint64_t left;
	struct nsr_flow flow;       /* the output is here */
	struct nsr_child child;     /* what there is to know of its end, too */
	struct nsr_plan *plan;
	struct nsr_diag diag;       /* why something failed */
	int poll_fd;                /* of nsr_run_watch; 0: none */
	int watched[4];             /* what it stands for */
};

/*
 * nsr_plan_for_command, nsr_flow_open and nsr_spawn.  0; -errno with diag filled, -ENOTSUP as
 * for nsr_spawn; errno where no pipes are to be had.  nsr_run_free is due in any case.
 */
int nsr_run_start(struct nsr_run *run, const struct nsr_plan *base, const char *words,
		  uint64_t len, uint32_t n_argv, const char *dir, int64_t flags);
/*
 * Feed and collect until the command has ended.  1: it has, no process of it is left, and all
 * of its output is there.  0: not yet, but a signal came, the time of CLOCK_MONOTONIC was
 * reached (0: no end), or a twentieth of a second is over.  -errno with diag filled: it could
 * not be started, or its streams not be served; it may still run then.
 */
int nsr_run_serve(struct nsr_run *run, int64_t deadline_ns);
/*
 * For an event loop, instead: a descriptor that is readable whenever nsr_run_step has
 * something to do, which never blocks.  Its result is that of nsr_run_serve, but for what
 * nsr_run_finish does after the end: it ends what the command left running, takes the rest of
 * its output and closes that descriptor; only if the child was not alone it takes a moment.
 */
int nsr_run_watch(struct nsr_run *run);
int nsr_run_step(struct nsr_run *run);
int nsr_run_finish(struct nsr_run *run);
/* Kill what is left, and free all but the plan.  nsr_run_free frees that as well. */
void nsr_run_close(struct nsr_run *run);
/* As nsr_child_forget. */
void nsr_run_forget(struct nsr_run *run);
void nsr_run_free(struct nsr_run *run);

/*
 * The built-in seccomp profiles.  Their filters are deny-lists: what they do
 * not name is allowed, calls of later kernels included.
 */
enum nsr_seccomp_name {
	NSR_SECCOMP_DEFAULT,
	NSR_SECCOMP_NESTING,
	NSR_SECCOMP_STRICT,
	NSR_SECCOMP_NONE,
	NSR_SECCOMP_END,
};

struct nsr_seccomp_profile {
	const char *name;
	const char *help;
	const uint8_t *bpf;         /* struct sock_filter; NULL: nothing is to be loaded */
	uint64_t len;               /* bytes */
};

/* NULL: there is none of that name; past the last one. */
const struct nsr_seccomp_profile *nsr_seccomp_profile(const char *name);
const struct nsr_seccomp_profile *nsr_seccomp_profile_at(uint32_t i);

enum nsr_seccomp_test_type {
	NSR_TEST_NONE,              /* holds always */
	NSR_TEST_ANY,               /* one of mask's bits is set */
	NSR_TEST_BITS,              /* low 32 bits: those of mask are value */
	NSR_TEST_ABOVE,             /* 64 bits, unsigned: greater than value */
	NSR_TEST_NOT,               /* 64 bits: not value */
};

struct nsr_seccomp_test {
	uint32_t type;              /* enum nsr_seccomp_test_type */
	uint32_t arg;               /* of the call, from 0 */
	uint64_t mask;
	uint64_t value;
};

/* A row of the table that the profiles are made from. */
struct nsr_seccomp_rule {
	const char *group;          /* set on a group's row alone, ... */
	const char *why;
	const char *breaks;         /* what does not work then */
	const char *call;           /* ... and these on the others */
	const char *when;           /* what test says, in words; "": always */
	const char *answer;         /* name of err */
	int32_t err;                /* errno; 0: allowed, whatever other rows say */
	uint32_t profiles;          /* 1 << enum nsr_seccomp_name, or-ed */
	struct nsr_seccomp_test test[2]; /* both hold */
};

/* NULL past the last one.  In the library alone, not in the nsrun program. */
const struct nsr_seccomp_rule *nsr_seccomp_rule(uint32_t i);

/* nsr_diag.step of a clone that was refused. */
int nsr_step_clone(void);
/* That of a command that can't be executed in a sandbox that is there. */
int nsr_step_exec(void);
/* The version of landlock(7) that this kernel has; 0 or -errno: none. */
int nsr_landlock_abi(void);

/* What a plan of the host backend is confined by here, in words; len bytes with the NUL. */
void nsr_host_describe(const struct nsr_plan *plan, char *out, size_t len);

const char *nsr_version(void);

/* --- what this machine can do ------------------------------------------------------------ */

enum nsr_verdict {
	NSR_UNTRIED = 0,
	NSR_OK,
	NSR_BLOCKED,                /* it is there, and refused */
	NSR_MISSING,
	NSR_UNKNOWN,                /* it could not be found out */
};

/* What one probe found.  Texts are in UTF-8 but for paths in them. */
struct nsr_probe {
	int verdict;                /* enum nsr_verdict */
	int err;                    /* errno behind the verdict, 0: none */
	char remedy[32];            /* what helps, by name; empty: nothing is wrong */
	char evidence[1024];        /* one line */
};

/*
 * Make a real sandbox in a process of the caller's own and see what is refused.
 * Costs about a spawn.  The answer holds for this executable: AppArmor can
 * refuse another what it grants to this one.
 */
void nsr_probe_namespaces(struct nsr_probe *out);

/*
 * May a sandbox be made by nsr_spawn?  option: as --backend takes it; variable:
 * the value of COWORK_VM_BACKEND; NULL: not given.  1: yes.  0: no, then
 * "nsrun --probe" says what else will run it; probe is filled if it was made.
 * -EINVAL with diag filled: no such backend.
 */
int nsr_select_own(const char *option, const char *variable, struct nsr_probe *probe,
		   struct nsr_diag *diag);

#endif
