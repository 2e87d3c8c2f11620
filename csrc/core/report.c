/* SPDX-License-Identifier: MIT */
/* report.c - what the sandbox tells its monitor; child. */
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include "spawn.h"
#include "sys.h"

int nsr_fail(struct nsr_ctx *ctx, enum nsr_step step, long err)
{
	return nsr_fail_text(ctx, step, err, "");
}

int nsr_fail_text(struct nsr_ctx *ctx, enum nsr_step step, long err, const char *text)
{
	size_t len = strlen(text);

	if (len >= NSR_RECORD_TEXT)
		len = NSR_RECORD_TEXT - 1;
	ctx->failure = (struct nsr_record){ .type = NSR_RECORD_FAIL, .step = step,
					    .err = (int32_t)-err, .op = ctx->op };
	memcpy(ctx->cold->text, text, len);
	ctx->cold->text[len] = '\0';
	return -1;
}

static int64_t now(void)
{
	struct timespec ts = { 0, 0 };

	SYS2(SYS_clock_gettime, CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Nobody may be listening any more; that is no reason to fail. */
int nsr_send_exec(struct nsr_ctx *ctx)
{
	const struct nsr_record record = { .type = NSR_RECORD_EXEC, .op = -1, .value = now() };

	__atomic_store_n(&ctx->exec_ns, record.value, __ATOMIC_RELEASE);
	return ctx->report_exec ? (int)SYS3(SYS_write, ctx->status_w, &record, sizeof(record)) : 0;
}

void nsr_send_failure(struct nsr_ctx *ctx)
{
	const struct iovec parts[2] = {
		{ &ctx->failure, sizeof(ctx->failure) },
		{ ctx->cold->text, strlen(ctx->cold->text) + 1 },
	};

	SYS3(SYS_writev, ctx->status_w, parts, 2);
}
