/* SPDX-License-Identifier: MIT */
/* frames.h - what comes from the host, checked before anybody believes it. */
#ifndef NSR_GUEST_FRAMES_H
#define NSR_GUEST_FRAMES_H

#include "nsrun.h"
#include "protocol.h"

/* 0 or -EPROTO. */
int nsr_hello_check(const struct nsr_hello *hello);

/* Whether such a frame may come from the host: 0, or -EPROTO with diag filled. */
int nsr_frame_check(const struct nsr_frame *frame, struct nsr_diag *diag);

struct nsr_host_settings {
	struct nsr_settings head;
	uint32_t groups[NSR_SETTINGS_GROUPS];
};

/* 0, or -EPROTO with diag filled. */
int nsr_settings_read(struct nsr_host_settings *out, const uint8_t *bytes, size_t len,
		      struct nsr_diag *diag);

/* FAILED, head and all, of what happened; the length. */
enum { NSR_FAILED_FRAME_MAX = 14 << 10 };
size_t nsr_failed_write(uint8_t out[NSR_FAILED_FRAME_MAX], const struct nsr_diag *diag);

#endif
