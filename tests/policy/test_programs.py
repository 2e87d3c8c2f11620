"""Real programs do under the profiles what they do without one."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from cowork_nsrun import BindData, Result, Sandbox, run
from cowork_nsrun.spec import SeccompProfile

Lack = Callable[[str], NoReturn]
LONGEST = 120.0
GIT = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_AUTHOR_DATE": "2020-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_COMMITTER_DATE": "2020-01-01T00:00:00Z", "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


class Program(NamedTuple):
    """What it needs and a script; ``strict`` is False where that refuses what the script does."""

    needs: str
    script: str
    strict: bool = True


def python(source: str) -> str:
    return f"cat >script.py <<'END'\n{textwrap.dedent(source)}END\npython3 script.py\n"


def node(source: str) -> str:
    return f"cat >script.js <<'END'\n{textwrap.dedent(source)}END\nnode script.js\n"


PROGRAMS = {
    "python threads": Program("python3", python("""
        import threading
        found = []
        threads = [threading.Thread(target=found.append, args=(i,)) for i in range(50)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print(sorted(found))
    """)),
    "python subprocess": Program("python3", python("""
        import subprocess
        print(subprocess.run(["sh", "-c", "echo out; exit 3"], capture_output=True))
        print(subprocess.Popen(["cat"], stdin=-1, stdout=-1).communicate(b"x" * 9))
        print(subprocess.run(["pwd"], cwd="/tmp", start_new_session=True).returncode)
    """)),
    "python multiprocessing": Program("python3", python("""
        import multiprocessing as mp
        def f(n): return n * n
        for way in ("fork", "spawn", "forkserver"):
            if __name__ == "__main__":
                with mp.get_context(way).Pool(2) as pool:
                    print(way, pool.map(f, range(5)))
    """)),
    "python asyncio": Program("python3", python("""
        import asyncio
        async def serve(r, w):
            w.write(await r.readline()); await w.drain(); w.close()
        async def main():
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            r, w = await asyncio.open_connection(*server.sockets[0].getsockname())
            w.write(b"hello\\n")
            print(await r.readline())
            p = await asyncio.create_subprocess_exec("echo", "sub", stdout=-1)
            print(await p.communicate(), await asyncio.to_thread(sum, range(9)))
        asyncio.run(main())
    """)),
    "python sqlite3": Program("python3", python("""
        import sqlite3
        with sqlite3.connect("a.db") as db:
            db.execute("pragma journal_mode=wal")
            db.execute("create table t(a)")
            db.executemany("insert into t values (?)", [(i,) for i in range(999)])
            print(db.execute("select sum(a) from t").fetchall())
    """)),
    "python files and memory": Program("python3", python("""
        import ctypes, fcntl, mmap, os, resource, select, shutil, signal, tempfile
        with tempfile.TemporaryFile(dir=".") as f:
            f.write(b"x" * 9999); f.flush(); fcntl.lockf(f, fcntl.LOCK_EX)
            print(len(mmap.mmap(f.fileno(), 0)))
        os.mkfifo("fifo"); os.chmod("fifo", 0o600); os.makedirs("d/e", mode=0o1777)
        shutil.copy2("script.py", "d/e"); print(sorted(os.walk("d")))
        print(os.sched_getaffinity(0) != set(), resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0)
        p = select.epoll(); r, w = os.pipe(); p.register(r, select.EPOLLIN); os.write(w, b"x")
        print(len(p.poll(1)), os.memfd_create("m") > 0, len(os.getrandom(8)))
        signal.signal(signal.SIGALRM, lambda *a: print("alarm")); signal.setitimer(0, 0.01)
        signal.pause(); os.setpriority(0, 0, max(5, os.getpriority(os.PRIO_PROCESS, 0)))
        print(ctypes.CDLL(None).prctl(38, 1, 0, 0, 0), os.listxattr("script.py"))
    """)),
    "python sockets": Program("python3", python("""
        import array, os, socket
        for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
            print(socket.socket(family, socket.SOCK_DGRAM).family)
        a, b = socket.socketpair()
        socket.send_fds(a, [b"x"], [0]); print(len(socket.recv_fds(b, 1, 1)[1]))
        print(socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM), socket.if_nameindex())
        print(socket.gethostbyname("localhost"))
    """)),
    "python terminal": Program("python3", python("""
        import os, pty
        pid, master = pty.fork()
        if not pid:
            os.execvp("sh", ["sh", "-c", "stty size; stty -a >/dev/null; tty >/dev/null && echo t"])
        text = b""
        try:
            while got := os.read(master, 99): text += got
        except OSError: pass
        print(text, os.waitpid(pid, 0)[1])
    """)),
    "pip": Program("python3", """
        python3 - <<'END'
import zipfile
with zipfile.ZipFile("thing-1.0-py3-none-any.whl", "w") as z:
    z.writestr("thing.py", "def main(): print('thing here')\\n")
    d = "thing-1.0.dist-info/"
    z.writestr(d + "METADATA", "Metadata-Version: 2.1\\nName: thing\\nVersion: 1.0\\n")
    tags = "Root-Is-Purelib: true\\nTag: py3-none-any\\n"
    z.writestr(d + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\n" + tags)
    z.writestr(d + "entry_points.txt", "[console_scripts]\\nthing = thing:main\\n")
    z.writestr(d + "RECORD", "")
END
        python3 -m venv v
        v/bin/pip install -q --no-index --no-cache-dir --disable-pip-version-check ./thing-*.whl
        v/bin/thing && v/bin/pip list --format=freeze --disable-pip-version-check | grep thing
    """),
    "node": Program("node", node("""
        const fs = require('fs'), cp = require('child_process'), os = require('os');
        const {Worker, isMainThread} = require('worker_threads');
        fs.writeFileSync('n', 'x'); fs.chmodSync('n', 0o644); fs.copyFileSync('n', 'm');
        console.log(fs.readdirSync('.').includes('m'), cp.execSync('echo sub').toString());
        console.log(Object.keys(os.networkInterfaces()), os.cpus().length > 0);
        const server = require('http').createServer((q, r) => r.end('hi'));
        server.listen(0, '127.0.0.1', () =>
          fetch(`http://127.0.0.1:${server.address().port}`).then(r => r.text()).then(t => {
            console.log(t); server.close();
            new Worker("console.log('worker')", {eval: true});
            fs.promises.readFile('n').then(d => console.log(d.toString()));
          }));
    """)),
    "npm": Program("npm", """
        mkdir p q && cd p && npm init -y >/dev/null && echo 'module.exports = 7' >index.js
        cd ../q && npm init -y >/dev/null
        npm install --offline --no-audit --no-fund --silent ../p && node -p "require('p')"
    """),
    "git": Program("git", """
        git init -q -b main a && cd a && seq 999 >f && git add f && git commit -qm one
        git branch side && seq 500 >f && git commit -qam two && git tag v1 && cd ..
        git clone -q a b && cd b && git checkout -q -b w origin/side && seq 2 >g && git add g
        git commit -qm three && git merge -q --no-edit origin/main && git gc -q --prune=now
        git fsck --no-progress && git worktree add -q ../c main && git stash list
        git log --format=%s && git grep -c 42 && git diff --stat HEAD~1 && git status --short
    """),
    # a repository of a group has set-group-ID directories
    "git init --shared": Program(
        "git", "git init -q --shared=group a && git -C a config core.sharedrepository", False
    ),
    "gcc": Program("gcc", """
        printf '#include <pthread.h>\\n#include <stdio.h>
static void *f(void *a){puts("in");return a;}
int main(void){pthread_t t;pthread_create(&t,0,f,0);pthread_join(t,0);return 4;}\\n' >a.c
        gcc -O2 -pthread -flto a.c -o a && ./a; echo $?; gcc -c -pipe a.c && ar r a.a a.o 2>&1 &&
        nm a.o | wc -l
        gcc -fsanitize=address,undefined a.c -o s -pthread && ASAN_OPTIONS=detect_leaks=0 ./s
        echo $?
    """),
    # its leak detector stops the threads by ptrace
    "gcc leak sanitizer": Program("gcc", """
        printf 'int main(void){return 0;}' >a.c && gcc -fsanitize=address a.c -o a && ./a; echo $?
    """, False),
    "make": Program("make", """
        printf 'all: a b c\\n%%: ; @echo $@ >$@; cat $@\\n' >Makefile &&
        make -j4 -O --no-print-directory | sort
        make -q 2>/dev/null; echo $?
    """),
    "bash": Program("bash", """
        bash -ic 'echo interactive' 2>/dev/null; cat <(echo one) <(echo two); coproc cat; kill %1
        echo a | tee >(cat >t) >/dev/null; wait; trap 'echo bye' EXIT; exec 5<>t; ulimit -n
        (umask 077; : >private); declare -A m=([x]=1); echo "${m[x]}"; time true 2>/dev/null
        set -o pipefail
        false | true || echo failed
    """),
    "sqlite3": Program("sqlite3", """
        sqlite3 a.db 'create table t(a,b); insert into t values(1,2),(3,4); create index i on t(a);'
        sqlite3 a.db 'select sum(b) from t; vacuum; pragma integrity_check;' && sqlite3 a.db .dump
    """),
    "archives": Program("tar", """
        mkdir -p d/e && seq 9999 >d/f && ln -s f d/l && ln d/f d/h && chmod 1755 d/e
        for how in z j J; do tar -c${how}f a.t d && mkdir x && tar -xpf a.t -C x &&
        diff -r d x/d; rm -r x; done
        gzip -k d/f && zcat d/f.gz | tail -1; xz -T2 -k d/f && xzcat d/f.xz | wc -l
        bzip2 -k d/f && bzcat d/f.bz2 | head -1
    """),
    "text tools": Program("awk", """
        seq 99 >n; find . -type f -newer /bin/sh -exec grep -c 9 {} +; grep -rl 42 .
        sed -i s/9/x/g n
        awk '{s+=$1} END {print s}' n
        awk 'BEGIN{"echo sub"|getline l; print l; system("echo sys")}'
        find . -print0 | xargs -0 -P2 -n1 ls -d | sort; diff n <(seq 99) | wc -l
    """),
    "perl": Program("perl", """
        perl -MPOSIX -MFile::Temp=tempfile -e '
        my ($h, $n) = tempfile(DIR => "."); print $h "x"; close $h;
        print -s $n, " ", join(",", sort { $b <=> $a } 1..5), "\\n";
        if (!fork) { exit 3 } wait;
        print $? >> 8, "\\n";
        local $SIG{ALRM} = sub { print "alarm\\n" }; alarm 1; select undef, undef, undef, 5;
        print `echo sub`;'
    """),
    "ssh-keygen": Program("ssh-keygen", """
        ssh-keygen -q -t ed25519 -N '' -C me -f key && ssh-keygen -y -f key | cut -c1-11 &&
        stat -c %a key
        echo data >f && ssh-keygen -q -Y sign -f key -n file f 2>/dev/null && head -1 f.sig
    """),
    "openssl": Program("openssl", """
        openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -subj /CN=x 2>/dev/null
        openssl x509 -in c -noout -subject; echo data | openssl sha256; openssl rand -hex 8 | wc -c
    """),
    "curl": Program("curl", """
        echo served >f && { python3 -m http.server 8765 --bind 127.0.0.1 >/dev/null 2>&1 & }
        until curl -s -o /dev/null http://127.0.0.1:8765/f; do sleep 0.05; done
        curl -sS -o g -w '%{http_code}\\n' http://127.0.0.1:8765/f; cmp f g; kill %1
    """),
    "strace": Program("strace", "strace -f -e trace=execve -o t true && grep -c execve t", False),
    "gdb": Program("gdb", """
        printf 'int f(int a){return a+1;} int main(void){return f(3);}' >a.c && gcc -g a.c -o a
        gdb -nx -batch -ex 'break f' -ex run -ex 'print a' ./a 2>/dev/null | grep '^\\$'
    """, False),
}  # fmt: skip

#: a line each, for bash in a fresh directory that holds "f" (numbers 1 to 20) and "d/g"
UTILITIES = (Path(__file__).parent / "utilities.txt").read_text(encoding="ascii").splitlines()


def place(directory: Path) -> Path:
    directory.mkdir()
    (directory / "d").mkdir()
    (directory / "f").write_text("".join(f"{i}\n" for i in range(1, 21)), encoding="ascii")
    (directory / "d/g").write_text("g\n", encoding="ascii")
    return directory


def outcome(script: str, directory: Path, profile: SeccompProfile) -> Result[str]:
    # at one place inside whichever it is outside, so that outputs can be compared
    # and with a name for whoever runs this: ssh-keygen wants one
    known = Path("/etc/passwd").read_bytes() + b"me:x:%d:%d::/:/bin/sh\n" % (
        os.getuid(),
        os.getgid(),
    )
    spec = Sandbox.minimal().bind(directory, "/work").replace(cwd="/work").env(GIT)
    spec = spec.add(BindData("/etc/passwd", known, read_only=True, mode=0o644))
    return run(["bash", "-c", script], spec.harden(profile), text=True, timeout=LONGEST)


def found_inside(program: str) -> bool:
    return run(["sh", "-c", f"command -v {program}"], Sandbox.minimal()).returncode == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_do_what_they_do_without(
    name: str, tmp_path: Path, lack: Lack, request: pytest.FixtureRequest
) -> None:
    program = PROGRAMS[name]
    if "localhost" in program.script:
        request.getfixturevalue("localhost")
    if not shutil.which(program.needs) or not found_inside(program.needs):
        lack(f"no {program.needs} in the system's directories: not run under the profiles")
    script = textwrap.dedent(program.script)
    plain = outcome(script, place(tmp_path / "none"), "none")
    assert plain.stdout, plain
    assert "rror" not in plain.stderr, plain
    profiles: tuple[SeccompProfile, ...] = ("default", "strict", "nesting")
    for profile in profiles:
        hardened = outcome(script, place(tmp_path / profile), profile)
        same = (hardened.returncode, hardened.stdout) == (plain.returncode, plain.stdout)
        assert same == (program.strict or profile != "strict"), (profile, plain, hardened)


def test_there_are_enough_utilities() -> None:
    assert len({line.split()[0] for line in UTILITIES}) > 100


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_utilities_do_what_they_do_without(
    profile: SeccompProfile, tmp_path: Path, note_lack: Callable[[str], None]
) -> None:
    differing = []
    for i, line in enumerate(UTILITIES):
        plain = outcome(line, place(tmp_path / f"{i}-plain"), "none")
        hardened = outcome(line, place(tmp_path / f"{i}-hardened"), profile)
        if plain.returncode == 127:
            note_lack(f"no {line.split()[0]}: not run under the profiles")
            continue
        if (hardened.returncode, hardened.stdout) != (plain.returncode, plain.stdout):
            differing.append((line, plain, hardened))
    assert not differing


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_control_a_difference_would_be_seen(profile: SeccompProfile, tmp_path: Path) -> None:
    script = "chmod u+s f && stat -c %a f; unshare -U echo inside; dmesg >/dev/null; echo $?"
    plain = outcome(script, place(tmp_path / "plain"), "none")
    hardened = outcome(script, place(tmp_path / "hardened"), profile)
    assert "4644\ninside" in plain.stdout
    assert "4644" not in hardened.stdout
    assert "inside" not in hardened.stdout
