"""Reading raw devices and files: every range, past the cache or not, and the exact unit that fails."""

from __future__ import annotations

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB, create_file
from fixtures.volumes import loop_device
from formats.blockreader import Extent
from imagefs.errors import SourceReadError
from imagefs.machine.rawreader import RawReader
from tests.imagefs.imaging.attached import need_root

SIZE = 9 * MIB + 1000


def opened(path: Path, *, direct: bool = False, unit: int = 512) -> RawReader:
    return RawReader(os.open(path, os.O_RDONLY), path, direct=direct, unit=unit)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "file.raw"
    path.write_bytes(noise(8, 0, SIZE))
    return path


@pytest.mark.parametrize("direct", [False, True])
def test_every_range(file: Path, direct: bool) -> None:
    data = file.read_bytes()
    with opened(file, direct=direct) as reader:
        assert (reader.size, reader.direct) == (SIZE, direct)
        assert reader.read_at(0, SIZE) == data  # more than one buffer
        chance = random.Random(11)
        edges = [edge + step for edge in (512, 4096, 4 * MIB, SIZE - 4096) for step in (-1, 0, 1)]
        ranges = [(edge, length) for edge in edges for length in (1, 2)]
        for _ in range(300):
            offset = chance.randrange(SIZE)
            ranges.append((offset, chance.randrange(min(SIZE - offset, 300_000) + 1)))
        for offset, length in [*ranges, (SIZE - 1, 1), (SIZE, 0)]:
            assert reader.read_at(offset, length) == data[offset : offset + length]
            buffer = bytearray(length)
            reader.read_into(offset, memoryview(buffer))
            assert buffer == data[offset : offset + length]
        with pytest.raises(ValueError, match="outside"):
            reader.read_at(SIZE - 1, 2)


@pytest.mark.parametrize("direct", [False, True])
def test_threads(file: Path, direct: bool) -> None:
    data = file.read_bytes()
    with opened(file, direct=direct) as reader, ThreadPoolExecutor(6) as threads:
        starts = [random.Random(number).randrange(SIZE - 70_000) for number in range(400)]
        found = threads.map(lambda start: reader.read_at(start, 70_000), starts)
        assert all(piece == data[start : start + 70_000] for start, piece in zip(starts, found, strict=True))


def test_a_file_system_that_has_no_direct_reads() -> None:
    """What sysfs answers is made when it is asked for."""
    path = Path("/sys/kernel/uevent_seqnum")
    reader = opened(path, direct=True)
    assert not reader.direct
    reader.close()


def test_refused_direct_reads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems take the flag, and refuse each read."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "preadv", refuse)
    with opened(file, direct=True) as reader:
        assert not reader.direct
        assert reader.read_at(5, 1000) == file.read_bytes()[5:1005]


def test_holes(tmp_path: Path) -> None:
    path = create_file(tmp_path / "sparse.raw", 4 * MIB)
    with path.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(b"x" * MIB)
    with opened(path) as reader:
        assert list(reader.extents()) == [
            Extent(0, MIB, False),
            Extent(MIB, MIB, True),
            Extent(2 * MIB, 2 * MIB, False),
        ]
        assert list(reader.extents(MIB + 5, 10)) == [Extent(MIB + 5, 10, True)]
        assert list(reader.extents(MIB - 5, 10)) == [Extent(MIB - 5, 5, False), Extent(MIB, 5, True)]
        assert list(reader.extents(3 * MIB, MIB)) == [Extent(3 * MIB, MIB, False)]


@pytest.mark.parametrize(("direct", "unit"), [(False, 4096), (True, 512)])
def test_the_unit_that_fails(tmp_path: Path, direct: bool, unit: int) -> None:
    """A loop device whose file was cut short fails to read what is gone."""
    need_root()
    path = tmp_path / "disk.raw"
    data = noise(1, 0, 8 * MIB)
    path.write_bytes(data)
    with loop_device(path) as node, opened(node, direct=direct) as reader:
        bad = 3 * MIB + 20_480
        os.truncate(path, bad)
        for offset, length in ((0, 8 * MIB), (3 * MIB, MIB), (bad - 1, 2), (bad - 5000, 9000)):
            with pytest.raises(SourceReadError) as failed:
                reader.read_at(offset, length)
            with pytest.raises(SourceReadError) as into:
                reader.read_into(offset, memoryview(bytearray(length)))
            lost = failed.value.offset, failed.value.length
            assert (into.value.offset, into.value.length) == lost
            assert lost == (bad, min(unit, offset + length - bad)), (offset, length)
            assert f"at {bad}+" in str(failed.value)
            assert failed.value.path == node
        assert reader.read_at(3 * MIB, 20_480) == data[3 * MIB : bad]
        with pytest.raises(SourceReadError) as failed:
            reader.read_at(5 * MIB + 100, 10_000)
        assert (failed.value.offset, failed.value.length) == (5 * MIB + 100, unit - 100)


def test_a_failure_that_passes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = os.pread, iter([True])

    def once(fd: int, length: int, offset: int) -> bytes:
        if next(failures, False):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", once)
    with opened(file) as reader, pytest.raises(SourceReadError) as failed:
        reader.read_at(1000, 100_000)
    assert (failed.value.offset, failed.value.length) == (1000, 100_000)


def test_a_file_cut_short(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "file.raw"
    path.write_bytes(file.read_bytes())
    with opened(path) as reader:
        os.truncate(path, 5000)
        with pytest.raises(SourceReadError, match="ends at 5000") as failed:
            reader.read_at(4000, 2000)
        assert (failed.value.offset, failed.value.length) == (5000, 1000)


def test_a_closed_reader(file: Path) -> None:
    reader = opened(file)
    reader.close()
    reader.close()
    with pytest.raises(SourceReadError, match="Bad file descriptor"):
        reader.read_at(0, 1)
