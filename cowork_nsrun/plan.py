"""The compiled form of a sandbox: what the core runs, and what travels as bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cowork_nsrun import _native
from cowork_nsrun._native import Number, Op, PlanFlag, String, Words
from cowork_nsrun.errors import NsrunError, SpecError
from cowork_nsrun.namespaces import CLONE, Namespace

if TYPE_CHECKING:
    # who runs a plan that was compiled elsewhere needs no specs, which take a while to import
    from cowork_nsrun.spec import Sandbox


@dataclass(frozen=True, slots=True)
class Extras:
    """What a plan gets from how it is run rather than from its spec.

    Attributes:
        flags: switches to add.
        cgroups: directories of the cgroups to enter.
        rlimits: further resource limits, by names such as ``RLIMIT_AS``.
        numbers: numbers to set.
    """

    flags: PlanFlag = PlanFlag.NONE
    cgroups: tuple[str, ...] = ()
    rlimits: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[Number, int] = field(default_factory=dict)

    @property
    def beside_flags(self) -> bool:
        """There is something else."""
        return bool(self.cgroups or self.rlimits or self.numbers)

    def apply(self, native: _native.Plan) -> None:
        """Put it into a plan."""
        if self.flags:
            native.set_number(Number.FLAGS, native.number(Number.FLAGS) | self.flags)
        for path in self.cgroups:
            native.add_word(Words.CGROUPS, path)
        for name, value in self.rlimits.items():
            native.add_rlimit(name.removeprefix("RLIMIT_").lower(), value, value)
        for which, number in self.numbers.items():
            native.set_number(which, number)


NO_EXTRAS = Extras()


class Plan:
    """A plan: complete, checked, and ready to run.

    Make one with :meth:`from_spec`, :meth:`from_argv` or :meth:`from_bytes`.  Two plans
    are equal if their bytes are.
    """

    def __init__(
        self,
        native: _native.Plan,
        warnings: Sequence[str] = (),
        argv: Sequence[str] | None = None,
        *,
        backend: str = "auto",
        on_host: bool | None = None,
    ) -> None:
        self._native = native
        self._argv = None if argv is None else tuple(argv)
        self.warnings = tuple(warnings)
        self.backend = backend
        self._on_host = on_host

    @classmethod
    def from_argv(cls, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Plan:
        """Read a bwrap command line.

        Arguments:
            argv: options, then the command; without the name ``bwrap`` itself.
            environ: what ``--setenv`` and its kin act on; by default the caller's.

        Raises:
            NsrunError: with the text that the command line tool gives.
        """
        native = _native.Plan()
        env = os.environ if environ is None else environ
        return cls(native, native.parse(["nsrun", *argv], env))

    @classmethod
    def from_spec(
        cls,
        spec: Sandbox,
        argv: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        extras: Extras = NO_EXTRAS,
    ) -> Plan:
        """Compile a spec for one command.

        Arguments:
            argv: the command, found along the PATH inside, and its arguments.
            cwd: instead of the spec's; a path inside.
            env: the command's whole environment, instead of what the spec says.
            extras: what depends on this run.

        Raises:
            SpecError: a value that can't be, named.
        """
        from cowork_nsrun import compiling  # noqa: PLC0415

        words = compiling.checked_argv(argv)
        try:
            template = compiling.template(spec)
        except NsrunError as error:
            if isinstance(error, SpecError) or not spec.on_host:
                raise
            raise SpecError("Sandbox", error.text) from None
        environment = compiling.environment_block(spec, env)
        start_in = None if cwd is None else compiling.checked_cwd(cwd)
        native = template.for_command(words, environment, start_in, extras.flags)
        if extras.beside_flags:
            extras.apply(native)
            native.check()
        return cls(native, argv=words, backend=spec.backend, on_host=spec.on_host)

    @classmethod
    def for_parked(
        cls,
        spec: Sandbox,
        argv: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        extras: Extras = NO_EXTRAS,
    ) -> Plan:
        """What a parked sandbox of that spec takes: command, environment, directory, limits."""
        from cowork_nsrun import compiling  # noqa: PLC0415

        native = _native.Plan()
        words = compiling.checked_argv(argv)
        native.add_words(Words.ARGV, words)
        environment = compiling.environment_of(spec, env).items()
        native.add_words(Words.ENV, [f"{name}={value}" for name, value in environment])
        if cwd is not None:
            native.set_string(String.CHDIR, compiling.checked_cwd(cwd))
        Extras(rlimits=spec.limits.rlimits).apply(native)
        extras.apply(native)
        return cls(native, argv=words)

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Read what :meth:`to_bytes` wrote; strict.

        Raises:
            NsrunError: it is damaged, of another version, or asks for what can't be.
        """
        native = _native.Plan()
        native.read(data)
        return cls(native)

    def to_bytes(self) -> bytes:
        """The plan in the form that ``nsrun --plan FD`` reads."""
        return self._native.write()

    def with_extras(self, extras: Extras) -> Plan:
        """A copy with more in it."""
        native = _native.Plan()
        native.read(self.to_bytes())
        extras.apply(native)
        native.check()
        return Plan(native, self.warnings, backend=self.backend)

    def with_command(self, command: Plan) -> Plan:
        """The same sandbox with another's command: what :meth:`for_parked` makes.

        Its resource limits are the sandbox's already.
        """
        native = _native.Plan()
        native.read(self.to_bytes())
        for which in (Words.ARGV, Words.ENV):
            native.clear(which)
            native.add_words(which, command.native.words(which))
        if command.cwd is not None:
            native.set_string(String.CHDIR, command.cwd)
        Extras(command.flags & PlanFlag.TERMINAL).apply(native)
        native.check()
        return Plan(native, self.warnings, backend=self.backend)

    @property
    def by_name(self) -> bool:
        """Its backend was asked for, so that the environment has no say."""
        return self.backend != "auto"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        return f"<Plan {self.argv!r}, {len(self.operations)} operations>"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command and its arguments."""
        if self._argv is None:
            self._argv = self._native.words(Words.ARGV)
        return self._argv

    @property
    def environment(self) -> dict[str, str]:
        """The command's environment, ``PWD`` aside, which the core sets."""
        words = self._native.words(Words.ENV)
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    @property
    def lock_files(self) -> tuple[str, ...]:
        """Files to hold a read lock on."""
        return self._native.words(Words.LOCK_FILES)

    @property
    def operations(self) -> tuple[Op, ...]:
        """The filesystem operations, in order, as the core has them."""
        return self._native.ops()

    @property
    def flags(self) -> PlanFlag:
        """The plan's switches."""
        return PlanFlag(self._native.number(Number.FLAGS))

    @property
    def on_host(self) -> bool:
        """It has no namespaces."""
        if self._on_host is None:
            self._on_host = bool(self.flags & PlanFlag.ON_HOST)
        return self._on_host

    @property
    def unshare(self) -> frozenset[Namespace]:
        """The namespaces that are certainly new."""
        bits = self._native.number(Number.UNSHARE)
        return frozenset(name for name, bit in CLONE.items() if bits & bit)

    @property
    def cwd(self) -> str | None:
        """Directory inside to start in."""
        return self._native.string(String.CHDIR)

    @property
    def hostname(self) -> str | None:
        """Host name inside."""
        return self._native.string(String.HOSTNAME)

    def number(self, which: Number) -> int:
        """Any number of the plan."""
        return self._native.number(which)

    @property
    def fds(self) -> tuple[int, ...]:
        """The caller's file descriptors that the plan speaks of."""
        named = [self.number(which) for which in _native.FD_NUMBERS]
        return tuple(fd for fd in [*named, *(op.fd for op in self.operations)] if fd >= 0)

    @property
    def native(self) -> _native.Plan:
        """What the core runs; for :mod:`cowork_nsrun.process`."""
        return self._native


def milliseconds(seconds: float) -> int:
    """As the core counts time: at least one."""
    return max(1, round(seconds * 1000))
