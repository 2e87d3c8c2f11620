/* SPDX-License-Identifier: MIT */
/* jail.c - what is left to the monitor's threads once a guest runs. */
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "end.h"
#include "filter.h"
#include "options.h"
#include "walls.h"

/* younger than the headers that we may be built with */
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

enum {
	STACK_SIZE = 256 << 10,
	/* beside the main one: processors, and two a device at most */
	THREADS = VMM_CPUS + 2 * VMM_DEVICES,
};

/* Threads that were made, and those that are in. */
static struct {
	bool enabled;
	uint32_t holds;
	pthread_mutex_t lock;
	pthread_cond_t entered;
	uint32_t n_made, n_in;
	pid_t thread[THREADS];
	/* while the walls are shut */
	atomic_int rules, error;
	sem_t shut;
} jail = { .lock = PTHREAD_MUTEX_INITIALIZER, .entered = PTHREAD_COND_INITIALIZER };

struct start {
	uint32_t number;
	enum vmm_role role;
	void *(*fn)(void *arg);
	void *arg;
};

static void enter(enum vmm_role role)
{
	int ret = jail.enabled ? vmm_filter_enter(role) : 0;

	if (ret)
		vmm_fail(-ret, "the seccomp filter of a thread; --no-jail runs without");
}

static void *begin(void *arg)
{
	struct start start = *(struct start *)arg;

	free(arg);
	jail.thread[start.number] = (pid_t)syscall(SYS_gettid);
	enter(start.role);
	pthread_mutex_lock(&jail.lock);
	jail.n_in++;
	pthread_cond_signal(&jail.entered);
	pthread_mutex_unlock(&jail.lock);
	return start.fn(start.arg);
}

uint32_t vmm_jail_thread(enum vmm_role role, const char *what, void *(*fn)(void *arg), void *arg)
{
	struct start *start = malloc(sizeof(*start));
	pthread_attr_t attr;
	pthread_t thread;
	int ret = jail.n_made == THREADS ? EAGAIN : start ? 0 : ENOMEM;

	if (!ret) {
		*start = (struct start){ jail.n_made, role, fn, arg };
		pthread_attr_init(&attr);
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		pthread_attr_setstacksize(&attr, STACK_SIZE);
		ret = pthread_create(&thread, &attr, begin, start);
		pthread_attr_destroy(&attr);
	}
	if (ret)
		vmm_fail(ret, "a thread for %s", what);
	return jail.n_made++;
}

void vmm_jail_signal(uint32_t thread, int signal)
{
	/* pthread_kill(3) may be a call that reaches any process */
	if (syscall(SYS_tgkill, getpid(), jail.thread[thread], signal) < 0)
		vmm_fail(errno, "a signal to thread %u", thread);
}

static int compare(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

static void close_from_to(unsigned int first, unsigned int last)
{
	struct rlimit limit;

	if (!syscall(SYS_close_range, first, last, 0))
		return;
	/* kernels before 5.9 */
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		vmm_fail(errno, "getrlimit");
	for (unsigned int fd = first; fd <= last && fd < limit.rlim_cur; fd++)
		close((int)fd);
}

static void close_others(const int *keep, int n)
{
	int sorted[64];
	unsigned int next = STDERR_FILENO + 1;

	for (int i = 0; i < n; i++)
		sorted[i] = keep[i];
	qsort(sorted, (size_t)n, sizeof(sorted[0]), compare);
	for (int i = 0; i < n; i++) {
		if (sorted[i] < (int)next)
			continue;
		if (sorted[i] > (int)next)
			close_from_to(next, (unsigned int)sorted[i] - 1);
		next = (unsigned int)sorted[i] + 1;
	}
	close_from_to(next, UINT_MAX);
}

/* Whoever waits for the end of our output must not wait for us, unless it was meant so. */
static void replace_standard(const int *keep, int n)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		vmm_fail(errno, "/dev/null");
	for (int fd = STDIN_FILENO; fd <= STDOUT_FILENO; fd++) {
		bool given = false;

		for (int i = 0; i < n; i++)
			given |= keep[i] == fd;
		if (!given && null != fd && dup2(null, fd) < 0)
			vmm_fail(errno, "/dev/null");
	}
	if (null > STDERR_FILENO)
		close(null);
}

/* Streams, nodes and open files of the guest take a descriptor each. */
static void raise_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		vmm_fail(errno, "RLIMIT_NOFILE");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		vmm_fail(errno, "RLIMIT_NOFILE");
}

void vmm_jail_begin(bool enabled, const int *keep, int n_keep)
{
	jail.enabled = enabled;
	raise_descriptors();
	if (!enabled)
		return;
	close_others(keep, n_keep);
	replace_standard(keep, n_keep);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		vmm_fail(errno, "PR_SET_NO_NEW_PRIVS");
}

static void limit(int resource, const char *name)
{
	const struct rlimit none = { 0, 0 };

	if (setrlimit(resource, &none) < 0)
		vmm_fail(errno, "%s", name);
}

void vmm_jail_end(enum vmm_role role)
{
	pthread_mutex_lock(&jail.lock);
	while (jail.n_in < jail.n_made)
		pthread_cond_wait(&jail.entered, &jail.lock);
	pthread_mutex_unlock(&jail.lock);
	if (!jail.enabled)
		return;
	/* a guest's memory is nobody's business, and there is nothing to start */
	limit(RLIMIT_CORE, "RLIMIT_CORE");
	limit(RLIMIT_NPROC, "RLIMIT_NPROC");
	limit(RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE");
	enter(role);
}

/* --- the walls ---------------------------------------------------------------------------- */

/* In each thread, whatever it is at: a thread can be confined by itself alone. */
static void shut_one(int signal)
{
	int saved = errno, ret = vmm_walls_enter(atomic_load(&jail.rules));

	(void)signal;
	if (ret)
		atomic_store(&jail.error, -ret);
	sem_post(&jail.shut);
	errno = saved;
}

void vmm_jail_walls(bool serves_files)
{
	const struct sigaction action = { .sa_handler = shut_one, .sa_flags = SA_RESTART };

	if (!jail.enabled)
		return;
	sem_init(&jail.shut, 0, 0);
	sigaction(VMM_SHUT, &action, NULL);
	jail.holds = VMM_WALL_JAIL | vmm_walls_begin(serves_files);
}

uint32_t vmm_jail_holds(void)
{
	return jail.holds;
}

void vmm_jail_shut(int rules)
{
	int ret;

	atomic_store(&jail.rules, rules);
	for (uint32_t i = 0; i < jail.n_made; i++)
		vmm_jail_signal(i, VMM_SHUT);
	for (uint32_t i = 0; i < jail.n_made; i++)
		while (sem_wait(&jail.shut) && errno == EINTR)
			;
	ret = vmm_walls_enter(rules);
	if (!ret)
		ret = -atomic_load(&jail.error);
	if (ret)
		vmm_fail(-ret, "landlock_restrict_self");
	close(rules);
}
