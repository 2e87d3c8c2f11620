"""The helper service of the desktop app's Cowork mode: ``nsrun serve``.

A client sends requests over a Unix socket; commands run in sandboxes; what they write comes back
as events.  Everything that a client sends is checked before it is used.
"""
