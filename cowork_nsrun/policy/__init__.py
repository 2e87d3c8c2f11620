"""What a sandbox may reach over the network.

>>> from cowork_nsrun.policy import EgressRules
>>> EgressRules(allow=["*.example.com:443"]).check("www.example.com", 443).allowed
True

:class:`EgressRules` say what, :class:`EgressProxy` and :class:`EgressThread` see to it, and
:func:`environment` tells programs in the sandbox.  ``cowork_nsrun.policy.veth`` is a network of
its own for root; it needs the extra ``net``.
"""

from cowork_nsrun.policy.decisions import Counters, Decision, EgressLimits, Protocol
from cowork_nsrun.policy.dial import Resolver, SystemResolver, Upstream
from cowork_nsrun.policy.environment import HTTP_PORT, SOCKS_PORT, environment
from cowork_nsrun.policy.proxy import EgressProxy, unix_listener
from cowork_nsrun.policy.rules import EgressRules, Rule, Verdict
from cowork_nsrun.policy.thread import EgressThread

__all__ = [
    "HTTP_PORT",
    "SOCKS_PORT",
    "Counters",
    "Decision",
    "EgressLimits",
    "EgressProxy",
    "EgressRules",
    "EgressThread",
    "Protocol",
    "Resolver",
    "Rule",
    "SystemResolver",
    "Upstream",
    "Verdict",
    "environment",
    "unix_listener",
]
