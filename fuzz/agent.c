/* SPDX-License-Identifier: MIT */
/*
 * agent: what comes on a stream to the agent: a hello, then the control stream's frames.
 * The reader gets the bytes in pieces, whose sizes the input says too.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

/* in place of the kernel's */
static ssize_t fuzz_read(int fd, void *to, size_t size);
static ssize_t fuzz_write(int fd, const void *from, size_t size);
#define read fuzz_read
#define write fuzz_write
#define shutdown(fd, how) 0
/* its functions are nobody else's */
#include "../csrc/guest/control.c"
#include "../csrc/guest/frames.c"

static struct {
	const uint8_t *at;
	size_t left;
	size_t pieces;              /* bytes that were not yet used to say how long a piece is */
	const uint8_t *sizes;
	int dry;                    /* the last call was told to come again */
} input;

static struct {
	struct nsr_command command;
	uint64_t plan;              /* bytes of one that is coming */
	int again;
	int ended;
	int killed;
	size_t frames;
} run;

static size_t piece(void)
{
	if (!input.pieces)
		return ~(size_t)0;
	input.pieces--;
	return *input.sizes++;
}

static ssize_t fuzz_read(int fd, void *to, size_t size)
{
	size_t n = piece();

	(void)fd;
	/* a piece of no bytes: nothing is there now, but never twice in a row */
	if (!n && !input.dry) {
		input.dry = 1;
		errno = EAGAIN;
		return -1;
	}
	input.dry = 0;
	if (!n)
		n = 1;
	if (n > size)
		n = size;
	if (n > input.left)
		n = input.left;
	memcpy(to, input.at, n);
	input.at += n;
	input.left -= n;
	return (ssize_t)n;
}

static ssize_t fuzz_write(int fd, const void *from, size_t size)
{
	size_t n = piece() % 4096;

	(void)fd, (void)from;
	if (n)
		return (ssize_t)(n < size ? n : size);
	errno = EAGAIN;
	return -1;
}

int nsr_loop_add(struct nsr_watch *watch)
{
	(void)watch;
	return 0;
}

void nsr_loop_again(struct nsr_watch *watch)
{
	(void)watch;
	run.again = 1;
}

void nsr_loop_close(struct nsr_watch *watch)
{
	watch->fd = -1;
}

struct nsr_command *nsr_command_of(struct nsr_control *control)
{
	if (control != &run.command.control)
		abort();
	return &run.command;
}

void nsr_command_kill(struct nsr_command *command)
{
	(void)command;
	run.killed = 1;
}

void nsr_command_abandon(struct nsr_command *command)
{
	if (run.ended || command->control.socket.fd >= 0)
		abort();
	run.ended = 1;
}

int nsr_command_plan(struct nsr_command *command, const uint8_t *bytes, size_t length,
		     struct nsr_diag *diag)
{
	(void)command, (void)bytes, (void)diag;
	run.plan += length;
	return 0;
}

/* What was told to be whole is whole, and has a length that its type can have. */
int nsr_command_frame(struct nsr_command *command, enum nsr_frame_type type, const uint8_t *body,
		      size_t length, struct nsr_diag *diag)
{
	static struct nsr_host_settings settings;
	const struct nsr_frame frame = { .type = type, .length = (uint32_t)length };
	volatile uint8_t sum = 0;

	if (run.killed || nsr_frame_check(&frame, diag))
		abort();
	run.frames++;
	if (type == NSR_FRAME_PLAN) {
		if (run.plan != length)
			abort();
		run.plan = 0;
		return 0;
	}
	for (size_t i = 0; i < length; i++)
		sum = (uint8_t)(sum + body[i]);
	if (type == NSR_FRAME_GET_INFO) {
		static const uint8_t answer[1000];
		size_t before = command->control.out_length;

		nsr_control_send(&command->control, NSR_FRAME_INFO, answer, sizeof(answer));
		if (command->control.out_length != before + sizeof(frame) + sizeof(answer))
			abort();        /* an answer got lost */
	}
	if (type != NSR_FRAME_SETTINGS)
		return 0;
	if (!nsr_settings_read(&settings, body, length, diag))
		return settings.head.n_groups > NSR_SETTINGS_GROUPS ? (abort(), 0) : 0;
	if (!diag->text[0] || diag->err != EPROTO)
		abort();                /* refused without a word */
	return -EPROTO;
}

int nsr_diag_set(struct nsr_diag *diag, const char *fmt, ...)
{
	snprintf(diag->text, sizeof(diag->text), "%s", fmt);
	return -EINVAL;
}

int nsr_diag_errno(struct nsr_diag *diag, int err, const char *fmt, ...)
{
	diag->err = err;
	return nsr_diag_set(diag, "%s", fmt);
}

/* As many groups as a frame may have: more than the 4096 bytes of an input. */
static void check_settings(const uint8_t *data, size_t size)
{
	static uint8_t bytes[NSR_FRAME_MAX];
	static struct nsr_host_settings settings;
	static struct nsr_diag diag;
	size_t length;

	if (size < sizeof(settings.head))
		return;
	memcpy(bytes, data, size < sizeof(bytes) ? size : sizeof(bytes));
	memcpy(&settings.head, bytes, sizeof(settings.head));
	length = sizeof(settings.head) + (size_t)settings.head.n_groups * sizeof(uint32_t);
	if (length <= sizeof(bytes))
		nsr_settings_read(&settings, bytes, length, &diag);
}

/* What is waited for is no more than there is a place for. */
static void check_frame(const struct nsr_control *control)
{
	const struct nsr_frame *frame = &control->frame;

	if (control->socket.fd >= 0 && !control->closing && control->got >= sizeof(*frame) &&
	    frame->length > (frame->type == NSR_FRAME_PLAN ? NSR_PLAN_FRAME_MAX : NSR_FRAME_MAX))
		abort();
}

static void check_hello(const uint8_t *data, size_t size)
{
	struct nsr_hello hello;

	if (size < sizeof(hello))
		return;
	memcpy(&hello, data, sizeof(hello));
	if (!nsr_hello_check(&hello) && hello.role >= NSR_ROLE_END)
		abort();
}

/* A text of any length fits, and its frame says how long it is. */
static void check_failed(const uint8_t *data, size_t size)
{
	static uint8_t out[NSR_FAILED_FRAME_MAX];
	static struct nsr_diag diag;
	struct nsr_frame frame;
	size_t length;

	memset(diag.path, 'p', sizeof(diag.path));
	memset(diag.text, 't', sizeof(diag.text));
	if (size)
		diag.path[size * 37 % sizeof(diag.path)] = diag.text[data[0] * 36] = '\0';
	length = nsr_failed_write(out, &diag);
	memcpy(&frame, out, sizeof(frame));
	if (length > sizeof(out) || length != sizeof(frame) + frame.length)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct nsr_control *control = &run.command.control;
	size_t pieces = size ? data[0] % 64 : 0;

	check_hello(data, size);
	check_failed(data, size);
	check_settings(data, size);
	if (size < 1 + pieces)
		return 0;
	memset(&run, 0, sizeof(run));
	input.sizes = data + 1;
	input.pieces = pieces;
	input.at = data + 1 + pieces;
	input.left = size - 1 - pieces;
	nsr_control_init(control);
	if (nsr_control_take(control, 0))
		abort();
	/* each turn reads something, writes something or is the last */
	for (size_t turn = 0; control->socket.fd >= 0 && turn < 4 * size + 64; turn++) {
		control->socket.ready(&control->socket, 0);
		if (control->out_length > sizeof(control->out))
			abort();
		check_frame(control);
	}
	if (control->socket.fd >= 0 && !input.pieces && !control->closing)
		abort();                /* the end of the stream was not seen */
	nsr_control_close(control);
	return 0;
}
