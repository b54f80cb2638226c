"""A disk that was written, held against the one it was made of: by its bytes, and by other people's tools."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fixtures.partition_tables import BuiltDisk, BuiltPartition
from fixtures.tools import run
from tests.imagefs.imaging.moments import cut_out
from tests.imagefs.imaging.others import check_files, check_sound

Bytes = npt.NDArray[np.uint8]

# What sleuthkit calls them, and how many bytes it counts as one unit in the volumes of the recipes.
_KINDS = {
    "NTFS": ("ntfs", 4096),
    "FAT16": ("fat16", 512),
    "FAT32": ("fat32", 512),
    "exFAT": ("exfat", 512),
    "ext4": ("ext4", 4096),
}
_known: dict[tuple[Path, int], list[tuple[int, int]]] = {}  # of disks that never change


def bytes_of(path: Path) -> Bytes:
    """Return all bytes of a file or device, writable."""
    with path.open("rb") as stream:
        return np.frombuffer(bytearray(stream.read()), np.uint8)


def free_runs(disk: BuiltDisk, part: BuiltPartition) -> list[tuple[int, int]]:
    """Return what sleuthkit calls free in a partition, as ranges of bytes of the disk."""
    if part.kind == "unknown":
        return []
    key = disk.path, part.number
    if key not in _known:
        name, unit = _KINDS[part.kind]
        with tempfile.TemporaryDirectory(dir=disk.path.parent) as folder:
            volume = cut_out(disk.path, part, Path(folder) / "volume")
            said = run("blkls", "-f", name, "-l", volume).decode()
        units = np.array([int(number) for number in re.findall(r"(?m)^(\d+)\|f", said)], np.int64)
        assert units.size
        cuts = np.flatnonzero(np.diff(units) != 1) + 1
        starts, ends = units[np.r_[0, cuts]], units[np.r_[cuts - 1, units.size - 1]] + 1
        pairs = zip((starts * unit).tolist(), (ends * unit).tolist(), strict=True)
        _known[key] = [(part.offset + start, part.offset + end) for start, end in pairs]
    return _known[key]


def without_free(disk: BuiltDisk, data: Bytes) -> Bytes:
    """Return bytes with zeros wherever the disk that they are of, or were copied from, has free space."""
    cleared = data.copy()
    for part in disk.partitions:
        for start, end in free_runs(disk, part):
            cleared[start:end] = 0
    return cleared


def differing(one: Bytes, other: Bytes) -> list[int]:
    """Return the first offsets at which bytes differ."""
    assert one.size == other.size
    found: list[int] = np.flatnonzero(one != other)[:5].tolist()
    return found


def check_same(target: Path, disk: BuiltDisk, *, cleared: bool = True, tables: bool = True) -> None:
    """Check that a target of the disk's size holds all that the disk has in use; where it is free, zeros.

    Without ``cleared`` whatever is there. Without ``tables`` only what lies in partitions counts.
    """
    was, now = without_free(disk, bytes_of(disk.path)), bytes_of(target)
    if not cleared:
        now = without_free(disk, now)
    if not tables:
        was, now = only_partitions(disk, was), only_partitions(disk, now[: was.size])
    assert differing(now, was) == []


def only_partitions(disk: BuiltDisk, data: Bytes) -> Bytes:
    """Return the bytes of all partitions."""
    return np.concatenate([data[part.offset : part.offset + part.size] for part in disk.partitions])


def check_tables(target: Path, scheme: str, *, sector_size: int = 512) -> None:
    """Have sfdisk and sgdisk look at the partition table: no complaints; they know 512-byte sectors alone."""
    if sector_size != 512:
        return
    said = run("sfdisk", "--verify", target).decode()
    assert "No errors detected" in said, said
    if scheme == "gpt":
        said = run("sgdisk", "--verify", target).decode()
        assert "No problems found" in said, said


def check_volumes(target: Path, disk: BuiltDisk, folder: Path, *, files: bool = False) -> None:
    """Let the tools that own each file system look for errors, and compare the files."""
    for part in disk.partitions:
        if part.kind != "unknown":
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                volume = cut_out(target, part, Path(scratch) / "volume")
                check_sound(volume, part.kind)
                if files:
                    check_files(volume, part)
