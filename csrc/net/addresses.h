/* SPDX-License-Identifier: MIT */
/* addresses.h - the virtual network of a microVM; the same in each, since each is alone in its own. */
#ifndef NSR_NET_ADDRESSES_H
#define NSR_NET_ADDRESSES_H

#define NSR_NET_PREFIX4 "10.0.2.0"
#define NSR_NET_MASK4 "255.255.255.0"
#define NSR_NET_GATEWAY4 "10.0.2.2"     /* also the host's 127.0.0.1, where that is allowed */
#define NSR_NET_DNS4 "10.0.2.3"
#define NSR_NET_GUEST4 "10.0.2.15"

#define NSR_NET_PREFIX6 "fd6e:7372:756e::"
#define NSR_NET_GATEWAY6 "fd6e:7372:756e::2"
#define NSR_NET_DNS6 "fd6e:7372:756e::3"
#define NSR_NET_GUEST6 "fd6e:7372:756e::15"

enum { NSR_NET_PREFIX4_LEN = 24, NSR_NET_PREFIX6_LEN = 64 };

/* the guest's network card: a locally administered address, "nsrun" */
#define NSR_NET_MAC { 0x02, 'n', 's', 'r', 'u', 'n' }

#endif
