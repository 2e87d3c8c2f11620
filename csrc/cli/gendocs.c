/* SPDX-License-Identifier: MIT */
/*
 * gendocs.c - the option table as a man page and as completions.
 *
 *   gendocs man|bash|zsh >FILE
 *
 * Run by the build; not installed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "caps.h"
#include "nsrun.h"
#include "options.h"

/* The words that Python carries out; the same in every shell. */
#define WORDS "run doctor profile serve sessions version"
#define BACKENDS "auto namespaces bwrap kvm host"

/* In the kernel's order; checked against the parser's own table below. */
static const char *const caps[] = {
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid",
	"setuid", "setpcap", "linux_immutable", "net_bind_service", "net_broadcast",
	"net_admin", "net_raw", "ipc_lock", "ipc_owner", "sys_module", "sys_rawio",
	"sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
	"sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write",
	"audit_control", "setfcap", "mac_override", "mac_admin", "syslog", "wake_alarm",
	"block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
};
enum { N_CAPS = sizeof(caps) / sizeof(caps[0]), ARG_NAME = 32 };

/* What a shell can offer for an argument, by the argument's name in the table. */
static const struct kind {
	const char *arg;
	const char *bash;           /* called with the word so far */
	const char *zsh;
} kinds[] = {
	{ "SRC", "_nsrun_files", "_files" },
	{ "RWSRC", "_nsrun_files", "_files -/" },
	{ "WORKDIR", "_nsrun_files", "_files -/" },
	{ "DEST", "_nsrun_files", "_files" },
	{ "DIR", "_nsrun_files", "_files -/" },
	{ "PATH", "_nsrun_files", "_files" },
	{ "TARGET", "_nsrun_files", "_files" },
	{ "FD", "_nsrun_fds", "_nsrun_fds" },
	{ "BACKEND", "_nsrun_backends", "(" BACKENDS ")" },
	{ "CAP", "_nsrun_caps", "_nsrun_caps" },
	{ "VAR", "_nsrun_vars", "_parameters -g '*export*'" },
	{ "UID", "_nsrun_uids", "_nsrun_uids" },
	{ "GID", "_nsrun_gids", "_nsrun_gids" },
	{ "PROFILE", "_nsrun_profiles", "_nsrun_profiles" },
	{ NULL, "_nsrun_nothing", " " },
};

static const struct kind *kind_of(const char *arg)
{
	const struct kind *kind = kinds;

	while (kind->arg && strcmp(kind->arg, arg))
		kind++;
	return kind;
}

/* The next of an option's argument names, split at blanks; NULL at their end. */
static const char *next_arg(const char **args, char name[ARG_NAME])
{
	size_t len = strcspn(*args, " ");

	if (!len || len >= ARG_NAME)
		return NULL;
	memcpy(name, *args, len);
	name[len] = '\0';
	*args += len + strspn(*args + len, " ");
	return name;
}

static void print_profiles(void)
{
	const struct nsr_seccomp_profile *profile;

	for (uint32_t i = 0; (profile = nsr_seccomp_profile_at(i)); i++)
		printf(" %s", profile->name);
}

static void print_caps(void)
{
	printf("ALL");
	for (int i = 0; i < N_CAPS; i++)
		printf(" cap_%s", caps[i]);
}

/* --- man ----------------------------------------------------------------------------- */

/* roff takes '-' for a hyphen, and '.' or '\'' at a line's start for a request. */
static void roff(const char *text)
{
	if (*text == '.' || *text == '\'')
		printf("\\&");
	for (; *text; text++) {
		if (*text == '-')
			printf("\\-");
		else if (*text == '\\')
			printf("\\e");
		else
			putchar(*text);
	}
}

static void man_option(const struct nsr_option_doc *doc)
{
	printf(".TP\n.B ");
	roff(doc->name);
	if (*doc->args) {
		printf(" \\fI");
		roff(doc->args);
		printf("\\fR");
	}
	printf("\n");
	roff(doc->help);
	printf(".\n");
	if (doc->flags & NSR_OPTION_OURS)
		printf("Not in bwrap.\n");
}

static void man(void)
{
	printf(".\\\" Made from csrc/core/options.def by gendocs; changes here are lost.\n"
	       ".TH NSRUN 1 \"\" \"nsrun %s\" \"User Commands\"\n"
	       ".SH NAME\nnsrun \\- run a program in a sandbox\n"
	       ".SH SYNOPSIS\n.B nsrun\n.RI [ OPTIONS... ]\n.RB [ \\-\\- ]\n"
	       ".I COMMAND\n.RI [ ARGS... ]\n.br\n.B nsrun run\n.RI [ OPTIONS... ]\n"
	       ".B \\-\\-\n.I COMMAND\n.RI [ ARGS... ]\n.br\n.B nsrun version\n.br\n.B nsrun doctor\n", NSR_VERSION);
	printf(".SH DESCRIPTION\n"
	       "With options, or called by the name\n.BR bwrap ,\n.B nsrun\n"
	       "reads the command line of\n.BR bwrap (1)\n"
	       "and does what bwrap does: it makes new namespaces, builds a new root\n"
	       "from the filesystem options in the order in which they are given, and\n"
	       "runs\n.I COMMAND\nin it.\n.PP\n"
	       "With a word, it hands over to the Python package installed beside it:\n"
	       ".B nsrun run\nstarts a command with sensible defaults (see\n"
	       ".BR \"nsrun run \\-\\-help\" ),\n.B nsrun version\nshows the versions,\n"
	       ".B nsrun doctor\nsays what runs sandboxes on this machine.\n.PP\n"
	       "The new root is empty: what no option puts there is not there.\n"
	       ".SH OPTIONS\n");
	for (const struct nsr_option_doc *doc = nsr_option_docs; doc->section || doc->name; doc++) {
		if (doc->section) {
			printf(".SS ");
			roff(doc->section);
			putchar('\n');
		} else {
			man_option(doc);
		}
	}
	printf(".SH EXIT STATUS\n"
	       "That of\n.IR COMMAND ;\n128+n if it was ended by signal n;\n"
	       "1 if the sandbox could not be set up, with the reason on standard error.\n"
	       ".SH ENVIRONMENT\n.TP\n.B COWORK_VM_BACKEND\n"
	       "bwrap, kvm or host, in any case: what runs the sandbox.  There bwrap means\n"
	       "namespaces: our own or, where those are refused, those of an installed bwrap.\n"
	       "The option \\fB\\-\\-backend\\fR wins over it; called as\n.BR bwrap ,\n.B nsrun\n"
	       "does not read it.\n"
	       ".SH FILES\n.TP\n.I /etc/nsrun.conf\n"
	       "With the line \"bwrap\\-fallback = yes\", and if only root can write to it,\n"
	       "the program called\n.B bwrap\nmay hand over to another bwrap, too.\n"
	       ".SH EXAMPLES\nA shell that sees the system read-only and no other process:\n"
	       ".PP\n.nf\n.RS\nnsrun \\-\\-ro\\-bind / / \\-\\-dev /dev \\-\\-proc /proc "
	       "\\-\\-tmpfs /tmp \\-\\-unshare\\-all \\-\\-new\\-session sh\n.RE\n.fi\n"
	       ".SH SEE ALSO\n.BR bwrap (1),\n.BR namespaces (7),\n.BR user_namespaces (7),\n"
	       ".BR capabilities (7),\n.BR seccomp (2)\n");
}

/* --- bash ---------------------------------------------------------------------------- */

static void bash_option(const struct nsr_option_doc *doc)
{
	const char *args = doc->args;
	char name[ARG_NAME];

	printf("    [%s]='", doc->name);
	while (next_arg(&args, name))
		printf("%s ", kind_of(name)->bash);
	printf("'\n");
}

static void bash(void)
{
	printf("# bash completion for nsrun; made from csrc/core/options.def by gendocs\n\n"
	       "_nsrun_files() { compopt -o filenames; mapfile -t COMPREPLY < "
	       "<(compgen -f -- \"$1\"); }\n"
	       "_nsrun_words() { mapfile -t COMPREPLY < <(compgen -W \"$2\" -- \"$1\"); }\n"
	       "_nsrun_fds() {\n"
	       "    local fd fds=\n"
	       "    for fd in \"/proc/$$/fd/\"*; do fds+=\"${fd##*/} \"; done\n"
	       "    _nsrun_words \"$1\" \"$fds\"\n}\n"
	       "_nsrun_vars() { mapfile -t COMPREPLY < <(compgen -e -- \"$1\"); }\n"
	       "_nsrun_uids() { _nsrun_words \"$1\" \"0 $UID\"; }\n"
	       "_nsrun_gids() { _nsrun_words \"$1\" \"0 ${GROUPS[*]}\"; }\n"
	       "_nsrun_backends() { _nsrun_words \"$1\" '" BACKENDS "'; }\n"
	       "_nsrun_nothing() { COMPREPLY=(); }\n"
	       "_nsrun_profiles() { _nsrun_words \"$1\" '");
	print_profiles();
	printf("'; }\n"
	       "_nsrun_caps() {\n    _nsrun_words \"$1\" '");
	print_caps();
	printf("'\n}\n\n_nsrun_command() {\n"
	       "    if declare -F _command_offset >/dev/null; then\n"
	       "        _command_offset \"$1\"\n"
	       "    elif (( COMP_CWORD == $1 )); then\n"
	       "        mapfile -t COMPREPLY < <(compgen -c -- \"${COMP_WORDS[COMP_CWORD]}\")\n"
	       "    else\n        _nsrun_files \"${COMP_WORDS[COMP_CWORD]}\"\n    fi\n}\n\n"
	       "# option -> how each of its arguments is completed\n"
	       "declare -gA _nsrun_options=(\n");
	for (const struct nsr_option_doc *doc = nsr_option_docs; doc->section || doc->name; doc++)
		if (doc->name)
			bash_option(doc);
	printf(")\n\n_nsrun() {\n"
	       "    local cur=${COMP_WORDS[COMP_CWORD]} i=1 word kinds\n"
	       "    COMPREPLY=()\n"
	       "    while (( i < COMP_CWORD )); do\n"
	       "        word=${COMP_WORDS[i]}\n"
	       "        if [[ $word == -- ]]; then\n"
	       "            _nsrun_command $((i + 1))\n            return\n"
	       "        elif [[ $word != -* ]]; then\n"
	       "            _nsrun_command \"$i\"\n            return\n"
	       "        fi\n"
	       "        read -ra kinds <<<\"${_nsrun_options[$word]-}\"\n"
	       "        if (( COMP_CWORD - i <= ${#kinds[@]} )); then\n"
	       "            \"${kinds[COMP_CWORD - i - 1]}\" \"$cur\"\n            return\n"
	       "        fi\n"
	       "        i=$((i + 1 + ${#kinds[@]}))\n"
	       "    done\n"
	       "    if [[ $cur == -* ]]; then\n"
	       "        _nsrun_words \"$cur\" \"${!_nsrun_options[*]}\"\n"
	       "    elif (( COMP_CWORD == 1 )); then\n"
	       "        _nsrun_words \"$cur\" '" WORDS "'\n"
	       "    else\n        _nsrun_command \"$COMP_CWORD\"\n    fi\n}\n\n"
	       "complete -F _nsrun nsrun\n");
}

/* --- zsh ----------------------------------------------------------------------------- */

/* Inside single quotes and an _arguments spec. */
static void zsh_text(const char *text)
{
	for (; *text; text++) {
		if (*text == '\'')
			printf("'\\''");
		else if (strchr("[]:\\", *text))
			printf("\\%c", *text);
		else
			putchar(*text);
	}
}

static void zsh_option(const struct nsr_option_doc *doc)
{
	const char *args = doc->args;
	char name[ARG_NAME];

	printf("    '*%s[", doc->name);
	zsh_text(doc->help);
	putchar(']');
	while (next_arg(&args, name)) {
		putchar(':');
		zsh_text(name);
		putchar(':');
		/* actions hold quotes, but no colons or brackets */
		zsh_text(kind_of(name)->zsh);
	}
	printf("'\n");
}

static void zsh(void)
{
	printf("#compdef nsrun\n# made from csrc/core/options.def by gendocs\n\n"
	       "_nsrun_fds() { _values fd /proc/$$/fd/*(N:t) }\n"
	       "_nsrun_uids() { _values uid 0 $UID }\n"
	       "_nsrun_gids() { _values gid 0 $GID }\n"
	       "_nsrun_profiles() { _values profile");
	print_profiles();
	printf(" }\n"
	       "_nsrun_caps() {\n  _values capability ");
	print_caps();
	printf("\n}\n\n_nsrun_first() {\n"
	       "  local -a words=(" WORDS ")\n"
	       "  (( CURRENT == 2 )) && _describe word words\n"
	       "  _command_names -e\n}\n\n"
	       "_nsrun() {\n  local -a options=(\n");
	for (const struct nsr_option_doc *doc = nsr_option_docs; doc->section || doc->name; doc++)
		if (doc->name)
			zsh_option(doc);
	printf("  )\n"
	       "  _arguments -S $options '(-)1:command or word:_nsrun_first' '*::argument:_normal'\n"
	       "}\n\n_nsrun \"$@\"\n");
}

static int caps_are_current(void)
{
	char name[ARG_NAME + 4];

	for (int i = 0; i < N_CAPS; i++) {
		snprintf(name, sizeof(name), "cap_%s", caps[i]);
		if (nsr_cap_by_name(name) != i)
			return 0;
	}
	return 1;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*write)(void);
	} modes[] = { { "man", man }, { "bash", bash }, { "zsh", zsh } };

	if (!caps_are_current()) {
		fprintf(stderr, "gendocs: the capabilities here and in caps.c differ\n");
		return EXIT_FAILURE;
	}
	for (size_t i = 0; argc == 2 && i < sizeof(modes) / sizeof(modes[0]); i++) {
		if (strcmp(argv[1], modes[i].name))
			continue;
		modes[i].write();
		return fflush(stdout) || ferror(stdout) ? EXIT_FAILURE : EXIT_SUCCESS;
	}
	fprintf(stderr, "usage: gendocs man|bash|zsh\n");
	return EXIT_FAILURE;
}
