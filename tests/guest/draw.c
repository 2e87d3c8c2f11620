/* draw.c - says 16 random bytes, the time in nanoseconds, and the time since the start. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

static long long now(clockid_t clock)
{
	struct timespec time;

	if (clock_gettime(clock, &time))
		abort();
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(void)
{
	unsigned char bytes[16];

	if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		return 1;
	for (size_t i = 0; i < sizeof(bytes); i++)
		printf("%02x", bytes[i]);
	printf(" %lld %lld\n", now(CLOCK_REALTIME), now(CLOCK_BOOTTIME));
	return 0;
}
