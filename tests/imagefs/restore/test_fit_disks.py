"""Whole disks made to fit others: planned, resized, moved, put together; then judged by other tools."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.disks import BuiltDisk, BuiltPartition, four_k_disk, gpt_multi_disk, mbr_logical_disk
from fixtures.tools import run
from formats.blockreader import FileReader, SliceReader
from formats.partition_table import Kind, build_table, read_table
from imagefs.imaging.used_space import used_space
from imagefs.restore.fit import Fitted, plan_fit
from imagefs.restore.layout import Volume
from imagefs.restore.moved import moved
from imagefs.restore.resize import resized, smallest_size
from imagefs.restore.used import UsedReader
from tests.formats.partition_table.tools import device
from tests.imagefs.imaging.others import check_files, check_sound

MIB = 1 << 20
DISKS: dict[str, Callable[[Path], BuiltDisk]] = {
    "gpt": gpt_multi_disk, "logical": mbr_logical_disk, "4k": four_k_disk
}  # fmt: skip


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BuiltDisk]:
    made: dict[str, BuiltDisk] = {}

    def disk(name: str) -> BuiltDisk:
        if name not in made:
            made[name] = DISKS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return disk


def fit(built: BuiltDisk, target: Path, size: int) -> Fitted:
    """Make a disk of ``size`` bytes of another one."""
    unit = built.sector_size
    with FileReader(built.path) as reader, contextlib.ExitStack() as owned:
        table = read_table(reader, unit)
        assert table is not None
        volumes = []
        for entry in sorted(table.partitions, key=lambda entry: entry.offset):
            if entry.kind is not Kind.EXTENDED:
                part = SliceReader(reader, entry.offset, entry.size)
                used = used_space(part, unit)
                volumes.append(
                    Volume(entry.number, entry.offset, entry.size, used.file_system, used.label, entry,
                           UsedReader(part, used))
                )  # fmt: skip
        fitted = plan_fit(volumes, table, unit, size, smallest_size)
        assert fitted.table is not None
        with target.open("xb") as stream:
            stream.truncate(size)
            for placed in fitted.placed:
                volume = placed.volume
                if placed.size != volume.size:
                    volume = owned.enter_context(resized(volume, placed.size, target.parent))
                volume = moved(volume, placed.offset, placed.size, unit)
                for extent in volume.reader.extents():
                    if extent.is_data:
                        data = volume.reader.read_at(extent.offset, extent.length)
                        os.pwrite(stream.fileno(), data, placed.offset + extent.offset)
            for offset, data in build_table(fitted.table, size):
                os.pwrite(stream.fileno(), data, offset)
    return fitted


def check_disk(path: Path, built: BuiltDisk, fitted: Fitted, folder: Path) -> None:
    """Let tools check the table, each volume and all files; and what boot sectors say of their places."""
    with device(path, built.sector_size) as place:
        assert b"No errors detected" in run("sfdisk", "--verify", place)
        if built.scheme == "gpt":
            assert b"No problems found" in run("sgdisk", "-v", place)
    for placed in fitted.placed:
        was = built.partition(placed.volume.number)
        if was.kind == "unknown":
            continue
        volume = folder / f"{path.name}-{was.number}"
        with path.open("rb") as source, volume.open("wb") as target:
            target.write(os.pread(source.fileno(), placed.size, placed.offset))
        check_sound(volume, was.kind)
        check_files(volume, was)
        old, new = hidden(built.path, was.offset), hidden(volume, 0)
        if was.kind != "ext4" and old == was.offset // built.sector_size:
            assert new == placed.offset // built.sector_size
        volume.unlink()


def hidden(path: Path, offset: int) -> int:
    with path.open("rb") as stream:
        return int.from_bytes(os.pread(stream.fileno(), 4, offset + 0x1C), "little")


def sizes(fitted: Fitted, kind: Callable[[BuiltPartition], bool], built: BuiltDisk) -> list[tuple[int, int]]:
    return [
        (placed.volume.size, placed.size)
        for placed in fitted.placed
        if kind(built.partition(placed.volume.number))
    ]


@pytest.mark.parametrize("name", DISKS)
@pytest.mark.parametrize("percent", [80, 150])
def test_a_disk_fits_another(
    disks: Callable[[str], BuiltDisk], name: str, percent: int, tmp_path: Path
) -> None:
    built = disks(name)
    size = built.size * percent // 100 // MIB * MIB
    fitted = fit(built, tmp_path / "disk", size)
    check_disk(tmp_path / "disk", built, fitted, tmp_path)
    for before, after in sizes(fitted, lambda part: part.kind in ("NTFS", "ext4"), built):
        assert (after > before) == (percent > 100)
    for before, after in sizes(fitted, lambda part: part.kind not in ("NTFS", "ext4"), built):
        assert after == before
    assert fitted.table is not None
    ids = dataclasses.replace(fitted.table, partitions=())
    with FileReader(built.path) as reader:
        old = read_table(reader, built.sector_size)
    assert old is not None
    assert ids == dataclasses.replace(old, partitions=())
