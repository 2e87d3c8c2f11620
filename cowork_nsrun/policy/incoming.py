"""Connections of a sandbox as they come: accepted, or handed over by whoever carries them."""

from __future__ import annotations

import asyncio
import socket


async def next_connection(listener: socket.socket) -> socket.socket | None:
    """The next one; None: the one who hands them over is gone.

    Arguments:
        listener: does not block.  One of type SOCK_SEQPACKET gets a message with one connected
            stream socket (SCM_RIGHTS, see unix(7)) for each connection.

    Raises:
        OSError: none can be had now, or ever.
    """
    if listener.type != socket.SOCK_SEQPACKET:
        sock, _peer = await asyncio.get_running_loop().sock_accept(listener)
        return sock
    while True:
        try:
            data, fds, flags, _ = socket.recv_fds(listener, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _readable(listener)
            continue
        except ConnectionError:
            return None
        handed = [socket.socket(fileno=fd) for fd in fds]
        more = flags & socket.MSG_CTRUNC
        if not more and len(handed) == 1 and handed[0].type == socket.SOCK_STREAM:
            return handed[0]
        for sock in handed:
            sock.close()
        if not data:
            return None


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
