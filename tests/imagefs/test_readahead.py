"""Decoding ahead never changes what is read, and goes no further than it should."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fixtures.content import noise
from formats.blockreader import BlockReader
from formats.errors import DamagedError
from imagefs.readahead import ReadAheadHandle

MIB = 1 << 20
SIZE = 21 * MIB + 12345
CONTENT = noise(4, 0, SIZE)


class Slow(BlockReader):
    """Bytes that take their time, remember what was read, and are damaged in one place."""

    def __init__(self, damaged: range = range(0), seconds: float = 0.0) -> None:
        super().__init__(SIZE)
        self.damaged = damaged
        self.seconds = seconds
        self.read: list[tuple[int, int]] = []
        self.running = 0
        self._lock = threading.Lock()

    def _read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self.read.append((offset, length))
            self.running += 1
        time.sleep(self.seconds)
        with self._lock:
            self.running -= 1
        if offset < self.damaged.stop and offset + length > self.damaged.start:
            raise DamagedError("damaged")
        return CONTENT[offset : offset + length]


@pytest.mark.parametrize("step", [4096, 100_000, 128 * 1024, MIB, 3 * MIB])
def test_sequential_reads(step: int) -> None:
    reader = Slow()
    with ReadAheadHandle(reader) as handle:
        for offset in range(0, SIZE, step):
            assert handle.read(offset, step) == CONTENT[offset : offset + step]
    assert sum(length for _, length in reader.read) < SIZE + 8 * MIB


def test_random_reads_are_read_as_they_are_asked_for() -> None:
    reader = Slow()
    chance = random.Random(2)
    with ReadAheadHandle(reader) as handle:
        for _ in range(300):
            offset = chance.randrange(SIZE)
            length = chance.choice((1, 4096, 65536))
            assert handle.read(offset, length) == CONTENT[offset : offset + length]
    # A few happen to lie behind one another.
    assert sum(length for _, length in reader.read) < 300 * 65536 * 2


def test_many_readers_of_one_handle() -> None:
    """As a kernel does it: sequential requests, several at once and out of order."""
    reader = Slow(seconds=0.001)
    with ReadAheadHandle(reader) as handle, ThreadPoolExecutor(8) as pool:
        offsets = list(range(0, SIZE, 128 * 1024))
        chance = random.Random(3)
        for first in range(0, len(offsets), 8):
            some = offsets[first : first + 8]
            chance.shuffle(some)
            for offset, data in zip(
                some, pool.map(lambda at: handle.read(at, 128 * 1024), some), strict=True
            ):
                assert data == CONTENT[offset : offset + 128 * 1024]


def test_damage_spoils_only_what_it_lies_in() -> None:
    reader = Slow(damaged=range(5 * MIB + 1000, 5 * MIB + 1001))
    with ReadAheadHandle(reader) as handle:
        for offset in range(0, SIZE, 65536):
            if offset <= 5 * MIB + 1000 < offset + 65536:
                with pytest.raises(DamagedError):
                    handle.read(offset, 65536)
            else:
                assert handle.read(offset, 65536) == CONTENT[offset : offset + 65536]


def test_the_ends_of_a_file() -> None:
    with ReadAheadHandle(Slow()) as handle:
        assert handle.read(SIZE - 10, 100) == CONTENT[-10:]
        assert handle.read(SIZE, 1) == b""
        assert handle.read(SIZE + 5, 1) == b""
        assert handle.read(0, 0) == b""


def test_closing_gives_up_what_was_to_come() -> None:
    reader = Slow(seconds=0.05)
    handle = ReadAheadHandle(reader)
    handle.read(0, 512 * 1024)
    handle.read(512 * 1024, 512 * 1024)
    handle.close()
    done = len(reader.read)
    time.sleep(0.3)
    assert len(reader.read) <= done + 4  # those that workers had begun


@pytest.mark.parametrize("jump", [0, SIZE - 6 * MIB])
def test_nothing_is_being_read_after_close(jump: int) -> None:
    """The image is closed next: who read then would open it again."""
    reader = Slow(seconds=0.1)
    with ReadAheadHandle(reader) as handle:
        handle.read(0, 512 * 1024)  # has what follows decoded; a jump gives that up
        handle.read(jump, MIB)
        handle.read(jump + MIB, MIB)
        assert reader.running
    assert not reader.running
