"""$MFT: the file records of an NTFS volume, and the bytes of their attributes."""

import struct
from collections.abc import Iterable, Iterator, Sequence

from formats.blockreader import BlockReader, BytesReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.ntfs.layout import (
    IN_USE,
    REFERENCE_MASK,
    Attribute,
    AttributeType,
    Boot,
    ListEntry,
    Record,
    parse_attribute_list,
    parse_record,
    parse_runs,
)
from imagefs.filesystems.runs import CHUNK, ChunkedReader, Run, RunsReader

_LIST_LIMIT = 1 << 20  # bytes of an attribute list; Windows stops at 256 KiB


class MasterFileTable:
    """The file records of a volume. Raises FormatError from the constructor when the first is damaged.

    Safe from several threads once it is constructed.
    """

    def __init__(self, reader: BlockReader, boot: Boot) -> None:
        self.record_size = boot.record_size
        self._last: Record | None = None
        self.cluster_size = boot.cluster_size
        self.volume = reader
        at = boot.mft_cluster * boot.cluster_size
        if at + boot.record_size > reader.size:
            raise DamagedError(f"NTFS boot sector: $MFT at {at} lies outside the volume")
        first = parse_record(reader.read_at(at, boot.record_size), 0)
        data = find(first.attributes, AttributeType.DATA)
        if not data or data[0].value is not None:
            raise DamagedError("$MFT: its first record has no data runs")
        entries = self._attribute_list(first)
        self.data = self._value_of_known(data) if entries else self.value(data, "$MFT")
        self.chunks = ChunkedReader(self.data)
        records = {0: first}
        for entry in sorted(entries, key=lambda item: item.first_vcn):
            if entry.type != AttributeType.DATA or entry.is_named or entry.reference & REFERENCE_MASK == 0:
                continue
            # The record that maps an extent lies in what those before it map, not always in the first's.
            if (1 + (entry.reference & REFERENCE_MASK)) * self.record_size > self.data.size:
                self._use(self._value_of_known(data))
            data.append(self._listed(records, first, entry))
        if entries:
            self._use(self.value(data, "$MFT"))

    def _use(self, data: BlockReader) -> None:
        self.data = data
        self.chunks = ChunkedReader(data)

    def _value_of_known(self, extents: Sequence[Attribute]) -> BlockReader:
        """Return as many bytes of $MFT as some of its extents map."""
        known = sum(extent.clusters for extent in extents) * self.cluster_size
        return self.value([extents[0]._replace(size=known, initialized=known), *extents[1:]], "$MFT")

    def raw_record(self, number: int) -> bytes:
        """Return a file record as it is stored."""
        size = self.record_size
        if number < 0 or (number + 1) * size > self.data.size:
            raise DamagedError(f"file record {number} is outside $MFT")
        return self.chunks.read(number * size, size)

    def raw_records(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """Yield file records as they are stored, b"" where one can't be read; neighbours in one go."""
        size, known, piece = self.record_size, -1, b""
        for number in numbers:
            index, inside = divmod(number * size, CHUNK)
            if index != known:
                known, piece = index, self.chunks.chunk(index)
            raw = piece[inside : inside + size]
            if len(raw) != size:
                try:
                    raw = self.raw_record(number)
                except FormatError:
                    raw = b""
            yield raw

    def record(self, number: int) -> Record:
        """Return a file record; the last one is kept, for those who ask again and again."""
        known = self._last
        if known is None or known.number != number:
            known = self.parsed(self.raw_record(number), number)
        return known

    def parsed(self, raw: bytes, number: int) -> Record:
        """Return a file record that was read; it is kept as the last one."""
        self._last = record = parse_record(raw, number)
        return record

    def attributes(self, record: Record) -> list[Attribute]:
        """Return a record's attributes; where it has a list of them, all that the list names."""
        entries = self._attribute_list(record)
        if not entries:
            return record.attributes
        records = {record.number: record}
        return [self._listed(records, record, entry) for entry in entries]

    def _attribute_list(self, record: Record) -> list[ListEntry]:
        lists = find(record.attributes, AttributeType.ATTRIBUTE_LIST)
        if not lists:
            return []
        what = f"file record {record.number}"
        entries = parse_attribute_list(self.small_value(lists, _LIST_LIMIT, what), what)
        if not entries:
            raise DamagedError(f"{what}: its attribute list is empty")
        return entries

    def _listed(self, records: dict[int, Record], base: Record, entry: ListEntry) -> Attribute:
        """Return the attribute that an entry of a record's list is about; ``records`` are those read."""
        number = entry.reference & REFERENCE_MASK
        record = records.get(number)
        if record is None:
            record = records[number] = self.record(number)
        if (
            not record.flags & IN_USE
            or record.sequence != entry.reference >> 48
            or (record is not base and record.base != base.number | base.sequence << 48)
        ):
            raise DamagedError(
                f"file record {base.number}: record {number} does not extend it, as its list says"
            )
        for attribute in record.attributes:
            if attribute.id == entry.id and attribute.type == entry.type:
                return attribute
        raise DamagedError(
            f"file record {base.number}: record {number} lacks attribute {entry.type:#x} number {entry.id}"
        )

    def value(self, extents: Sequence[Attribute], what: str) -> BlockReader:
        """Return the bytes of an attribute from its extents."""
        if extents[0].value is not None:
            return BytesReader(extents[0].value)
        size, initialized = extents[0].size, extents[0].initialized
        runs = self._runs(extents, what)
        return RunsReader(self.volume, runs, size, initialized=initialized, name=what)

    def small_value(self, extents: Sequence[Attribute], limit: int, what: str) -> bytes:
        """Return the bytes of an attribute that can't be larger than ``limit``."""
        if extents[0].size > limit:
            raise DamagedError(f"{what}: an attribute {extents[0].type:#x} of {extents[0].size} bytes")
        value = self.value(extents, what)
        return value.read_at(0, value.size)

    def runs(self, extents: Iterable[Attribute], what: str) -> Iterator[Run]:
        """Yield where the clusters of an attribute's extents lie, in bytes, as they are allocated.

        Raises DamagedError where a part of them is not told, or can't be read.
        """
        return self._runs(extents, what)

    def _runs(self, extents: Iterable[Attribute], what: str) -> Iterator[Run]:
        vcn = 0
        for extent in extents:
            if extent.first_vcn != vcn or extent.value is not None:
                raise DamagedError(f"{what}: where cluster {vcn} is stored is not known")
            vcn += extent.clusters
            for clusters, lcn in parse_runs(extent, what):
                yield Run(clusters * self.cluster_size, None if lcn is None else lcn * self.cluster_size)


def find(attributes: Iterable[Attribute], kind: AttributeType, name: str = "") -> list[Attribute]:
    """Return the extents of an attribute in order."""
    found = [attribute for attribute in attributes if attribute.type == kind and attribute.name == name]
    if len(found) > 1:
        found.sort(key=lambda attribute: attribute.first_vcn)
    return found


def check_extents(extents: Sequence[Attribute], what: str) -> None:
    """Raise DamagedError unless the extents are of one attribute, whose first part with the size is there."""
    first = extents[0]
    if first.first_vcn or first.size >> 63:
        raise DamagedError(f"{what}: the first part of its data is missing, or {first.size} bytes long")
    if len(extents) > 1 and not extents[1].first_vcn:
        raise DamagedError(f"{what}: its data is there twice")


def standard_information(attributes: Iterable[Attribute], what: str) -> tuple[int, int, int, int, int]:
    """Return when a file was created, modified, changed and accessed, and its file attributes."""
    for attribute in attributes:
        if attribute.type == AttributeType.STANDARD_INFORMATION and len(attribute.value or b"") >= 36:
            created, modified, changed, accessed, flags = struct.unpack_from("<QQQQI", attribute.value or b"")
            return created, modified, changed, accessed, flags
    raise DamagedError(f"{what}: no $STANDARD_INFORMATION")
