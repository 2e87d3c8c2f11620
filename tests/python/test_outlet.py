"""A sandbox's way out: what run, popen, the twins, the pool and the command line make of it."""

from __future__ import annotations

import asyncio
import http.server
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cowork_nsrun import Egress, Namespace, Pool, Sandbox, SpecError, aio, popen, run
from cowork_nsrun.policy import Decision, EgressRules
from cowork_nsrun.program import find_program
from cowork_nsrun.streams import PIPE

AsUser = Callable[[Callable[[], Any]], Any]
CURL = ("curl", "-sS", "--max-time", "20")
REACH = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
try:
    socket.create_connection((host, port), 5).sendall(b"x")
except OSError as error:
    sys.exit(f"refused: {error}")
print("reached")
"""


class Hello(http.server.BaseHTTPRequestHandler):
    """Says hello."""

    def do_GET(self) -> None:
        body = b"hello\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server on the host's loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _curl(lack: Callable[[str], Any]) -> None:
    if shutil.which("curl") is None:
        lack("no curl: the way out is not tried with it")


def url(port: int, host: str = "host.test") -> list[str]:
    """Fetch from the server; the name is one that only the rules know, not loopback's."""
    return [*CURL, f"http://{host}:{port}/"]


def allowing(port: int) -> Sandbox:
    return Sandbox.minimal().allow_hosts(f"127.0.0.1:{port}", allow_private=True)


def direct(port: int) -> list[str]:
    """curl to the allowed address, through the proxy although it is called loopback."""
    return [*CURL, "--noproxy", "", f"http://127.0.0.1:{port}/"]


def test_what_a_rule_allows_is_reached(as_user: AsUser, port: int) -> None:
    def probe() -> tuple[bytes, list[tuple[bool, str]]]:
        heard: list[Decision] = []
        result = run(direct(port), allowing(port), on_egress=heard.append)
        return result.check().stdout, [(each.allowed, each.host) for each in heard]

    assert as_user(probe) == (b"hello\n", [(True, "127.0.0.1")])


def test_nothing_else_is(as_user: AsUser, port: int) -> None:
    def probe() -> tuple[bytes, list[tuple[bool, str]]]:
        heard: list[Decision] = []
        result = run(url(port), allowing(port), on_egress=heard.append)
        return result.stdout, [(each.allowed, each.host) for each in heard]

    said, heard = as_user(probe)
    assert b"nsrun refuses this connection: no rule allows host.test" in said
    assert heard == [(False, "host.test")]


def test_there_is_no_way_around_it(as_user: AsUser, port: int) -> None:
    """The server is on loopback, but not on the sandbox's; the control has the host's network."""
    words = ["python3", "-c", REACH, "127.0.0.1", str(port)]
    inside = as_user(lambda: run(words, allowing(port)))
    assert inside.returncode == 1
    assert b"refused" in inside.stderr
    host = Sandbox.minimal().network("host")
    assert as_user(lambda: run(words, host)).stdout == b"reached\n"


def test_other_rules_while_it_runs(port: int) -> None:
    script = f"read x; {' '.join(CURL)} --noproxy '' http://127.0.0.1:{port}/"
    spec = Sandbox.minimal().allow_hosts("elsewhere.test")
    with popen(["sh", "-c", script], spec, stdin=PIPE, stdout=PIPE) as process:
        assert process.egress is not None
        process.egress.update(EgressRules(allow=[f"127.0.0.1:{port}"]))
        out, _ = process.communicate(b"go\n")
    assert out == b"hello\n"
    assert process.egress.counters.allowed == 1


def test_by_the_program_and_asyncio(port: int) -> None:
    """An own timeout of a command that is pid 1 needs the nsrun program."""
    spec = allowing(port).replace(as_pid_1=True)
    result = asyncio.run(aio.run(direct(port), spec))
    assert (result.stdout, result.backend) == (b"hello\n", "namespaces (nsrun program)")


def test_in_a_pool(port: int) -> None:
    with Pool(allowing(port), size=2) as pool:
        assert pool.wait_full()
        assert [pool.run(direct(port)).stdout for _ in range(3)] == [b"hello\n"] * 3
        assert pool.stats().failed == 0


def test_on_the_command_line(port: int) -> None:
    words = [find_program(), "run", "--quiet", "--allow-host", f"127.0.0.1:{port}"]
    done = subprocess.run([*words, "--", *direct(port)], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    deny = ["--deny-host", "127.0.0.0/8"]
    done = subprocess.run([*words, *deny, "--", *direct(port)], capture_output=True, check=False)
    assert b"nsrun refuses this connection" in done.stdout


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Egress(allow=("*.*.example.com",)), "Egress.allow"),
        (lambda: Egress(deny=("exa mple",)), "Egress.deny"),
        (lambda: Egress(allow="example.com"), "Egress.allow"),  # type: ignore[arg-type]
        (lambda: Sandbox(egress=Egress()), "Sandbox.egress"),
    ],
)
def test_wrong_values_are_named(make: Callable[[], Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_networks_exclude_each_other() -> None:
    spec = Sandbox.minimal().network("host").allow_hosts("example.com")
    assert Namespace.NET in spec.unshare
    assert spec.network("host").egress is None
    assert spec.network("none").egress is None
