"""An AppArmor profile for nsrun alone.

Ubuntu 24.04 and later let a program use user namespaces only under a profile that
says so.  A profile belongs to a path: it must be one that only root can write to, or
any program of that user could put itself there and have what the profile grants.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cowork_nsrun.errors import NsrunError

PROFILE_FILE = "/etc/apparmor.d/nsrun"

_TEMPLATE = """\
# AppArmor profile for nsrun (cowork-nsrun), for this one path.
# Load it with these two commands:
#   nsrun doctor --apparmor={path} | sudo tee {file} >/dev/null
#   sudo apparmor_parser -r {file}
abi <abi/4.0>,
include <tunables/global>

# What builds the sandbox: user namespaces, and rights inside them.
profile nsrun "{path}" flags=(attach_disconnected,mediate_deleted) {{
  allow userns,
  allow capability,
  allow mount,
  allow remount,
  allow umount,
  allow pivot_root,
  allow file rwlkm /{{**,}},
  allow network,
  allow unix,
  allow signal,
  allow ptrace,
  allow mqueue,
  allow io_uring,
  allow dbus,

  # What runs in it gets the second profile as well.  Both hold at once, since under
  # no_new_privs the kernel lets no program gain by an exec.
  allow px /** -> nsrun//&nsrun_payload,

  include if exists <local/nsrun>
}}

# The command: everything that it had before, but no further user namespace and none of
# the rights that one would bring.
profile nsrun_payload flags=(attach_disconnected,mediate_deleted) {{
  audit deny userns,
  audit deny capability,
  allow file rwlkmix /{{**,}},
  allow network,
  allow unix,
  allow signal,
  allow ptrace,
  allow mqueue,
  allow io_uring,
  allow dbus,

  include if exists <local/nsrun_payload>
}}
"""


def _why_not(path: Path) -> str | None:
    """What would let another than root put a program there."""
    if any(character in str(path) for character in '"\\{}[]*?@^\n'):
        return "its name has characters that mean something in a profile"
    try:
        for part in (path, *path.parents):
            found = part.lstat()
            if found.st_uid:
                return f"{part} belongs to uid {found.st_uid}, not to root"
            writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if writable and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
                return f"others than root can write to {part}"
    except OSError as error:
        return str(error)
    if any((parent / "pyvenv.cfg").exists() for parent in path.parents):
        return "it is in a virtual environment, which is made to be replaced"
    return None


def profile(program: str | os.PathLike[str]) -> str:
    """The profile for nsrun at this path.

    Raises:
        NsrunError: no profile should be made for such a path; says why and what to do.
    """
    path = Path(os.path.realpath(program))
    problem = _why_not(path)
    if problem is not None:
        raise NsrunError(
            f"no AppArmor profile for {path}: {problem}. Whoever can write there could put "
            "another program in its place, which would then have user namespaces too. Install "
            f"nsrun where only root can write, such as /usr/bin ('sudo install -m 0755 {path} "
            "/usr/local/bin/nsrun'), and name it: nsrun doctor --apparmor=/usr/local/bin/nsrun",
            path=str(path),
        )
    return _TEMPLATE.format(path=path, file=PROFILE_FILE)
