"""The fixtures lie in a module that the fault and tier suites share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from hostile_fixtures import (  # noqa: F401
    as_root,
    as_user,
    attacker,
    ground,
    marker,
    nsrun,
    runner,
)
