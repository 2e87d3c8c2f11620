/* SPDX-License-Identifier: MIT */
/* jail.h - what a user-mode network stack may still do. */
#ifndef NSR_NET_JAIL_H
#define NSR_NET_JAIL_H

/*
 * Give up, for good: new privileges, capabilities, descriptors other than
 * standard ones and fd, files but those beside resolv.conf (where the kernel has
 * Landlock), and more memory, descriptors and output than a guest's network needs.
 * Returns NULL, or the name of what failed, with errno.
 */
const char *nsr_net_jail(int fd);
/* And each system call that a running stack does not make. */
const char *nsr_net_jail_calls(void);

#endif
