"""Frames: four bytes of length, big-endian, then so many bytes of JSON."""

from __future__ import annotations

from collections.abc import Iterator

from cowork_nsrun.errors import NsrunError

HEADER = 4
BODY_MAX = 10 * 1024 * 1024  # bytes; the official client's own bound


class FrameTooLong(NsrunError):
    """A frame's body would be longer than :data:`BODY_MAX`."""

    def __init__(self, length: int) -> None:
        super().__init__(f"a frame of {length} bytes: at most {BODY_MAX} are taken")


def frame(body: bytes) -> bytes:
    """The body with its length ahead.

    Raises:
        FrameTooLong: no client would take it.
    """
    if len(body) > BODY_MAX:
        raise FrameTooLong(len(body))
    return len(body).to_bytes(HEADER, "big") + body


class FrameReader:
    """Cuts what arrives into bodies, however it was cut on its way.

    It holds no more than one incomplete frame and what was fed last.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are complete now.  Use them all before the next call.

        Raises:
            FrameTooLong: nothing that follows can be understood; close the connection.
        """
        self._buffer += data
        begin = 0
        try:
            while len(self._buffer) - begin >= HEADER:
                length = int.from_bytes(self._buffer[begin : begin + HEADER], "big")
                if length > BODY_MAX:
                    raise FrameTooLong(length)
                end = begin + HEADER + length
                if len(self._buffer) < end:
                    break
                body = bytes(self._buffer[begin + HEADER : end])
                begin = end
                yield body
        finally:
            # once for all of them: each time would be quadratic
            del self._buffer[:begin]

    @property
    def held(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)
