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
#include "snapshot.h"
#include "vm.h"
#include "vsock.h"
#include "zygote.h"

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
	int keep[7 + 3 * VMM_DEVICES] = {
		options.kernel, options.initrd, options.control, options.console, options.net,
		options.restore, options.zygote,
	}, n = 7;

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
	const int sources[] = { vm.kvm, options.kernel, options.initrd, options.restore };

	vmm_snapshot_prepare(&vm);
	for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++)
		if (sources[i] >= 0)
			close(sources[i]);
}

/* A write to a pipe or socket whose reader is gone is an error, no end. */
static void ignore_broken_pipes(void)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN };

	sigaction(SIGPIPE, &ignore, NULL);
}

/* What the machine begins as. */
static void prepare(struct vmm_loop *loop)
{
	vmm_vm_make(&vm);
	vmm_serial_start(options.console, vmm_vm_interrupt(&vm, VMM_SERIAL_GSI));
	attach_devices(loop);
	if (options.restore >= 0) {
		vmm_lock();
		vmm_snapshot_load(&vm);
		vmm_unlock();
		return;
	}
	vmm_acpi(&vm.memory, options.cpus, vmm_mmio_devices());
	vmm_cpus_make(&vm, options.cpus, vmm_boot(&vm.memory, &options));
}

static void make_memory(void)
{
	int ret;

	if (options.restore >= 0) {
		vmm_snapshot_open(&vm, options.restore);
		return;
	}
	ret = vmm_memory_make(&vm.memory, options.memory_mib << 20);
	if (ret)
		vmm_fail(-ret, "--memory %llu", (unsigned long long)options.memory_mib);
}

/* The guest runs, or waits for RESUME. */
static void begin(void)
{
	vmm_lock();
	if (options.paused) {
		vmm_cpus_pause();
		vmm_control_send(VMM_PAUSED, 0, 0, -1);
	} else {
		vmm_control_send(VMM_RUNNING, 0, vmm_jail_holds(), -1);
		vmm_cpus_resume();
	}
	vmm_unlock();
}

int main(int argc, char **argv)
{
	struct vmm_loop *loop;
	int ret;

	(void)argc;
	vmm_options(&options, argv + 1);
	begin_jail();
	ignore_broken_pipes();
	vmm_vm_open(&vm);
	make_memory();
	vmm_jail_walls(options.n_fs);
	if (options.zygote >= 0)
		vmm_zygote(&options);
	loop = vmm_loop_new();
	if (!loop)
		vmm_fail(ENOMEM, "the loop of the devices");
	vmm_control_set_machine(&vm);
	vmm_control_start(loop, options.control);
	prepare(loop);
	vmm_cpus_start();
	close_sources();
	vmm_jail_end(options.n_fs ? VMM_ROLE_DEVICES_FS : VMM_ROLE_DEVICES);
	begin();
	ret = vmm_loop_run(loop);
	vmm_fail(-ret, "the loop of the devices");
}
