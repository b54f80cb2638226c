"""The file records of deleted files, read as those of living ones are.

When a file is deleted its record is marked as not in use and its sequence number counts on; its attributes
stay until the record is used again (https://flatcap.github.io/linux-ntfs/ntfs/concepts/file_record.html).
"""

import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from formats.blockreader import BlockReader, BytesReader, ConcatReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.base import Recovery, RecoveryState
from imagefs.filesystems.claims import Claims
from imagefs.filesystems.names import decode_name
from imagefs.filesystems.ntfs.layout import (
    COMPRESSED,
    DOS_NAME,
    ENCRYPTED,
    IN_USE,
    REFERENCE_MASK,
    Attribute,
    AttributeType,
    Boot,
    ListEntry,
    Record,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.filesystems.remains import NOBODY, Bits, GoneReader, Remains, RemainsReader
from imagefs.filesystems.runs import CHUNK, ChunkedReader, Run, RunsReader

FLAGS = 22  # where a record has its flags
BITMAP = 6  # record of the volume's bitmap
_NAME = struct.Struct("<Q40xQ8xBB")  # parent; size; name length, namespace


class Owned(Attribute):
    """An attribute of a deleted file's record."""

    owner = NOBODY  # number of the record; a copy by _replace is nobody's


class NtfsRemains(Remains):
    """The clusters that $Bitmap calls free, and whose last owners are deleted."""

    def __init__(self, volume: BlockReader, boot: Boot, *, is_held: bool) -> None:
        clusters = min(boot.clusters, volume.size // boot.cluster_size)
        super().__init__(volume, boot.cluster_size, 0, clusters, is_held=is_held)
        self.contested = Claims().contested()
        self._bitmap: ChunkedReader | None = None
        self._bits = 0

    def use(self, bitmap: BlockReader) -> None:
        """Take the volume's bitmap."""
        self._bits = bitmap.size * 8
        self._bitmap = ChunkedReader(bitmap)

    def _free(self, owner: int, first: int, count: int) -> Bits:
        free = np.zeros(count, np.bool_)
        count = min(count, self._bits - first)  # what the bitmap doesn't tell of is not free
        if self._bitmap is not None and count > 0:
            start, end = first // 8, -(-(first + count) // 8)
            data = b"".join(
                self._bitmap.read(at, min(CHUNK - at % CHUNK, end - at)) for at in _steps(start, end)
            )
            used = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            free[:count] = used[first - 8 * start :][:count] == 0
            self.contested.exclude(owner, first, free)
        return free


def _steps(start: int, end: int) -> Iterable[int]:
    return [start, *range((start // CHUNK + 1) * CHUNK, end, CHUNK)]


class DeletedTable(MasterFileTable):
    """The file records of a volume, those of deleted files as if they were still in use.

    The values of their attributes are read through ``remains``: a GoneError in place of others' bytes.
    Those of records in use are as ever.
    """

    remains: NtfsRemains | None = None  # None while $MFT itself is opened
    _plain: BlockReader

    def open(self, remains: NtfsRemains) -> None:
        """Read deleted files from now on."""
        remains.use(self.value(find(self.attributes(self.record(BITMAP)), AttributeType.DATA), "$Bitmap"))
        self._plain = self.volume
        self.volume = RemainsReader(remains, NOBODY, "a file")
        self.remains = remains

    def is_deleted(self, number: int) -> bool:
        """Whether a record is not in use."""
        return self.remains is not None and not super().raw_record(number)[FLAGS] & IN_USE

    def raw_record(self, number: int) -> bytes:
        """Return a file record as it is stored, but in use."""
        raw = super().raw_record(number)
        if self.remains is None or raw[FLAGS] & IN_USE:
            return raw
        return raw[:FLAGS] + bytes([raw[FLAGS] | IN_USE]) + raw[FLAGS + 1 :]

    def record(self, number: int) -> Record:
        """Return a file record."""
        return self._owned(super().record(number))

    def attributes(self, record: Record) -> list[Attribute]:
        """Return a record's attributes; of a deleted one as many as are still there."""
        if not self.is_deleted(record.number):
            return super().attributes(record)
        record = self._owned(record)
        try:
            entries = self._attribute_list(record)
        except FormatError:
            return record.attributes
        if not entries:
            return record.attributes
        records = {record.number: record}
        found = []
        for entry in entries:
            with suppress(FormatError):
                found.append(self._listed(records, record, entry))
        return found

    def _owned(self, record: Record) -> Record:
        """Return a record whose attributes tell whose they are, if it is deleted."""
        if not self.is_deleted(record.number):
            return record
        owner = record.base & REFERENCE_MASK if record.base else record.number
        attributes: list[Attribute] = []
        for attribute in record.attributes:
            owned = Owned(*attribute)
            owned.owner = owner
            attributes.append(owned)
        return record._replace(attributes=attributes)

    def _listed(self, records: dict[int, Record], base: Record, entry: ListEntry) -> Attribute:
        number = entry.reference & REFERENCE_MASK
        if not self.is_deleted(base.number):
            return super()._listed(records, base, entry)
        record = records.get(number)
        if record is None:
            record = records[number] = self.record(number)
        is_part = record is base or (
            self.is_deleted(number)
            and record.base & REFERENCE_MASK == base.number
            and was_deleted(record.base >> 48, base.sequence)
        )
        if is_part and was_deleted(entry.reference >> 48, record.sequence):
            for attribute in record.attributes:
                if attribute.id == entry.id and attribute.type == entry.type:
                    return attribute
        raise DamagedError(f"file record {base.number}: record {number} does not extend it any more")

    def value(self, extents: Sequence[Attribute], what: str) -> BlockReader:
        """Return the bytes of an attribute from its extents; GoneError where a deleted file's are gone."""
        first = extents[0]
        if first.value is not None:
            return BytesReader(first.value)
        if self.remains is None:
            return super().value(extents, what)
        volume = self._plain
        if not any(isinstance(extent, Owned) for extent in extents):
            runs = self.runs(extents, what)
            return RunsReader(volume, runs, first.size, initialized=first.initialized, name=what)
        volume = RemainsReader(self.remains, self._owner(extents), what)
        found, missing = self._known(extents, first.size, what)
        if not missing:
            return RunsReader(volume, found, first.size, initialized=first.initialized, name=what)
        known = first.size - missing
        start = RunsReader(volume, found, known, initialized=first.initialized, name=what)
        return ConcatReader([start, GoneReader(missing, what)])

    def _owner(self, extents: Iterable[Attribute]) -> int:
        owners = {extent.owner if isinstance(extent, Owned) else NOBODY for extent in extents}
        return owners.pop() if len(owners) == 1 else NOBODY

    def recovery(self, extents: Sequence[Attribute], what: str) -> Recovery:
        """Return what is left of the bytes of a deleted file's attribute."""
        first = extents[0]
        if first.value is not None:
            return Recovery(RecoveryState.WHOLE)
        if self.remains is None:
            raise ValueError("open() comes first")
        unit = self.cluster_size << (first.unit if first.flags & COMPRESSED and first.unit <= 16 else 0)
        owner = NOBODY if first.flags & (COMPRESSED | ENCRYPTED) else self._owner(extents)  # as they are read
        found, missing = self._known(extents, -(-first.size // unit) * unit, what)
        return self.remains.recovery(owner, found).with_unknown(missing)

    def _known(self, extents: Sequence[Attribute], size: int, what: str) -> tuple[list[Run], int]:
        """Return the runs of the first ``size`` bytes that hold anything, and how many have no place now.

        Those lie at the end.
        """
        first = extents[0]
        wanted = min(size, first.initialized + size - first.size)
        found: list[Run] = []
        with suppress(DamagedError):
            for run in self.runs(extents, what):
                if wanted <= 0:
                    break
                found.append(Run(min(run.length, wanted), run.start))
                wanted -= run.length
        return found, size - sum(run.length for run in found) if wanted > 0 else 0


def was_deleted(before: int, after: int) -> bool:
    """Whether a sequence number may be that of the same use of a record, before or after its end."""
    return after in (before, before % 0xFFFF + 1)


def file_names(attributes: Iterable[Attribute]) -> list[tuple[int, str]]:
    """Return a file's names, each with the reference of its directory: (reference, name).

    8.3 names only where there are no others; what can't be a name is left out.
    """
    found: list[tuple[int, str]] = []
    short: list[tuple[int, str]] = []
    for attribute in attributes:
        value = attribute.value or b""
        if attribute.type != AttributeType.FILE_NAME or len(value) < 68:
            continue
        parent, _, length, space = _NAME.unpack_from(value)
        name = decode_name(value[66 : 66 + 2 * length]) if 66 + 2 * length <= len(value) else ""
        if name:
            (short if space == DOS_NAME else found).append((parent, name))
    return list(dict.fromkeys(found or short))


def recorded_size(attributes: Iterable[Attribute]) -> int:
    """Return the size that a file had when it was given one of its names, in bytes."""
    sizes = [
        _NAME.unpack_from(attribute.value)[1]
        for attribute in attributes
        if attribute.type == AttributeType.FILE_NAME and attribute.value and len(attribute.value) >= 66
    ]
    return max(sizes, default=0)
