"""Disks that change, imaged by imagefs and by the reference writer at the same moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fixtures import disks
from fixtures.mrimgx_writer import SetWriter, WrittenFile
from fixtures.partition_tables import MIB, BuiltDisk
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
        BackupOptions(compression="none", split=3 * MIB), "high", PASSWORD,
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
