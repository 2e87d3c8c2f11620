/* SPDX-License-Identifier: MIT */
/* main.c - the monitor of one virtual machine. */
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "acpi.h"
#include "balloon.h"
#include "blk.h"
#include "boot.h"
#include "control.h"
#include "cpu.h"
#include "end.h"
#include "fs_device.h"
#include "jail.h"
#include "loop.h"
#include "mmio.h"
#include "net.h"
#include "options.h"
#include "rng.h"
#include "serial.h"
#include "vm.h"
#include "vsock.h"

static struct vmm_vm vm;
static struct vmm_options options;

static void attach_fs(struct vmm_loop *loop, const struct vmm_fs_option *option, bool first)
{
	struct vmm_device *fs = vmm_fs_new(option->tag, option->view);

	vmm_mmio_attach(&vm, loop, fs);
	if (first)
		vmm_control_set_fs(fs);
}

static void attach_net(struct vmm_loop *loop)
{
	struct vmm_device *net = vmm_net_new(loop, options.net, options.net_mtu);

	if (!net && errno == EINVAL)
		vmm_fail(0, "--net %d: it must be a connected AF_UNIX SOCK_SEQPACKET socket",
			 options.net);
	if (!net)
		vmm_fail(errno, "--net %d", options.net);
	vmm_mmio_attach(&vm, loop, net);
}

static void attach_devices(struct vmm_loop *loop)
{
	if (options.rng)
		vmm_mmio_attach(&vm, loop, vmm_rng_new());
	if (options.balloon)
		vmm_mmio_attach(&vm, loop, vmm_balloon_new());
	if (options.vsock)
		vmm_mmio_attach(&vm, loop, vmm_vsock_controlled(loop, options.cid));
	if (options.net >= 0)
		attach_net(loop);
	for (uint32_t i = 0; i < options.n_blk; i++)
		vmm_mmio_attach(&vm, loop, vmm_blk_new(&options.blk[i]));
	for (uint32_t i = 0; i < options.n_fs; i++)
		attach_fs(loop, &options.fs[i], i == 0);
}

/* The descriptors that the command line names are all that stay. */
static void begin_jail(void)
{
	int keep[5 + 3 * VMM_DEVICES] = {
		options.kernel, options.initrd, options.control, options.console, options.net,
	}, n = 5;

	for (uint32_t i = 0; i < options.n_blk; i++) {
		keep[n++] = options.blk[i].fd;
		keep[n++] = options.blk[i].cow;
	}
	for (uint32_t i = 0; i < options.n_fs; i++)
		keep[n++] = options.fs[i].view;
	vmm_jail_begin(options.jail, keep, n);
}

/* What was needed to make the machine, and is not to run it. */
static void close_sources(void)
{
	close(vm.kvm);
	close(options.kernel);
	if (options.initrd >= 0)
		close(options.initrd);
}

/* A write to a pipe or socket whose reader is gone is an error, no end. */
static void ignore_broken_pipes(void)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN };

	sigaction(SIGPIPE, &ignore, NULL);
}

int main(int argc, char **argv)
{
	struct vmm_loop *loop;
	uint64_t entry;
	int ret;

	(void)argc;
	vmm_options(&options, argv + 1);
	begin_jail();
	ignore_broken_pipes();
	loop = vmm_loop_new();
	if (!loop)
		vmm_fail(ENOMEM, "the loop of the devices");
	vmm_control_start(loop, options.control);
	vmm_vm_make(&vm, options.memory_mib << 20);
	vmm_serial_start(options.console, vmm_vm_interrupt(&vm, VMM_SERIAL_GSI));
	attach_devices(loop);
	vmm_acpi(&vm.memory, options.cpus, vmm_mmio_devices());
	entry = vmm_boot(&vm.memory, &options);
	vmm_cpus_make(&vm, options.cpus, entry);
	vmm_cpus_start();
	close_sources();
	vmm_jail_end(options.n_fs ? VMM_ROLE_DEVICES_FS : VMM_ROLE_DEVICES);
	vmm_control_send(VMM_RUNNING, 0, 0, -1);
	vmm_cpus_run();
	ret = vmm_loop_run(loop);
	vmm_fail(-ret, "the loop of the devices");
}
