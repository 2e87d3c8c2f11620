/* SPDX-License-Identifier: MIT */
/* limits.c - a cgroup v2 for each command: cgroups(7). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cgroups.h"
#include "diag.h"
#include "job.h"
#include "probe.h"

#define CGROUP_V2_MAGIC 0x63677270

enum {
	FILE_PATH = NSR_LIMITS_PATH + 32,
	EVENTS_SIZE = 512,
	CPU_PERIOD_US = 100000,
	MONITOR = 1,                /* our process among the command's, which it did not ask for */
};

static int put(const char *directory, const char *file, const char *text)
{
	char path[FILE_PATH];
	ssize_t n;
	int fd, ret;

	snprintf(path, sizeof(path), "%s/%s", directory, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = write(fd, text, strlen(text));
	ret = n < 0 ? -errno : 0;
	close(fd);
	return ret;
}

static int put_number(const char *directory, const char *file, uint64_t number)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
	return put(directory, file, text);
}

/* The number behind a word of a file of such lines; 0: it is not there. */
static uint64_t word(const char *directory, const char *file, const char *name)
{
	char path[FILE_PATH], text[EVENTS_SIZE];
	size_t length = strlen(name);
	const char *line = text;

	snprintf(path, sizeof(path), "%s/%s", directory, file);
	if (nsr_fact_read(path, text, sizeof(text)) <= 0)
		return 0;
	while (line) {
		if (!strncmp(line, name, length) && (!length || line[length] == ' '))
			return strtoull(line + length, NULL, 10);
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return 0;
}

const char *nsr_limits_open(const char *directory)
{
	static const char *const controllers[] = { "+memory", "+pids", "+cpu" };
	struct statfs fs;

	if (statfs(directory, &fs) || fs.f_type != CGROUP_V2_MAGIC ||
	    strlen(directory) > NSR_LIMITS_PATH / 2)
		return NULL;
	for (size_t i = 0; i < sizeof(controllers) / sizeof(controllers[0]); i++)
		if (put(directory, "cgroup.subtree_control", controllers[i]))
			nsr_say("%s: no controller %s", directory, controllers[i] + 1);
	return directory;
}

int nsr_limits_set(struct nsr_command *command, struct nsr_diag *diag)
{
	const struct nsr_settings *head = &command->settings->head;
	const char *file = NULL;
	char text[48];
	int ret = 0;

	if (!command->limits[0])
		return 0;
	if (head->memory) {
		file = "memory.max";
		ret = put_number(command->limits, file, head->memory);
		/* absent where there is no swap */
		put_number(command->limits, "memory.swap.max", 0);
	}
	if (!ret && head->processes) {
		file = "pids.max";
		ret = put_number(command->limits, file, head->processes + MONITOR);
	}
	if (!ret && head->cpu_thousandths) {
		file = "cpu.max";
		snprintf(text, sizeof(text), "%llu %d",
			 (unsigned long long)head->cpu_thousandths * (CPU_PERIOD_US / 1000),
			 CPU_PERIOD_US);
		ret = put(command->limits, file, text);
	}
	if (!ret)
		return 0;
	nsr_diag_errno(diag, -ret, "Can't set the limit %s/%s", command->limits, file);
	snprintf(diag->path, sizeof(diag->path), "%s/%s", command->limits, file);
	return ret;
}

int nsr_limits_make(struct nsr_command *command, struct nsr_diag *diag)
{
	static unsigned long long number;
	const struct nsr_settings *head = &command->settings->head;
	char inner[FILE_PATH];
	int ret;

	if (!nsr_agent.cgroups && (head->memory || head->processes || head->cpu_thousandths))
		return nsr_diag_errno(diag, ENOTSUP, "Limits need a cgroup v2, and there is none");
	if (!nsr_agent.cgroups)
		return 0;
	snprintf(command->limits, sizeof(command->limits), "%s/nsrun-%llu", nsr_agent.cgroups,
		 ++number);
	snprintf(inner, sizeof(inner), "%s/" NSR_LIMITS_INNER, command->limits);
	if (mkdir(command->limits, 0755) || mkdir(inner, 0755)) {
		ret = nsr_diag_errno(diag, errno, "Can't make the cgroup %s", inner);
		snprintf(diag->path, sizeof(diag->path), "%s", inner);
		return ret;
	}
	return nsr_limits_set(command, diag);
}

void nsr_limits_usage(const struct nsr_command *command, struct nsr_exited *exited)
{
	const uint64_t micro = 1000;
	uint64_t cpu, peak;

	if (!command->limits[0])
		return;
	/* where a controller is absent, what wait4(2) told stays */
	cpu = word(command->limits, "cpu.stat", "usage_usec") * micro;
	peak = word(command->limits, "memory.peak", "");
	if (cpu)
		exited->cpu_ns = cpu;
	if (peak)
		exited->peak = peak;
	exited->oom_kills = (uint32_t)word(command->limits, "memory.events", "oom_kill");
	exited->pids_refused = (uint32_t)word(command->limits, "pids.events", "max");
}

void nsr_limits_kill(const struct nsr_command *command)
{
	/* older kernels have no such file; the end of the pid namespace is enough for them */
	if (command->limits[0])
		put(command->limits, "cgroup.kill", "1");
}

int nsr_limits_remove(struct nsr_command *command)
{
	if (nsr_cgroup_remove(command->limits))
		return 0;
	command->limits[0] = '\0';
	return 1;
}
