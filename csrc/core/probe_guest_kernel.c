/* SPDX-License-Identifier: MIT */
/*
 * probe_guest_kernel.c - kernels installed here that a guest could boot.
 *
 * The same places as cowork_nsrun/guest/kernel.py, which looks closer at the one
 * that is booted.  Here it is told whether that will find one.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "diag.h"
#include "probe.h"

#define VARIABLE "NSRUN_GUEST_KERNEL"

enum { NAMES = 600, PATH = 1024, RELEASE = 96, INDEX_LIMIT = 32 << 20 };
/* Documentation/arch/x86/boot.rst: where a bzImage has its magic and its version's text */
enum { MAGIC = 0x202, KERNEL_VERSION = 0x20e, HEADER_END = 0x250, SECTOR = 512 };

struct found {
	char fit[NAMES];
	char refused[NAMES];
	char unfit[NAMES];
};

/* What a guest can't do without: a module, or the option that builds it in. */
static const char *const needed[][2] = {
	{ "/virtio_mmio.ko", "\nCONFIG_VIRTIO_MMIO=y" },
	{ "/vmw_vsock_virtio_transport.ko", "\nCONFIG_VIRTIO_VSOCKETS=y" },
	{ "/fuse.ko", "\nCONFIG_FUSE_FS=y" },
	{ "/virtiofs.ko", "\nCONFIG_VIRTIO_FS=y" },
};
enum { N_NEEDED = sizeof(needed) / sizeof(needed[0]) };

static int join(char out[PATH], const char *a, const char *b, const char *c)
{
	return snprintf(out, PATH, "%s%s%s", a, b, c) < PATH;
}

/* A whole text file, to be freed; NULL: it can't be read. */
static char *text_of(const char *dir, const char *name)
{
	char path[PATH], *text;
	FILE *file;
	size_t n;

	if (!join(path, dir, "/", name) || !(file = fopen(path, "re")))
		return NULL;
	text = malloc(INDEX_LIMIT);
	if (text) {
		/* as if it began with a line's end, for searches by line */
		text[0] = '\n';
		n = fread(text + 1, 1, INDEX_LIMIT - 2, file);
		text[n + 1] = '\0';
	}
	fclose(file);
	return text;
}

/* -1: no modules there; N_NEEDED: all are; else the first that is not. */
static int in_modules(const char *dir)
{
	char *builtin = text_of(dir, "modules.builtin");
	char *dep = text_of(dir, "modules.dep");
	int i = -1;

	if (builtin && dep)
		for (i = 0; i < N_NEEDED; i++)
			if (!strstr(builtin, needed[i][0]) && !strstr(dep, needed[i][0]))
				break;
	free(builtin);
	free(dep);
	return i;
}

static int in_config(const char *dir, const char *release)
{
	char name[RELEASE + 16], *config;
	int i = -1;

	snprintf(name, sizeof(name), "config-%s", release);
	config = text_of(dir, name);
	if (config)
		for (i = 0; i < N_NEEDED; i++)
			if (!strstr(config, needed[i][1]))
				break;
	free(config);
	return i;
}

/* The kernel's release: by its header, else by its name. */
static void release_of(const char *path, char out[RELEASE])
{
	const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
	unsigned char head[HEADER_END] = "";
	FILE *file = fopen(path, "re");
	unsigned place;

	snprintf(out, RELEASE, "%s", strchr(name, '-') ? strchr(name, '-') + 1 : "");
	if (!file)
		return;
	if (fread(head, 1, sizeof(head), file) == sizeof(head) &&
	    !memcmp(head + MAGIC, "HdrS", 4)) {
		place = (unsigned)(head[KERNEL_VERSION] | head[KERNEL_VERSION + 1] << 8);
		if (place && !fseek(file, place + SECTOR, SEEK_SET) &&
		    fgets(out, RELEASE, file))
			out[strcspn(out, " ")] = '\0';
	}
	fclose(file);
}

/* What a kernel lacks, by its place in needed[]; N_NEEDED: nothing; -1: nothing tells. */
static int lack_of(const char *path)
{
	/* in the image's directory or not, then what follows, then perhaps the release */
	static const struct {
		int beside;
		const char *rest;
		int released;
	} places[] = {
		{ 1, "", 0 },
		{ 1, "/../lib/modules/", 1 },
		{ 1, "/../usr/lib/modules/", 1 },
		{ 1, "/lib/modules/", 1 },
		{ 1, "/kernel-modules/lib/modules/", 1 },
		{ 0, "/lib/modules/", 1 },
		{ 0, "/usr/lib/modules/", 1 },
	};
	char release[RELEASE], dir[PATH], modules[PATH];
	const char *end = strrchr(path, '/');
	int lack = -1;

	release_of(path, release);
	snprintf(dir, sizeof(dir), "%.*s", end ? (int)(end - path) : 1, end ? path : ".");
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]) && lack < 0; i++)
		if (join(modules, places[i].beside ? dir : "", places[i].rest,
			 places[i].released ? release : ""))
			lack = in_modules(modules);
	if (lack < 0)
		lack = in_config(dir, release);
	return lack < 0 ? in_config("/boot", release) : lack;
}

static void add(char list[NAMES], const char *path, const char *why)
{
	size_t len = strlen(list);

	snprintf(list + len, NAMES - len, "%s%s%s", len ? ", " : "", path, why);
}

static void look_at(struct found *found, const char *path)
{
	char why[NAMES];
	int lack;

	if (access(path, R_OK)) {
		add(found->refused, path, errno == EACCES ? "" : " (not there)");
		return;
	}
	lack = lack_of(path);
	if (lack == N_NEEDED) {
		add(found->fit, path, "");
	} else if (lack < 0) {
		add(found->unfit, path, " (no modules)");
	} else {
		snprintf(why, sizeof(why), " (no %s)", strrchr(needed[lack][0], '/') + 1);
		add(found->unfit, path, why);
	}
}

/* dir/prefix*suffix */
static void look_in(struct found *found, const char *dir, const char *prefix, const char *suffix)
{
	DIR *open_dir = opendir(dir);
	struct dirent *entry;
	char path[PATH];

	while (open_dir && (entry = readdir(open_dir))) {
		if (entry->d_name[0] == '.' || strncmp(entry->d_name, prefix, strlen(prefix)))
			continue;
		if (join(path, dir, "/", entry->d_name) && strlen(path) + strlen(suffix) < PATH &&
		    !access(strcat(path, suffix), F_OK))
			look_at(found, path);
	}
	if (open_dir)
		closedir(open_dir);
}

/* This user's copies, and kernels made for guests. */
static void look_at_own(struct found *found)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	char dir[PATH];

	if (cache && *cache == '/' ? !join(dir, cache, "/nsrun", "") :
	    !home || !join(dir, home, "/.cache/nsrun", ""))
		return;
	look_in(found, dir, "vmlinuz-", "");
	look_in(found, dir, "vmlinux-", "");
}

static void look_everywhere(struct found *found)
{
	static const char *const nixos[] = { "/run/booted-system/kernel",
					     "/run/current-system/kernel" };
	const char *named = getenv(VARIABLE);

	if (named && *named) {
		look_at(found, named);
		return;
	}
	look_at_own(found);
	look_in(found, "/boot", "vmlinuz", "");
	look_in(found, "/lib/modules", "", "/vmlinuz");
	look_in(found, "/usr/lib/modules", "", "/vmlinuz");
	for (size_t i = 0; i < sizeof(nixos) / sizeof(nixos[0]); i++)
		if (!access(nixos[i], F_OK))
			look_at(found, nixos[i]);
}

void nsr_probe_guest_kernel(struct nsr_probe *out)
{
	struct found found = { "", "", "" };

	look_everywhere(&found);
	if (*found.fit)
		nsr_probe_say(out, NSR_OK, 0, NULL, "%s", found.fit);
	else if (*found.refused)
		nsr_probe_say(out, NSR_BLOCKED, EACCES, "guest-kernel-permission",
			      "%s: not readable for this user", found.refused);
	else if (*found.unfit)
		nsr_probe_say(out, NSR_MISSING, ENOENT, "guest-kernel-unfit",
			      "no guest can boot %s", found.unfit);
	else
		nsr_probe_say(out, NSR_MISSING, ENOENT, "guest-kernel-install",
			      "no kernel in /boot/vmlinuz* or /lib/modules/*/vmlinuz");
}
