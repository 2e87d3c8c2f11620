/* SPDX-License-Identifier: MIT */
/* inject: run a program and make one system call of its set-up fail.
 *
 *   inject FD list PROGRAM ARGS...
 *   inject FD fail PROCESS CALL ERRNO PROGRAM ARGS...
 *   inject FD signal PROCESS CALL NUMBER PROGRAM ARGS...
 *
 * Processes are counted in the order of their birth, the calls of each from its
 * start (the first process's from its exec) to the payload's exec, where it is
 * let go. "list" writes "PROCESS CALL NUMBER" lines to FD, "fail" and "signal"
 * a line "done" if the call came. strace(1) does not know the newest calls, and
 * its counters run on into the payload. Calls made while waiting are not
 * counted, since their number differs from run to run. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 16 };
enum {
    OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
              PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL
};
enum { SYSCALL_STOP = SIGTRAP | 0x80 };

struct process {
    pid_t pid;
    int inside;  /* between the entry and the exit of a call */
    int calls;
    int failing; /* the errno that replaces the answer */
};

struct plan {
    FILE *to;
    int list, sends_signal;
    int process, call, value;
};

static struct process known[MOST];
static int births;

static struct process *find(pid_t pid)
{
    for (int i = 0; i < births; i++) {
        if (known[i].pid == pid) {
            return &known[i];
        }
    }
    if (births == MOST) {
        fputs("inject: too many processes\n", stderr);
        exit(125);
    }
    known[births] = (struct process){.pid = pid};
    return &known[births++];
}

#if defined(__x86_64__)
static long number_of(const struct user_regs_struct *regs)
{
    return (long)regs->orig_rax;
}
static void skip_call(struct user_regs_struct *regs)
{
    regs->orig_rax = (unsigned long long)-1;
}
static void answer(struct user_regs_struct *regs, int error)
{
    regs->rax = (unsigned long long)-error;
}
#else
#error "inject knows the registers of x86-64 only"
#endif

/* Waiting for another process takes as many of these as it takes. */
static int is_waiting(long number)
{
    return number == SYS_sched_yield || number == SYS_getppid || number == SYS_exit_group ||
           number == SYS_wait4 || number == SYS_restart_syscall;
}

static void strike(const struct plan *plan, struct process *process, struct user_regs_struct *regs)
{
    fputs("done\n", plan->to);
    if (plan->sends_signal) {
        kill(process->pid, plan->value);
        return;
    }
    process->failing = plan->value;
    skip_call(regs);
    ptrace(PTRACE_SETREGS, process->pid, NULL, regs);
}

static void enter_call(const struct plan *plan, struct process *process)
{
    struct user_regs_struct regs;

    process->inside = 1;
    if (ptrace(PTRACE_GETREGS, process->pid, NULL, &regs) != 0 || is_waiting(number_of(&regs))) {
        return;
    }
    if (plan->list) {
        fprintf(plan->to, "%d %d %ld\n", (int)(process - known), process->calls, number_of(&regs));
    } else if (process - known == plan->process && process->calls == plan->call) {
        strike(plan, process, &regs);
    }
    process->calls++;
}

static void leave_call(struct process *process)
{
    struct user_regs_struct regs;

    process->inside = 0;
    if (process->failing && ptrace(PTRACE_GETREGS, process->pid, NULL, &regs) == 0) {
        answer(&regs, process->failing);
        ptrace(PTRACE_SETREGS, process->pid, NULL, &regs);
        process->failing = 0;
    }
}

/* The payload's exec, not the one that started the program. */
static int is_release(int status)
{
    static int started;

    return status >> 16 == PTRACE_EVENT_EXEC && started++;
}

static void go_on(const struct plan *plan, pid_t pid, int status)
{
    struct process *process = find(pid);
    int signal_number = WSTOPSIG(status);

    if (is_release(status)) {
        ptrace(PTRACE_DETACH, pid, NULL, NULL);
        return;
    }
    if (status >> 16 == PTRACE_EVENT_EXEC) {
        /* the first exec: its end comes next */
        process->inside = 1;
    }
    if (signal_number == SYSCALL_STOP) {
        process->inside ? leave_call(process) : enter_call(plan, process);
        signal_number = 0;
    } else if (status >> 16 || signal_number == SIGSTOP) {
        /* an event, or the stop with which a new process comes */
        signal_number = 0;
    }
    ptrace(PTRACE_SYSCALL, pid, NULL, (void *)(intptr_t)signal_number);
}

static int trace(const struct plan *plan, pid_t first)
{
    int result = 125;

    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, __WALL);

        if (pid < 0) {
            return result;
        }
        if (WIFSTOPPED(status)) {
            go_on(plan, pid, status);
        } else if (pid == first) {
            result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    }
}

static pid_t start(char **words, FILE *to)
{
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        fclose(to);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        execv(words[0], words);
        _exit(125);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid ||
        ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)OPTIONS) != 0) {
        return -1;
    }
    /* counted from its exec on: see go_on() */
    ptrace(PTRACE_CONT, pid, NULL, NULL);
    return pid;
}

int main(int argc, char **argv)
{
    struct plan plan = {0};
    int words = 3;
    pid_t first;

    if (argc < 4) {
        return 125;
    }
    plan.to = fdopen(atoi(argv[1]), "w");
    setvbuf(plan.to, NULL, _IOLBF, 0);
    plan.list = strcmp(argv[2], "list") == 0;
    plan.sends_signal = strcmp(argv[2], "signal") == 0;
    if (!plan.list && argc > 6) {
        plan.process = atoi(argv[3]);
        plan.call = atoi(argv[4]);
        plan.value = atoi(argv[5]);
        words = 6;
    }
    first = start(argv + words, plan.to);
    return first < 0 ? 125 : trace(&plan, first);
}
