/* SPDX-License-Identifier: MIT */
#ifndef NSR_CGROUPS_H
#define NSR_CGROUPS_H

enum { NSR_CGROUP_PATH = 4096 };

/* Could this be a cgroup of ours?  Of the name alone; it need not exist. */
int nsr_cgroup_name_ok(const char *path);

/* No more processes in it, and as much CPU time as dying takes. */
void nsr_cgroup_hold(const char *path);

/* Kill what is in it and remove it, with all below: 0 once it is gone. */
int nsr_cgroup_remove(const char *path);

#endif
