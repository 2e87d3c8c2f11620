/* SPDX-License-Identifier: MIT */
/*
 * run.c - a command from its start to its end, in as few calls as can be.
 *
 * For whoever wants nothing but how it ended and what it said.  A step that an interpreter
 * takes by itself costs several times what it does here: its code has left the processor's
 * caches while the sandbox ran, and at each call it has to get its lock back from other threads.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "clock.h"
#include "diag.h"
#include "spawn.h"

enum { FDS = sizeof(((struct nsr_run *)0)->watched) / sizeof(int) };

int nsr_run_start(struct nsr_run *run, const struct nsr_plan *base, const char *words,
		  uint64_t len, uint32_t n_argv, const char *dir, int64_t flags)
{
	struct nsr_flow *flow = &run->flow;
	struct nsr_diag *diag = &run->diag;
	int ret;

	run->plan = nsr_plan_for_command(base, words, len, n_argv, dir, flags, diag);
	if (!run->plan)
		return diag->err ? -diag->err : -EINVAL;
	ret = nsr_flow_open(flow, run->input, run->output);
	if (ret)
		return -ret;
	flow->data = run->data;
	flow->left = run->left;
	ret = nsr_spawn(run->plan, flow->stdio, &run->child, diag);
	if (!ret && flow->to >= 0 && !flow->left)
		nsr_flow_end_input(flow);
	return ret;
}

static int fail_streams(struct nsr_run *run, int err)
{
	return nsr_diag_errno(&run->diag, -err, "Can't serve the command's streams");
}

static void close_poll(struct nsr_run *run)
{
	if (run->poll_fd > 0)
		close(run->poll_fd);
	run->poll_fd = 0;
}

/* What the command left running ends with it; pid 1 alone ends by itself. */
int nsr_run_finish(struct nsr_run *run)
{
	int ret;

	if (!run->child.alone)
		nsr_child_close(&run->child);
	/* nobody inside writes any more */
	ret = nsr_flow_drain(&run->flow);
	nsr_flow_shut(&run->flow);
	close_poll(run);
	return ret ? fail_streams(run, ret) : 0;
}

int nsr_run_serve(struct nsr_run *run, int64_t deadline_ns)
{
	const int64_t slice = nsr_now() + NSR_SLICE_NS;
	const int64_t until = deadline_ns && deadline_ns < slice ? deadline_ns : slice;
	int told, ret;

	do {
		told = nsr_flow_wait(&run->flow, run->child.status_fd, until);
		if (told < 0)
			return fail_streams(run, told);
		if (told & NSR_FLOW_FED)
			nsr_flow_end_input(&run->flow);
		ret = nsr_child_read(&run->child, &run->diag);
		if (ret < 0)
			return ret;
		if (ret) {
			ret = nsr_run_finish(run);
			return ret ? ret : 1;
		}
		/* a signal, or the time: the caller's turn */
	} while (told && nsr_now() < until);
	return 0;
}

/* --- for an event loop -------------------------------------------------------------------- */

static int watch(struct nsr_run *run, int i, int fd)
{
	struct epoll_event event = { .events = i ? EPOLLIN : EPOLLOUT };
	const int old = run->watched[i];

	if (fd < 0)
		fd = 0;
	run->watched[i] = fd;
	if (fd == old)
		return 0;
	if (old)
		epoll_ctl(run->poll_fd, EPOLL_CTL_DEL, old, NULL);
	return fd && epoll_ctl(run->poll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int watch_all(struct nsr_run *run)
{
	const struct nsr_flow *flow = &run->flow;
	const int fds[FDS] = { flow->left ? flow->to : -1, flow->out[0].fd, flow->out[1].fd,
			       run->child.status_fd };
	int ret = 0;

	for (int i = 0; !ret && i < FDS; i++)
		ret = watch(run, i, fds[i]);
	return ret;
}

int nsr_run_watch(struct nsr_run *run)
{
	int saved_errno = errno;
	int fd = nsr_lift(epoll_create1(EPOLL_CLOEXEC));
	int ret = fd < 0 ? -errno : 0;

	nsr_flow_started(&run->flow);
	if (!ret) {
		run->poll_fd = fd;
		ret = watch_all(run);
	}
	errno = saved_errno;
	return ret ? ret : fd;
}

int nsr_run_step(struct nsr_run *run)
{
	int told = nsr_flow_step(&run->flow);
	int ret;

	if (told < 0)
		return fail_streams(run, told);
	if (told & NSR_FLOW_FED) {
		/* before it is closed: the command may still have a copy, by which it would stay */
		watch(run, 0, -1);
		nsr_flow_end_input(&run->flow);
	}
	ret = nsr_child_read(&run->child, &run->diag);
	if (ret)
		return ret;
	ret = watch_all(run);
	return ret ? nsr_diag_errno(&run->diag, -ret, "Can't watch the command") : 0;
}

void nsr_run_close(struct nsr_run *run)
{
	nsr_child_close(&run->child);
	nsr_flow_free(&run->flow);
	close_poll(run);
}

void nsr_run_forget(struct nsr_run *run)
{
	nsr_child_forget(&run->child);
	nsr_flow_free(&run->flow);
	close_poll(run);
}

void nsr_run_free(struct nsr_run *run)
{
	nsr_run_close(run);
	nsr_plan_free(run->plan);
	run->plan = NULL;
}
