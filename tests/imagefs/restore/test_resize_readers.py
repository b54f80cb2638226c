"""Readers of used bytes, of changed bytes, and of a volume shown as a file, against plain bytes."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from fixtures.content import noise
from fixtures.tools import MissingToolError
from formats.blockreader import BlockReader, BytesReader, ConcatReader, ZeroReader
from formats.errors import DamagedError
from imagefs.imaging.used_space.base import Facts, Runs, WholeVolume
from imagefs.restore.exposed import copied, exposed
from imagefs.restore.moved import PatchedReader
from imagefs.restore.used import UsedReader
from tests.formats.reader_contract import check_reader

MIB = 1 << 20


class Listed(WholeVolume):
    """A volume of which some runs are used."""

    def __init__(self, size: int, runs: list[tuple[int, int]], sector_size: int) -> None:
        super().__init__(size, Facts("test", sector_size=sector_size))
        self._runs = np.array(runs, np.int64)

    def runs(self, offset: int, length: int) -> Runs:
        clipped = np.clip(self._runs, offset, offset + length)
        return clipped[clipped[:, 0] < clipped[:, 1]]


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_what_is_free_reads_as_zeros(sector_size: int) -> None:
    size = 2 * MIB + 5 * 512
    runs = [(0, 3), (5000, 70_000), (70_100, 70_200), (200_000, MIB), (MIB + 9000, MIB + 9001)]
    runs.append((size - 1, size))
    data = noise(1, 0, size)
    expected = bytearray(size)
    for start, end in runs:
        first, last = start // sector_size * sector_size, min(size, -(-end // sector_size) * sector_size)
        expected[first:last] = data[first:last]
    reader = UsedReader(BytesReader(data), Listed(size, runs, sector_size))
    edges = [edge for run in runs for edge in run]
    check_reader(reader, bytes(expected), 1, edges=edges)
    buffer = memoryview(bytearray(b"\xff" * size))
    reader.read_into(0, buffer)
    assert buffer == expected
    fine = UsedReader(BytesReader(data), Listed(size, runs, sector_size), 512)
    coarse, exact = (
        sum(extent.length for extent in each.extents() if extent.is_data) for each in (reader, fine)
    )
    assert exact <= coarse
    assert (exact < coarse) == (sector_size > 512)


def test_holes_below_stay_holes() -> None:
    data = noise(2, 0, 8192)
    lower = ConcatReader([BytesReader(data), ZeroReader(MIB), BytesReader(data)])
    reader = UsedReader(lower, Listed(lower.size, [(4096, lower.size - 4096)], 512))
    extents = [(extent.offset, extent.length) for extent in reader.extents() if extent.is_data]
    assert extents == [(4096, 4096), (8192 + MIB, 4096)]


def test_changed_bytes_are_data_also_in_a_hole() -> None:
    data = noise(3, 0, 100_000)
    lower = ConcatReader([BytesReader(data), ZeroReader(200_000), BytesReader(data)])
    changes = [(28, b"abcd"), (99_998, b"efgh"), (150_000, b"ij"), (399_998, b"kl")]
    expected = bytearray(lower.read_at(0, lower.size))
    for at, new in changes:
        expected[at : at + len(new)] = new
    check_reader(PatchedReader(lower, changes), bytes(expected), 3, edges=[at for at, _ in changes])


class Broken(BlockReader):
    def _read(self, offset: int, length: int) -> bytes:
        raise DamagedError("a bad block")


def test_other_programs_see_a_volume_as_a_file(tmp_path: Path) -> None:
    if not Path("/dev/fuse").exists():
        raise MissingToolError("/dev/fuse", "a kernel with FUSE")
    data = noise(4, 0, 3 * MIB + 17)
    with exposed(BytesReader(data), tmp_path) as path:
        assert subprocess.run(["cat", path], capture_output=True, check=True).stdout == data
        listed = subprocess.run(["ls", path.parent], capture_output=True, check=True).stdout
        assert listed == b"volume\n"
    assert not path.parent.exists()
    with exposed(Broken(MIB), tmp_path) as path:
        assert subprocess.run(["cat", path], capture_output=True, check=False).returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_sparse_and_private(tmp_path: Path) -> None:
    data = noise(5, 0, MIB)
    with copied(ConcatReader([ZeroReader(40 * MIB), BytesReader(data)]), tmp_path) as path:
        assert path.stat().st_blocks * 512 < 2 * MIB
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes() == bytes(40 * MIB) + data
    with pytest.raises(DamagedError), copied(Broken(MIB), tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
