"""What a guest that has been taken over says on the control stream: a status, or an error."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Agent, Command, _Role, _Type

KINDS = st.sampled_from(list(_Type)) | st.integers(0, 2**32 - 1)
#: as long as the type's own, or not
LENGTHS = (4, 16, 32, 160)
PAYLOADS = st.binary(max_size=200) | st.sampled_from(LENGTHS).flatmap(
    lambda size: st.binary(min_size=size, max_size=size)
)


def frame(kind: int, payload: bytes, length: int | None = None) -> bytes:
    return struct.pack("=2I", kind, len(payload) if length is None else length) + payload


FRAMES = st.builds(frame, KINDS, PAYLOADS, st.none() | st.integers(0, 2**32 - 1))
STARTED = frame(_Type.STARTED, struct.pack("=I", 7))


def exited(status: int) -> bytes:
    return frame(_Type.EXITED, struct.pack("=2I2Q2I", status, 0, 5, 6, 7, 0))


def heard(said: bytes) -> int:
    """The status that a command comes to whose guest says that, and no more."""
    ours, theirs = socket.socketpair()
    with Command({_Role.CONTROL: ours}) as command, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        return command.wait()


def test_control() -> None:
    assert heard(STARTED + exited(255)) == 255


@given(st.lists(FRAMES, max_size=6), st.binary(max_size=12))
@example([STARTED, exited(256)], b"")
@example([exited(2**32 - 1)], b"")
@example([frame(_Type.FAILED, struct.pack("=IiII", 1, -5, 2**32 - 1, 2**32 - 1) + b"\xff")], b"")
def test_any_frames(frames: list[bytes], rest: bytes) -> None:
    try:
        status = heard(b"".join(frames) + rest)
    except NsrunError:
        return
    assert 0 <= status <= 255


@given(st.binary(max_size=64))
def test_any_bytes(said: bytes) -> None:
    with pytest.raises(NsrunError):
        heard(said)


@given(st.lists(FRAMES, max_size=2), st.binary(max_size=30))
def test_any_answer_to_a_question(frames: list[bytes], first: bytes) -> None:
    """Of which only an answer of the right length counts."""
    ours, theirs = socket.socketpair()

    def say() -> None:
        # the asker may be content, or have enough, before all is said
        with theirs, suppress(ConnectionResetError, BrokenPipeError):
            theirs.sendall(first + b"".join(frames))
            theirs.shutdown(socket.SHUT_WR)
            while theirs.recv(4096):
                pass

    guest = threading.Thread(target=say)
    guest.start()
    try:
        info = Agent(lambda _port, _patience: ours).info()
    except NsrunError:
        return
    finally:
        guest.join()
    assert first[:1] == b"\0"
    assert "\0" not in info.release + info.machine
