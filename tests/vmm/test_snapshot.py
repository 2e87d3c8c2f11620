"""Machines that are saved, restored and forked, with small guests."""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import pytest
from snaplib import NOT_SAVED, SAVED, Clone, restored, save, saved, zygote
from vmmlib import (
    ENDED,
    HANG,
    HERE,
    PAUSE,
    PAUSED,
    RECORD,
    RESUME,
    RESUMED,
    RUNNING,
    VMM,
    Monitor,
    Record,
    monitor,
)

Guest = Callable[[str], Path]
MIB = 1 << 20
PAGE = 4096
#: of clones, at random moments
KILLS = int(os.environ.get("NSRUN_KILLS", "20"))
HEADER = 24
#: bytes behind the header
CLOCK_AT, CLOCK_BYTES = 8, 48
CHIP_BYTES, CHIPS, SERIAL_BYTES = 520, 3, 8
DEVICES_AT = CLOCK_AT + CLOCK_BYTES + CHIPS * CHIP_BYTES + SERIAL_BYTES
TSC = 0x10


class HasConsole(Protocol):
    @property
    def console(self) -> Path: ...


def lines(machine: HasConsole) -> list[str]:
    """The whole lines that it has said."""
    return machine.console.read_text().rpartition("\n")[0].splitlines()


def wait_for(machine: Monitor | Clone, n: int) -> list[str]:
    """Until it has said so many lines."""
    while len(said := lines(machine)) < n:
        if isinstance(machine, Monitor):
            assert machine.process.poll() is None, machine.finish()
        time.sleep(0.001)
    return said


@pytest.fixture(scope="module")
def counting(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A machine that was saved while it counted, and the first number that it had not said yet."""
    with monitor(guest("count"), "--memory", "16") as machine:
        machine.expect(RUNNING)
        wait_for(machine, 10)
        file = saved(machine, tmp_path_factory.mktemp("counting") / "file")
        return file, len(lines(machine))


def state_bytes(data: bytes | bytearray) -> bytes:
    """The part before the memory."""
    (length,) = struct.unpack_from("=I", data, 12)
    return bytes(data[: HEADER + length])


def state_of(file: Path) -> bytes:
    """The same of a file."""
    return state_bytes(file.read_bytes())


def checksum(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


def with_state(file: Path, state: bytes, to: Path) -> Path:
    """The same machine with another state of the same size, whose checksum is right."""
    rest = file.read_bytes()[len(state) :]
    to.write_bytes(state[:16] + struct.pack("=Q", checksum(state[HEADER:])) + state[HEADER:] + rest)
    return to


def refusal(file: Path, *options: str) -> str:
    """What the monitor says that does not restore it."""
    with restored(file, *options) as machine:
        ended = machine.finish()
    assert ended.status == 1
    assert ended.stderr.count("\n") == 1
    assert RUNNING not in [record.type for record in ended.records]
    return ended.stderr.strip()


# --- what is kept -----------------------------------------------------------------------------


def test_it_goes_on(counting: tuple[Path, int]) -> None:
    file, first = counting
    for _ in range(2):
        with restored(file) as machine:
            machine.expect(RUNNING)
            # a line that was begun before is ended after; it was said up to there
            said = wait_for(machine, 20)
        assert said[1:20] == [str(number) for number in range(first + 1, first + 20)]
        assert str(first).endswith(said[0])


def test_the_saved_one_goes_on(guest: Guest, tmp_path: Path) -> None:
    with monitor(guest("count"), "--memory", "16") as machine:
        machine.expect(RUNNING)
        wait_for(machine, 5)
        saved(machine, tmp_path / "file")
        n = len(lines(machine))
        machine.send(RESUME)
        machine.expect(RESUMED)
        said = wait_for(machine, n + 20)
    assert said == [str(number) for number in range(len(said))]


def test_clones_share_nothing(counting: tuple[Path, int], tmp_path: Path) -> None:
    """Each counts in its own memory, and none in the file's."""
    file, first = counting
    before = file.read_bytes()
    with zygote(file, tmp_path) as mother:
        clones = [mother.fork() for _ in range(8)]
        for clone in clones:
            clone.expect(RUNNING)
        for clone in clones:
            said = wait_for(clone, 20)
            assert said[1:20] == [str(number) for number in range(first + 1, first + 20)]
            assert clone.messages.read_text() == ""
            clone.close()
    assert file.read_bytes() == before


def without_time(data: bytearray, cpus: int) -> None:
    """Take out what tells the time: the clock, and each processor's time stamp counter."""
    data[16 : HEADER + CLOCK_AT + CLOCK_BYTES] = bytes(HEADER + CLOCK_AT + CLOCK_BYTES - 16)
    at, found = len(state_bytes(data)), 0
    while (at := data.rfind(struct.pack("=II", TSC, 0), 0, at)) >= 0:
        data[at + 8 : at + 16] = bytes(8)
        found += 1
    assert found >= cpus


@pytest.mark.parametrize("cpus", [1, 2])
def test_round_trip(guest: Guest, tmp_path: Path, cpus: int) -> None:
    """What is restored and saved at once is the same but for time, byte by byte."""
    devices = ("--rng", "--vsock", "3")
    # what was under way when it was saved, a request or an interrupt, is seen to after the restore
    for number in range(100):
        directory = tmp_path / str(number)
        directory.mkdir()
        with monitor(guest("several"), "--memory", "16", "--cpus", str(cpus), *devices) as machine:
            machine.expect(RUNNING)
            wait_for(machine, 10)
            first = saved(machine, directory / "first")
        with restored(first, "--paused", *devices) as machine:
            machine.expect(PAUSED)
            second = saved(machine, directory / "second")
        before, after = (bytearray(path.read_bytes()) for path in (first, second))
        for data in (before, after):
            without_time(data, cpus)
        if before == after:
            break
    length = len(state_bytes(before))
    assert before[length:] == after[length:]
    assert [at for at in range(length) if before[at] != after[at]] == []


def test_processors_and_devices(guest: Guest, tmp_path: Path) -> None:
    """Both processors go on, and so does the queue; clones get other random numbers."""
    with monitor(guest("several"), "--memory", "16", "--cpus", "2", "--rng") as machine:
        machine.expect(RUNNING)
        wait_for(machine, 10)
        file = saved(machine, tmp_path / "file")
        last = lines(machine)[-1].split()
    drawn = set()
    for _ in range(3):
        with restored(file, "--rng") as machine:
            machine.expect(RUNNING)
            said = [line.split() for line in wait_for(machine, 12)[1:]]
        numbers = [int(words[0]) for words in said]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert numbers[0] == int(last[0]) + 2
        assert len({words[1] for words in said}) > 1
        drawn.add(said[-1][2])
    assert len(drawn) == 3


def test_memory_is_sparse(guest: Guest, tmp_path: Path) -> None:
    with monitor(guest("count"), "--memory", "1024") as machine:
        machine.expect(RUNNING)
        wait_for(machine, 5)
        file = saved(machine, tmp_path / "file")
    found = file.stat()
    assert found.st_size > 1024 * MIB
    assert found.st_blocks * 512 < MIB


def test_memory_above_the_hole(guest: Guest, tmp_path: Path) -> None:
    with monitor(guest("count"), "--memory", "4096") as machine:
        machine.expect(RUNNING)
        wait_for(machine, 5)
        file = saved(machine, tmp_path / "file")
        n = len(lines(machine))
    with restored(file) as machine:
        assert wait_for(machine, 5)[1] == str(n + 1)


# --- what can't be saved ----------------------------------------------------------------------


def refused(machine: Monitor, file: BinaryIO) -> int:
    answer = save(machine, file)
    assert answer.type == NOT_SAVED
    return answer.port


def test_only_while_paused(guest: Guest, tmp_path: Path) -> None:
    with monitor(guest("count"), "--memory", "16") as machine:
        machine.expect(RUNNING)
        with (tmp_path / "file").open("xb") as file:
            assert refused(machine, file) == errno.EINVAL
            assert (tmp_path / "file").stat().st_size == 0
            machine.send(PAUSE)
            machine.expect(PAUSED)
            assert save(machine, file).type == SAVED
        machine.control.close()
        assert machine.process.stderr is not None
        assert "the machine isn't paused" in machine.process.stderr.read().decode()


def test_files_that_do_not_do(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(b"x")
    with monitor(guest("count"), "--memory", "16") as machine:
        machine.expect(RUNNING)
        machine.send(PAUSE)
        machine.expect(PAUSED)
        with (tmp_path / "full").open("r+b") as file:
            assert refused(machine, file) == errno.EINVAL
        with open(os.devnull, "r+b") as file:
            assert refused(machine, file) == errno.EINVAL
        (tmp_path / "empty").touch()
        with (tmp_path / "empty").open("rb") as file:
            assert refused(machine, file) == errno.EBADF
        # and nothing of it harmed the machine
        saved(machine, tmp_path / "file")


def test_a_disk_that_is_written_to(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    with (tmp_path / "disk").open("r+b") as disk, (tmp_path / "file").open("xb") as file:
        option = ("--blk", str(disk.fileno()))
        with monitor(guest("count"), *option, fds=[disk.fileno()]) as machine:
            machine.expect(RUNNING)
            machine.send(PAUSE)
            machine.expect(PAUSED)
            assert refused(machine, file) == errno.EBUSY
            machine.control.close()
            assert machine.process.stderr is not None
            assert "blk: only a machine whose disks" in machine.process.stderr.read().decode()


# --- what can't be restored -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, b"X", "no saved machine"),
        (8, b"\xff", "another version"),
        (12, b"\xff\xff\xff\xff", "cut short"),
        (16, b"\x00" * 8, "damaged"),
        (HEADER + 1, b"\x01", "damaged"),
        (HEADER + 3000, b"\x5a\xa5", "damaged"),
    ],
    ids=["magic", "version", "length", "checksum", "memory", "registers"],
)
def test_damaged(
    counting: tuple[Path, int], tmp_path: Path, at: int, value: bytes, why: str
) -> None:
    data = bytearray(counting[0].read_bytes())
    assert data[at : at + len(value)] != value
    data[at : at + len(value)] = value
    (tmp_path / "file").write_bytes(data)
    assert why in refusal(tmp_path / "file")


@pytest.mark.parametrize("keep", [0, 1, HEADER - 1, HEADER, 5000, -1, -PAGE])
def test_cut_short(counting: tuple[Path, int], tmp_path: Path, keep: int) -> None:
    (tmp_path / "file").write_bytes(counting[0].read_bytes()[:keep])
    message = refusal(tmp_path / "file")
    words = ("cut short", "no saved machine", "size of the saved memory")
    assert any(word in message for word in words)


@pytest.mark.usefixtures("kvm")
def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    end = os.open(tmp_path / "fifo", os.O_RDWR)
    try:
        assert "not a file" in refusal(Path(f"/proc/self/fd/{end}"))
    finally:
        os.close(end)


def put(state: bytes, at: int, value: bytes) -> bytes:
    return state[:at] + value + state[at + len(value) :]


#: of a device, behind its id
STATUS, ACKED, RUNNING_FLAG, N_QUEUES, QUEUE = 4, 32, 40, 41, 45
DEVICE = HEADER + DEVICES_AT + 4


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (HEADER, bytes(8), "the size of the memory"),
        (HEADER, struct.pack("=Q", 1 << 60), "the size of the memory"),
        (HEADER, struct.pack("=Q", 17 * MIB), "not the size of the saved memory"),
        (DEVICE - 4, struct.pack("=I", 17), "the number of devices"),
        (DEVICE, struct.pack("=I", 2), "another device"),
        (DEVICE + STATUS, struct.pack("=I", 4), "a state that can't be"),
        (DEVICE + STATUS, struct.pack("=I", 0x100), "a state that can't be"),
        (DEVICE + ACKED, struct.pack("=Q", 1 << 63), "a state that can't be"),
        (DEVICE + RUNNING_FLAG, b"\x02", "neither set nor clear"),
        (DEVICE + N_QUEUES, struct.pack("=I", 4), "queues"),
        (DEVICE + QUEUE, struct.pack("=Q", 1 << 40), "a queue outside the memory"),
        (DEVICE + QUEUE, struct.pack("=Q", (1 << 64) - 16), "a queue outside the memory"),
        (DEVICE + QUEUE + 24, struct.pack("=H", 3), "a queue outside the memory"),
        (DEVICE + QUEUE + 24, struct.pack("=H", 1024), "a queue outside the memory"),
    ],
)
def test_states_that_can_not_be(
    guest: Guest, tmp_path: Path, at: int, value: bytes, why: str
) -> None:
    with monitor(guest("several"), "--memory", "16", "--cpus", "2", "--rng") as machine:
        machine.expect(RUNNING)
        wait_for(machine, 3)
        file = saved(machine, tmp_path / "file")
    state = state_of(file)
    assert struct.unpack_from("=I", state, DEVICE) == (4,)
    assert why in refusal(with_state(file, put(state, at, value), tmp_path / "bad"), "--rng")


@pytest.mark.parametrize("options", [(), ("--rng",), ("--rng", "--vsock", "3", "--rng")])
def test_other_devices(guest: Guest, tmp_path: Path, options: tuple[str, ...]) -> None:
    with monitor(guest("count"), "--memory", "16", "--vsock", "3") as machine:
        machine.expect(RUNNING)
        file = saved(machine, tmp_path / "file")
    assert "--restore: " in refusal(file, *options)


@pytest.mark.parametrize(
    ("length", "why"),
    [(8, "files: they are of no device"), (1 << 23, "the size of what is known of files")],
)
def test_files_that_can_not_be(
    counting: tuple[Path, int], tmp_path: Path, length: int, why: str
) -> None:
    """Known to a machine without a file server, or more than there can be."""
    file, _ = counting
    state = state_of(file)
    at = HEADER + DEVICES_AT + 4
    assert struct.unpack_from("=I", state, at) == (0,)
    body = state[HEADER:at] + struct.pack("=I", length) + bytes(8) + state[at + 4 :]
    head = state[:12] + struct.pack("=IQ", len(body), checksum(body))
    memory = file.read_bytes()[-16 * MIB :]
    bad = tmp_path / "bad"
    bad.write_bytes((head + body).ljust(-(-len(head + body) // 4096) * 4096, b"\0") + memory)
    assert why in refusal(bad)


def test_a_state_that_kvm_refuses(counting: tuple[Path, int], tmp_path: Path) -> None:
    """The special registers of no processor."""
    file, _ = counting
    state = state_of(file)
    # no device, and no files: then the count of processors, activity, and 18 registers
    sregs = HEADER + DEVICES_AT + 4 + 4 + 4 + 4 + 18 * 8
    cr4 = sregs + 8 * 24 + 2 * 16 + 3 * 8
    assert struct.unpack_from("=Q", state, cr4) == (0x20,)
    bad = with_state(file, put(state, cr4, struct.pack("=Q", 1 << 63)), tmp_path / "bad")
    assert "KVM_SET_SREGS: Invalid argument" in refusal(bad)


# --- ends -------------------------------------------------------------------------------------


def test_a_zygote_ends_with_its_owner(counting: tuple[Path, int], tmp_path: Path) -> None:
    """What it forked ends with the owner of each."""
    with zygote(counting[0], tmp_path) as mother:
        clone = mother.fork()
        wait_for(clone, 3)
        mother.control.close()
        assert mother.process.wait(HANG) == 0
        n = len(lines(clone))
        wait_for(clone, n + 3)
        clone.close()


def test_what_is_killed(counting: tuple[Path, int], tmp_path: Path) -> None:
    """Neither a clone's end nor the zygote's is another's."""
    with zygote(counting[0], tmp_path) as mother:
        first, second = mother.fork(), mother.fork()
        wait_for(first, 3)
        os.kill(first.pid, signal.SIGKILL)
        first.close()
        third = mother.fork()
        wait_for(third, 3)
        mother.process.kill()
        mother.process.wait(HANG)
        for clone in (second, third):
            wait_for(clone, len(lines(clone)) + 3)
            clone.close()


def test_killed_at_any_time(counting: tuple[Path, int], tmp_path: Path) -> None:
    """Nothing of a clone stays with the zygote, whenever it was killed."""
    drawn = random.Random(5)
    with zygote(counting[0], tmp_path) as mother:
        mother.fork().close()
        fds = Path(f"/proc/{mother.process.pid}/fd")
        before = sorted(os.readlink(path) for path in fds.iterdir())
        for _ in range(KILLS):
            clone = mother.fork()
            time.sleep(drawn.random() / 50)
            os.kill(clone.pid, signal.SIGKILL)
            clone.close()
        assert sorted(os.readlink(path) for path in fds.iterdir()) == before
        children = Path(f"/proc/{mother.process.pid}/task/{mother.process.pid}/children")
        assert children.read_text() == ""


def test_a_paused_clone_is_saved_again(counting: tuple[Path, int], tmp_path: Path) -> None:
    file, first = counting
    with restored(file) as machine:
        machine.expect(RUNNING)
        wait_for(machine, 10)
        again = saved(machine, tmp_path / "again")
        n = len(lines(machine))
    with restored(again) as machine:
        assert wait_for(machine, 5)[1] == str(first + n + 1)


def test_words_that_are_refused_by_a_zygote(counting: tuple[Path, int], tmp_path: Path) -> None:
    for record in (RECORD.pack(PAUSE, 0, 0), RECORD.pack(32, 0, 0), b"x"):
        with zygote(counting[0], tmp_path) as mother:
            mother.control.send(record)
            _, stderr = mother.process.communicate(timeout=HANG)
        assert mother.process.returncode == 1
        assert b"something other than FORK with 3 descriptors" in stderr


OWNER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from snaplib import zygote
with zygote(Path(sys.argv[2]), Path(sys.argv[3])) as mother:
    clones = [mother.fork() for _ in range(3)]
    print(mother.process.pid, *(clone.pid for clone in clones), flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--zygote", "NULL"), "--kernel-fd or --restore is needed"),
        (("--kernel-fd", "NULL", "--zygote", "NULL"), "--zygote needs --restore"),
        (("--kernel-fd", "NULL", "--restore", "NULL"), "--kernel-fd or --restore, but not both"),
        (("--restore", "NULL"), "--control-fd is needed"),
        (("--restore", "NULL", "--zygote", "NULL", "--control-fd", "NULL"), "a control socket"),
        (("--restore", "NULL", "--zygote", "NULL", "--net", "NULL"), "share the network card"),
    ],
)
def test_usage(words: tuple[str, ...], why: str) -> None:
    assert (why, 2) == with_null(words, why)


@pytest.mark.usefixtures("kvm")
def test_a_device_is_no_file() -> None:
    why = ": not a file"
    assert (why, 1) == with_null(("--restore", "NULL", "--control-fd", "NULL"), why)


def with_null(words: tuple[str, ...], why: str) -> tuple[str, int]:
    """What the monitor says, ``why`` if that is in it, and its status; NULL is a descriptor."""
    with open(os.devnull, "rb") as null:
        done = subprocess.run(
            [VMM, *(word.replace("NULL", str(null.fileno())) for word in words)],
            capture_output=True,
            pass_fds=[null.fileno()],
            check=False,
        )
    said = done.stderr.decode()
    return why if why in said else said, done.returncode


def test_a_killed_owner_leaves_nothing(counting: tuple[Path, int], tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(HERE), str(counting[0]), str(tmp_path)],
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 4
    handles = [os.pidfd_open(pid) for pid in pids]
    owner.kill()
    owner.wait(HANG)
    owner.stdout.close()
    for handle in handles:
        Clone(0, handle, None, tmp_path, tmp_path).wait()  # type: ignore[arg-type]
        os.close(handle)


def test_the_last_word_of_a_clone(counting: tuple[Path, int], tmp_path: Path) -> None:
    """Its owner goes, or sends nonsense."""
    with zygote(counting[0], tmp_path) as mother:
        clone = mother.fork()
        clone.expect(RUNNING)
        clone.control.send(b"nonsense")
        assert clone.receive() == Record(ENDED, 3)
        clone.close()
        assert "a record is not of 16 bytes" in clone.messages.read_text()
