#include "tally.h"

static int is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

struct tally tally_text(const char *text, size_t len)
{
	struct tally tally = { 0, 0, len };
	int in_word = 0;

	for (size_t i = 0; i < len; i++) {
		int space = is_space(text[i]);

		tally.lines += text[i] == '\n';
		tally.words += !space && !in_word;
		in_word = !space;
	}
	return tally;
}
