"""Every case of the corpus in a microVM: the same as in nsrun's own namespaces, or else
translated, refused by name, or different for a reason that machine_differences.py tells.

On KVM that runs stock kernels alone.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import pytest
from corpus import CORPUS, HOST
from differences import compare
from harness import ROOT, USER, Bench, Case, Identity, Program, find_nsrun
from machine_differences import ROWS, Tag, tag_of

OWN_PIDS = ("--unshare-pid", "--unshare-all")
#: of those that share the host's processes: all are refused in the same way
SHARED_STEP = 40


def with_own_pids(case: Case) -> Case:
    """A shared pid namespace is refused; what else the case asks for is looked at so."""
    if set(OWN_PIDS) & set(case.argv):
        return case
    return replace(case, argv=("--unshare-pid", *case.argv))


# what the host's root is called in a user namespace of the host's, a guest's kernel can't know
CASES = [case for case in CORPUS if "called" not in case.launch]
SHARED = [case for case in CASES if with_own_pids(case) is not case][::SHARED_STEP]
EVERY = [
    pytest.param(case, user, id=f"{user}-{name}")
    for case, name in (
        *((with_own_pids(case), case.name) for case in CASES),
        *((case, f"{case.name}-as-it-is") for case in SHARED),
    )
    for user in case.users
]


@dataclass
class Tally:
    """Of a whole run: the cases by their tags, and how often each row was taken."""

    tags: Counter[Tag] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def tally(pytestconfig: pytest.Config) -> Iterator[Tally]:
    """Printed at the end, with the rows that nothing needed."""
    tally = Tally()
    yield tally
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    assert reporter is not None
    reporter.section("microVM and namespaces")
    for tag in Tag:
        reporter.line(f"{tally.tags[tag]:5d}  {tag.value}")
    for row in ROWS:
        if tally.rows[row.name]:
            reporter.line(f"{tally.rows[row.name]:5d}  {row.tag.value}: {row.name}")
        elif pytestconfig.getoption("every") == 1:
            reporter.line(f"    0  never needed: {row.name}")


@dataclass(frozen=True)
class Pair:
    """The same nsrun twice."""

    namespaces: Program
    machine: Program


@pytest.fixture(scope="module")
def pair(pytestconfig: pytest.Config, lack: Callable[[str], NoReturn]) -> Pair:
    source = find_nsrun(pytestconfig.rootpath)
    if source is None:
        lack("no nsrun: build it, or name it by NSRUN")
    done = subprocess.run([source, "--probe"], capture_output=True, check=True)
    probes = {probe["name"]: probe for probe in json.loads(done.stdout)["probes"]}
    for name in ("namespaces", "microvm", "kvm", "kvm-guest", "guest-kernel"):
        if probes[name]["verdict"] != "ok":
            lack(f"no microVM to compare with: {name}: {probes[name]['evidence']}")
    return Pair(
        Program("namespaces", source, (0, 12), ("--backend", "namespaces")),
        Program("machine", source, (0, 12), ("--backend", "kvm")),
    )


@dataclass(frozen=True)
class Caller:
    """Who calls nsrun, and where the machines of that user are kept."""

    identity: Identity
    cache: Path

    def case(self, case: Case) -> Case:
        return replace(case, env={"XDG_CACHE_HOME": str(self.cache), **case.env})


@pytest.fixture(scope="module")
def callers(pair: Pair, bench: Bench) -> dict[str, Caller]:
    """With both machines saved already: a boot takes long, and a case has its limits."""
    kvm = Path("/dev/kvm").stat().st_gid
    root = Caller(ROOT, bench.directory / "cache-root")
    user = Caller(replace(USER, groups=(*USER.groups, kvm)), bench.directory / "cache-user")
    root.cache.mkdir(mode=0o700)
    for network in ((), ("--unshare-net",)):
        case = root.case(Case("first", ("--unshare-pid", *network, *HOST, "true")))
        prepared = bench.prepare(pair.machine, case, root.identity, None)
        subprocess.run(prepared.command, env=dict(prepared.environment), check=True)
    # whose they are is no part of what they are named by
    subprocess.run(["cp", "-a", "--sparse=always", root.cache, user.cache], check=True)
    owner = f"{user.identity.uid}:{user.identity.gid}"
    subprocess.run(["chown", "-R", owner, user.cache], check=True)
    return {caller.identity.name: caller for caller in (root, user)}


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(("case", "user"), EVERY)
def test_same_world(
    *, bench: Bench, pair: Pair, callers: dict[str, Caller], tally: Tally, case: Case, user: str
) -> None:
    caller = callers[user]
    case = caller.case(case)
    expected = bench.run(pair.namespaces, case, caller.identity)
    actual = bench.run(pair.machine, case, caller.identity)
    verdict = compare(pair.namespaces, case, expected, actual, ROWS)
    if verdict.unexpected:
        pytest.fail("\n".join(map(str, verdict.unexpected)), pytrace=False)
    tally.rows.update(set(verdict.applied))
    tally.tags[tag_of(verdict.applied)] += 1
