/* SPDX-License-Identifier: MIT */
/* probe_guest_kernel.c - kernels installed here that a guest could boot. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "diag.h"
#include "probe.h"

enum { NAMES = 600 };

struct found {
	char readable[NAMES];
	char refused[NAMES];
	int with_modules;
};

static void add(char list[NAMES], const char *name)
{
	size_t len = strlen(list);

	if (len + strlen(name) + 3 < NAMES)
		snprintf(list + len, NAMES - len, "%s%s", len ? ", " : "", name);
}

static void look_at(struct found *found, const char *path, const char *release)
{
	char modules[NAMES];

	if (access(path, F_OK))
		return;
	add(access(path, R_OK) ? found->refused : found->readable, path);
	if (snprintf(modules, sizeof(modules), "/lib/modules/%s/modules.dep", release) <
	    (int)sizeof(modules) && !access(modules, R_OK))
		found->with_modules = 1;
}

static void look_in(struct found *found, const char *dir, const char *prefix, const char *suffix)
{
	DIR *open_dir = opendir(dir);
	struct dirent *entry;
	char path[512];

	while (open_dir && (entry = readdir(open_dir))) {
		if (entry->d_name[0] == '.' || strncmp(entry->d_name, prefix, strlen(prefix)))
			continue;
		if (snprintf(path, sizeof(path), "%s/%s%s", dir, entry->d_name, suffix) <
		    (int)sizeof(path))
			look_at(found, path, entry->d_name + strlen(prefix));
	}
	if (open_dir)
		closedir(open_dir);
}

void nsr_probe_guest_kernel(struct nsr_probe *out)
{
	struct found found = { "", "", 0 };

	look_in(&found, "/boot", "vmlinuz-", "");
	look_in(&found, "/lib/modules", "", "/vmlinuz");
	if (*found.readable)
		nsr_probe_say(out, NSR_OK, 0, NULL, "%s%s", found.readable,
			      found.with_modules ? "" : "; no modules in /lib/modules");
	else if (*found.refused)
		nsr_probe_say(out, NSR_BLOCKED, EACCES, "guest-kernel-permission",
			      "%s: not readable for this user", found.refused);
	else
		nsr_probe_say(out, NSR_MISSING, ENOENT, "guest-kernel-install",
			      "no kernel in /boot/vmlinuz-* or /lib/modules/*/vmlinuz");
}
