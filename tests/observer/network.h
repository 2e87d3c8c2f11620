#ifndef OBSERVER_NETWORK_H
#define OBSERVER_NETWORK_H

#include "json.h"

/* Links, addresses and routes, as the kernel's netlink tells them. */
void network(struct json *out);

#endif
