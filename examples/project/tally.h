/* tally.h - count what is in a text. */
#ifndef TALLY_H
#define TALLY_H

#include <stddef.h>

struct tally {
	size_t lines;
	size_t words;
	size_t bytes;
};

/* Words are separated by blanks, tabs and line ends. */
struct tally tally_text(const char *text, size_t len);

#endif
