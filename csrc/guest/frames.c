/* SPDX-License-Identifier: MIT */
/* frames.c - what comes from the host, checked before anybody believes it. */
#include <errno.h>
#include <string.h>

#include "diag.h"
#include "frames.h"

enum { MAX_WINDOW = 65535, MAX_UMASK = 0777 };

int nsr_hello_check(const struct nsr_hello *hello)
{
	int good = hello->magic == NSR_AGENT_MAGIC && hello->version == NSR_AGENT_VERSION &&
		   hello->role < NSR_ROLE_END &&
		   (hello->role == NSR_ROLE_OUTGOING || !hello->connection);

	return good ? 0 : -EPROTO;
}

static int wrong(struct nsr_diag *diag, const char *what, uint64_t value)
{
	nsr_diag_set(diag, "%s: %llu", what, (unsigned long long)value);
	diag->err = EPROTO;
	return -EPROTO;
}

int nsr_frame_check(const struct nsr_frame *frame, struct nsr_diag *diag)
{
	static const struct {
		uint32_t least;
		uint32_t most;
	} lengths[NSR_FRAME_HOST_END] = {
		[NSR_FRAME_SETTINGS] = { sizeof(struct nsr_settings), NSR_FRAME_MAX },
		[NSR_FRAME_PLAN] = { 1, NSR_PLAN_FRAME_MAX },
		[NSR_FRAME_SIGNAL] = { sizeof(uint32_t), sizeof(uint32_t) },
		[NSR_FRAME_RESIZE] = { 2 * sizeof(uint32_t), 2 * sizeof(uint32_t) },
		[NSR_FRAME_DEADLINE] = { sizeof(uint64_t), sizeof(uint64_t) },
		[NSR_FRAME_POWER_OFF] = { 0, 0 },
		[NSR_FRAME_GET_INFO] = { 0, 0 },
		[NSR_FRAME_CONTINUE] = { 1, NSR_FRAME_MAX },
	};

	if (!frame->type || frame->type >= NSR_FRAME_HOST_END)
		return wrong(diag, "The agent knows no frame of this type", frame->type);
	if (frame->length < lengths[frame->type].least ||
	    frame->length > lengths[frame->type].most)
		return wrong(diag, "A frame has a length that its type can't have", frame->length);
	return 0;
}

int nsr_settings_read(struct nsr_host_settings *out, const uint8_t *bytes, size_t len,
		      struct nsr_diag *diag)
{
	const struct nsr_settings *head = &out->head;

	if (len < sizeof(out->head))
		return wrong(diag, "The settings are too short", len);
	memcpy(&out->head, bytes, sizeof(out->head));
	if (head->version != NSR_SETTINGS_VERSION)
		return wrong(diag, "The agent knows no settings of this version", head->version);
	if (head->flags & ~(uint32_t)NSR_SETTINGS_FLAG_ALL)
		return wrong(diag, "The agent knows no such flag of the settings", head->flags);
	if (head->n_groups > NSR_SETTINGS_GROUPS)
		return wrong(diag, "The settings have too many groups", head->n_groups);
	if (len != sizeof(out->head) + head->n_groups * sizeof(*out->groups))
		return wrong(diag, "The settings don't have the length of their groups", len);
	if (head->uid == ~0u || head->gid == ~0u)
		return wrong(diag, "The settings name nobody to run the plan as", ~0u);
	if (head->umask > MAX_UMASK)
		return wrong(diag, "The settings have a umask of more than permissions",
			     head->umask);
	if (head->rows > MAX_WINDOW || head->columns > MAX_WINDOW)
		return wrong(diag, "The settings have a terminal of too many rows or columns",
			     head->rows > MAX_WINDOW ? head->rows : head->columns);
	if (head->deadline_ms > NSR_MAX_TIMEOUT_MS)
		return wrong(diag, "The settings have a deadline that is too far off",
			     head->deadline_ms);
	memcpy(out->groups, bytes + sizeof(out->head), head->n_groups * sizeof(*out->groups));
	return 0;
}

_Static_assert(sizeof(struct nsr_frame) + sizeof(struct nsr_failed) +
	       sizeof(((struct nsr_diag *)0)->path) + NSR_DIAG_TEXT <= NSR_FAILED_FRAME_MAX,
	       "whatever is said fits");

size_t nsr_failed_write(uint8_t out[NSR_FAILED_FRAME_MAX], const struct nsr_diag *diag)
{
	size_t path = strnlen(diag->path, sizeof(diag->path));
	size_t text = strnlen(diag->text, sizeof(diag->text));
	struct nsr_failed failed = { .step = (uint32_t)diag->step, .err = diag->err };
	struct nsr_frame frame = { .type = NSR_FRAME_FAILED };
	uint8_t *at = out;

	failed.path_length = (uint32_t)path;
	failed.text_length = (uint32_t)text;
	frame.length = (uint32_t)(sizeof(failed) + path + text);
	memcpy(at, &frame, sizeof(frame));
	at += sizeof(frame);
	memcpy(at, &failed, sizeof(failed));
	at += sizeof(failed);
	memcpy(at, diag->path, path);
	memcpy(at + path, diag->text, text);
	return sizeof(frame) + frame.length;
}
