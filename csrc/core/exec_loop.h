/* SPDX-License-Identifier: MIT */
/*
 * exec_loop.h - execvp(3) by raw system calls, for the payload and for the stub.
 */
#ifndef NSR_EXEC_LOOP_H
#define NSR_EXEC_LOOP_H

#include "sys.h"

/*
 * What the names along PATH answer decides whether the next is tried.  sh_argv
 * is "/bin/sh", a free place, the arguments.  Returns -errno, if at all.
 */
static inline long nsr_exec_programs(const char **programs, const char **argv,
				     const char **sh_argv, const char **envp)
{
	long err = -ENOENT;
	int denied = 0;

	for (const char **program = programs; *program; program++) {
		long ret = SYS3(SYS_execve, *program, argv, envp);

		if (ret == -ENOEXEC) {
			sh_argv[1] = *program;
			ret = SYS3(SYS_execve, "/bin/sh", sh_argv, envp);
		}
		err = ret;
		if (ret == -EACCES)
			denied = 1;
		else if (ret != -ENOENT && ret != -ENOTDIR && ret != -ESTALE &&
			 ret != -ENODEV && ret != -ETIMEDOUT)
			break;
	}
	return denied ? -EACCES : err;
}

#endif
