"""The built-in seccomp profiles, as people read them.

What they are is the core's table, from which the filters are made; this module
reads it for ``nsrun profile seccomp`` and for the documents.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from cowork_nsrun import _native

WIDTH = 96


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that stand together for one reason.

    Attributes:
        title: what they are about.
        why: the reason.
        breaks: what does not work then.
        rules: the rows, in the table's order.
    """

    title: str
    why: str
    breaks: str
    rules: tuple[_native.SeccompRule, ...]

    def of(self, profile: str) -> Group | None:
        """What of it is in that profile; None if nothing is."""
        rules = tuple(rule for rule in self.rules if profile in rule.profiles)
        return Group(self.title, self.why, self.breaks, rules) if rules else None


def groups() -> tuple[Group, ...]:
    """The whole table."""
    return tuple(Group(*fields) for fields in _native.seccomp_groups())


def instructions(profile: str) -> int:
    """Length of a profile's filter on this architecture."""
    return len(_native.seccomp_profile(profile).bpf) // 8


def _calls(rules: Iterable[_native.SeccompRule]) -> str:
    """Names, and behind each the cases of it."""
    cases: dict[str, list[str]] = {}
    for rule in rules:
        cases.setdefault(rule.call, []).extend([rule.when] if rule.when else [])
    return ", ".join(
        f"{call} ({'; '.join(whens)})" if whens else call for call, whens in cases.items()
    )


def _answers(rules: Iterable[_native.SeccompRule]) -> list[tuple[str, list[_native.SeccompRule]]]:
    """Rules by what is answered, in the order in which the answers first come."""
    by_answer: dict[str, list[_native.SeccompRule]] = {}
    for rule in rules:
        by_answer.setdefault(rule.answer or "allowed", []).append(rule)
    return list(by_answer.items())


def _wrap(label: str, text: str) -> str:
    indent = " " * 12
    return textwrap.fill(
        text, WIDTH, initial_indent=f"  {label:<9} ", subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def describe(profile: str) -> str:
    """A profile's rules with their reasons, as text.

    Raises:
        NsrunError: there is no such profile.
    """
    found = _native.seccomp_profile(profile)
    lines = [f"{found.name}: {found.help}."]
    if found.bpf:
        lines.append(f"{instructions(profile)} instructions.  What is not named here is allowed.")
        lines.append("")
        lines.append("Other architectures' calls")
        lines.append(_wrap("killed", "32-bit calls: no rule is written for their numbers."))
        lines.append(_wrap("ENOSYS", "x32 calls (x86-64), likewise."))
    for group in filter(None, (group.of(profile) for group in groups())):
        lines += ["", group.title]
        lines += [_wrap(answer, _calls(rules)) for answer, rules in _answers(group.rules)]
        lines += [_wrap("why", group.why), _wrap("breaks", group.breaks)]
    return "\n".join(lines) + "\n"


def summary() -> str:
    """The profiles' names, one a line."""
    return "".join(f"{p.name:<9}{p.help}\n" for p in _native.seccomp_profiles())


def markdown() -> str:
    """The table of ``docs/hardening.md``: a test holds it equal to the core's."""
    names = [p.name for p in _native.seccomp_profiles() if p.bpf]
    lines = []
    for group in groups():
        lines += [f"### {group.title}", "", *textwrap.wrap(group.why, WIDTH), ""]
        lines += [*textwrap.wrap(f"Does not work then: {group.breaks}", WIDTH), ""]
        lines += ["| call | answer | profiles |", "|---|---|---|"]
        for key, same in groupby(group.rules, key=lambda r: (r.answer or "allowed", r.profiles)):
            answer, profiles = key
            where = ", ".join(name for name in names if name in profiles)
            lines.append(f"| {_calls(same)} | {answer} | {where} |")
        lines.append("")
    return "\n".join(lines)
