"""Huge sparse data, as the change journal $Extend/$UsnJrnl:$J is, and the valid data length."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.ntfs_wof import mounted_with_streams
from fixtures.partition_tables import MIB
from fixtures.tools import MissingToolError
from fixtures.volumes import make_ntfs
from formats.blockreader import FileReader
from imagefs.filesystems.base import VolumeOptions
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.data import open_attribute
from imagefs.filesystems.ntfs.layout import AttributeType
from imagefs.filesystems.ntfs.mft import find
from imagefs.readahead import ReadAheadHandle
from tests.conftest import missing

SIZE = (1 << 40) + 4096 * 5 + 17
FEW = (0, 1 << 33, (1 << 39) + 4096, SIZE - 5000)
MANY = 4000  # runs
STEP = 1 << 26


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        path = make_ntfs(tmp_path_factory.mktemp("sparse") / "sparse.volume", 64 * MIB, "sparse")
        with mounted_with_streams(path) as root:
            (root / "journal").write_bytes(b"")
            with Path(f"{root / 'journal'}:$J").open("wb", buffering=0) as file:
                for number, offset in enumerate(FEW):
                    file.seek(offset)
                    file.write(noise(number, 0, 5000))
            with Path(f"{root / 'journal'}:$Many").open("wb", buffering=0) as file:
                for number in range(MANY):
                    file.seek(number * STEP)
                    file.write(noise(number, 0, 4096))
    except MissingToolError as error:
        missing(str(error))
    return path


@pytest.fixture
def volume(built: Path) -> Iterator[NtfsFileSystem]:
    with FileReader(built) as reader:
        yield NtfsFileSystem(reader)


def test_a_few_runs_in_a_tebibyte(volume: NtfsFileSystem) -> None:
    reader = volume.open(volume.lookup(volume.root, "journal:$J"))
    assert reader.size == SIZE
    for number, offset in enumerate(FEW):
        assert reader.read_at(offset, 5000) == noise(number, 0, 5000)
    assert reader.read_at(1 << 38, MIB) == bytes(MIB)
    data = [extent for extent in reader.extents() if extent.is_data]
    assert sum(extent.length for extent in data) < 20 * 5000
    for offset in FEW:
        assert any(extent.offset <= offset and offset + 5000 <= extent.end for extent in data)
    handle = ReadAheadHandle(reader)
    assert handle.next_data(1 << 34) == (1 << 39) + 4096
    assert handle.next_hole(0) == 8192
    handle.close()


def test_thousands_of_runs(volume: NtfsFileSystem) -> None:
    started = time.process_time()
    inode = volume.lookup(volume.root, "journal:$Many")
    for _ in range(5):
        reader = volume.open(inode)
        for number in range(0, MANY, 97):
            assert reader.read_at(number * STEP, 4096) == noise(number, 0, 4096)
            assert reader.read_at(number * STEP + STEP // 2, 4096) == bytes(4096)
    starts = [extent.offset for extent in reader.extents() if extent.is_data]
    assert starts == [number * STEP for number in range(MANY)]
    assert all(first.end == second.offset for first, second in pairwise(reader.extents()))
    assert time.process_time() - started < 5


@pytest.mark.parametrize("valid", [0, 1, 4095, 4096, 4097, 5000])
def test_valid_data_length(volume: NtfsFileSystem, valid: int) -> None:
    """What is beyond it is stored, but of what was there before."""
    record = volume._mft.record(volume.lookup(volume.root, "journal"))
    extents = find(volume._mft.attributes(record), AttributeType.DATA, "$J")
    extents[0] = extents[0]._replace(initialized=valid)
    reader = open_attribute(volume._mft, extents, "stream", VolumeOptions())
    assert reader.size == SIZE
    assert reader.read_at(0, 10_000) == noise(0, 0, 5000)[:valid] + bytes(10_000 - valid)
    assert sum(extent.length for extent in reader.extents() if extent.is_data) == valid
