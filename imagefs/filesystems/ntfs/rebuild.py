"""Directories whose index is damaged, listed from $MFT: every name is in its file's record as well.

That is complete where every record in use can be read; where one can't, it is an error: its names may be
the ones that are looked for. All records are gone through once for a volume, when the first damaged index
is met; what is kept is two numbers for each name.
"""

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from formats.errors import DamagedError, FormatError
from imagefs.filesystems.names import decode_name
from imagefs.filesystems.ntfs.index_blocks import Names
from imagefs.filesystems.ntfs.layout import (
    DIRECTORY,
    DOS_NAME,
    FILE_DIRECTORY,
    IN_USE,
    REFERENCE_MASK,
    Attribute,
    AttributeType,
    Record,
    parse_record,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find

_BITMAP_LIMIT = 1 << 29  # bytes: of as many records as have numbers
_STEP = 1 << 16  # names kept as Python's numbers at a time
_HEAD = 66  # bytes of a $FILE_NAME before the name


class NamesOfRecords:
    """Which records name which directory as the one they are in. Safe from several threads."""

    def __init__(self, mft: MasterFileTable) -> None:
        self._mft = mft
        self._lock = threading.Lock()
        self._pairs: NDArray[np.uint64] | None = None  # (reference of the directory, record), ascending
        self._problem: FormatError | None = None

    def names(self, inode: int) -> Names:
        """Return the names in a directory; FormatError where a record of the volume can't be read."""
        directory = self._mft.record(inode)
        pairs = self._scanned()
        wanted = np.uint64(inode | directory.sequence << 48)
        first, last = np.searchsorted(pairs[:, 0], wanted), np.searchsorted(pairs[:, 0], wanted, "right")
        entries: dict[str, tuple[str, int, int]] = {}
        for number in np.unique(pairs[first:last, 1]).tolist():
            record = self._mft.record(number)
            for parent, name, attributes in _names(self._mft.attributes(record)):
                if parent == wanted:
                    entry = name, number | record.sequence << 48, _of_directory(record, attributes)
                    if entries.setdefault(name, entry) != entry:
                        raise DamagedError(f"directory {inode}: the name {name!r} is there twice")
        return Names.of(list(entries.values()))

    def _scanned(self) -> NDArray[np.uint64]:
        with self._lock:
            if self._problem is not None:
                raise self._problem.with_traceback(None)
            if self._pairs is None:
                try:
                    self._pairs = self._scan()
                except FormatError as error:
                    self._problem = error
                    raise
            return self._pairs

    def _scan(self) -> NDArray[np.uint64]:
        count = self._mft.data.size // self._mft.record_size
        used = self._used(count)
        done: list[NDArray[np.uint64]] = []
        found: list[tuple[int, int]] = []
        for number, raw in enumerate(self._mft.raw_records(range(count))):
            try:
                record = parse_record(raw or self._mft.raw_record(number), number)
            except FormatError:
                if used is not None and not used[number]:
                    continue
                raise
            if record.flags & IN_USE:
                owner = record.base & REFERENCE_MASK if record.base else number
                found += ((parent, owner) for parent, _, _ in _names(record.attributes))
            if len(found) > _STEP:
                done.append(np.array(found, np.uint64))
                found.clear()
        pairs = np.concatenate([*done, np.array(found, np.uint64).reshape(-1, 2)])
        return pairs[np.argsort(pairs[:, 0], kind="stable")]

    def _used(self, count: int) -> NDArray[np.bool_] | None:
        """Return which records are in use, None where that is not known: all may be."""
        try:
            bitmap = find(self._mft.attributes(self._mft.record(0)), AttributeType.BITMAP)
            raw = self._mft.small_value(bitmap, _BITMAP_LIMIT, "$MFT") if bitmap else b""
        except FormatError:
            return None
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[:count].astype(bool)
        return bits if len(bits) == count else None


def _names(attributes: list[Attribute]) -> Iterator[tuple[int, str, int]]:
    """Yield the (reference of the directory, name, file attributes) of a file's names, without 8.3 twins."""
    for item in attributes:
        if item.type != AttributeType.FILE_NAME:
            continue
        value = item.value
        if value is None or len(value) < _HEAD or len(value) < _HEAD + 2 * value[64]:
            raise DamagedError("a name reaches outside its file record")
        if value[65] != DOS_NAME:
            name = decode_name(value[_HEAD : _HEAD + 2 * value[64]])
            yield int.from_bytes(value[:8], "little"), name, int.from_bytes(value[56:60], "little")


def _of_directory(record: Record, attributes: int) -> int:
    """Return a name's file attributes; the record knows whether it is a directory's."""
    if record.flags & DIRECTORY:
        return attributes | FILE_DIRECTORY
    return attributes & ~FILE_DIRECTORY
