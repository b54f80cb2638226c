"""The process that reads a nested volume: what it does to itself, and that nothing of it is left."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from formats.blockreader import BlockReader, FileReader
from formats.errors import DamagedError, ReadError
from imagefs.errors import SourceReadError
from imagefs.filesystems.nested import isolated
from imagefs.filesystems.nested import worker as worker_module
from imagefs.filesystems.nested.isolated import Isolated, IsolatedReader
from imagefs.filesystems.nested.worker import HEADER, JSON


class Interrupted(BlockReader):
    """A reader that does something before it answers."""

    def __init__(self, lower: BlockReader) -> None:
        super().__init__(lower.size)
        self._lower = lower
        self.before: Callable[[int], None] = lambda _: None

    def _read(self, offset: int, length: int) -> bytes:
        self.before(offset)
        return self._lower.read_at(offset, length)


@pytest.fixture
def lower(shadowed_raw: Path) -> Iterator[Interrupted]:
    with FileReader(shadowed_raw) as reader:
        yield Interrupted(reader)


def read_all(reader: BlockReader) -> None:
    for at in range(0, reader.size, 1 << 20):
        reader.read_at(at, min(1 << 20, reader.size - at))


def opened(lower: BlockReader) -> tuple[Isolated, IsolatedReader]:
    found = Isolated("shadows", [lower], "disk0/p1")
    return found, IsolatedReader(found, 0, found.told["stores"][0]["size"])


def test_a_worker_that_is_killed_while_it_reads(lower: Interrupted) -> None:
    worker, reader = opened(lower)
    lower.before = lambda _: worker.process.kill()
    for _ in range(3):
        with pytest.raises(DamagedError, match="disk0/p1: the library that reads it ended unexpectedly"):
            reader.read_at(500 << 20, 1 << 20)
    assert worker.process.poll() == -signal.SIGKILL


def test_a_worker_that_is_killed_while_nobody_reads(lower: Interrupted) -> None:
    worker, reader = opened(lower)
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(DamagedError, match="ended unexpectedly"):
        read_all(reader)


def test_a_worker_that_hangs(lower: Interrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, reader = opened(lower)
    monkeypatch.setattr(isolated, "PATIENCE", 0.5)
    worker.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(DamagedError, match="has not gone on"):
            reader.read_at(0, 1 << 20)
    assert 0.5 <= time.monotonic() - started < 5
    assert worker.process.poll() == -signal.SIGKILL


def test_a_worker_that_answers_a_byte_at_a_time(
    lower: Interrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte gives it no more time."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, time\n"
        f"os.write(1, {HEADER.pack(1000, JSON)!r})\n"
        "for _ in range(100):\n    time.sleep(0.1)\n    os.write(1, b' ')\n"
    )
    monkeypatch.setattr(worker_module, "__file__", str(script))
    for name in ("PATIENCE", "LONGEST"):
        monkeypatch.setattr(isolated, name, 0.5)
    with pytest.raises(DamagedError, match="has not gone on in time"):
        Isolated("shadows", [lower], "disk0/p1")


def test_a_worker_that_needs_too_much_memory(lower: Interrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "MEMORY", 0)
    with pytest.raises(DamagedError):
        Isolated("shadows", [lower], "disk0/p1")


def test_what_the_reader_raises_is_raised(lower: Interrupted) -> None:
    worker, reader = opened(lower)
    expected = reader.read_at(0, 65536)
    failure = ReadError("the cable fell out")

    def fail(offset: int) -> None:
        raise failure

    lower.before = fail
    with pytest.raises(ReadError) as caught:
        reader.read_at(500 << 20, 1 << 20)
    assert caught.value is failure
    lower.before = lambda _: None
    assert reader.read_at(0, 65536) == expected
    assert len(reader.read_at(500 << 20, 1 << 20)) == 1 << 20  # the worker goes on
    worker.close()


def raise_(error: BaseException) -> Callable[[int], None]:
    def before(offset: int) -> None:
        raise error

    return before


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_an_answer_is_never_taken_for_that_to_the_next_request(
    lower: Interrupted, *, is_interrupted: bool
) -> None:
    """Whatever ends a read: Control-C, or a fault that the formats know nothing of, as of a bad sector."""
    worker, reader = opened(lower)
    expected = reader.read_at(341 << 20, 1 << 20)
    end = KeyboardInterrupt() if is_interrupted else SourceReadError("bad", path=None, offset=0, length=512)
    lower.before = raise_(end)
    with pytest.raises(type(end)):
        reader.read_at(500 << 20, 1 << 20)
    lower.before = lambda _: None
    if is_interrupted:
        with pytest.raises(DamagedError, match="interrupted"):
            reader.read_at(341 << 20, 1 << 20)
        assert worker.process.poll() is not None
    else:
        assert reader.read_at(341 << 20, 1 << 20) == expected
    worker.close()


def test_closing_ends_the_worker_and_its_pipes(lower: Interrupted) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    worker, reader = opened(lower)
    worker.close()
    worker.close()
    assert worker.process.poll() is not None
    assert set(Path("/proc/self/fd").iterdir()) == before
    with pytest.raises(DamagedError, match="closed"):
        reader.read_at(1 << 20, 1)


def test_a_worker_ends_with_its_pipe(lower: Interrupted) -> None:
    worker, _ = opened(lower)
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(10) == 0
    worker.close()


def test_closing_while_another_thread_reads(lower: Interrupted) -> None:
    worker, reader = opened(lower)
    reading = threading.Event()
    lower.before = lambda _: reading.set()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(read_all, reader)
        assert reading.wait(10)
        worker.close()
        with pytest.raises(DamagedError):
            done.result(10)


def test_many_threads(lower: Interrupted) -> None:
    worker, reader = opened(lower)
    places = [(number * 7_654_321) % (reader.size - 100_000) for number in range(200)]
    lengths = [1 + (number * 977) % 99_000 for number in range(200)]
    expected = [reader.read_at(*place) for place in zip(places, lengths, strict=True)]
    fresh = IsolatedReader(worker, 0, reader.size)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.read_at, places, lengths)) == expected
    worker.close()
