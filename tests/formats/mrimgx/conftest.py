"""Disks and sets for the container's tests; expected bytes are always those of the source disks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import formats
from fixtures import disks
from fixtures.mrimgx_writer import WrittenFile
from fixtures.partition_tables import BuiltDisk
from formats.mrimgx import MrimgxPoint
from tests.formats.reader_contract import check_reader


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[BuiltDisk]:
    """Make a small disk without file systems, and three later states of it."""
    folder = tmp_path_factory.mktemp("plain")
    states = [disks.plain_disk(folder, "state0", sizes=(3 * 1048576 + 4096, 2 * 1048576))]
    for number in (1, 2, 3):
        states.append(disks.change_disk(states[-1], folder, f"state{number}", seed=number))
    return states


@contextmanager
def opened_point(written: WrittenFile | Path, password: str | None = None) -> Iterator[MrimgxPoint]:
    path = written if isinstance(written, Path) else written.path
    with formats.open_container(path) as container:
        if password is not None:
            container.unlock(password)
        assert isinstance(container.point, MrimgxPoint)
        yield container.point


def check_point(
    written: WrittenFile, password: str | None = None, *, seed: int = 1, reads: int = 150
) -> None:
    """Check that a point is its source: whole disks, random reads, extents, and its own verification."""
    with opened_point(written, password) as point:
        assert point.problem is None
        assert len(point.disks) == len(written.disks)
        for disk, source in zip(point.disks, written.disks, strict=True):
            check_reader(disk.reader(), source.path.read_bytes(), seed=seed, reads=reads)
            for partition, built in zip(disk.partitions, source.partitions, strict=True):
                assert (partition.offset, partition.size) == (built.offset, built.size)
        results = [check.run() for check in point.checks()]
        assert not [bad for result in results for bad in result.bad]
        assert sum(result.blocks for result in results) == point.blocks_to_check()
