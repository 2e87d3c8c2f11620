/* SPDX-License-Identifier: MIT */
/* probe_kvm_guest.c - whether this KVM runs an ordinary guest kernel. */
#include "probe.h"

void nsr_probe_kvm_guest(struct nsr_probe *out)
{
	nsr_probe_say(out, NSR_UNKNOWN, 0, NULL,
		      "whether this KVM runs an ordinary guest kernel is not tried");
}
