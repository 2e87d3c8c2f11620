"""Run by tests: a network namespace with nothing but lo, whose listeners are handed out.

    unshare -rn python egress_inside.py FD COMMAND...

Opens 127.0.0.1:3128 and 127.0.0.1:1080, passes them over the socket FD by SCM_RIGHTS, waits for
a byte there and becomes COMMAND.  It is what the core does for a sandbox.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

SIOCSIFFLAGS = 0x8914
IFF_UP = 1
PORTS = (3128, 1080)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    listeners = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    for port in PORTS:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(256)
        listeners.append(listener)
    socket.send_fds(control, [b"x"], [listener.fileno() for listener in listeners])
    for listener in listeners:
        listener.close()
    if control.recv(1):
        control.close()
        os.execvp(sys.argv[2], sys.argv[2:])


main()
