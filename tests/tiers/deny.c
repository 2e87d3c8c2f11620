/* SPDX-License-Identifier: MIT */
/* deny: run a program with system calls refused by a seccomp filter.
 *
 *   deny CALL=ERRNO[&FLAGS]... -- PROGRAM ARGS...
 *
 * CALL is a number. With FLAGS only calls whose first argument has one of
 * those bits are refused: clone(2) or unshare(2) of certain namespaces. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { MOST = 512 };

static struct sock_filter program[MOST];
static unsigned short length;

static void add(struct sock_filter one)
{
    if (length < MOST) {
        program[length++] = one;
    }
}

static void load(size_t offset)
{
    add((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offset));
}

static void refuse(const char *word)
{
    char *end;
    unsigned number = (unsigned)strtoul(word, &end, 10);
    unsigned error = (unsigned)strtoul(end + 1, &end, 10);
    unsigned flags = *end == '&' ? (unsigned)strtoul(end + 1, NULL, 0) : 0;

    load(offsetof(struct seccomp_data, nr));
    if (flags != 0) {
        add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3));
        load(offsetof(struct seccomp_data, args[0]));
        add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, flags, 0, 1));
    } else {
        add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1));
    }
    add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error));
}

int main(int argc, char **argv)
{
    struct sock_fprog filter = {.filter = program};
    int word = 1;

    for (; word < argc && strcmp(argv[word], "--") != 0; word++) {
        refuse(argv[word]);
    }
    add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    filter.len = length;
    if (word + 1 >= argc || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
        perror("deny");
        return 125;
    }
    execv(argv[word + 1], argv + word + 1);
    perror(argv[word + 1]);
    return 125;
}
