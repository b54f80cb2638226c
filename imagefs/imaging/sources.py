"""What an image is made from: devices, partitions, disk files, and images, all as disks with partitions.

``open_source`` opens any of them read-only and makes sure that nobody writes to what is imaged: a source
that is mounted read-write is refused, unless it is a logical volume, of which a snapshot is taken.
"""

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import formats
from formats.blockreader import BlockReader, ConcatReader, ZeroReader
from formats.container import Disk, Point
from formats.errors import NotAnImageError
from formats.files import open_file
from formats.mrimgx.points import MrimgxPoint
from formats.partition_table import Kind, read_table
from imagefs.errors import RefusedError, SnapshotError, SourceReadError, UsageError
from imagefs.imaging.source_disk import (
    SECTOR_SIZES,
    KeptSnapshots,
    SourceDisk,
    SourcePartition,
    Wanted,
    detect_sector_size,
    extended_records,
    make_disk,
    refuse_overlaps,
    refuse_unknown,
    table_warnings,
)
from imagefs.imaging.this_machine import hold_file, is_device, open_device
from imagefs.machine.identity import UNKNOWN, Identity
from imagefs.machine.rawreader import RawReader

__all__ = ["Identity", "Source", "SourceDisk", "SourcePartition", "open_source"]


class Source:
    """An opened source, used in a ``with`` statement or closed.

    ``kind`` is "disk", "partition", "file" or "image"; ``warnings`` are lines to be shown; ``files`` are the
    files or the device that it is read from; ``snapshots`` are what an unfinished backup of it needs again.
    """

    def __init__(
        self, path: Path, kind: str, disks: Sequence[SourceDisk], warnings: Sequence[str], owned: ExitStack,
        checks: Sequence[Callable[[], None]] = (), files: Sequence[Path] = (),
        snapshots: KeptSnapshots | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self.kind = kind
        self.files = tuple(files) or (path,)
        self.disks = tuple(disks)
        self.warnings = tuple(warnings)
        self.snapshots = snapshots
        self._owned = owned
        self._checks = tuple(checks)

    def check(self) -> None:
        """Make sure that what was read is of one moment; to be called before an image is completed.

        Raises SnapshotError where a snapshot has overflowed, RefusedError where a disk file was changed.
        """
        for check in self._checks:
            check()

    def close(self) -> None:
        """Close what was opened and remove the snapshot; raises SnapshotError when that fails."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except SnapshotError as left:
            if error is None:
                raise
            error.add_note(str(left))  # the first error is the one to show


def open_source(
    path: Path,
    *,
    password: str | None = None,
    live: bool = False,
    snapshot: bool = True,
    direct: bool = False,
    sector_size: int | None = None,
    partitions: Sequence[int] = (),
    snapshots: str = "",
) -> Source:
    """Open a block device, a partition's device, a disk or volume file, or an image; always read-only.

    ``live`` allows what is mounted read-write to be imaged as it is; ``snapshot`` takes one where the source
    is a logical volume. ``direct`` passes the cache by. ``sector_size`` in bytes is found out where it is
    None; ``partitions`` are the numbers to image, all where it is empty. ``snapshots`` is the name of those
    that an unfinished backup kept, which are read again.

    Raises UsageError for what is not there or unknown partition numbers, RefusedError for a source that is
    in use or whose partitions overlap, SourceReadError, SnapshotError, and the FormatErrors of images and
    partition tables.
    """
    wanted = Wanted(path, live, snapshot, direct, sector_size, frozenset(partitions), snapshots)
    if sector_size is not None and sector_size not in SECTOR_SIZES:
        raise UsageError(f"a sector can't have {sector_size} bytes")
    try:
        is_disk = is_device(path)
        is_file = not is_disk and stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError as error:
        raise UsageError("there is no such file or device", path=path) from error
    except OSError as error:
        raise SourceReadError(error.strerror or str(error), path=path, offset=0, length=0) from error
    with ExitStack() as owned:
        if is_disk:
            opened = open_device(wanted, owned)
            warnings = opened.warnings + table_warnings(opened.disk)
            return Source(
                path, opened.kind, [opened.disk], warnings, owned.pop_all(), opened.checks,
                snapshots=opened.snapshots,
            )  # fmt: skip
        if is_file:
            return _open_image(wanted, password, owned) or _open_file(wanted, owned)
    raise UsageError("neither a disk, nor a disk file, nor an image", path=path)


def _open_file(wanted: Wanted, owned: ExitStack) -> Source:
    path = wanted.path
    try:
        fd = open_file(path)
    except OSError as error:
        raise SourceReadError(error.strerror or str(error), path=path, offset=0, length=0) from error
    before = os.fstat(fd)
    raw = RawReader(fd, path, direct=wanted.direct)
    owned.callback(raw.close)
    if not raw.size:
        raise UsageError("the file is empty", path=path)
    reader: BlockReader = raw
    warnings = []
    sector_size = wanted.sector_size or detect_sector_size(raw)
    if missing := -raw.size % sector_size:
        warnings.append(
            f"{path}: {raw.size} bytes are no whole number of {sector_size}-byte sectors,"
            f" {missing} zeros are added"
        )
        reader = ConcatReader([raw, ZeroReader(missing)])
    if wanted.direct and not raw.direct:
        warnings.append(f"{path}: can't be read past the cache; it is read through it")
    identity = Identity(path.name, "", "", "", "")
    disk = make_disk(wanted, path.name, 0, reader, (sector_size, sector_size), identity)
    warnings += hold_file(wanted, fd, disk.spans, owned)

    def unchanged() -> None:
        now = os.fstat(fd)
        if (now.st_mtime_ns, now.st_size) != (before.st_mtime_ns, before.st_size):
            raise RefusedError(
                "was changed while it was read",
                path=path,
                hint="stop the machine that uses it, or allow an inconsistent image with --live",
            )

    checks = [] if wanted.live else [unchanged]
    return Source(path, "file", [disk], warnings + table_warnings(disk), owned.pop_all(), checks)


# --- Images ---


def _open_image(wanted: Wanted, password: str | None, owned: ExitStack) -> Source | None:
    """Open an image of a known format; None for a file that is none."""
    path = wanted.path
    try:
        container = formats.open_container(path)
    except NotAnImageError:
        return None
    owned.callback(container.close)
    if password is not None:
        container.unlock(password)
    point = container.point
    if point is None:
        raise UsageError("names no backup point", path=path)
    point.require_key()
    refuse_unknown(wanted, {part.number for disk in point.disks for part in disk.partitions})
    recorded = image_identities(point)
    disks = []
    for at, disk in enumerate(point.disks):
        identity, removable = recorded[at] if at < len(recorded) else (UNKNOWN, False)
        opened = _image_disk(wanted, disk, identity, removable=removable)
        if opened.partitions or not wanted.partitions:
            disks.append(opened)
    warnings = [line for disk in disks for line in table_warnings(disk)]
    return Source(path, "image", disks, warnings, owned.pop_all(), files=container.paths)


def image_identities(point: Point) -> list[tuple[Identity, bool]]:
    """Return what an image recorded of each of its disks: its identity, and whether it is removable."""
    if not isinstance(point, MrimgxPoint):
        return []
    found = []
    keys = ("disk_description", "disk_manufacturer", "disk_productid", "disk_revisonno", "disk_serialno")
    for disk in point.image.document.json.get("disks", []):
        descriptor, geometry = disk.get("_descriptor"), disk.get("_geometry")
        values = descriptor if isinstance(descriptor, dict) else {}
        media = geometry.get("media_type") if isinstance(geometry, dict) else ""
        texts = [" ".join(str(values.get(key, "")).split()) for key in keys]
        found.append((Identity(*texts), media == "removable_media"))
    return found


def _image_disk(wanted: Wanted, disk: Disk, identity: Identity, *, removable: bool) -> SourceDisk:
    """Return a disk of an image with those of its partitions that are in the image, and wanted."""
    name = f"{wanted.path.name} {disk.name}"
    reader = disk.reader()
    table = read_table(reader, disk.sector_size)
    entries = table.partitions if table is not None else ()
    by_offset = {entry.offset: entry for entry in entries if entry.kind is not Kind.EXTENDED}
    partitions = [
        SourcePartition(
            part.number,
            part.offset,
            part.size,
            by_offset.get(part.offset),
            part.reader(),
            part.file_system,
            part.label,
        )
        for part in sorted(disk.partitions, key=lambda part: part.offset)
        if not wanted.partitions or part.number in wanted.partitions
    ]
    refuse_overlaps(wanted.path, [(part.number, part.offset, part.size) for part in partitions])
    return SourceDisk(
        name, disk.number, reader, disk.size, disk.sector_size, disk.sector_size, identity, removable, table,
        tuple(partitions), extended_records(reader, table),
    )  # fmt: skip
