"""A client of the service, made for its tests: it speaks the three modes that the app does."""

from __future__ import annotations

import json
import socket
from types import TracebackType
from typing import Any, Self

PATIENCE = 120.0  # seconds until a silent service fails a test; a machine boots in an emulated bed
NO_ID = object()


class Refused(Exception):
    """A reply with ``success`` false."""


class Closed(Exception):
    """The service has closed the connection."""


def pack(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def request(method: str, params: object = None, ident: object = NO_ID) -> bytes:
    message: dict[str, object] = {"method": method}
    if params is not None:
        message["params"] = params
    if ident is not NO_ID:
        message["id"] = ident
    return pack(json.dumps(message).encode())


class Client:
    """A connection; replies and events as they come."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self._buffer = bytearray()
        self._ident = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def receive(self) -> dict[str, Any]:
        """The next frame, whatever it is."""
        message = json.loads(self._take(int.from_bytes(self._take(4), "big")))
        assert isinstance(message, dict)
        return message

    def reply(self) -> dict[str, Any]:
        """The next reply; events on the way are kept."""
        while True:
            message = self.receive()
            if "success" in message:
                return message
            self.events.append(message)

    def event(self) -> dict[str, Any]:
        """The next event."""
        return self.events.pop(0) if self.events else self.receive()

    def call(self, method: str, params: object = None) -> dict[str, Any]:
        """One request with an id, and its result."""
        self._ident += 1
        self.send(request(method, params, self._ident))
        message = self.reply()
        assert message.get("id") == self._ident, message
        if not message["success"]:
            assert "result" not in message
            raise Refused(message["error"])
        assert "error" not in message
        result = message["result"]
        assert isinstance(result, dict)
        return result

    def subscribe(self) -> Self:
        """Get events from now on."""
        assert self.call("subscribeEvents", {"userDataName": "x"}) == {}
        return self

    def until_exit(self, ident: str) -> tuple[str, str, dict[str, Any]]:
        """What a process wrote, and its exit event; events of others are left out."""
        out, err = [], []
        while True:
            event = self.event()
            if event.get("id") != ident:
                continue
            if event["type"] == "stdout":
                out.append(event["data"])
            elif event["type"] == "stderr":
                err.append(event["data"])
            elif event["type"] == "exit":
                assert {"exitCode", "signal"} <= event.keys()
                assert (event["exitCode"] is None) != (event["signal"] is None)
                return "".join(out), "".join(err), event


def one_shot(path: str, method: str, params: object = None) -> dict[str, Any]:
    """Connect, one request without an id, one reply, half-close."""
    with Client(path) as client:
        client.send(request(method, params))
        reply = client.receive()
        client.socket.shutdown(socket.SHUT_WR)
        assert client.socket.recv(1) == b""
        return reply
