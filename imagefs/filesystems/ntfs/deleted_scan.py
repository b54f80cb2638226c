"""Looking through $MFT for deleted files: which there are, where they were, and what they claim."""

import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.errors import DamagedError, FormatError, UnsupportedError
from imagefs.filesystems.claims import Claims, Contested
from imagefs.filesystems.ntfs.deleted_records import FLAGS, DeletedTable, file_names, was_deleted
from imagefs.filesystems.ntfs.layout import (
    DIRECTORY,
    IN_USE,
    REFERENCE_MASK,
    ROOT,
    AttributeType,
    Record,
    parse_record,
    parse_runs,
)
from imagefs.filesystems.ntfs.mft import standard_information

ORPHANS = 1 << 46  # number of the directory of those whose own is not known; records have 32 bits

_STEP = 1 << 20  # bytes of $MFT read at once
_LIMIT = 2_000_000  # deleted files; the names of each take 16 bytes, its clusters some hundred
_JOURNAL = 8  # where a record has the number of the journal's entry about its last change
_LARGEST = 2**63 - 1
_NOWHERE = 0  # the reference of the directory of what has no name

Int64 = NDArray[np.int64]


@dataclass
class DeletedFiles:
    """The deleted files of a volume, and the directories that they were in; all by their records' numbers."""

    files: Int64  # once for every directory that a file was in; ascending in each
    directories: Int64  # of these files, ascending
    folders: dict[int, list[int]]  # the directories in each: deleted ones, and those that lead to such
    directory_of: Callable[[int], int]  # the number of the directory that a reference stands for

    def in_directory(self, number: int) -> list[int]:
        """Return the numbers of what is to be shown in a directory: directories first."""
        low, high = np.searchsorted(self.directories, [number, number + 1])
        found: list[int] = self.files[low:high].tolist()
        return self.folders.get(number, []) + found


class Scan:
    """One look through $MFT. Raises FormatError where it can't be read; what is no record is passed over."""

    def __init__(self, mft: DeletedTable, clusters: int) -> None:
        self._mft = mft
        self._clusters = clusters
        self._claims = Claims()
        self._files = array("q")
        self._references = array("Q")  # of the files' directories
        self._deleted: dict[int, int] = {}  # sequence numbers of deleted directories
        self._homes: dict[int, int] = {}  # references of the directories that directories were in
        self._living: dict[int, int] = {}  # sequence numbers of directories in use, or _NOWHERE
        self._waiting: list[int] = []  # directories whose own have to be found

    def run(self) -> tuple[DeletedFiles, Contested]:
        """Return the deleted files, and what several of them claim."""
        for raw, number in self._unused():
            with suppress(DamagedError):
                self._take(parse_record(raw, number), raw)
        references, inverse = np.unique(np.array(self._references, np.uint64), return_inverse=True)
        nodes = np.array([self._directory(reference) for reference in references.tolist()], np.int64)
        directories, files = nodes[inverse], np.array(self._files, np.int64)
        order = np.lexsort((files, directories))
        found = DeletedFiles(files[order], directories[order], self._folders(), self._directory)
        return found, self._claims.contested()

    def _unused(self) -> Iterator[tuple[bytes, int]]:
        """Yield the records that are not in use."""
        size, data = self._mft.record_size, self._mft.data
        end = data.size // size * size
        for start in range(0, end, _STEP):
            piece = data.read_at(start, min(_STEP, end - start))
            rows = np.frombuffer(piece, np.uint8).reshape(-1, size)
            is_record = (rows[:, :4] == np.frombuffer(b"FILE", np.uint8)).all(axis=1)
            for row in np.flatnonzero(is_record & (rows[:, FLAGS] & IN_USE == 0)).tolist():
                yield piece[row * size : (row + 1) * size], start // size + row

    def _take(self, record: Record, raw: bytes) -> None:
        """Note what a deleted record tells."""
        if record.base:
            self._claim(record, *self._owner_of(record))
            return
        self._claim(record, record.number, *_ranks(record, raw))
        has_list = any(item.type == AttributeType.ATTRIBUTE_LIST for item in record.attributes)
        names = file_names(self._mft.attributes(record) if has_list else record.attributes)
        if len(self._files) + len(self._deleted) >= _LIMIT:
            raise UnsupportedError(f"more than {_LIMIT:,} deleted files are too many to show")
        if record.flags & DIRECTORY:
            self._deleted[record.number] = record.sequence
            self._homes[record.number] = names[0][0] if names else _NOWHERE
            self._waiting.append(record.number)
            return
        has_data = any(item.type == AttributeType.DATA and item.size for item in record.attributes)
        for reference in dict.fromkeys([reference for reference, _ in names] or [_NOWHERE] * has_data):
            self._files.append(record.number)
            self._references.append(reference)

    # what they claim

    def _claim(self, record: Record, owner: int, changed: int, journal: int) -> None:
        for attribute in record.attributes:
            with suppress(DamagedError):  # what was read before it counts
                for count, first in parse_runs(attribute, "") if attribute.value is None else ():
                    if first is not None and first < self._clusters:
                        self._claims.add(first, min(first + count, self._clusters), owner, changed, journal)

    def _owner_of(self, extension: Record) -> tuple[int, int, int]:
        """Return whose record another one extends, with its ranks; where it is not known, the last's."""
        number = extension.base & REFERENCE_MASK
        with suppress(FormatError):
            raw = self._mft.raw_record(number)
            base = parse_record(raw, number)
            if self._mft.is_deleted(number) and was_deleted(extension.base >> 48, base.sequence):
                return number, *_ranks(base, raw)
        return -2 - extension.number, _LARGEST, _LARGEST

    # where they were

    def _directory(self, reference: int) -> int:
        """Return the number of a directory, ORPHANS where it is not there any more."""
        number, sequence = reference & REFERENCE_MASK, reference >> 48
        if number in self._deleted:
            return number if was_deleted(sequence, self._deleted[number]) else ORPHANS
        if number not in self._living:
            self._living[number] = self._use_living(number)
        if not sequence or self._living[number] != sequence:
            return ORPHANS
        self._waiting.append(number)
        return number

    def _use_living(self, number: int) -> int:
        """Return the sequence number of a directory in use, _NOWHERE where there is none."""
        with suppress(FormatError):
            record = self._mft.record(number)
            names = file_names(self._mft.attributes(record))
            if names and record.flags & DIRECTORY and not record.base and not self._mft.is_deleted(number):
                self._homes[number] = names[0][0]
                return record.sequence
        return _NOWHERE

    def _folders(self) -> dict[int, list[int]]:
        """Return which directories are in which; those that are in themselves are orphans."""
        parents = {ROOT: ROOT, ORPHANS: ROOT}
        while self._waiting:
            number = self._waiting.pop()
            if number not in parents:
                parents[number] = self._directory(self._homes[number])
        known = {ROOT, ORPHANS}
        for number in sorted(parents):
            path = []
            while number not in known:
                known.add(number)
                path.append(number)
                number = parents[number]  # noqa: PLW2901
            if number in path:
                parents[number] = ORPHANS
        folders: dict[int, list[int]] = {}
        for number in sorted(parents):
            if number not in (ROOT, ORPHANS):
                folders.setdefault(parents[number], []).append(number)
        return folders


def _ranks(record: Record, raw: bytes) -> tuple[int, int]:
    """Return when a record was last changed, and the number of the journal's entry about that."""
    changed = _LARGEST
    with suppress(DamagedError):
        changed = min(standard_information(record.attributes, "")[2], _LARGEST)
    (journal,) = struct.unpack_from("<Q", raw, _JOURNAL)
    return changed, min(journal, _LARGEST)
