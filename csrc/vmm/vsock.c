/* SPDX-License-Identifier: MIT */
/* vsock.c - the virtio-vsock device: its queues, and what the monitor asks of it. */
#include "vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vsock_parts.h"

enum {
	DEVICE_VSOCK = 19,
	FEATURE_STREAM = 1 << 0,
	EVENT_TRANSPORT_RESET = 0,
};

static struct vmm_vsock *vsock_of(struct vmm_device *device)
{
	return (struct vmm_vsock *)device;
}

static void turn(void *arg)
{
	struct vmm_vsock *vsock = arg;

	vsock->again = false;
	vsock_take(vsock);
	vsock_give(vsock);
}

void vsock_again(struct vmm_vsock *vsock)
{
	if (vsock->again)
		return;
	vsock->again = !vmm_loop_call(vsock->loop, turn, vsock);
	/* no memory to wait for the next turn: streams would wait for ever */
	if (!vsock->again)
		vsock_broken(vsock, "no memory");
}

void vsock_broken(struct vmm_vsock *vsock, const char *why)
{
	vmm_device_broken(&vsock->device, why);
	vsock_forget_all(vsock);
}

static void config_read(struct vmm_device *device, uint32_t offset, void *data, uint32_t len)
{
	memcpy(data, (const uint8_t *)&vsock_of(device)->cid + offset, len);
}

static void give_event(struct vmm_vsock *vsock)
{
	struct vmm_queue *queue = &vsock->device.queue[VSOCK_EVENT];
	const uint32_t event = EVENT_TRANSPORT_RESET;
	int ret;

	if (!vsock->event_owed || !vsock->device.running)
		return;
	ret = vmm_queue_pop(queue, &vsock->chain);
	if (!ret)
		return;
	if (ret < 0 || vsock->chain.in_bytes < sizeof(event)) {
		vsock_broken(vsock, "a broken queue of events");
		return;
	}
	vmm_chain_write(&vsock->chain, 0, &event, sizeof(event));
	vsock->event_added = vmm_queue_await_next(queue);
	vmm_queue_push(queue, vsock->chain.head, sizeof(event));
	vmm_device_signal(&vsock->device, VSOCK_EVENT);
	vsock->event_owed = false;
	vsock->event_given = true;
}

/*
 * A driver returns the buffer of an event once it has acted upon it.  For this
 * one it ends all streams, those too that it took before it came to the event:
 * so none begins until then.  A kick alone says nothing: after a restore there
 * is one for each queue.
 */
static void look_at_events(struct vmm_vsock *vsock)
{
	if (vmm_queue_added(&vsock->device.queue[VSOCK_EVENT]) != vsock->event_added)
		vsock->event_given = false;
	give_event(vsock);
	vsock_give(vsock);
}

static void notify(struct vmm_device *device, uint32_t queue)
{
	struct vmm_vsock *vsock = vsock_of(device);

	if (queue == VSOCK_EVENT)
		look_at_events(vsock);
	else
		turn(vsock);
}

/* What was put into the queues before it is not kicked for again. */
static void start(struct vmm_device *device)
{
	turn(vsock_of(device));
}

static void reset(struct vmm_device *device)
{
	struct vmm_vsock *vsock = vsock_of(device);

	vsock_forget_all(vsock);
	vsock->event_owed = vsock->event_given = false;
}

/* Streams have an end on the host, which no clone has. */
static const char *save(struct vmm_device *device, struct vmm_own_state *own)
{
	const struct vmm_vsock *vsock = vsock_of(device);

	(void)own;
	for (uint32_t i = 0; i < VSOCK_STREAMS; i++)
		if (vsock->stream[i].state != VSOCK_FREE)
			return "streams are open";
	return NULL;
}

/* The guest may have half of a stream left; and its address may be another. */
static const char *load(struct vmm_device *device, const struct vmm_own_state *own)
{
	vmm_vsock_transport_reset(device);
	return own->len ? "it has no state of its own" : NULL;
}

static const struct vmm_device_ops ops = {
	.name = "vsock",
	.id = DEVICE_VSOCK,
	.n_queues = 3,
	.queue_max = { [VSOCK_RX] = 128, [VSOCK_TX] = 128, [VSOCK_EVENT] = 8 },
	.features = FEATURE_STREAM,
	.config_size = sizeof(uint64_t),
	.config_read = config_read,
	.start = start,
	.notify = notify,
	.reset = reset,
	.save = save,
	.load = load,
};

struct vmm_device *vmm_vsock_new(struct vmm_loop *loop, uint64_t cid, uint32_t first_port,
				 const struct vmm_vsock_host *host)
{
	struct vmm_vsock *vsock = calloc(1, sizeof(*vsock));

	if (!vsock)
		return NULL;
	/* addresses only: pages come with a slow reader, and go with its stream */
	vsock->buffers = mmap(NULL, (size_t)VSOCK_STREAMS * VSOCK_BUFFER, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (vsock->buffers == MAP_FAILED) {
		free(vsock);
		return NULL;
	}
	vsock->device.ops = &ops;
	vsock->loop = loop;
	vsock->host = *host;
	vsock->cid = cid;
	vsock->next_port = first_port;
	for (uint32_t i = VSOCK_STREAMS; i-- > 0;) {
		vsock->stream[i].event.fd = -1;
		vsock->stream[i].buffer = vsock->buffers + (size_t)i * VSOCK_BUFFER;
		vsock->stream[i].hash_next = vsock->free;
		vsock->free = &vsock->stream[i];
	}
	return &vsock->device;
}

void vmm_vsock_free(struct vmm_device *device)
{
	struct vmm_vsock *vsock = vsock_of(device);

	if (!device)
		return;
	vsock_forget_all(vsock);
	/* those that were still delivering */
	for (uint32_t i = 0; i < VSOCK_STREAMS; i++)
		vsock_socket_close(&vsock->stream[i]);
	munmap(vsock->buffers, (size_t)VSOCK_STREAMS * VSOCK_BUFFER);
	free(vsock);
}

/* A port for our end; with VSOCK_STREAMS streams at most, one of the next is free. */
static uint32_t free_port(struct vmm_vsock *vsock, uint32_t guest_port)
{
	uint32_t port;

	do {
		port = vsock->next_port++;
		if (vsock->next_port == UINT32_MAX)
			vsock->next_port = VMM_VSOCK_FIRST_PORT;
	} while (vsock_find(vsock, guest_port, port));
	return port;
}

void vmm_vsock_connect(struct vmm_device *device, uint32_t port, uint64_t cookie, int fd)
{
	struct vmm_vsock *vsock = vsock_of(device);
	struct vsock_stream *stream = NULL;

	if (device->running)
		stream = vsock_stream_new(vsock, port, free_port(vsock, port), fd);
	if (!stream) {
		close(fd);
		vsock->host.refused(vsock->host.arg, port, cookie);
		return;
	}
	stream->state = VSOCK_CONNECTING;
	stream->cookie = cookie;
	vsock_owe(stream, VSOCK_OP_REQUEST);
	vsock_give(vsock);
}

int vmm_vsock_listen(struct vmm_device *device, uint32_t port)
{
	struct vmm_vsock *vsock = vsock_of(device);

	vmm_vsock_unlisten(device, port);
	if (vsock->n_listeners == VSOCK_LISTENERS)
		return -ENOSPC;
	vsock->listener[vsock->n_listeners++] = port;
	return 0;
}

void vmm_vsock_unlisten(struct vmm_device *device, uint32_t port)
{
	struct vmm_vsock *vsock = vsock_of(device);

	for (uint32_t i = 0; i < vsock->n_listeners; i++)
		if (vsock->listener[i] == port) {
			vsock->listener[i] = vsock->listener[--vsock->n_listeners];
			return;
		}
}

void vmm_vsock_transport_reset(struct vmm_device *device)
{
	struct vmm_vsock *vsock = vsock_of(device);

	vsock_forget_all(vsock);
	vsock->event_owed = true;
	give_event(vsock);
}
