/* SPDX-License-Identifier: MIT */
/*
 * spawn.h - what running a plan needs, prepared before the clone.
 *
 * Functions marked "child" run between clone and exec, maybe in memory shared
 * with the caller: raw system calls on what stands here, nothing else.  They
 * return 0, or -1 after nsr_fail().
 */
#ifndef NSR_SPAWN_H
#define NSR_SPAWN_H

#include "plan.h"
#include "uapi.h"

enum nsr_step {
	NSR_STEP_NONE,
#define T(step, with_errno, text) step,
#include "steps.def"
#undef T
	NSR_STEP_END,
};

enum {
	NSR_DEV_NODES = 7,
	NSR_MAX_IN_PLACE = 64,      /* operations whose trees are held as fds */
	NSR_PATH_MAX = 4096,
	NSR_RECORD_TEXT = 4000,     /* with its head less than PIPE_BUF */
	NSR_MAP_TEXT = 40,
	NSR_MAX_MOUNT_OPTIONS = 4095,
	NSR_MAX_BPF = 4096 * 8,     /* BPF_MAXINSNS instructions */
	NSR_EXIT_UNKNOWN = 255,     /* neither exited nor killed, as for bwrap */
	NSR_EXIT_KILLED = 128 + 9,
	NSR_EXIT_TIMEOUT = 124,     /* as timeout(1) says it */
	NSR_SLICE_NS = 50 * 1000 * 1000, /* so long the caller's signals may have to wait */
};

/* What the sandbox says to its monitor: one packet each, a text behind some. */
enum nsr_record_type {
	NSR_RECORD_FAIL = 1,        /* step, err, op, text: nothing will run */
	NSR_RECORD_EXEC,            /* value: when the payload was about to exec */
	NSR_RECORD_EXIT,            /* value: the payload's exit status */
	NSR_RECORD_PARKED,          /* the stub waits for its command */
	NSR_RECORD_PID,             /* value: pid 1, as the monitor sees it */
	NSR_RECORD_DIAG,            /* err, text: the monitor itself failed */
	NSR_RECORD_TIMEOUT,         /* the sandbox's time is over */
};

struct nsr_record {
	uint32_t type;
	int32_t step;
	int32_t err;
	int32_t op;                 /* index of the operation, -1: none */
	int64_t value;
	int64_t cpu_ns;             /* with an exit: of all that was waited for, */
	int64_t peak_rss;           /* ... and of the largest of them, in bytes */
	int32_t pid;                /* of the sender, as the reader sees it; 0: not known */
	int32_t alone;              /* with an exit: nothing else was left inside */
};

/* The identity that a source had when it was resolved. */
struct nsr_source {
	uint64_t ino;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint32_t type;              /* S_IFMT bits; 0: absent, the operation is skipped */
	const char *path;           /* absolute */
};

/* What depends on this machine and this caller rather than on the plan. */
struct nsr_facts {
	uint64_t unshare;           /* CLONE_NEW*, the "try" ones decided */
	uint32_t real_uid;
	uint32_t real_gid;
	uint32_t uid;               /* inside */
	uint32_t gid;
	uint32_t setup_uid;         /* inside, while mounts are made */
	uint32_t setup_gid;
	uint64_t caps;              /* of the payload */
	int keep_caps;              /* the caller's are left as they are */
	int raise_ambient;
	int second_userns;
	int with_reaper;            /* the payload has a parent inside */
	int scratch;                /* a hidden tmpfs is needed, */
	int shield;                 /* and one that no bind of "/" crosses */
	int root_op;                /* operation 0 makes the root itself, */
	int in_place;               /* ... by restricting "/" where it is */
	int on_host;                /* without namespaces */
};

/* What Landlock allows at and below a path. */
struct nsr_wall {
	const char *path;           /* absolute, as the payload sees it */
	const struct nsr_source *source; /* what it must still be; NULL: whatever is there */
	uint64_t access;            /* NSR_LANDLOCK_* */
};

struct nsr_port {
	uint64_t access;
	uint16_t port;
};

/* Large and seldom touched: apart from the rest, so that a spawn needs few pages. */
struct nsr_cold {
	char text[NSR_RECORD_TEXT]; /* goes with the failure in nsr_ctx */
	uint8_t bpf[NSR_MAX_BPF + 8];
	char path[2][NSR_PATH_MAX]; /* scratch for names */
	char mountinfo[1 << 20];    /* the host's mount points, for legacy_mounts */
	uint8_t copy[16384];        /* scratch for data */
	/* an overflow of these would run into the scratch above, not into state */
	_Alignas(16) char payload_stack[32768]; /* it may build the sandbox first */
	_Alignas(16) char child_stack[32768];
};

struct nsr_ctx {
	const struct nsr_plan *plan;
	struct nsr_arena *arena;    /* of what is prepared */
	struct nsr_arena own_arena; /* where it is not the plan's */
	struct nsr_facts facts;
	struct nsr_source *sources; /* one an operation */

	/* texts made ready */
	char uid_map[NSR_MAP_TEXT];
	char gid_map[NSR_MAP_TEXT];
	char uid_map2[NSR_MAP_TEXT];
	char gid_map2[NSR_MAP_TEXT];
	const char *old_cwd;
	const char *home;
	const char *console;        /* the host's tty on stdout, or NULL */
	const char **cgroup_procs;  /* files to write ourselves to, NULL at the end */
	const char **programs;      /* paths to try to exec, in order */
	const char **argv;
	const char **sh_argv;       /* /bin/sh, path, rest: for scripts without #! */
	const char **envp;
	const char **pwd_slot;      /* the place of PWD in envp */
	const char *pwd_chdir;      /* "PWD=...", by which directory it came to */
	const char *pwd_cwd;
	const char *pwd_home;
	char **overlay_options;     /* one an operation, NULL for others */

	/* fds and state of the running set-up */
	int share_vm;               /* the child runs in its caller's memory */
	int status_r;
	int status_w;
	int go_r;                   /* wait here for the caller; -1: don't */
	int go_w;
	int pid_sock[2];            /* brings the pid through a pid namespace */
	int inner_pidfd;            /* of the process it belongs to; -1: our child */
	int stdio[3];               /* -1: inherit */
	int lifted[3];              /* copies of those made above 2 */
	int life_r;                 /* the nsrun program ends the sandbox on its EOF */
	int life_w;
	int release_r;              /* the payload waits here for the reaper */
	int release_w;
	int reaper_fd;              /* the reaper's program */
	int bpf_fd;                 /* the seccomp programs, for it; -1: none */
	int park_r;                 /* the stub hears of its command here; -1: not parked */
	int park_w;
	int stub_fd;                /* its program */
	int exec_r;                 /* ends with the payload's exec; -1: not asked for */
	int exec_w;
	int proc_fd;
	int scratch_fd;
	int root_fd;
	uint64_t root_id;           /* of its mount; 0: this kernel doesn't say */
	int in_place;               /* the old root was restricted, not replaced */
	int *trees;                 /* cloned beforehand: one an operation, -1: none */
	int nodes[NSR_DEV_NODES];   /* the same for the nodes of /dev */
	int made;                   /* the last target: it is no mount's root */
	int stacked;                /* our mounts on "/", the new root among them */
	int op;                     /* index of the running operation, -1: none */
	int may_try_others;         /* the monitor may yet probe a set-user-id bwrap */
	int legacy_mounts;          /* the new mount API is refused here */
	size_t mountinfo_len;
	int old_umask;
	int reaper_pid;             /* as the payload sees it; 0: it has no reaper */
	int reaper_first;           /* pid 1 execs it while the payload's process sets up */
	int released;               /* the reaper has given up what it must not keep */
	uint64_t sigmask;           /* of the payload */
	int report_exec;            /* send NSR_RECORD_EXEC */
	int64_t exec_ns;            /* when it would be sent; read by who shares the memory */
	int payload;                /* its pid, as its parent sees it */
	int exec_seen;              /* ... and it came */
	uint32_t clear_tid[2];      /* futexes that end with the children's memory */
	struct nsr_record failure;
	struct nsr_landlock_ruleset_attr wall; /* all 0: no Landlock */
	struct nsr_wall *walls;
	uint32_t n_walls;
	uint32_t cap_walls;
	struct nsr_port *ports;
	uint32_t n_ports;
	struct nsr_sock_fprog *fprogs;
	uint32_t n_fprogs;
	uint64_t bpf_len;
	struct nsr_cold *cold;
};

/* report.c; all child.  nsr_fail() and its twin return -1. */
int nsr_fail(struct nsr_ctx *ctx, enum nsr_step step, long err);
int nsr_fail_text(struct nsr_ctx *ctx, enum nsr_step step, long err, const char *text);
int nsr_send_exec(struct nsr_ctx *ctx);
void nsr_send_failure(struct nsr_ctx *ctx);

/* failure.c: what was told, in words */
void nsr_failure_text(const struct nsr_plan *plan, const struct nsr_record *record,
		      const char *text, struct nsr_diag *diag);

/* prepare.c: everything that can be known before the clone */
int nsr_prepare(struct nsr_ctx *ctx, const struct nsr_plan *plan, const int stdio[3],
		struct nsr_diag *diag);
int nsr_prepare_facts(struct nsr_ctx *ctx, struct nsr_diag *diag);
int nsr_prepare_sources(struct nsr_ctx *ctx, struct nsr_diag *diag);
int nsr_prepare_exec(struct nsr_ctx *ctx, struct nsr_diag *diag);
int nsr_prepare_words(struct nsr_ctx *ctx, struct nsr_diag *diag);
/* Is each source still what it was? 1 or 0. */
int nsr_sources_fresh(const struct nsr_ctx *ctx);
/* Length and bytes of each seccomp program in a file, or -errno. */
int nsr_filter_file(const struct nsr_ctx *ctx);
void nsr_clone_failed(const struct nsr_ctx *ctx, int err, struct nsr_diag *diag);

/* landlock.c */
int nsr_landlock_prepare(struct nsr_ctx *ctx, struct nsr_diag *diag);
/* One more rule; -ENOMEM. */
int nsr_wall_add(struct nsr_ctx *ctx, const char *path, const struct nsr_source *source,
		 uint64_t access);
int nsr_landlock_apply(struct nsr_ctx *ctx);                              /* child */
/* path is dir or lies below it, by their words alone. */
int nsr_path_below(const char *path, const char *dir);
enum {
	NSR_WALL_READ = NSR_LANDLOCK_READ_FILE | NSR_LANDLOCK_READ_DIR | NSR_LANDLOCK_EXECUTE,
	/* no device nodes: nobody without capabilities makes any */
	NSR_WALL_WRITE = NSR_LANDLOCK_WRITE_FILE | NSR_LANDLOCK_TRUNCATE |
			 NSR_LANDLOCK_REMOVE_DIR | NSR_LANDLOCK_REMOVE_FILE |
			 NSR_LANDLOCK_MAKE_DIR | NSR_LANDLOCK_MAKE_REG | NSR_LANDLOCK_MAKE_SOCK |
			 NSR_LANDLOCK_MAKE_FIFO | NSR_LANDLOCK_MAKE_SYM | NSR_LANDLOCK_REFER,
};

/* host_rules.c: the plan as the host backend understands it */
int nsr_host_check(const struct nsr_plan *plan, struct nsr_diag *diag);
int nsr_host_walls(struct nsr_ctx *ctx, struct nsr_diag *diag);
int nsr_host_confined(const struct nsr_plan *plan);

/* legacy.c: mount(2) where the new mount API is refused */
/* Find out whether it is needed, and read what it needs then. */
int nsr_legacy_begin(struct nsr_ctx *ctx);                                /* child */

/* Bind source where nobody sees it and restrict it there; an fd on it. */
#define NSR_STAGE_NAME "stage"
int nsr_legacy_bind(struct nsr_ctx *ctx, int source, uint32_t flags);     /* child */
int nsr_legacy_remount(int fd, uint32_t flags);                           /* child */

/* fds.c */
int nsr_close_but(const int *keep, int n);                                /* child */
int nsr_stream(int fds[2]);
int nsr_pipe(int fds[2]);
int nsr_packets(int fds[2]);
int nsr_record_packets(int fds[2]);
int nsr_lift(int fd);
int nsr_write_whole(int fd, const void *data, size_t len);
int nsr_reserve_fds(const struct nsr_plan *plan, struct nsr_diag *diag);
int nsr_read_record(int fd, struct nsr_record *record, char text[NSR_RECORD_TEXT]);
/* The same from a socket of nsr_record_packets, with the sender's pid. */
int nsr_receive_record(int fd, struct nsr_record *record, char text[NSR_RECORD_TEXT]);

/* dest.c: paths below the new root; all child */
int nsr_dest_open(struct nsr_ctx *ctx, const char *path, int flags);
int nsr_dest_parent(struct nsr_ctx *ctx, const char *path, uint32_t mode,
		    const char **last);
int nsr_fail_parents(struct nsr_ctx *ctx, int err, enum nsr_step step);
void nsr_dest_close(const struct nsr_ctx *ctx, int dir);
/* The layers of a --tmp-overlay, with the operation's index behind. */
#define NSR_UPPER_NAME "tmp-overlay-upper-"
#define NSR_WORK_NAME "tmp-overlay-work-"

/* Mode of directories made on the way: no wider than the thing itself. */
uint32_t nsr_parents_mode(const struct nsr_op *op);
int nsr_dest_dir(struct nsr_ctx *ctx, const struct nsr_op *op, enum nsr_step step);
int nsr_dest_make_dir(struct nsr_ctx *ctx, const struct nsr_op *op);
int nsr_dest_create(struct nsr_ctx *ctx, const struct nsr_op *op, int flags, uint32_t mode,
		    enum nsr_step step);
int nsr_dest_file(struct nsr_ctx *ctx, const struct nsr_op *op);

enum { NSR_TMPFS_OPTIONS = 64, NSR_FD_PATH = 32 };

/* mounts.c; all child */
int nsr_mounts_begin(struct nsr_ctx *ctx);
int nsr_mounts_pivot(struct nsr_ctx *ctx);
int nsr_mount_new(const char *type, int dir, const char *name, unsigned long flags,
		  const char *options);
int nsr_mount_held(struct nsr_ctx *ctx, const char *type, int target, unsigned long flags,
		   const char *options);
int nsr_mount_clone(int dir, const char *source, uint32_t flags);
int nsr_mount_attach(int tree, int target_dir, const char *target);
int nsr_mount_bind_held(struct nsr_ctx *ctx, const char *source, int target, uint32_t flags);
int nsr_mount_bind(struct nsr_ctx *ctx, int source_dir, const char *source, int target_dir,
		   const char *target, uint32_t flags);
int nsr_mount_bind_op(struct nsr_ctx *ctx, const struct nsr_op *op,
		      const struct nsr_source *source, int target);
int nsr_open_root(struct nsr_ctx *ctx);
int nsr_new_root(struct nsr_ctx *ctx);
uint64_t nsr_mount_root_id(int fd);
void nsr_tmpfs_options(char out[NSR_TMPFS_OPTIONS], const struct nsr_op *op);
/* "/proc/self/fd/N": names an fd for calls that take only paths. */
void nsr_fd_path(char out[NSR_FD_PATH], int fd);
void nsr_number_behind(char *text, uint64_t n);

/* ops.c, data.c, dev.c; all child */
int nsr_mounted(struct nsr_ctx *ctx, const struct nsr_op *op, int target);
int nsr_ops_run(struct nsr_ctx *ctx);
int nsr_op_file(struct nsr_ctx *ctx, const struct nsr_op *op);
int nsr_op_bind_data(struct nsr_ctx *ctx, const struct nsr_op *op);
int nsr_op_dev(struct nsr_ctx *ctx, const struct nsr_op *op);
int nsr_dev_clone_nodes(struct nsr_ctx *ctx);
int nsr_op_proc(struct nsr_ctx *ctx, const struct nsr_op *op);

/* userns.c; all child */
int nsr_userns_maps(struct nsr_ctx *ctx);
int nsr_userns_second(struct nsr_ctx *ctx);
int nsr_userns_assert(struct nsr_ctx *ctx);
int nsr_loopback_up(struct nsr_ctx *ctx);
int nsr_listen_inside(struct nsr_ctx *ctx);
/* cgroup.c; child */
int nsr_cgroup_enter(struct nsr_ctx *ctx);
int nsr_pidns_enter(struct nsr_ctx *ctx);

/* payload.c; all child */
int nsr_payload_enter(struct nsr_ctx *ctx);
int nsr_payload_exec(struct nsr_ctx *ctx);
int nsr_seccomp_read(struct nsr_ctx *ctx);
int nsr_seccomp_load(struct nsr_ctx *ctx);
int nsr_parent_death(struct nsr_ctx *ctx, int parent);
void nsr_default_action(int signal_number);
/* Make fd that number, to be kept by an exec; it may have it already. */
long nsr_place_fd(int fd, int at);

/* reaper.c; child */
int nsr_reaper_become(struct nsr_ctx *ctx);
_Noreturn void nsr_reaper_first(struct nsr_ctx *ctx);

/* pidfd.c */
/* The parent of a process, -1: it is gone. */
int nsr_parent_of(int pid);
int nsr_pidfd_wait(int pidfd);

/*
 * clone.S: as clone(2), with one of its ids or descriptors at parent_tid and child_tid; fn's
 * result is the exit status.  The pid, or -errno; child
 */
long nsr_clone(int (*fn)(void *arg), void *stack, unsigned long flags, void *arg, void *parent_tid,
	       void *child_tid);

/* child.c: the first process of the sandbox, from clone to exec; child */
int nsr_child_main(void *ctx);
/* Namespaces, mounts, rights, directory. */
int nsr_set_up(struct nsr_ctx *ctx);

/*
 * monitor.c: the command line's other half.  Exit status of the payload, or -1
 * with diag filled and nothing left behind.
 */
int nsr_run_command(struct nsr_plan *plan, struct nsr_ctx *ctx, struct nsr_diag *diag);
/* Tell it where the plan's report goes. */
void nsr_report_diag(const struct nsr_ctx *ctx, const struct nsr_diag *diag);

#endif
