/* SPDX-License-Identifier: MIT */
/* hand: the message by which a parked sandbox gets its command, as the stub takes it apart. */
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>

/* its functions are nobody else's */
#include "../csrc/reaper/stub.c"

/* what the rest of that program would do ends the process: parsing calls none of it */
_Noreturn void nsr_small_leave(int status)
{
	(void)status;
	abort();
}

_Noreturn void nsr_small_fail(int status_fd, enum nsr_step step, long err, const char *text)
{
	(void)status_fd, (void)step, (void)err, (void)text;
	abort();
}

int nsr_small_number(const char *word)
{
	(void)word;
	abort();
}

void nsr_small_load_filters(int fd, int status_fd)
{
	(void)fd, (void)status_fd;
	abort();
}

/* So many strings within the packet, and a NULL behind them. */
static void check_words(const char **list, uint32_t n, const char *end)
{
	for (uint32_t i = 0; i < n; i++)
		if (list[i] < packet.bytes || list[i] + strlen(list[i]) >= end)
			abort();
	if (list[n] || list + n >= words + sizeof(words) / sizeof(words[0]))
		abort();
}

static void check_command(struct command *command, const char *end)
{
	const struct nsr_hand *head = &packet.head;

	if (head->n_rlimits > NSR_HAND_RLIMITS ||
	    (const char *)(command->rlimits + head->n_rlimits) > end)
		abort();
	if (!command->dir != !(head->flags & NSR_HAND_CHDIR) ||
	    (command->dir && command->dir + strlen(command->dir) >= end))
		abort();
	check_words(command->programs, head->n_programs, end);
	check_words(command->argv, head->n_argv, end);
	check_words(command->envp, head->n_env, end);
	make_sh_argv(command, head->n_argv);
	/* its second place is filled in at the exec; the last word is the argv's NULL */
	if (command->sh_argv + head->n_argv + 1 >= words + sizeof(words) / sizeof(words[0]) ||
	    command->sh_argv[head->n_argv + 1])
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct command command = { .dir = NULL };

	/* the stub has the length from the kernel, and takes none that says otherwise */
	if (size < sizeof(packet.head) || size > sizeof(packet.bytes))
		return 0;
	ASAN_UNPOISON_MEMORY_REGION(packet.bytes, sizeof(packet.bytes));
	memcpy(packet.bytes, data, size);
	packet.head.size = (uint32_t)size;
	ASAN_POISON_MEMORY_REGION(packet.bytes + size, sizeof(packet.bytes) - size);
	if (!parse(&command))
		check_command(&command, packet.bytes + size);
	ASAN_UNPOISON_MEMORY_REGION(packet.bytes, sizeof(packet.bytes));
	return 0;
}
