"""The readers of formats.blockreader against plain bytes, and the cache against its promises."""

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from formats import blockreader, files
from formats.blockreader import (
    BlockCache,
    BlockReader,
    BytesReader,
    ConcatReader,
    Extent,
    FileReader,
    SliceReader,
    ZeroReader,
    merge_extents,
)
from formats.errors import DamagedError, ReadError
from tests.formats.reader_contract import check_reader


class Model(NamedTuple):
    """What a reader should show: its bytes, and for each byte whether it is data."""

    data: bytes
    is_data: bytes  # 1 or 0

    def extents(self, offset: int, length: int) -> list[Extent]:
        found: list[Extent] = []
        for place in range(offset, offset + length):
            state = bool(self.is_data[place])
            if found and found[-1].is_data == state:
                found[-1] = found[-1]._replace(length=found[-1].length + 1)
            else:
                found.append(Extent(place, 1, state))
        return found


def nested(chance: random.Random, folder: Path, depth: int) -> tuple[BlockReader, Model]:
    """Make a random reader of readers, and its model."""
    kinds = ["bytes", "zero", "file"] if depth == 0 else ["slice", "concat", "placed"]
    match chance.choice(kinds):
        case "zero":
            size = chance.randint(0, 3000)
            return ZeroReader(size), Model(bytes(size), bytes(size))
        case "bytes":
            data = chance.randbytes(chance.randint(0, 3000))
            return BytesReader(data), Model(data, b"\1" * len(data))
        case "file":
            data = chance.randbytes(chance.randint(0, 3000))
            path = folder / f"{chance.getrandbits(64):x}"
            path.write_bytes(data)
            return FileReader(path), Model(data, b"\1" * len(data))
        case "slice":
            lower, model = nested(chance, folder, depth - 1)
            start = chance.randint(0, lower.size)
            size = chance.randint(0, lower.size - start)
            return SliceReader(lower, start, size), Model(*(part[start : start + size] for part in model))
        case "concat":
            pieces = [nested(chance, folder, depth - 1) for _ in range(chance.randint(0, 5))]
            models = [model for _, model in pieces]
            joined = Model(b"".join(m.data for m in models), b"".join(m.is_data for m in models))
            return ConcatReader([reader for reader, _ in pieces]), joined
    placed, position, data, is_data = [], 0, b"", b""
    for _ in range(chance.randint(0, 5)):
        gap = chance.choice((0, 1, chance.randint(0, 2000)))
        reader, model = nested(chance, folder, depth - 1)
        placed.append((position + gap, reader))
        data += bytes(gap) + model.data
        is_data += bytes(gap) + model.is_data
        position += gap + reader.size
    rest = chance.choice((0, 500))
    chance.shuffle(placed)
    placed.sort(key=lambda item: item[0] + item[1].size if item[1].size else item[0])
    whole = Model(data + bytes(rest), is_data + bytes(rest))
    return ConcatReader.from_placed(position + rest, placed), whole


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FileReader]]:
    """Close every FileReader at the end of a test."""
    readers: list[FileReader] = []
    make = FileReader.__init__

    def remember(self: FileReader, path: Path) -> None:
        make(self, path)
        readers.append(self)

    monkeypatch.setattr(FileReader, "__init__", remember)
    yield readers
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.usefixtures("opened")
def test_nested_readers(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    reader, model = nested(chance, tmp_path, seed % 4)
    check_reader(reader, model.data, seed, longest=1500, reads=100)
    assert list(reader.extents()) == model.extents(0, reader.size)
    for _ in range(8):
        offset = chance.randint(0, reader.size)
        length = chance.randint(0, reader.size - offset)
        assert list(reader.extents(offset, length)) == model.extents(offset, length)
        assert list(reader.extents(offset)) == model.extents(offset, reader.size - offset)


def test_file_reader_puts_short_reads_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(2).randbytes(50_000)
    (tmp_path / "file").write_bytes(data)
    real = files.read_at
    monkeypatch.setattr(
        blockreader, "read_at", lambda fd, length, offset: real(fd, min(length, 1000), offset)
    )
    with FileReader(tmp_path / "file") as reader:
        assert reader.read_at(10, 49_000) == data[10:49_010]


@pytest.mark.parametrize("left", [0, 1, 4999])
def test_truncated_file_is_damage(left: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    with FileReader(path) as reader:
        os.truncate(path, left)
        assert reader.read_at(0, left) == bytes(left)
        for offset, length in ((0, 5000), (left, 1), (4999, 1), (max(0, left - 1), 2)):
            with pytest.raises(DamagedError, match="ends at") as caught:
                SliceReader(reader, 0, 5000).read_at(min(offset, 5000 - length), length)
            assert caught.value.path == path


def test_file_errors_are_read_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReadError, match=r"absent: .+") as caught:
        FileReader(tmp_path / "absent")
    assert caught.value.path == tmp_path / "absent"
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    (tmp_path / "file").write_bytes(bytes(5000))

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with FileReader(tmp_path / "file") as reader:
        monkeypatch.setattr(blockreader, "read_at", fail)
        with pytest.raises(ReadError, match=r"Input/output error at 7\+3"):
            reader.read_at(7, 3)
        monkeypatch.undo()


def test_impossible_readers_are_refused() -> None:
    lower = BytesReader(bytes(100))
    for offset, size in ((-1, 1), (0, -1), (0, 101), (100, 1), (101, 0)):
        with pytest.raises(ValueError, match="slice"):
            SliceReader(lower, offset, size)
    with pytest.raises(ValueError, match="bytes"):
        ZeroReader(-1)
    for placed in ([(0, lower), (99, lower)], [(101, lower)], [(-1, lower)]):
        with pytest.raises(ValueError, match="piece"):
            ConcatReader.from_placed(200, placed)


def test_extents_merge_only_neighbours() -> None:
    runs = [Extent(0, 1, True), Extent(1, 2, True), Extent(3, 1, False), Extent(9, 1, False)]
    assert list(merge_extents(iter(runs))) == [Extent(0, 3, True), Extent(3, 1, False), Extent(9, 1, False)]


def test_cache_is_bounded_and_forgets_the_oldest() -> None:
    cache = BlockCache(100)
    decoded: list[int] = []

    def get(key: int) -> bytes:
        def decode() -> bytes:
            decoded.append(key)
            return bytes([key]) * 30

        return cache.get_or_decode(key, decode)

    for key in (1, 2, 3, 1, 4):  # 4 pushes 2 out, the one that was used least recently
        assert get(key) == bytes([key]) * 30
        assert cache.used <= 100
    assert decoded == [1, 2, 3, 4]
    assert cache.get(2) is None
    assert cache.get(3) == bytes([3]) * 30  # now 1 is the oldest
    get(5)
    assert cache.get(1) is None
    assert cache.used == 90
    chance = random.Random(3)
    for _ in range(500):
        size = chance.randint(0, 60)
        cache.get_or_decode(chance.randint(10, 40), lambda size=size: bytes(size))  # type: ignore[misc]
        assert cache.used <= 100


def test_block_larger_than_the_cache_is_returned_and_not_kept() -> None:
    cache = BlockCache(10)
    assert cache.get_or_decode("a", lambda: bytes(11)) == bytes(11)
    assert cache.used == 0
    assert cache.get("a") is None


def test_block_is_decoded_once_for_many_threads() -> None:
    cache = BlockCache(1 << 20)
    calls: list[int] = []
    start, release = threading.Barrier(9), threading.Event()

    def decode() -> bytes:
        calls.append(1)
        assert release.wait(10)
        return b"block"

    def ask(_: int) -> bytes:
        start.wait(10)
        return cache.get_or_decode("key", decode)

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, number) for number in range(8)]
        start.wait(10)
        release.set()
        assert [answer.result(10) for answer in answers] == [b"block"] * 8
    assert len(calls) == 1
    assert cache.used == 5


def test_failed_decode_reaches_all_that_wait_and_is_not_kept() -> None:
    cache = BlockCache(1 << 20)
    inside, release = threading.Event(), threading.Event()
    damage = DamagedError("block 7: hash differs")

    def fail() -> bytes:
        inside.set()
        assert release.wait(10)
        raise damage

    def never() -> bytes:
        raise AssertionError("a second decode began while the first was under way")

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.get_or_decode, "key", fail)
        assert inside.wait(10)
        entered = threading.Semaphore(0)

        def wait_for_it() -> bytes:
            entered.release()
            return cache.get_or_decode("key", never)

        waiting = [pool.submit(wait_for_it) for _ in range(3)]
        for _ in waiting:
            assert entered.acquire(timeout=10)
        threading.Event().wait(0.1)  # from entered to waiting is a few instructions
        release.set()
        assert [future.exception(10) for future in (first, *waiting)] == [damage] * 4
    assert cache.get("key") is None
    assert cache.used == 0
    assert cache.get_or_decode("key", lambda: b"fine") == b"fine"


def test_cache_under_load() -> None:
    cache = BlockCache(5000)

    def work(seed: int) -> bool:
        chance = random.Random(seed)
        good = True
        for _ in range(2000):
            key = chance.randint(0, 99)
            good &= cache.get_or_decode(key, lambda key=key: bytes([key]) * 100) == bytes([key]) * 100  # type: ignore[misc]
            good &= cache.used <= 5000
        return good

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert cache.used == sum(len(cache.get(key) or b"") for key in range(100))
