"""Every point of every chain, restored: equal to the disk as it was, and sound to the tools that own it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.restore.job import restore
from imagefs.restore.options import RestoreOptions
from tests.imagefs.restore.chains import CHAINS, Chain, Point
from tests.imagefs.restore.held import check_same, check_tables, check_volumes

GetChain = Callable[[str], Chain]


def restored(point: Point, target: Path, options: RestoreOptions | None = None) -> Path:
    restore(point.image, target, options, password=point.password)
    return target


@pytest.mark.parametrize("name", CHAINS)
def test_points_of_ours(chain: GetChain, name: str, tmp_path: Path) -> None:
    """All used bytes, tables byte for byte, zeros where it is free; all tools look at the last one."""
    target = tmp_path / "disk.raw"
    for point in chain(name).ours:
        restored(point, target)
        check_same(target, point.disk)
        check_tables(target, point.disk.scheme, sector_size=point.disk.sector_size)
    check_volumes(target, point.disk, tmp_path, files=True)


@pytest.mark.parametrize("name", CHAINS)
def test_points_of_the_reference_writer(chain: GetChain, name: str, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    for point in chain(name).theirs:
        restored(point, target, RestoreOptions(verify=True))
        check_same(target, point.disk, cleared=False)
        check_tables(target, point.disk.scheme, sector_size=point.disk.sector_size)
    check_volumes(target, point.disk, tmp_path)
