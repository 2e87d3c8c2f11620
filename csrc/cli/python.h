/* SPDX-License-Identifier: MIT */
#ifndef NSR_PYTHON_H
#define NSR_PYTHON_H

/* "nsrun WORD ...": hand over to the Python installed beside this program. */
int nsr_python(char **argv);

#endif
