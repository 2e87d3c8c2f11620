/*
 * Times several commands against each other: A B C A B C ..., so that whatever else the machine does
 * falls on all of them alike. Every run is one posix_spawn and one wait4.
 *
 *   spawn_timer [options] -- COMMAND [ARG...] [::: COMMAND [ARG...]]...
 *
 *   -n N    rounds that are kept            -w N    rounds before them that are not
 *   -p CPU  pin to this processor           -u UID  -g GID  run everything as this user and group
 *   -o      time the first byte of output as well
 *   -j K    throughput instead: K workers   -s MS   for at least this long per command
 *
 * One JSON line per command. The driver is a subreaper and waits between runs, off the clock, until
 * nothing of the last run is left: else every command would pay for the teardown of the one before.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MARKER ":::"
#define MAX_COMMANDS 32
#define MAX_WORKERS 64
#define SLICES 5

extern char **environ;

static FILE *results;

struct sample {
    uint64_t wall_ns;   /* until the command's own process was reaped */
    uint64_t gone_ns;   /* until the last process that it left was reaped */
    uint64_t output_ns; /* until the first byte of output; 0 if none */
    uint64_t user_us;
    uint64_t system_us;
    long minor_faults;
    long switches;
};

struct command {
    char **argv;
    struct sample *samples;
    unsigned failed;
    uint64_t runs;
    uint64_t run_ns;
};

struct options {
    unsigned rounds;
    unsigned warmup;
    unsigned workers;
    unsigned slice_ms;
    int cpu;
    uid_t uid;
    gid_t gid;
    bool output;
};

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "spawn_timer: %s: %s\n", what, strerror(errno));
    exit(2);
}

static _Noreturn void usage(void)
{
    fputs("usage: spawn_timer [-n ROUNDS] [-w WARMUP] [-p CPU] [-u UID] [-g GID] [-o] [-j WORKERS]"
          " [-s MS] -- COMMAND [ARG...] [" MARKER " COMMAND [ARG...]]...\n",
          stderr);
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t))
        die("clock_gettime");
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static unsigned number(const char *text)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno || end == text || *end || value > UINT32_MAX)
        usage();
    return (unsigned)value;
}

static void parse_options(int argc, char **argv, struct options *o)
{
    int letter;
    while ((letter = getopt(argc, argv, "+n:w:p:u:g:oj:s:")) != -1) {
        switch (letter) {
        case 'n': o->rounds = number(optarg); break;
        case 'w': o->warmup = number(optarg); break;
        case 'p': o->cpu = (int)number(optarg); break;
        case 'u': o->uid = number(optarg); break;
        case 'g': o->gid = number(optarg); break;
        case 'o': o->output = true; break;
        case 'j': o->workers = number(optarg); break;
        case 's': o->slice_ms = number(optarg); break;
        default: usage();
        }
    }
    if (o->workers > MAX_WORKERS)
        usage();
}

/* Cuts the words at each marker; the marker's slot becomes the NULL that ends the argv before it. */
static unsigned split_commands(char **words, struct command *commands)
{
    unsigned count = 0;
    while (*words) {
        if (count == MAX_COMMANDS)
            usage();
        commands[count++].argv = words;
        while (*words && strcmp(*words, MARKER) != 0)
            words++;
        if (words == commands[count - 1].argv)
            usage();
        if (*words)
            *words++ = NULL;
    }
    if (!count)
        usage();
    return count;
}

static void become(const struct options *o)
{
    if (o->gid && (setgroups(0, NULL) || setresgid(o->gid, o->gid, o->gid)))
        die("setresgid");
    if (o->uid && setresuid(o->uid, o->uid, o->uid))
        die("setresuid");
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((unsigned)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("sched_setaffinity");
}

static pid_t start(char **argv, int output)
{
    pid_t pid;
    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);
    if (!error && output >= 0)
        error = posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    if (!error)
        error = posix_spawnp(&pid, argv[0], output >= 0 ? &actions : NULL, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error) {
        errno = error;
        die(argv[0]);
    }
    return pid;
}

static uint64_t microseconds(struct timeval t)
{
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_usec;
}

static bool succeeded(int status)
{
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void reap_rest(void)
{
    while (wait4(-1, NULL, 0, NULL) > 0)
        ;
    if (errno != ECHILD)
        die("wait4");
}

/* The time of the first byte, or 0 if the output ended without one. */
static uint64_t first_byte(int fd)
{
    char byte;
    ssize_t got;
    do
        got = read(fd, &byte, 1);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        die("read");
    return got ? now_ns() : 0;
}

static bool run_once(char **argv, bool output, struct sample *s)
{
    int pipe_fds[2] = {-1, -1};
    if (output && pipe2(pipe_fds, O_CLOEXEC))
        die("pipe2");
    uint64_t began = now_ns();
    pid_t pid = start(argv, pipe_fds[1]);
    if (output) {
        close(pipe_fds[1]);
        uint64_t seen = first_byte(pipe_fds[0]);
        s->output_ns = seen ? seen - began : 0;
    }
    int status;
    struct rusage usage_of_child;
    if (wait4(pid, &status, 0, &usage_of_child) != pid)
        die("wait4");
    s->wall_ns = now_ns() - began;
    if (output)
        close(pipe_fds[0]);
    reap_rest();
    s->gone_ns = now_ns() - began;
    s->user_us = microseconds(usage_of_child.ru_utime);
    s->system_us = microseconds(usage_of_child.ru_stime);
    s->minor_faults = usage_of_child.ru_minflt;
    s->switches = usage_of_child.ru_nvcsw + usage_of_child.ru_nivcsw;
    return succeeded(status);
}

static void measure(struct command *commands, unsigned count, const struct options *o)
{
    for (unsigned i = 0; i < count; i++) {
        commands[i].samples = calloc(o->rounds, sizeof *commands[i].samples);
        if (!commands[i].samples)
            die("calloc");
    }
    struct sample ignored = {0};
    for (unsigned round = 0; round < o->warmup + o->rounds; round++)
        for (unsigned i = 0; i < count; i++) {
            bool kept = round >= o->warmup;
            struct sample *s = kept ? &commands[i].samples[round - o->warmup] : &ignored;
            if (!run_once(commands[i].argv, o->output, s) && kept)
                commands[i].failed++;
        }
}

#define PRINT_FIELD(c, n, field, format)                                     \
    do {                                                                     \
        fprintf(results, ", \"" #field "\": [");                                       \
        for (unsigned j_ = 0; j_ < (n); j_++)                                \
            fprintf(results, "%s%" format, j_ ? "," : "", (c)->samples[j_].field);     \
        fprintf(results, "]");                                                         \
    } while (0)

static void print_samples(const struct command *c, unsigned index, const struct options *o)
{
    fprintf(results, "{\"command\": %u, \"failed\": %u", index, c->failed);
    PRINT_FIELD(c, o->rounds, wall_ns, PRIu64);
    PRINT_FIELD(c, o->rounds, gone_ns, PRIu64);
    if (o->output)
        PRINT_FIELD(c, o->rounds, output_ns, PRIu64);
    PRINT_FIELD(c, o->rounds, user_us, PRIu64);
    PRINT_FIELD(c, o->rounds, system_us, PRIu64);
    PRINT_FIELD(c, o->rounds, minor_faults, "ld");
    PRINT_FIELD(c, o->rounds, switches, "ld");
    fprintf(results, "}\n");
}

struct tally {
    uint64_t runs;
    uint64_t failed;
};

/* One worker: as many runs as fit before the deadline; orphans are reaped as they come. */
static struct tally work(char **argv, uint64_t deadline)
{
    struct tally t = {0, 0};
    while (now_ns() < deadline) {
        pid_t pid = start(argv, -1);
        int status;
        if (waitpid(pid, &status, 0) != pid)
            die("waitpid");
        t.runs++;
        t.failed += !succeeded(status);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
    reap_rest();
    return t;
}

static pid_t start_worker(char **argv, uint64_t deadline, int report)
{
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid)
        return pid;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        die("PR_SET_CHILD_SUBREAPER");
    struct tally t = work(argv, deadline);
    if (write(report, &t, sizeof t) != sizeof t)
        die("write");
    _exit(0);
}

/* One slice of one command; the clock stops when the last process of it is gone. */
static void run_slice(struct command *c, const struct options *o)
{
    int report[2];
    if (pipe2(report, O_CLOEXEC))
        die("pipe2");
    uint64_t began = now_ns();
    for (unsigned i = 0; i < o->workers; i++)
        start_worker(c->argv, began + o->slice_ms * UINT64_C(1000000) / SLICES, report[1]);
    close(report[1]);
    struct tally t;
    while (read(report[0], &t, sizeof t) == sizeof t) {
        c->runs += t.runs;
        c->failed += (unsigned)t.failed;
    }
    close(report[0]);
    reap_rest();
    c->run_ns += now_ns() - began;
}

static void measure_throughput(struct command *commands, unsigned count, const struct options *o)
{
    for (unsigned slice = 0; slice < SLICES; slice++)
        for (unsigned i = 0; i < count; i++)
            run_slice(&commands[i], o);
}

static void print_throughput(const struct command *c, unsigned index, const struct options *o)
{
    fprintf(results, "{\"command\": %u, \"failed\": %u, \"workers\": %u, \"runs\": %" PRIu64
           ", \"run_ns\": %" PRIu64 "}\n",
           index, c->failed, o->workers, c->runs, c->run_ns);
}

/* The commands' own output goes nowhere; ours keeps the descriptor that we were given. */
static void silence_commands(void)
{
    int ours = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (ours < 0 || nowhere < 0 || dup2(nowhere, STDIN_FILENO) < 0 || dup2(nowhere, STDOUT_FILENO) < 0)
        die("/dev/null");
    results = fdopen(ours, "w");
    if (!results)
        die("fdopen");
}

int main(int argc, char **argv)
{
    static struct command commands[MAX_COMMANDS];
    struct options o = {.rounds = 100, .warmup = 5, .slice_ms = 1000, .cpu = -1};
    parse_options(argc, argv, &o);
    unsigned count = split_commands(argv + optind, commands);
    silence_commands();
    if (o.cpu >= 0)
        pin(o.cpu);
    become(&o);
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        die("PR_SET_CHILD_SUBREAPER");
    if (o.workers)
        measure_throughput(commands, count, &o);
    else
        measure(commands, count, &o);
    for (unsigned i = 0; i < count; i++) {
        if (o.workers)
            print_throughput(&commands[i], i, &o);
        else
            print_samples(&commands[i], i, &o);
    }
    return fclose(results) ? 2 : 0;
}
