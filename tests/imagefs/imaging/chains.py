"""Sets of images of a disk that changes, each with the disk as it was: what comes back is held against it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fixtures.partition_tables import BuiltDisk
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions, BackupReport
from tests.conftest import run_imagefs
from tests.fixtures import plain_reader
from tests.imagefs.imaging.moments import later

TYPES = ("full", "inc", "inc", "diff", "inc")


@dataclass(frozen=True)
class Saved:
    """An image, and what it was made of."""

    source: BuiltDisk  # as it was then
    file_number: int
    path: Path


@dataclass(frozen=True)
class ChainOf:
    """A set of images of one disk."""

    folder: Path
    points: tuple[Saved, ...]
    password: str | None

    def restored(self, saved: Saved) -> bytes:
        """Restore a point with the plain reader."""
        return plain_reader.restore(self.folder, saved.file_number, password=self.password)


def moments(disk: BuiltDisk, folder: Path, changes: Sequence[tuple[int, ...]]) -> list[BuiltDisk]:
    """Return a disk as built, and after each of some changes: the numbers of the partitions that changed."""
    found = [disk]
    for time, numbers in enumerate(changes, 1):
        found.append(later(found[-1], folder / f"{disk.path.stem}-{time}.raw", time, numbers))
    return found


def save(
    folder: Path, disk: BuiltDisk, options: BackupOptions, password: str | None = None
) -> tuple[Saved, BackupReport]:
    """Image a disk into a folder."""
    report = backup(disk.path, folder, options, password=password)
    return Saved(disk, report.file_number, report.path), report


def save_all(
    folder: Path, disks: Sequence[BuiltDisk], options: BackupOptions, password: str | None = None
) -> ChainOf:
    """Image each moment of a disk into one set: full, two incrementals, a differential, an incremental."""
    points = []
    for disk, kind in zip(disks, TYPES, strict=True):
        saved, report = save(folder, disk, dataclasses.replace(options, type=kind), password)
        assert report.role == kind
        points.append(saved)
    return ChainOf(folder, tuple(points), password)


def save_all_by_command(
    folder: Path, disks: Sequence[BuiltDisk], arguments: Sequence[str], password: str | None = None
) -> ChainOf:
    """Do the same with the command line; ``auto`` must choose the full and the incrementals by itself."""
    points: list[Saved] = []
    for disk, kind in zip(disks, TYPES, strict=True):
        choice = ["--type", kind] if kind == "diff" else []
        done = run_imagefs("backup", disk.path, folder, *arguments, *choice, password=password)
        assert done.code == 0, done.errors
        path = Path(done.text.splitlines()[-2])
        assert f"{kind}, increment {len(points)}: " in done.text
        number = plain_reader.open_file(path).header["file_number"]
        points.append(Saved(disk, number, path))
    return ChainOf(folder, tuple(points), password)
