/* SPDX-License-Identifier: MIT */
/* small.h - what the reaper and the stub, one program without libc, have in common. */
#ifndef NSR_SMALL_H
#define NSR_SMALL_H

#include "spawn.h"
#include "sys.h"

_Noreturn void nsr_reaper_main(long argc, const char *const *argv);
_Noreturn void nsr_stub_main(long argc, const char *const *argv, const char **envp);

_Noreturn void nsr_small_leave(int status);
/* Send (step, errno, text) and leave. */
_Noreturn void nsr_small_fail(int status_fd, enum nsr_step step, long err, const char *text);
/* A decimal word; -1: it is empty. */
int nsr_small_number(const char *word);
size_t nsr_small_len(const char *text);
/* What nsr_filter_file wrote; -1: none. */
void nsr_small_load_filters(int fd, int status_fd);

#endif
