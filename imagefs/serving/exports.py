"""What a network client is shown of images: a disk for each disk and each partition, at each point.

Names are those of the tree: ``disk4`` and ``disk4/p1`` of an image, and of a folder
``2394E9AA621DDC3A/00-2024-07-10T10.42.16Z-full/disk4``.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path

from formats.blockreader import BlockCache, BlockReader, Extent
from formats.container import Disk, Partition, Point
from formats.errors import ReportedError
from imagefs.errors import UsageError
from imagefs.parallel import keep_memory
from imagefs.readahead import ReadAheadHandle
from imagefs.serving.overlay import Overlay
from imagefs.serving.overlay_layout import Owner
from imagefs.source import Source
from imagefs.tree import unreadable_reason
from mounters.export import Export, Handle, Run

_MIB = 1 << 20
_SEVERAL = 256  # requests for which a client that had several in flight is taken for one that has
_WINDOW = 2 * _MIB  # bytes that are decoded together for such a client
_WINDOWS = 32 * _MIB  # bytes of windows that are kept for all clients of an export
_NEAR = 32 * _MIB  # how far from each other the requests may be that go on in sequence
_LOOKED_UP = 16 * _MIB  # bytes whose extents are looked up together
_START = _MIB  # bytes read in sequence before whole windows are decoded


class Windows:
    """Parts of a reader that several requests, of one client or of many, are cut from. Safe from threads."""

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        keep_memory()
        self._cache = BlockCache(_WINDOWS)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; what they lie in is decoded once, whoever asks meanwhile."""
        pieces = []
        while length:
            number, start = divmod(offset, _WINDOW)
            step = min(length, _WINDOW - start)
            window = self._cache.get_or_decode(number, partial(self._decode, number))
            pieces.append(window[start : start + step])
            offset, length = offset + step, length - step
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _decode(self, number: int) -> bytes:
        offset = number * _WINDOW
        return self._reader.read_at(offset, min(_WINDOW, self._reader.size - offset))


class _Reading:
    """How one client reads: with decoding ahead of it where it waits for each answer before it asks again.

    A client with several requests in flight, which goes on in sequence, has whole windows decoded: many
    blocks at once cost less than one after the other. What it wants next it asks for already.
    """

    def __init__(self, reader: BlockReader, windows: Windows) -> None:
        self._reader = reader
        self._windows = windows
        self._ahead = ReadAheadHandle(reader)
        self._lock = threading.Lock()
        self._in_flight = 0
        self._several = 0  # requests for which it counts as having several in flight
        self._place = 0
        self._run = 0  # bytes read near each other

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; raises FormatError when they can't be had."""
        with self._lock:
            self._several = _SEVERAL if self._in_flight else max(0, self._several - 1)
            self._in_flight += 1
            self._run = self._run + length if abs(offset - self._place) <= _NEAR else 0
            self._place = offset
            several, in_sequence = self._several, self._run >= _START
        try:
            if not several:
                return self._ahead.read(offset, length)
            if in_sequence and length < _WINDOW:
                try:
                    return self._windows.read(offset, length)
                except ReportedError:
                    pass  # what is damaged may lie beside what was asked for
            return self._reader.read_at(offset, length)
        finally:
            with self._lock:
                self._in_flight -= 1

    def close(self) -> None:
        """Give up what is still to be decoded."""
        self._ahead.close()


class ReaderHandle(Handle):
    """One client's view of a reader."""

    def __init__(self, reader: BlockReader, windows: Windows) -> None:
        self._reader = reader
        self._reading = _Reading(reader, windows)
        self._known: tuple[int, int, list[Extent]] = (0, 0, [])  # the extents between two offsets

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; raises FormatError when they can't be had."""
        return self._reading.read(offset, length)

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield the data and holes of a range."""
        end = offset + length
        if length >= _LOOKED_UP:
            yield from (Run(extent.length, extent.is_data) for extent in self._reader.extents(offset, length))
            return
        start, stop, extents = self._known
        if offset < start or end > stop:
            start, stop = offset, min(self._reader.size, offset + _LOOKED_UP)
            extents = list(self._reader.extents(start, stop - start))
            self._known = start, stop, extents
        at = bisect_right(extents, offset, key=attrgetter("offset")) - 1
        while offset < end:
            step = min(extents[at].end, end) - offset
            yield Run(step, extents[at].is_data)
            offset, at = offset + step, at + 1

    def close(self) -> None:
        """Give up what is still to be decoded."""
        self._reading.close()


class ReaderExport(Export):
    """Anything that has bytes, read-only. ``open_reader`` may raise FormatError."""

    def __init__(
        self, name: str, description: str, size: int, open_reader: Callable[[], BlockReader]
    ) -> None:
        self.name = name
        self.description = description
        self.size = size
        self._open_reader = open_reader
        self._lock = threading.Lock()
        self._windows: Windows | None = None

    def open(self) -> Handle:
        """Return a view for one client."""
        reader = self._open_reader()
        with self._lock:
            if self._windows is None:
                self._windows = Windows(reader)
        return ReaderHandle(reader, self._windows)


class OverlayHandle(Handle):
    """One client's view of a disk with an overlay, or of a part of it."""

    def __init__(self, overlay: Overlay, base: BlockReader, windows: Windows, offset: int) -> None:
        self._overlay = overlay
        self._reading = _Reading(base, windows)
        self._offset = offset

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes, as they are now."""
        return self._overlay.read(self._offset + offset, length, self._reading.read)

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield the data and holes of a range, as they are now."""
        return self._overlay.runs(self._offset + offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes into the overlay."""
        self._overlay.write(self._offset + offset, data)

    def zero(self, offset: int, length: int, *, hole: bool) -> None:
        """Make a range zeros."""
        self._overlay.zero(self._offset + offset, length, hole=hole)

    def flush(self) -> None:
        """Return once everything that was written, by any client, is on stable storage."""
        self._overlay.flush()

    def close(self) -> None:
        """Give up what is still to be decoded; what was written stays."""
        self._reading.close()


class OverlayExport(Export):
    """A disk that can be written to, or a part of it: all of them are one overlay."""

    writable = True

    def __init__(
        self, name: str, description: str, overlay: Overlay, base: BlockReader, offset: int, size: int
    ) -> None:
        self.name = name
        self.description = description
        self.size = size
        self._overlay = overlay
        self._base = base
        self._windows = Windows(base)
        self._offset = offset

    def open(self) -> Handle:
        """Return a view for one client."""
        return OverlayHandle(self._overlay, self._base, self._windows, self._offset)


# --- Of a source ---


def source_exports(source: Source, disk: str = "") -> list[Export]:
    """Return the exports of an image's point, or of a folder's points; only of the disk so named, if any.

    Of a folder, points that can't be read are left out (``source.left_out``). Raises FormatError when nothing
    can be read, UsageError when there is no such disk.
    """
    exports: list[Export] = []
    if source.point is not None:
        reason = unreadable_reason(source.point)
        if reason is not None:
            raise reason
        exports += _of_point(source.point, "", disk)
    else:
        source.tree()  # raises where no point can be read
        for container in source.sets:
            for point in container.points:
                if unreadable_reason(point) is None:
                    exports += _of_point(point, f"{container.image_id}/{point.name}/", disk)
    if not exports:
        raise _no_disk(source.path, disk)
    return exports


def _of_point(point: Point, prefix: str, wanted: str) -> Iterator[Export]:
    for disk in point.disks:
        if wanted in ("", disk.name):
            yield ReaderExport(prefix + disk.name, disk_text(disk), disk.size, disk.reader)
            for part in disk.partitions:
                name = f"{prefix}{disk.name}/{part.name}"
                yield ReaderExport(name, partition_text(part), part.size, part.reader)


def overlay_exports(disk: Disk, overlay: Overlay) -> list[Export]:
    """Return the exports of one disk and its partitions, all of them through its overlay."""
    base = disk.reader()
    exports: list[Export] = [OverlayExport(disk.name, disk_text(disk), overlay, base, 0, disk.size)]
    for part in disk.partitions:
        name = f"{disk.name}/{part.name}"
        exports.append(OverlayExport(name, partition_text(part), overlay, base, part.offset, part.size))
    return exports


def open_overlay(path: Path, point: Point, disk: Disk) -> Overlay:
    """Open, or begin, the overlay of a disk at a point; raises as ``Overlay`` does."""
    owner = Owner(point.image_id, point.file_number, int(point.created.timestamp()), disk.number, disk.size)
    return Overlay(path, owner, disk.reader())


def chosen_disk(source: Source, name: str = "") -> tuple[Point, Disk]:
    """Return the one disk that is meant, with its point.

    Raises UsageError for a folder, for a name that no disk has, and where several could be meant.
    """
    point = source.point
    if point is None:
        raise UsageError("an image file is needed, not a folder", path=source.path)
    reason = unreadable_reason(point)
    if reason is not None:
        raise reason
    found = [disk for disk in point.disks if name in ("", disk.name)]
    if not found:
        raise _no_disk(source.path, name)
    if len(found) > 1:
        names = ", ".join(disk.name for disk in found)
        raise UsageError(f"there are several disks: {names}", path=source.path, hint="--disk names one")
    return point, found[0]


def default_name(exports: Sequence[Export]) -> str | None:
    """Return what a client gets that asks for no name: the disk, where there is exactly one."""
    disks = [export.name for export in exports if not _is_partition(export.name)]
    return disks[0] if len(disks) == 1 else None


def _is_partition(name: str) -> bool:
    return "/" in name and name.split("/")[-2].startswith("disk")


def _no_disk(path: Path, name: str) -> UsageError:
    what = f"there is no {name}" if name else "there is no disk"
    return UsageError(what, path=path, hint=f"imagefs info {path} tells what there is")


def disk_text(disk: Disk) -> str:
    """Return a line about a disk."""
    return f"{disk.scheme} disk, {_size_text(disk.size)}, sectors of {disk.sector_size} bytes"


def partition_text(part: Partition) -> str:
    """Return a line about a partition."""
    label = f" {part.label!r}" if part.label else ""
    return f"{part.file_system}{label}, {_size_text(part.size)}"


def _size_text(size: int) -> str:
    return f"{size / _MIB:.0f} MiB" if size >= _MIB else f"{size} bytes"
