/* SPDX-License-Identifier: MIT */
/*
 * wall_cases WALLS THREAD ATTEMPT DIRECTORY [NUMBER]: code in the monitor's place, past its
 * seccomp filter, tries something.  Prints which walls hold, then 0 or the attempt's errno.
 *
 * WALLS: none; begin, as while files are still to be shared; files, as where none ever are;
 * shut, once DIRECTORY/shared and, read-only, DIRECTORY/shown are.
 * THREAD: worker, one that was made before the walls were shut; main.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "end.h"
#include "filter.h"
#include "jail.h"
#include "walls.h"

static sem_t go, done;
static const char *attempt;
static long number;
static int result;

/* It is got past: what is tried here is not what it stops. */
int vmm_filter_enter(enum vmm_role role)
{
	(void)role;
	return 0;
}

static int to(int fd)
{
	return fd < 0 ? -1 : close(fd);
}

static int connect_tcp(void)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons((uint16_t)number),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};

	return connect(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), (struct sockaddr *)&address,
		       sizeof(address));
}

static int connect_abstract(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int n = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "nsrun-%ld", number);

	return connect(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), (struct sockaddr *)&address,
		       (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n));
}

/* The namespace is the one whose inode the caller knows. */
static int is_in(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return -1;
	errno = EXDEV;
	return (long)st.st_ino == number ? 0 : -1;
}

static int attempt_it(void)
{
#define CASE(word, what) \
	if (!strcmp(attempt, word)) \
		return what
	CASE("read-shared", to(open("shared/file", O_RDONLY)));
	CASE("write-shared", to(open("shared/file", O_RDWR | O_TRUNC)));
	CASE("make-shared", mkdir("shared/new", 0700));
	CASE("move-shared", rename("shared/a/file", "shared/b/file"));
	CASE("link-shared", link("shared/a/file", "shared/b/other"));
	CASE("read-shown", to(open("shown/file", O_RDONLY)));
	CASE("write-shown", to(open("shown/file", O_WRONLY)));
	CASE("make-shown", mkdir("shown/new", 0700));
	CASE("read-other", to(open("other/file", O_RDONLY)));
	CASE("list-other", to(open("other", O_RDONLY | O_DIRECTORY)));
	CASE("write-other", to(open("other/file", O_WRONLY)));
	CASE("make-other", mkdir("other/new", 0700));
	CASE("remove-other", unlink("other/file"));
	CASE("move-out", rename("shared/a/file", "other/moved"));
	CASE("move-in", rename("other/file", "shared/moved"));
	CASE("link-in", link("other/file", "shared/linked"));
	CASE("execute", execl("shared/program", "program", "executed", NULL));
	CASE("make-device", mknod("shared/device", S_IFCHR | 0600, makedev(1, 3)));
	CASE("signal", kill((pid_t)number, 0));
	CASE("tcp", connect_tcp());
	CASE("abstract", connect_abstract());
	CASE("shm", shmget((key_t)number, 1, 0) < 0 ? -1 : 0);
	CASE("net", is_in("/proc/thread-self/ns/net"));
	CASE("ipc", is_in("/proc/thread-self/ns/ipc"));
	CASE("uts", is_in("/proc/thread-self/ns/uts"));
	fprintf(stderr, "there is no attempt %s\n", attempt);
	exit(2);
}

static void *work(void *arg)
{
	while (sem_wait(&go) && errno == EINTR)
		;
	result = attempt_it() ? errno : 0;
	sem_post(&done);
	return arg;
}

static void allow(int rules, const char *path, bool writable)
{
	int fd = open(path, O_PATH | O_CLOEXEC), ret;

	if (fd < 0)
		vmm_fail(errno, "%s", path);
	ret = vmm_walls_allow(rules, fd, true, writable);
	if (ret)
		vmm_fail(-ret, "%s", path);
	close(fd);
}

static void shut(void)
{
	int rules = vmm_walls_rules();

	if (rules == -EOPNOTSUPP)
		return;
	if (rules < 0)
		vmm_fail(-rules, "rules");
	allow(rules, "shared", true);
	allow(rules, "shown", false);
	vmm_jail_shut(rules);
}

int main(int argc, char **argv)
{
	const int keep[] = { STDOUT_FILENO };

	if (argc == 2 && !strcmp(argv[1], "executed")) {
		puts("0");
		return 0;
	}
	if (argc < 5 || chdir(argv[4]))
		return 2;
	attempt = argv[3];
	number = argc > 5 ? atol(argv[5]) : 0;
	sem_init(&go, 0, 0);
	sem_init(&done, 0, 0);
	vmm_jail_begin(strcmp(argv[1], "none"), keep, 1);
	vmm_jail_walls(strcmp(argv[1], "files"));
	vmm_jail_thread(VMM_ROLE_FS, "an attempt", work, NULL);
	vmm_jail_end(VMM_ROLE_DEVICES_FS);
	if (!strcmp(argv[1], "shut"))
		shut();
	printf("%u\n", vmm_jail_holds());
	fflush(stdout);
	if (!strcmp(argv[2], "worker")) {
		sem_post(&go);
		sem_wait(&done);
	} else {
		result = attempt_it() ? errno : 0;
	}
	printf("%d\n", result);
	return 0;
}
