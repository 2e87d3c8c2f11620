"""Fixtures of the service's tests."""

from cowork_fixtures import daemon, either, host, start

__all__ = ["daemon", "either", "host", "start"]
