"""Programs that did their start before their machine was saved, and go on in its clones.

On KVM that runs stock kernels alone: in the bed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machines_left import wait_until_nothing_is_left

from cowork_nsrun import PIPE, Pool, Sandbox, SpecError
from cowork_nsrun.warm import python

pytestmark = pytest.mark.usefixtures("no_machines_left")

INTERPRETER = f"{sys.base_prefix}/bin/python3"
SPEC = (
    Sandbox.minimal().replace(backend="kvm").network("none").bind(sys.base_prefix, read_only=True)
)
MODULES = ("json", "decimal", "http.client", "asyncio", "random", "ssl", "tempfile")
WARM = python(*MODULES, interpreter=INTERPRETER)
#: for what needs no more
PLAIN = python("json", interpreter=INTERPRETER)
#: what a process is, as JSON
TELL = """
import json, os, random, ssl, sys, tempfile, time
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "pwd": os.environ["PWD"], "a": os.environ.get("A"),
    "stdin": sys.stdin.read(), "time": time.time(),
    "warm": "asyncio" in sys.modules and "NSRUN_WARM_FD" not in os.environ,
    "drawn": [os.urandom(8).hex(), random.random(), ssl.RAND_bytes(8).hex(),
              next(tempfile._get_candidate_names())],
    "hash": hash("shared"),
}))
"""


def warmed(pool: Pool) -> Pool:
    """Full, with a program that waits in each."""
    assert pool.wait_full()
    stats = pool.stats()
    assert stats.warm == stats.parked, pool.cold
    return pool


def test_clones_are_commands_of_their_own() -> None:
    with Pool(SPEC.env(A="spec"), 2, warm=WARM) as pool:
        told = []
        for number in range(3):
            before = time.time()
            result = warmed(pool).run(
                ["-c", TELL, str(number), "ü"], input=f"typed {number}", text=True
            )
            assert (result.returncode, result.stderr) == (0, "")
            told.append(json.loads(result.stdout))
            assert told[-1]["argv"] == ["-c", str(number), "ü"]
            assert (told[-1]["stdin"], told[-1]["a"]) == (f"typed {number}", "spec")
            assert told[-1]["warm"]
            # the machine is older than its command
            assert before - 1 <= told[-1]["time"] <= time.time() + 1
        for drawn in zip(*(one["drawn"] for one in told), strict=True):
            assert len(set(drawn)) == len(told), told
        # what is drawn at a start is shared, as documented: they are of one start
        assert len({one["hash"] for one in told}) == 1
        other = warmed(pool).run(["-c", TELL], cwd="/usr", env={"A": "own"}, input="", text=True)
        one = json.loads(other.stdout)
        assert (one["cwd"], one["pwd"], one["a"]) == ("/usr", "/usr", "own")
        stats = pool.stats()
        assert (stats.handed, stats.fresh, stats.discarded, stats.failed) == (4, 0, 0, 0)


def test_files_that_changed(tmp_path: Path) -> None:
    """What was loaded is another by now: those that wait are thrown away, and a new one is made."""
    module = tmp_path / "ours.py"
    module.write_text("VALUE = 'old'\n")
    spec = SPEC.bind(tmp_path, "/w").env(PYTHONPATH="/w", PYTHONDONTWRITEBYTECODE="1")
    show = ["-c", "import ours; print(ours.VALUE)"]
    with Pool(spec, 1, warm=python("ours", interpreter=INTERPRETER)) as pool:
        assert warmed(pool).run(show).stdout == b"old\n"
        warmed(pool)
        module.write_text("VALUE = 'new'\n")
        assert pool.run(show).stdout == b"new\n"
        stats = pool.stats()
        assert (stats.handed, stats.fresh, stats.discarded) == (1, 1, 1)
        # and the template with them
        assert warmed(pool).run(show).stdout == b"new\n"
        assert pool.stats().handed == 2


def test_ends_and_streams() -> None:
    """A status, both outputs, a signal, a deadline; what does not fit starts anew."""
    with Pool(SPEC, 1, warm=PLAIN) as pool:
        code = "import sys; print(sys.stdin.read()); print('error', file=sys.stderr); sys.exit(3)"
        result = warmed(pool).run(["-c", code], input="in", text=True)
        assert (result.returncode, result.stdout, result.stderr) == (3, "in\n", "error\n")
        assert result.usage.cpu_ns > 0
        code = "import signal, sys; print('on', flush=True); signal.pause()"
        with warmed(pool).popen(["-c", code], stdout=PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n"
            process.terminate()
            assert process.wait() == 128 + signal.SIGTERM
        assert (pool.stats().handed, pool.stats().fresh) == (2, 0)
        large = warmed(pool).run(["-c", "import sys; print(len(sys.argv[1]))", "x" * 100_000])
        assert large.stdout == b"100000\n"
        assert (pool.stats().handed, pool.stats().fresh) == (2, 1)


def test_a_script_and_what_it_changes(tmp_path: Path) -> None:
    """In a writable directory, which others write to as well."""
    script = tmp_path / "script.py"
    script.write_text("import os\nprint(os.listdir('/w'))\nopen('/w/out', 'w').write('done')\n")
    with Pool(SPEC.bind(tmp_path, "/w"), 1, warm=PLAIN) as pool:
        warmed(pool)
        (tmp_path / "later").write_text("")
        result = pool.run(["/w/script.py"], text=True)
        assert (result.stderr, sorted(eval(result.stdout))) == ("", ["later", "script.py"])
        assert (tmp_path / "out").read_text() == "done"
        assert pool.stats().handed == 1


OPEN = """
FILE = open("/w/file", "a")
"""
FAILS = """
print("on the way")
raise ValueError("of its own")
"""


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (OPEN, "file: it is open for writing"),
        (FAILS, "ended with status 1 before it was ready"),
        ("import fcntl\nFILE = open('/w/file')\nfcntl.flock(FILE, fcntl.LOCK_SH)", "it is locked"),
    ],
)
def test_what_can_not_wait(tmp_path: Path, source: str, why: str) -> None:
    """The reason is told, and the program is started anew for each command."""
    (tmp_path / "file").write_text("")
    (tmp_path / "ours.py").write_text(source)
    spec = SPEC.bind(tmp_path, "/w").env(PYTHONPATH="/w", PYTHONDONTWRITEBYTECODE="1")
    with Pool(spec, 1, warm=python("ours", interpreter=INTERPRETER)) as pool:
        assert pool.wait_full()
        assert why in pool.cold
        assert pool.stats().warm == 0
        result = pool.run(["-c", "print('on')"], text=True)
        assert pool.stats().handed == 1
        if source == FAILS:
            assert (result.returncode, "of its own" in result.stderr) == (1, True)
        else:
            assert result.stdout == "on\n"


def test_words_that_are_refused() -> None:
    with pytest.raises(SpecError, match="kvm"):
        Pool(SPEC.replace(backend="namespaces"), 1, warm=WARM)
    with pytest.raises(SpecError, match="network"):
        Pool(SPEC.network("host"), 1, warm=WARM)


OWNER = """
import signal, sys
from cowork_nsrun import Pool, Sandbox
from cowork_nsrun.warm import python
spec = Sandbox.minimal().replace(backend="kvm").bind(sys.base_prefix, read_only=True)
pool = Pool(spec, 1, warm=python("json", interpreter=sys.argv[1]))
pool.wait_full()
print(pool.stats().warm, flush=True)
signal.pause()
"""


def test_owner_killed() -> None:
    words = [sys.executable, "-I", "-c", OWNER, INTERPRETER]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == b"1\n"
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    wait_until_nothing_is_left()
