"""Fixtures of the service's tests."""

from cowork_fixtures import daemon, either, host, start, without_landlock, without_namespaces

__all__ = ["daemon", "either", "host", "start", "without_landlock", "without_namespaces"]
