/* SPDX-License-Identifier: MIT */
/* probe_json.c - all probes and the selection, for programs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dispatch.h"
#include "select.h"

enum { FORMAT = 1, EXE = 4096 };

static struct nsr_probes probes NSR_COLD;
static struct nsr_selection selection NSR_COLD;

/* A byte outside ASCII becomes the lone surrogate that Python knows it by (PEP 383). */
static void put_string(const char *text)
{
	putchar('"');
	for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
		if (*c == '"' || *c == '\\')
			printf("\\%c", *c);
		else if (*c < 0x20 || *c == 0x7f)
			printf("\\u%04x", *c);
		else if (*c > 0x7f)
			printf("\\udc%02x", *c);
		else
			putchar(*c);
	}
	putchar('"');
}

static void put(const char *name, const char *text, const char *after)
{
	printf("\"%s\": ", name);
	if (text)
		put_string(text);
	else
		printf("null");
	printf("%s", after);
}

static void put_executable(void)
{
	struct stat st = { .st_dev = 0 };
	char path[EXE];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

	path[n < 0 ? 0 : n] = '\0';
	stat("/proc/self/exe", &st);
	printf("  \"executable\": {");
	put("path", path, ", ");
	printf("\"device\": %llu, \"inode\": %llu},\n", (unsigned long long)st.st_dev,
	       (unsigned long long)st.st_ino);
}

static void put_probe(enum nsr_probe_id id, const char *after)
{
	const struct nsr_probe *probe = nsr_probe(&probes, id);

	printf("    {");
	put("name", nsr_probe_name(id), ", ");
	put("verdict", nsr_verdict_name(probe->verdict), ", ");
	put("evidence", probe->evidence, ", ");
	printf("\"errno\": %d, ", probe->err);
	put("remedy", *probe->remedy ? probe->remedy : NULL, "}");
	printf("%s\n", after);
}

static void put_selection(const struct nsr_request *request)
{
	printf("  \"selection\": {");
	put("backend", selection.backend == NSR_BACKEND_NONE ? NULL :
	    nsr_backend_name(selection.backend), ", ");
	put("reason", selection.reason, ", ");
	put("wanted", request->word, ", ");
	put("wanted_by", request->by, ", ");
	printf("\"failed\": [");
	for (int i = 0; i < selection.n_failed; i++) {
		printf("%s", i ? ", " : "");
		put_string(nsr_probe_name(selection.failed[i]));
	}
	printf("], ");
	put("remedy", *selection.remedy ? selection.remedy : NULL, "}\n");
}

int nsr_print_probes(const struct nsr_choice *choice, struct nsr_diag *diag)
{
	struct nsr_request request = { .allow_host = choice->allow_host };

	/* a word that names no backend is an answer too: none */
	if (nsr_request_read(&request, choice->backend, getenv(NSR_BACKEND_VARIABLE), diag))
		snprintf(selection.reason, sizeof(selection.reason), "%.*s",
			 (int)sizeof(selection.reason) - 1, diag->text);
	else
		nsr_select(&probes, &request, &selection);
	printf("{\n  \"format\": %d,\n", FORMAT);
	put_executable();
	printf("  \"probes\": [\n");
	for (int id = 0; id < NSR_PROBE_END; id++)
		put_probe((enum nsr_probe_id)id, id + 1 < NSR_PROBE_END ? "," : "");
	printf("  ],\n  ");
	put("bwrap", *probes.bwrap ? probes.bwrap : NULL, ",\n");
	put_selection(&request);
	printf("}\n");
	return fflush(stdout) || ferror(stdout) ? -1 : 0;
}
