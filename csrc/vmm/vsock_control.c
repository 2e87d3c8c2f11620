/* SPDX-License-Identifier: MIT */
/* vsock_control.c - the vsock device and the control socket, joined. */
#include <errno.h>
#include <sys/random.h>
#include <unistd.h>

#include "control.h"
#include "end.h"
#include "vsock.h"

static void connected(void *arg, uint32_t port, uint64_t cookie)
{
	(void)arg;
	vmm_control_answer(VMM_CONNECTED, port, cookie);
}

static void refused(void *arg, uint32_t port, uint64_t cookie)
{
	(void)arg;
	vmm_control_answer(VMM_REFUSED, port, cookie);
}

/* An owner that is flooded with streams, and can't take this one, is no reason to end. */
static void accepted(void *arg, uint32_t port, int fd)
{
	(void)arg;
	(void)vmm_control_send(VMM_ACCEPTED, port, 0, fd);
	close(fd);
}

static void obey_connect(void *device, uint32_t port, uint64_t cookie, int fd)
{
	vmm_vsock_connect(device, port, cookie, fd);
}

static void obey_listen(void *device, uint32_t port)
{
	int ret = vmm_vsock_listen(device, port);

	if (ret)
		vmm_fail(-ret, "control: LISTEN to port %u: too many ports", port);
}

static void obey_unlisten(void *device, uint32_t port)
{
	vmm_vsock_unlisten(device, port);
}

static uint32_t first_port(void)
{
	uint16_t number;

	if (getrandom(&number, sizeof(number), 0) != sizeof(number))
		vmm_fail(errno, "--vsock: getrandom");
	/* as far apart as streams of one machine ever get */
	return VMM_VSOCK_FIRST_PORT + (number * 32768u);
}

struct vmm_device *vmm_vsock_controlled(struct vmm_loop *loop, uint64_t cid)
{
	const struct vmm_vsock_host host = { NULL, connected, refused, accepted };
	struct vmm_device *device = vmm_vsock_new(loop, cid, first_port(), &host);
	struct vmm_streams streams = { obey_connect, obey_listen, obey_unlisten, device };

	if (!device)
		vmm_fail(errno, "--vsock");
	vmm_control_set_streams(&streams);
	return device;
}
