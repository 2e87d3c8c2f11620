/* SPDX-License-Identifier: MIT */
/*
 * A client of the file server: it waits for the export 0, opens "file" in it, and
 * for ever reads that by its handle, looks the name up again, and says both.
 */
#include "guest.h"

enum { FS = 26, HEAD = 40, REPLY_HEAD = 16, BYTES = 256, SHOWN = 16 };
enum { LOOKUP = 1, OPEN = 14, READ = 15, INIT = 26 };

static struct queue queue;
static uint64_t device;
static uint8_t request[BYTES], reply[BYTES];
static uint32_t body;
static uint16_t n_asked;

static void put(uint64_t value, uint32_t bytes)
{
	memcpy(request + HEAD + body, &value, bytes);
	body += bytes;
}

static void put_name(const char *name)
{
	do
		put((uint8_t)*name, 1);
	while (*name++);
}

/* The errno that it is answered with. */
static uint32_t ask(uint32_t opcode, uint64_t node)
{
	uint32_t len = HEAD + body;
	int32_t error;

	memset(request, 0, HEAD);
	memcpy(request, &len, 4);
	memcpy(request + 4, &opcode, 4);
	memcpy(request + 16, &node, 8);
	queue.desc[0] = (struct desc){ (uint64_t)request, len, NEXT, 1 };
	queue.desc[1] = (struct desc){ (uint64_t)reply, BYTES, WRITE, 0 };
	offer(device, &queue, 0);
	if (!wait_used(device, &queue, ++n_asked))
		crash();
	body = 0;
	memcpy(&error, reply + 4, 4);
	return (uint32_t)-error;
}

/* Of a node or a handle, which both are the first of their reply. */
static uint64_t number(void)
{
	uint64_t value;

	memcpy(&value, reply + REPLY_HEAD, 8);
	return value;
}

static uint32_t look_up(uint64_t node, const char *name)
{
	put_name(name);
	return ask(LOOKUP, node);
}

static void read_and_look(uint64_t top, uint64_t file, uint64_t handle)
{
	char text[SHOWN + 1] = "";
	uint32_t len, read;

	put(handle, 8);
	put(0, 8);
	put(SHOWN, 4);
	put(0, 20);
	read = ask(READ, file);
	memcpy(&len, reply, 4);
	if (!read)
		memcpy(text, reply + REPLY_HEAD, len - REPLY_HEAD);
	if (look_up(top, "file"))
		crash();
	say("%d %s %d", read, text, number() == file);
}

int guest_main(const uint8_t *zero_page)
{
	uint64_t top, file;

	(void)zero_page;
	device = find(FS);
	start(device, F_VERSION_1, &queue, SIZE);
	put(7 | (uint64_t)39 << 32, 8);
	put(0xffffffff00010000, 8);
	if (ask(INIT, 0))
		crash();
	while (look_up(1, "0"))
		;
	top = number();
	if (look_up(top, "file"))
		crash();
	file = number();
	put(0, 8);
	if (ask(OPEN, file))
		crash();
	for (uint64_t handle = number();;)
		read_and_look(top, file, handle);
}
