"""Real programs in a namespace with nothing but lo: through the proxy they get what the rules
allow, and around it nothing."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from egress_fixtures import INSIDE, Names, Ran, clean_environment, run_inside

from cowork_nsrun.policy import EgressRules, Rule

ALLOWED = EgressRules(allow=[Rule("server.test", allow_private=True)])
PYTHON = sys.executable
Lack = Callable[[str], NoReturn]
AsUser = Callable[[Callable[[], Any]], Any]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_words: object) -> None:
        pass


class Site:
    """A directory served on loopback."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port

    def url(self, path: str, host: str = "server.test") -> str:
        return f"http://{host}:{self.port}/{path}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "hello").write_text("hello from outside\n")
    handler = partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Site(directory, server.server_address[1])
        server.shutdown()
        thread.join()


def names() -> Names:
    return Names(server_test=["127.0.0.1"], other_test=["127.0.0.1"])


def run(*command: str, rules: EgressRules = ALLOWED, cwd: Path | None = None) -> Ran:
    return run_inside(command, rules, names(), cwd=cwd)


# --- programs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--proxytunnel"],
        ["--proxy", "socks5h://127.0.0.1:1080"],
        ["--proxy", "http://127.0.0.1:1080"],
        ["--http1.0"],
    ],
)
def test_curl(site: Site, options: list[str]) -> None:
    ran = run("curl", "-sS", "--fail", *options, site.url("hello"), site.url("hello"))
    assert (ran.status, ran.output) == (0, "hello from outside\n" * 2), ran
    assert all(decision.allowed for decision in ran.decisions)
    refused = run("curl", "-sS", *options, site.url("hello", "other.test"))
    assert "hello" not in refused.output
    assert [decision.allowed for decision in refused.decisions] == [False], refused


def test_curl_is_told_what_to_allow(site: Site) -> None:
    ran = run("curl", "-sS", site.url("hello", "other.test"))
    assert f'add "other.test:{site.port}" to the allow rules' in ran.output


def test_as_another_user(site: Site, as_user: AsUser, shared: Path, lack: Lack) -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        lack("no python3 of the system: the egress proxy as another user")
    copy = shared / INSIDE.name
    copy.write_bytes(INSIDE.read_bytes())
    copy.chmod(0o644)

    def curl(host: str) -> tuple[str, list[bool]]:
        ran = run_inside(
            ["curl", "-sS", site.url("hello", host)], ALLOWED, names(), helper=[python, str(copy)]
        )
        return ran.output, [decision.allowed for decision in ran.decisions]

    assert as_user(lambda: curl("server.test")) == ("hello from outside\n", [True])
    assert as_user(lambda: curl("other.test"))[1] == [False]


def git(*words: str, cwd: Path) -> None:
    author = {f"GIT_{role}_{what}": "a@test" for role in ("AUTHOR", "COMMITTER")
              for what in ("NAME", "EMAIL")}  # fmt: skip
    subprocess.run(
        ["git", *words], cwd=cwd, check=True, capture_output=True, env=clean_environment(**author)
    )


def test_git_clone(site: Site, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    git("init", "-q", "-b", "main", ".", cwd=work)
    (work / "file").write_text("content\n")
    git("add", "file", cwd=work)
    git("commit", "-q", "-m", "first", cwd=work)
    git("clone", "-q", "--bare", str(work), str(site.directory / "repo.git"), cwd=tmp_path)
    git("update-server-info", cwd=site.directory / "repo.git")
    ran = run("git", "clone", "-q", site.url("repo.git"), str(tmp_path / "clone"))
    assert ran.status == 0, ran
    assert (tmp_path / "clone" / "file").read_text() == "content\n"
    refused = run("git", "clone", "-q", site.url("repo.git", "other.test"), str(tmp_path / "no"))
    assert refused.status
    assert "403" in refused.output
    assert not (tmp_path / "no").exists()


def make_wheel(directory: Path) -> str:
    name = "demo_package-1.0-py3-none-any.whl"
    info = "demo_package-1.0.dist-info"
    with zipfile.ZipFile(directory / name, "w") as wheel:
        wheel.writestr("demo_package.py", "VALUE = 1\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: demo-package\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
                       "Tag: py3-none-any\n")  # fmt: skip
        wheel.writestr(f"{info}/RECORD", "")
    return name


def test_pip_download(site: Site, tmp_path: Path) -> None:
    index = site.directory / "simple" / "demo-package"
    index.mkdir(parents=True)
    name = make_wheel(index)
    (index / "index.html").write_text(f'<a href="{name}">{name}</a>')

    def download(host: str, into: str) -> Ran:
        return run(
            PYTHON, "-m", "pip", "download", "-q", "--no-deps", "--retries", "0",
            "--disable-pip-version-check", "--no-cache-dir", "--trusted-host", host,
            "--index-url", site.url("simple", host), "-d", str(tmp_path / into), "demo-package",
        )  # fmt: skip

    ran = download("server.test", "got")
    assert ran.status == 0, ran
    assert (tmp_path / "got" / name).read_bytes() == (index / name).read_bytes()
    refused = download("other.test", "not")
    assert refused.status
    assert not list((tmp_path / "not").glob("*.whl"))
    assert not any(decision.allowed for decision in refused.decisions)


def test_python(site: Site) -> None:
    script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read())"
    assert "hello from outside" in run(PYTHON, "-c", script, site.url("hello")).output
    assert "403" in run(PYTHON, "-c", script, site.url("hello", "other.test")).output


def test_npm(site: Site, tmp_path: Path, lack: Lack) -> None:
    if not shutil.which("npm"):
        lack("npm is missing: npm through the egress proxy")
    package = site.directory / "demo"
    # npm reads a package's document, whatever the type it comes with
    package.write_text(
        '{"name": "demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": '
        '{"name": "demo", "version": "1.0.0", "dist": {"tarball": "http://x.test/t"}}}}'
    )

    def view(host: str) -> Ran:
        return run(
            "npm", "view", "demo", "version", "--registry", site.url("", host),
            "--cache", str(tmp_path / "cache"), "--fetch-retries", "0", cwd=tmp_path,
        )  # fmt: skip

    assert "1.0.0" in view("server.test").output
    refused = view("other.test")
    assert refused.status
    assert "1.0.0" not in refused.output


# --- ways around it -------------------------------------------------------------------------

ATTACKS = {
    "direct": """
        s = socket.create_connection(("127.0.0.1", PORT), timeout=5)
        s.sendall(b"hello"); print("REACHED")
    """,
    "direct to the host": """
        s = socket.create_connection((HOST, PORT), timeout=5)
        s.sendall(b"hello"); print("REACHED")
    """,
    "udp": """
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
        # connected, so that it is told of a port where nobody is: udp(7)
        s.connect(("127.0.0.1", UDP)); s.send(b"hello"); s.recv(9); print("REACHED")
    """,
    "udp to the host": """
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
        s.sendto(b"hello", (HOST, UDP)); s.recv(9); print("REACHED")
    """,
    "dns": """
        q = b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\6secret\\4test\\0\\0\\1\\0\\1"
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
        s.connect((HOST, UDP)); s.send(q); s.recv(99); print("REACHED")
    """,
    "abstract socket": """
        s = socket.socket(socket.AF_UNIX); s.connect("\\0" + ABSTRACT); print("REACHED")
    """,
    "raw packets": """
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        names = [name for _, name in socket.if_nameindex() if name != "lo"]
        s.bind((names[0], 0)); print("REACHED")
    """,
    "raw icmp": """
        s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.settimeout(5)
        s.sendto(b"\\x08\\0\\xf7\\xff\\0\\0\\0\\0", (HOST, 0)); s.recv(99); print("REACHED")
    """,
    "netlink": """
        names = [name for _, name in socket.if_nameindex() if name != "lo"]
        if names: print("REACHED")
    """,
}


class Targets:
    """What an attacker would like to reach on the host."""

    def __init__(self, host: str, port: int, udp: int, abstract: str) -> None:
        self.prelude = (
            f"import socket\nHOST, PORT, UDP, ABSTRACT = {host!r}, {port}, {udp}, {abstract!r}\n"
        )


def own_address() -> str | None:
    """An address of the host that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


@pytest.fixture
def targets(lack: Lack) -> Iterator[Targets]:
    host = own_address()
    if host is None:
        lack("the machine has no network: there is nothing that a sandbox could reach")
    abstract = f"nsrun-test-{os.getpid()}"
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=16))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("0.0.0.0", 0))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind("\0" + abstract)
        unix.listen()

        def answer() -> None:
            while (received := udp.recvfrom(99))[0] != b"stop":
                udp.sendto(b"hello", received[1])

        thread = threading.Thread(target=answer)
        thread.start()
        yield Targets(host, tcp.getsockname()[1], udp.getsockname()[1], abstract)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"stop", ("127.0.0.1", udp.getsockname()[1]))
        thread.join()


def script(targets: Targets, case: str) -> str:
    lines = [line.strip() for line in ATTACKS[case].strip().splitlines()]
    # a traceback shows the line that failed, since Python 3.13 that of a -c, too
    return (targets.prelude + "\n".join(lines)).replace('"REACHED"', '"REACH" "ED"')


@pytest.mark.parametrize("case", ATTACKS)
def test_attacks(targets: Targets, case: str) -> None:
    everything = EgressRules(allow=[Rule("*", allow_private=True)])
    ran = run(PYTHON, "-c", script(targets, case), rules=everything)
    assert "REACHED" not in ran.output
    assert ran.decisions == []


@pytest.mark.parametrize("case", ATTACKS)
def test_the_same_attacks_succeed_with_a_network(targets: Targets, case: str, lack: Lack) -> None:
    """The control: what the sandbox is kept from is there."""
    if case.startswith("raw") and os.geteuid():
        lack("raw sockets on the host take root: their control")
    done = subprocess.run(
        [PYTHON, "-c", script(targets, case)], capture_output=True, text=True, check=False
    )
    assert "REACHED" in done.stdout, done


THIS_MACHINE = """
import os, socket, subprocess, sys
from cowork_nsrun.policy import EgressRules, EgressThread
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["ip", "address", "add", "8.8.4.4/32", "dev", "lo"], check=True)
server = socket.create_server(("0.0.0.0", 0))
port = server.getsockname()[1]
for rule in ("*", "8.8.4.0/24", "8.8.4.4"):
    listener = socket.create_server(("127.0.0.1", 0))
    with EgressThread(EgressRules(allow=[rule]), [listener]):
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"CONNECT 8.8.4.4:%d HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" % port)
            print(client.recv(12).decode())
"""


def test_the_hosts_public_address_is_refused() -> None:
    done = subprocess.run(
        ["unshare", "-rn", PYTHON, "-P", "-c", THIS_MACHINE],
        capture_output=True,
        text=True,
        check=False,
    )
    answers = ["HTTP/1.1 403", "HTTP/1.1 403", "HTTP/1.1 200"]
    assert done.stdout.splitlines() == answers, done


def test_the_host_behind_the_proxy_is_refused(targets: Targets) -> None:
    """Everything is allowed, and still the host's own services are not."""
    attack = targets.prelude + (
        "import sys\n"
        "for target in ('127.0.0.1', HOST, 'localhost', '[::1]', '[::ffff:7f00:1]', '0.0.0.0',\n"
        "               '[64:ff9b::7f00:1]', '2130706433', '127.1', '169.254.169.254'):\n"
        "    s = socket.create_connection(('127.0.0.1', 3128), timeout=60)\n"
        "    s.sendall(f'CONNECT {target}:{PORT} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'.encode())\n"
        "    print(s.recv(12).decode())\n"
    )
    resolver = Names(localhost=["127.0.0.1 ::1"])
    ran = run_inside([PYTHON, "-c", attack], EgressRules(allow=["*"]), resolver)
    assert ran.output.split("\n")[:-1] == ["HTTP/1.1 403"] * 10, ran
    opened = EgressRules(allow=[Rule("*", allow_private=True)])
    assert "HTTP/1.1 200" in run_inside([PYTHON, "-c", attack], opened, resolver).output
