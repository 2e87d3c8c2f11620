/* SPDX-License-Identifier: MIT */
/* session.h - INIT and DESTROY. */
#ifndef FS_SESSION_H
#define FS_SESSION_H

#include "core.h"

int fs_session_begin(struct fs_call *call);
int fs_session_end(struct fs_call *call);

#endif
