/* SPDX-License-Identifier: MIT */
/*
 * zygote.h - a process that holds a saved machine, and forks a monitor of it for whoever asks.
 *
 * Its owner sends FORK on an AF_UNIX SOCK_SEQPACKET socket, a struct vmm_record
 * with three descriptors: the monitor's control socket, its console, and where
 * its messages go.  The answer is FORKED with a pidfd of the monitor, or
 * NOT_FORKED.  The socket's end is the zygote's, but not that of its monitors,
 * each of which ends with its own control socket.
 */
#ifndef VMM_ZYGOTE_H
#define VMM_ZYGOTE_H

struct vmm_options;

enum vmm_zygote_record {
	VMM_FORK = 32,              /* port: CID, 0: as the options say; value: cookie */
	VMM_FORKED = 96,            /* port: its process id, value: cookie, with a pidfd */
	VMM_NOT_FORKED = 97,        /* port: errno, value: cookie */
};

/* Comes back in each monitor, whose options are completed. */
void vmm_zygote(struct vmm_options *options);

#endif
