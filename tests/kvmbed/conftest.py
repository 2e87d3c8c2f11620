"""Tests here start the bed or run in it: make kvm-test says which, an ordinary run has none."""

from __future__ import annotations

import os

collect_ignore = [name for name in ("inside", "outside") if os.environ.get("NSRUN_KVMBED") != name]
