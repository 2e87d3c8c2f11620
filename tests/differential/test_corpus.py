"""Every case of the corpus, under nsrun and under each bwrap, must agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NoReturn

import pytest
from corpus import CORPUS
from differences import KNOWN, OWN_NAME, compare
from harness import ROOT, USER, Bench, Case, Program, under_own_name
from normalise import UNLISTED

IDENTITIES = {identity.name: identity for identity in (ROOT, USER)}
EVERY = [
    pytest.param(case, user, id=f"{user}-{case.name}") for case in CORPUS for user in case.users
]


def test_names_are_unique() -> None:
    repeated = [name for name, count in Counter(case.name for case in CORPUS).items() if count > 1]
    assert repeated == []


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(("case", "user"), EVERY)
def test_same_world(
    *,
    bench: Bench,
    references: list[Program],
    candidate: Program,
    note_lack: Callable[[str], None],
    case: Case,
    user: str,
) -> None:
    able = [program for program in references if program.version >= case.since]
    for program in references:
        if program not in able:
            note_lack(f"{program.name} lacks what {case.since[0]}.{case.since[1]} has")
    actual = bench.run(candidate, case, IDENTITIES[user])
    if actual.seen.get("mount_source") == UNLISTED:
        note_lack("no listmount(2): the mounts of a sandbox without /proc are not compared")
    told: list[str] = []
    for program in able:
        verdict = compare(program, case, bench.run(program, case, IDENTITIES[user]), actual)
        told += [f"{program.name}: {divergence}" for divergence in verdict.unexpected]
    if told:
        pytest.fail("\n".join(told), pytrace=False)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("user", ["root", "user"])
@pytest.mark.parametrize("option", ["--nonsense", "--bind", "--chdir", "--help", "--version"])
def test_own_name(
    *,
    bench: Bench,
    newest: Program,
    candidate: Program,
    option: str,
    user: str,
    lack: Callable[[str], NoReturn],
) -> None:
    """Called as nsrun, messages begin with nsrun, and nothing else differs."""
    own = under_own_name(candidate)
    if not own.path.exists():
        lack("the candidate is a bwrap, which has one name only")
    case = Case("own-name", (option,))
    expected = bench.run(newest, case, IDENTITIES[user])
    actual = bench.run(own, case, IDENTITIES[user])
    verdict = compare(newest, case, expected, actual, (OWN_NAME, *KNOWN))
    assert verdict.unexpected == []
