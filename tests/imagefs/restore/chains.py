"""Disks that change, imaged by imagefs and by the reference writer at the same moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fixtures import disks, partition_tables
from fixtures.content import noise
from fixtures.mrimgx_writer import SetWriter, WrittenFile
from fixtures.partition_tables import MIB, BuiltDisk, Volume
from fixtures.volumes import ext_volume, fat_volume, ntfs_volume
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions
from tests.imagefs.imaging.chains import moments, save_all
from tests.imagefs.imaging.test_round_trip import gpt_disk, mbr_disk

PASSWORD = "Käse 🧀 pässwörd"


@dataclass(frozen=True)
class Point:
    """An image, the disk as it was then, and who wrote it."""

    image: Path
    disk: BuiltDisk
    password: str | None
    ours: bool  # what is free is zeros then


@dataclass(frozen=True)
class Chain:
    """The points of a disk in the order of time: full, inc, inc, diff, inc; and the reference writer's."""

    moments: Sequence[BuiltDisk]
    ours: Sequence[Point]
    theirs: Sequence[Point]


@dataclass(frozen=True)
class Recipe:
    build: Callable[[Path], BuiltDisk]
    changes: tuple[tuple[int, ...], ...]
    options: BackupOptions
    compression: str  # of the reference writer
    password: str | None = None


CHAINS = {
    "gpt": Recipe(gpt_disk, ((3,), (1, 4), (1, 2, 3), (3, 4)), BackupOptions(compression="medium"), "none"),
    "mbr with logical ones": Recipe(
        mbr_disk, ((1, 5), (6,), (7,), (1, 5, 6, 7)),
        BackupOptions(compression="none", split=3 * MIB, key_iterations=1000), "high", PASSWORD,
    ),
    "exfat": Recipe(
        partial(disks.exfat_disk, size=16 * MIB, big=MIB, many=20), ((1,), (), (1,), (1,)),
        BackupOptions(compression="high", aes="aes-128", key_iterations=1000), "medium", PASSWORD,
    ),
    "4096-byte sectors": Recipe(
        partial(disks.four_k_disk), ((1,), (1,), (), (1,)),
        BackupOptions(compression="medium", aes="aes-256", key_iterations=1000), "medium", PASSWORD,
    ),
}  # fmt: skip


def make_chain(name: str, folder: Path) -> Chain:
    """Build a disk, change it, and image each moment of it twice."""
    recipe = CHAINS[name]
    found = moments(recipe.build(folder), folder, recipe.changes)
    saved = save_all(folder / "ours", found, recipe.options, recipe.password)
    ours = [Point(point.path, point.source, recipe.password, ours=True) for point in saved.points]
    writer = SetWriter(folder / "theirs", compression=recipe.compression, password=recipe.password)
    writers: Sequence[Callable[[list[BuiltDisk]], WrittenFile]] = (
        writer.full, writer.incremental, partial(writer.incremental, delta=False), writer.differential,
        writer.incremental,
    )  # fmt: skip
    theirs = [
        Point(write([disk]).path, disk, recipe.password, ours=False)
        for write, disk in zip(writers, found, strict=True)
    ]
    return Chain(found, ours, theirs)


@dataclass(frozen=True)
class Saved:
    """A disk and its image."""

    disk: BuiltDisk
    image: Path


def small_gpt(folder: Path) -> Saved:
    """Make a disk of NTFS (1), ext4 (2), FAT16 (3) and noise (4), 43 MiB with 1 MiB free at its end."""
    volumes = [
        ntfs_volume(folder, size=12 * MIB, big=MIB, many=20, fragments=0),
        ext_volume(folder, size=8 * MIB, big=MIB, many=20),
        fat_volume(folder, "FAT16", size=16 * MIB, big=MIB, many=5),
        _noise_volume(folder),
    ]
    disk = partition_tables.gpt_disk(folder / "small.raw", volumes, "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3EE")
    return Saved(disk, backup(disk.path, folder / "set", BackupOptions()).path)


def small_mbr(folder: Path) -> Saved:
    """Make a disk of FAT16 (1) and logical partitions of ext4 (5) and noise (6)."""
    primary = fat_volume(folder, "FAT16", size=16 * MIB, big=MIB, many=5)
    logicals = [ext_volume(folder, size=8 * MIB, big=MIB, many=20), _noise_volume(folder)]
    disk = partition_tables.mbr_disk(folder / "small.raw", [primary], logicals)
    return Saved(disk, backup(disk.path, folder / "set", BackupOptions()).path)


def _noise_volume(folder: Path) -> Volume:
    path = folder / "noise.volume"
    path.write_bytes(noise(9, 0, 3 * MIB + 4096))
    return Volume(path, 3 * MIB + 4096, "unknown")
