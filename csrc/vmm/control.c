/* SPDX-License-Identifier: MIT */
/* control.c - the socket to the monitor's owner. */
#include "control.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cpu.h"
#include "device.h"
#include "end.h"
#include "fs_device.h"
#include "loop.h"
#include "snapshot.h"

static struct vmm_event event = { .fd = -1 };
static struct vmm_streams streams;
static const struct vmm_vm *machine;
static struct vmm_device *fs;
/* the last of them came: of this thread alone */
static bool exports_over;

union fd_message {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int))];
};

static void attach(struct msghdr *message, union fd_message *room, int fd)
{
	memset(room, 0, sizeof(*room));
	message->msg_control = room;
	message->msg_controllen = sizeof(room->space);
	room->header.cmsg_len = CMSG_LEN(sizeof(fd));
	room->header.cmsg_level = SOL_SOCKET;
	room->header.cmsg_type = SCM_RIGHTS;
	memcpy(CMSG_DATA(&room->header), &fd, sizeof(fd));
}

int vmm_control_send(enum vmm_record_type type, uint32_t port, uint64_t value, int fd)
{
	struct vmm_record record = { .type = type, .port = port, .value = value };
	struct iovec iov = { .iov_base = &record, .iov_len = sizeof(record) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	union fd_message room;

	if (fd >= 0)
		attach(&message, &room, fd);
	return sendmsg(event.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

void vmm_control_ended(enum vmm_ended reason)
{
	if (event.fd >= 0)
		vmm_control_send(VMM_ENDED, reason, 0, -1);
}

void vmm_control_set_streams(const struct vmm_streams *given)
{
	streams = *given;
}

void vmm_control_set_fs(struct vmm_device *device)
{
	fs = device;
}

void vmm_control_answer(enum vmm_record_type type, uint32_t port, uint64_t value)
{
	int ret = vmm_control_send(type, port, value, -1);

	/* when the owner is gone the socket's end says so */
	if (ret == -EAGAIN || ret == -ENOBUFS)
		vmm_fail(0, "control: the owner asks, but does not read the answers");
}

static void obey_connect(const struct vmm_record *record, int fd)
{
	if (fd < 0)
		vmm_fail(0, "control: CONNECT without a descriptor");
	if (streams.connect) {
		streams.connect(streams.device, record->port, record->value, fd);
		return;
	}
	close(fd);
	vmm_control_answer(VMM_REFUSED, record->port, record->value);
}

void vmm_control_set_machine(const struct vmm_vm *vm)
{
	machine = vm;
}

static void obey_save(const struct vmm_record *record, int fd)
{
	int ret;

	if (fd < 0)
		vmm_fail(0, "control: SAVE without a descriptor");
	ret = vmm_snapshot_save(machine, fd);
	close(fd);
	vmm_control_answer(ret ? VMM_NOT_SAVED : VMM_SAVED, (uint32_t)-ret, record->value);
}

/* Unlocked, since the host's file systems may be slow to open what is named. */
static int add_exports(int view, uint32_t how)
{
	char error[512];
	int first;

	if (!fs)
		return -ENODEV;
	if (exports_over)
		return -EPERM;
	vmm_unlock();
	if (how & VMM_EXPORTS_KEEP)
		vmm_fs_keep(fs);
	first = vmm_fs_add(fs, view, error, sizeof(error));
	if (first >= 0 && how & VMM_EXPORTS_LAST) {
		exports_over = true;
		vmm_fs_shut();
	}
	vmm_lock();
	if (first >= 0)
		return first;
	fprintf(stderr, "nsrun-vmm: EXPORTS: %s\n", error);
	return -EINVAL;
}

static void obey_exports(const struct vmm_record *record, int fd)
{
	int first;

	if (fd < 0)
		vmm_fail(0, "control: EXPORTS without a descriptor");
	if (record->port & ~(uint32_t)VMM_EXPORTS_ALL)
		vmm_fail(0, "control: EXPORTS with the port %u", record->port);
	first = add_exports(fd, record->port);
	close(fd);
	if (first < 0)
		vmm_control_answer(VMM_NOT_EXPORTED, (uint32_t)-first, record->value);
	else
		vmm_control_answer(VMM_EXPORTED, (uint32_t)first, record->value);
}

static void obey_check(const struct vmm_record *record)
{
	int ret = -ENODEV;

	if (fs)
		ret = vmm_cpus_paused() ? vmm_fs_check(fs) : -EINVAL;
	vmm_control_answer(ret ? VMM_NOT_CHECKED : VMM_CHECKED, (uint32_t)-ret, record->value);
}

static void obey(const struct vmm_record *record, int fd)
{
	if (fd >= 0 && record->type != VMM_CONNECT && record->type != VMM_EXPORTS &&
	    record->type != VMM_SAVE)
		vmm_fail(0, "control: a descriptor with a record of type %u", record->type);
	switch (record->type) {
	case VMM_CONNECT:
		obey_connect(record, fd);
		break;
	case VMM_LISTEN:
		if (!streams.listen)
			vmm_fail(0, "control: LISTEN without --vsock");
		streams.listen(streams.device, record->port);
		break;
	case VMM_UNLISTEN:
		if (streams.unlisten)
			streams.unlisten(streams.device, record->port);
		break;
	case VMM_PAUSE:
		vmm_cpus_pause();
		vmm_control_answer(VMM_PAUSED, 0, 0);
		break;
	case VMM_RESUME:
		vmm_cpus_resume();
		vmm_control_answer(VMM_RESUMED, 0, 0);
		break;
	case VMM_SAVE:
		obey_save(record, fd);
		break;
	case VMM_EXPORTS:
		obey_exports(record, fd);
		break;
	case VMM_CHECK:
		obey_check(record);
		break;
	default:
		vmm_fail(0, "control: no record has the type %u", record->type);
	}
}

static int descriptor_of(struct msghdr *message)
{
	struct cmsghdr *header = CMSG_FIRSTHDR(message);
	int fd;

	if (!header)
		return -1;
	if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
	    header->cmsg_len != CMSG_LEN(sizeof(fd)))
		vmm_fail(0, "control: more than one descriptor came with a record");
	memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	return fd;
}

/* One record; whether there may be more. */
static bool take(int socket)
{
	struct vmm_record record;
	struct iovec iov = { .iov_base = &record, .iov_len = sizeof(record) };
	union fd_message room;
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &room, .msg_controllen = sizeof(room.space),
	};
	ssize_t n = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fd;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n < 0 && errno != ECONNRESET)
		vmm_fail(errno, "control: recvmsg");
	if (n <= 0)
		vmm_end(VMM_OVER);
	if (message.msg_flags & MSG_CTRUNC)
		vmm_fail(0, "control: more than one descriptor came with a record");
	fd = descriptor_of(&message);
	if (n != sizeof(record) || message.msg_flags & MSG_TRUNC)
		vmm_fail(0, "control: a record is not of %zu bytes", sizeof(record));
	obey(&record, fd);
	return true;
}

static void ready(struct vmm_event *self, uint32_t events)
{
	(void)events;
	while (take(self->fd))
		;
}

void vmm_control_start(struct vmm_loop *loop, int fd)
{
	int ret;

	event = (struct vmm_event){ .fd = fd, .events = EPOLLIN, .ready = ready };
	ret = vmm_loop_add(loop, &event);
	if (ret)
		vmm_fail(-ret, "--control-fd %d", fd);
}
