"""Pools of microVMs: commands in machines that were made ahead, each used once.

On KVM that runs stock kernels alone: in the bed.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from leftovers import census, processes_with
from machines_left import running, wait_until_nothing_is_left
from net_servers import sender, tcp_server

from cowork_nsrun import (
    PIPE,
    BindFd,
    Ending,
    NsrunError,
    Pool,
    PoolExecutor,
    Sandbox,
    SpecError,
    TimeoutExpired,
)

pytestmark = pytest.mark.usefixtures("no_machines_left")

SPEC = Sandbox.minimal().replace(backend="kvm")
BACKEND = "microVM (KVM)"


def full(pool: Pool) -> Pool:
    assert pool.wait_full()
    return pool


def test_commands_get_machines_that_are_ready() -> None:
    """Each its own, with the time as it is, and random numbers that no other has drawn."""
    script = "date +%s; head -c 16 /dev/urandom | od -An -tx1; ls /tmp; echo x >/tmp/left"
    with Pool(SPEC, 2) as pool:
        drawn = set()
        for _ in range(4):
            full(pool)
            # a machine is older than its command
            before = int(time.time())
            result = pool.run(["sh", "-c", script], text=True)
            date, numbers, *rest = result.stdout.splitlines()
            assert before <= int(date) <= time.time() + 1
            assert (result.returncode, result.stderr, rest) == (0, "", [])
            assert result.backend == BACKEND
            drawn.add(numbers)
        stats = pool.stats()
        assert (stats.handed, stats.fresh, stats.discarded, stats.failed) == (4, 0, 0, 0)
        assert len(drawn) == 4


def test_streams_and_status() -> None:
    with Pool(SPEC, 2) as pool:
        script = "cat; echo error >&2; exit 3"
        result = full(pool).run(["sh", "-c", script], input="typed", text=True)
        assert (result.returncode, result.stdout, result.stderr) == (3, "typed", "error\n")
        with full(pool).popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
            data = os.urandom(1 << 20)
            assert process.communicate(data)[0] == data
        assert pool.stats().handed == 2


def test_terminal_and_signals() -> None:
    with Pool(SPEC, 2) as pool:
        script = "test -t 0 && stty size </dev/tty"
        with full(pool).popen(["sh", "-c", script], pty=(11, 22)) as process:
            assert process.communicate()[0].strip() == b"11 22"
        script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"
        with full(pool).popen(["sh", "-c", script], stdout=PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.terminate()
            assert process.wait() == 9
        assert pool.stats().handed == 2


def test_directory_environment_and_limits_are_the_command_s() -> None:
    spec = SPEC.env(A="spec").limit(open_files=77)
    script = 'echo "$PWD $A $B"; ulimit -n'
    with Pool(spec, 2) as pool:
        usual = full(pool).run(["sh", "-c", script]).stdout
        assert usual.split()[1:] == [b"spec", b"77"]
        other = full(pool).run(
            ["sh", "-c", script], cwd="/usr", env={"PATH": "/usr/bin:/bin", "B": "own"}
        )
        assert other.stdout == b"/usr  own\n77\n"
        many = full(pool).run(["sh", "-c", 'echo "$#"', "sh", *["x" * 1000] * 300])
        assert many.stdout == b"300\n"
        assert pool.stats().handed == 3


def test_timeouts() -> None:
    with Pool(SPEC, 1) as pool:
        with pytest.raises(TimeoutExpired):
            full(pool).run(["sleep", "1000"], timeout=10)
        # the guest keeps the time: nobody waits
        script = "echo on; sleep 1000"
        with full(pool).popen(["sh", "-c", script], stdout=PIPE, timeout=20) as process:
            assert process.stdout is not None
            assert process.stdout.read() == b"on\n"
            process.wait()
            assert process.result().ending is Ending.TIMED_OUT
        assert pool.stats().handed == 2


def test_what_can_t_be() -> None:
    with pytest.raises(SpecError, match="descriptors"):
        Pool(SPEC.replace(filesystem=(*SPEC.filesystem, BindFd(0, "/x"))))
    with pytest.raises(SpecError, match="veth"):
        Pool(SPEC.network("veth"))
    with Pool(SPEC, 1) as pool:
        with pytest.raises(NsrunError, match="no-such-program") as caught:
            full(pool).run(["no-such-program"])
        assert caught.value.errno == errno.ENOENT
        assert pool.stats().handed == 1
    with Pool(SPEC.bind("/dev/kvm", "/dev/kvm"), 1) as pool:
        with pytest.raises(NsrunError, match="/dev/kvm is of the host"):
            pool.run(["true"])
        while not pool.stats().failed:
            time.sleep(0.02)


def test_sources_that_were_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with Pool(SPEC.bind(file, "/file", read_only=True), 2) as pool:
        assert full(pool).run(["cat", "/file"]).stdout == b"old"
        full(pool)
        # control: one that is only written is the same
        file.write_text("still")
        assert full(pool).run(["cat", "/file"]).stdout == b"still"
        full(pool)
        (tmp_path / "new").write_text("new")
        (tmp_path / "new").rename(file)
        assert pool.run(["cat", "/file"]).stdout == b"new"
        stats = pool.stats()
        assert (stats.handed, stats.fresh, stats.discarded) == (2, 1, 2)


def test_files_of_the_host_s(tmp_path: Path) -> None:
    """What was written before the command came, and after the machine was made."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with Pool(SPEC.bind(folder, "/folder"), 1) as pool:
        full(pool)
        (folder / "in").write_text("from the host")
        assert pool.run(["sh", "-c", "cat /folder/in >/folder/out"]).returncode == 0
    assert (folder / "out").read_text() == "from the host"


def test_old_and_dead_ones_are_not_used() -> None:
    with Pool(SPEC, 2, max_age=5.0) as pool:
        most = 0
        while pool.stats().discarded < 2:
            most = max(most, pool.stats().parked)
            time.sleep(0.02)
        assert 0 < most <= 2
    wait_until_nothing_is_left()
    with Pool(SPEC, 2) as pool:
        full(pool)
        for pid in running("nsrun-vmm"):
            os.kill(pid, signal.SIGKILL)
        assert pool.run(["echo", "on"]).stdout == b"on\n"
        assert pool.stats().discarded == 2


def test_the_process_that_holds_them_is_made_again() -> None:
    with Pool(SPEC, 1) as pool:
        full(pool)
        (keeper,) = [pid for pid in processes_with("keep") if os.getsid(pid) == pid
                     and parent(pid) == os.getpid()]  # fmt: skip
        os.kill(keeper, signal.SIGKILL)
        # what was ready is gone with it
        assert pool.run(["echo", "on"]).stdout == b"on\n"
        assert full(pool).run(["echo", "again"]).stdout == b"again\n"
        stats = pool.stats()
        assert (stats.handed, stats.fresh, stats.discarded) == (1, 1, 1)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_executor() -> None:
    with Pool(SPEC, 2) as pool, PoolExecutor(full(pool), 2) as executor:
        argvs = [["echo", str(number)] for number in range(4)]
        assert [done.stdout for done in executor.map(argvs)] == [b"0\n", b"1\n", b"2\n", b"3\n"]
        assert isinstance(executor.submit(["no-such-program"]).exception(), NsrunError)
        stats = pool.stats()
        assert stats.handed + stats.fresh == 5
        assert stats.handed >= 2


FETCH = """
import socket, sys
print(socket.create_connection((sys.argv[1], int(sys.argv[2]))).makefile().read())
"""
#: what the proxy answers to a request for a host
REQUEST = """
import os, socket
port = int(os.environ["HTTPS_PROXY"].rpartition(":")[2])
sock = socket.create_connection(("127.0.0.1", port))
sock.sendall(b"CONNECT forbidden.test:443 HTTP/1.1\\r\\nHost: forbidden.test\\r\\n\\r\\n")
print(sock.makefile().readline().split()[1])
"""
WITH_PYTHON = SPEC.bind(sys.base_prefix, read_only=True)
PYTHON = (f"{sys.base_prefix}/bin/python3", "-c")


def test_the_host_s_network(slirp: None, lack: Callable[[str], NoReturn]) -> None:
    if os.geteuid() != 0:
        lack("an address of the host's that is not its loopback's: it takes root to add one")
    address = "198.51.100.7"
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        with (
            tcp_server(sender(b"from the host"), address) as server,
            Pool(WITH_PYTHON.network("host"), 1) as pool,
        ):
            result = full(pool).run([*PYTHON, FETCH, address, str(server.port)])
            assert (result.stdout, result.stderr) == (b"from the host\n", b"")
            assert pool.stats().handed == 1
    finally:
        subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)


def test_egress() -> None:
    """Each machine has a proxy of its own in its owner."""
    with Pool(WITH_PYTHON.allow_hosts("allowed.test"), 2) as pool:
        for _ in range(2):
            result = full(pool).run([*PYTHON, REQUEST])
            assert (result.stdout, result.stderr) == (b"403\n", b"")
        assert pool.stats().handed == 2


def test_close_leaves_running_commands_alone() -> None:
    with Pool(SPEC, 1) as pool:
        full(pool).popen(["true"]).close()
        before = census()
        full(pool)
        process = pool.popen(["cat"], stdin=PIPE, stdout=PIPE)
        pool.close()
        assert process.communicate(b"on")[0] == b"on"
        process.close()
    assert len(census().fds) <= len(before.fds)
    assert set(census().children) <= set(before.children)
    # one that is being made is not waited for
    pool = Pool(SPEC, 8)
    while not running("nsrun-vmm"):
        time.sleep(0.01)
    pool.close()
    with pytest.raises(NsrunError, match="closed"):
        pool.run(["true"])


OWNER = """
import os, signal, sys
from cowork_nsrun import PIPE, Pool, Sandbox
pool = Pool(Sandbox.minimal().replace(backend="kvm"), 2)
pool.wait_full()
process = pool.popen(["cat"], stdin=PIPE)
pool.wait_full()
if sys.argv[1] == "fork":
    pid = os.fork()
    if not pid:
        signal.pause()
    print(pid, flush=True)
print("full", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_owner_killed(how: str) -> None:
    """Parked or with a command, none outlives it, though a forked copy of it may live on."""
    owner = subprocess.Popen([sys.executable, "-I", "-c", OWNER, how], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    copy = int(owner.stdout.readline()) if how == "fork" else 0
    assert owner.stdout.readline() == b"full\n"
    assert len(running("nsrun-vmm")) == 3
    owner.kill()
    owner.wait()
    wait_until_nothing_is_left()
    if copy:
        os.kill(copy, signal.SIGKILL)
    owner.stdout.close()


def test_kills_of_what_is_in_between() -> None:
    """A command whose process here is killed, or whose machine is, ends, and says so."""
    with Pool(SPEC, 1) as pool:
        for name in ("vmm", "process"):
            full(pool)
            (machine,) = running("nsrun-vmm")
            with pool.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
                os.kill(machine if name == "vmm" else process.pid, signal.SIGKILL)
                with pytest.raises(NsrunError, match=r"killed|gone"):
                    process.wait()


def test_many_at_one_time() -> None:
    """The size is a bound, whoever asks."""
    with Pool(SPEC, 2) as pool:
        full(pool)
        outputs: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: outputs.append(pool.run(["echo", "on"]).stdout))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outputs == [b"on\n"] * 3
        full(pool)
        assert pool.stats().parked == 2
        assert len(running("nsrun-vmm")) == 2
