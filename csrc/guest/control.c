/* SPDX-License-Identifier: MIT */
/* control.c - the control stream: frames in, frames out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "diag.h"

enum {
	STEPS_A_TURN = 64,
	ENDED = -4096,              /* beside -errno */
	SMALL_ANSWERS = 1024,
};

void nsr_control_close(struct nsr_control *control)
{
	nsr_loop_close(&control->socket);
	free(control->body);
	control->body = NULL;
	control->out_length = 0;
}

static void end(struct nsr_control *control)
{
	nsr_control_close(control);
	nsr_command_abandon(nsr_command_of(control));
}

/* Answers, as far as the host takes them now. */
static void flush(struct nsr_control *control)
{
	size_t done = 0;

	while (control->socket.fd >= 0 && done < control->out_length) {
		ssize_t n = write(control->socket.fd, control->out + done,
				  control->out_length - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			end(control);
			return;
		}
		done += (size_t)n;
	}
	control->out_length -= done;
	memmove(control->out, control->out + done, control->out_length);
}

static void queue(struct nsr_control *control, const void *bytes, size_t length)
{
	/* nobody says anything before nsr_control_has_room */
	if (length > sizeof(control->out) - control->out_length)
		return;
	memcpy(control->out + control->out_length, bytes, length);
	control->out_length += length;
}

void nsr_control_send(struct nsr_control *control, enum nsr_frame_type type, const void *payload,
		      size_t length)
{
	const struct nsr_frame frame = { .type = type, .length = (uint32_t)length };

	if (control->socket.fd < 0)
		return;
	queue(control, &frame, sizeof(frame));
	queue(control, payload, length);
	/* not now: our caller is in the middle of something */
	nsr_loop_again(&control->socket);
}

void nsr_control_fail(struct nsr_control *control, const struct nsr_diag *diag)
{
	static uint8_t frame[NSR_FAILED_FRAME_MAX];

	if (control->socket.fd < 0)
		return;
	queue(control, frame, nsr_failed_write(frame, diag));
	nsr_loop_again(&control->socket);
}

static void refuse(struct nsr_control *control, const struct nsr_diag *diag)
{
	nsr_control_fail(control, diag);
	control->closing = 1;
	nsr_command_kill(nsr_command_of(control));
}

/* For all that a frame may be answered with, and for two failures. */
int nsr_control_has_room(const struct nsr_control *control)
{
	return control->out_length < SMALL_ANSWERS;
}

/* As much as the kernel has of so many bytes: the number, 0: nothing now, or ENDED. */
static ssize_t take(struct nsr_control *control, void *to, size_t size)
{
	ssize_t n;

	do
		n = read(control->socket.fd, to, size);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0)
		return ENDED;
	control->got += (size_t)n;
	return n;
}

static ssize_t take_head(struct nsr_control *control, struct nsr_diag *diag)
{
	size_t got = control->got;
	ssize_t n = take(control, (char *)&control->frame + got, sizeof(control->frame) - got);

	if (n <= 0 || control->got < sizeof(control->frame))
		return n;
	return nsr_frame_check(&control->frame, diag) ? -EPROTO : n;
}

static ssize_t take_plan(struct nsr_control *control, size_t left, struct nsr_diag *diag)
{
	static uint8_t buffer[NSR_FRAME_MAX];
	ssize_t n = take(control, buffer, left < sizeof(buffer) ? left : sizeof(buffer));
	int ret;

	if (n <= 0)
		return n;
	ret = nsr_command_plan(nsr_command_of(control), buffer, (size_t)n, diag);
	return ret ? ret : n;
}

static ssize_t take_body(struct nsr_control *control, size_t left, struct nsr_diag *diag)
{
	if (control->frame.type == NSR_FRAME_PLAN)
		return take_plan(control, left, diag);
	if (!control->body)
		control->body = malloc(NSR_FRAME_MAX);
	if (!control->body) {
		nsr_diag_errno(diag, ENOMEM, "The agent has no memory for a frame");
		return -ENOMEM;
	}
	return take(control, control->body + control->got - sizeof(control->frame), left);
}

/* One step: bytes of a frame, or a whole one.  As take(); -errno with diag filled. */
static ssize_t step(struct nsr_control *control, struct nsr_diag *diag)
{
	struct nsr_frame *frame = &control->frame;
	size_t left;
	ssize_t n = 1;
	int ret;

	if (control->got < sizeof(*frame)) {
		n = take_head(control, diag);
		if (n <= 0 || control->got < sizeof(*frame))
			return n;
	}
	left = sizeof(*frame) + frame->length - control->got;
	if (left) {
		n = take_body(control, left, diag);
		if (n <= 0 || (size_t)n < left)
			return n;
	}
	control->got = 0;
	ret = nsr_command_frame(nsr_command_of(control), frame->type, control->body,
				frame->length, diag);
	return ret ? ret : n;
}

/* What the host still sends is read, or it would hear of an error before it has read why. */
static void linger(struct nsr_control *control)
{
	static uint8_t nowhere[NSR_FRAME_MAX];
	ssize_t n;

	if (control->out_length)
		return;
	if (shutdown(control->socket.fd, SHUT_WR)) {
		end(control);
		return;
	}
	n = take(control, nowhere, sizeof(nowhere));
	if (n == ENDED)
		end(control);
	else if (n > 0)
		nsr_loop_again(&control->socket);
}

static void control_ready(struct nsr_watch *watch, uint32_t events)
{
	static struct nsr_diag diag;
	struct nsr_control *control = (struct nsr_control *)(void *)watch;
	ssize_t n = 1;

	(void)events;
	for (int i = 0; n > 0 && i < STEPS_A_TURN; i++) {
		flush(control);
		if (control->socket.fd >= 0 && control->closing)
			linger(control);
		/* a host that hears no answers is not asked for more; there will be an event */
		if (control->socket.fd < 0 || control->closing || !nsr_control_has_room(control))
			return;
		diag = (struct nsr_diag){ .err = 0 };
		n = step(control, &diag);
	}
	if (n == ENDED)
		end(control);
	else if (n < 0)
		refuse(control, &diag);
	else if (n > 0)
		nsr_loop_again(watch);
}
_Static_assert(offsetof(struct nsr_control, socket) == 0, "its watch is its beginning");

void nsr_control_init(struct nsr_control *control)
{
	control->socket = (struct nsr_watch){ .fd = -1, .ready = control_ready };
	control->got = control->out_length = 0;
	control->body = NULL;
	control->closing = 0;
}

int nsr_control_take(struct nsr_control *control, int socket)
{
	int ret;

	control->socket.fd = socket;
	ret = nsr_loop_add(&control->socket);
	if (ret)
		control->socket.fd = -1;
	return ret;
}
