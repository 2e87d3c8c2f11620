/* SPDX-License-Identifier: MIT */
#ifndef NSR_PYTHON_H
#define NSR_PYTHON_H

/*
 * Hand over to the Python installed beside this program: a module of ours, with
 * words for it, a NULL behind them.  what is asked for, if that can't be done.
 */
int nsr_python(const char *module, const char *what, char **words);

#endif
