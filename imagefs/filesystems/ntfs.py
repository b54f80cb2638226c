"""NTFS, read from its own records.

pytsk3 does not tell how much of a file is valid (what lies beyond reads as zeros), nor times before
1970, nor reparse points, and reads directories ten times slower. So records, indexes and runs are read here;
what is compressed goes through TSK, which is opened when the first such file is.
"""

import errno
import os
import struct
import threading
from collections.abc import Iterable, Sequence

import pytsk3

from formats.blockreader import BlockReader, BytesReader
from formats.errors import DamagedError, FormatError, UnsupportedError
from imagefs.filesystems.base import ENTRIES_KEPT, NODES_KEPT, FileSystem, LeastRecentlyUsed
from imagefs.filesystems.ntfs_layout import (
    COMPRESSED,
    DIRECTORY,
    DOS_NAME,
    ENCRYPTED,
    FILE_DIRECTORY,
    FILE_ENCRYPTED,
    FILE_REPARSE,
    FILE_SYSTEM,
    FIRST_USER,
    IN_USE,
    REFERENCE_MASK,
    ROOT,
    VOLUME,
    Attribute,
    AttributeType,
    Record,
    apply_fixups,
    decode_name,
    parse_attribute_list,
    parse_boot,
    parse_index_entries,
    parse_record,
    parse_runs,
    unix_nanoseconds,
)
from imagefs.filesystems.ntfs_quick import quick_node
from imagefs.filesystems.ntfs_reparse import (
    INTX_LIMIT,
    intx_target,
    intx_type,
    reparse_tag,
    reparse_target,
    reparse_type,
    tag_name,
)
from imagefs.filesystems.runs import ChunkedReader, Run, RunsReader
from imagefs.filesystems.tsk_image import TskFile, TskImage
from mounters.tree import Attributes, Entry, NodeType, is_a_directory, not_a_directory, not_found

_INDEX_STEP = 1 << 20  # bytes of an index read at once
_MODES = {NodeType.DIRECTORY: 0o555, NodeType.FILE: 0o444, NodeType.LINK: 0o777, NodeType.OTHER: 0o444}


DOS_SPACE = bytes([DOS_NAME])


class _Listing:
    """A directory's names, and the references they stand for."""

    def __init__(self, entries: list[Entry], references: list[int], hidden: dict[str, int]) -> None:
        self.entries = entries
        self.references = references
        self._hidden = hidden
        self._by_name: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.entries) + 1

    def reference(self, name: str) -> int | None:
        """Return what a name stands for; the file system's own files are found as well."""
        if self._by_name is None:
            names = {entry.name: at for entry, at in zip(self.entries, self.references, strict=True)}
            self._by_name = {**self._hidden, **names}
        return self._by_name.get(name)


class NtfsFileSystem(FileSystem):
    """An NTFS volume. Raises FormatError from the constructor when its boot sector or $MFT is damaged."""

    kind = "NTFS"
    root = ROOT

    def __init__(self, reader: BlockReader, sector_size: int = 512) -> None:
        self._reader = reader
        self._sector_size = sector_size
        self._boot = parse_boot(reader.read_at(0, 512))
        self.block_size = self._boot.cluster_size
        self._listings: LeastRecentlyUsed[int, _Listing] = LeastRecentlyUsed(ENTRIES_KEPT, len)
        self._nodes: LeastRecentlyUsed[int, tuple[int, Attributes]] = LeastRecentlyUsed(NODES_KEPT)
        self._tsk: tuple[TskImage, pytsk3.FS_Info] | None = None
        self._tsk_lock = threading.Lock()
        self._mft = self._open_mft()
        self._mft_chunks = ChunkedReader(self._mft)
        self.label = self._read_label()

    def attributes(self, inode: int) -> Attributes:
        """Return a node's attributes."""
        return self._node(inode)[1]

    def entries(self, inode: int) -> Sequence[Entry]:
        """Return a directory's entries, without the file system's own files."""
        return self._listing(inode).entries

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes]]:
        """Return a directory's entries with their attributes; raises where one of these can't be had."""
        listing = self._listing(inode)
        return [
            (entry, self._referenced(entry.name, reference))
            for entry, reference in zip(listing.entries, listing.references, strict=True)
        ]

    def lookup(self, inode: int, name: str) -> int:
        """Return the inode number of a name, compared exactly; $MFT and its like are found in the root."""
        reference = self._listing(inode).reference(name)
        if reference is None:
            raise not_found(name)
        return self._referenced(name, reference).inode

    def read_link(self, inode: int) -> str:
        """Return the target of a symbolic link, junction or mount point."""
        if self.attributes(inode).type is not NodeType.LINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._target(inode, self._all_attributes(self._record(inode)))

    def open(self, inode: int) -> BlockReader:
        """Return a file's unnamed data."""
        node = self.attributes(inode)
        if node.type is NodeType.DIRECTORY:
            raise is_a_directory(str(inode))
        if node.type is not NodeType.FILE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        what = f"file {inode}"
        attributes = self._all_attributes(self._record(inode))
        reparse = _find(attributes, AttributeType.REPARSE_POINT)
        if reparse:
            tag = reparse_tag(self._value(reparse, what).read_at(0, node_size(reparse)), what)
            raise UnsupportedError(f"{what} has its data elsewhere: {tag_name(tag)}")
        data = _find(attributes, AttributeType.DATA)
        if not data:
            return BytesReader(b"")
        if data[0].flags & ENCRYPTED or _file_attributes(attributes, what) & FILE_ENCRYPTED:
            raise UnsupportedError(f"{what} is encrypted by EFS")
        if data[0].flags & COMPRESSED and data[0].value is None:
            return self._open_compressed(inode, data[0], what)
        return self._value(data, what)

    def close(self) -> None:
        """Forget the caches."""
        self._listings.clear()
        self._nodes.clear()
        self._mft_chunks.clear()

    # records

    def _open_mft(self) -> BlockReader:
        """Return $MFT, whose first record says where the others are."""
        size = self._boot.record_size
        at = self._boot.mft_cluster * self.block_size
        if at + size > self._reader.size:
            raise DamagedError(f"NTFS boot sector: $MFT at {at} lies outside the volume")
        record = parse_record(self._reader.read_at(at, size), 0)
        data = _find(record.attributes, AttributeType.DATA)
        if not data or data[0].value is not None:
            raise DamagedError("$MFT: its first record has no data runs")
        if not _find(record.attributes, AttributeType.ATTRIBUTE_LIST):
            return self._value(data, "$MFT")
        # the runs go on in records that lie in the part known already
        known = sum(extent.clusters for extent in data) * self.block_size
        partial = [data[0]._replace(size=known, initialized=known), *data[1:]]
        self._mft = self._value(partial, "$MFT")
        self._mft_chunks = ChunkedReader(self._mft)
        return self._value(_find(self._all_attributes(record), AttributeType.DATA), "$MFT")

    def _record(self, number: int) -> Record:
        """Return a file record."""
        return parse_record(self._raw_record(number), number)

    def _raw_record(self, number: int) -> bytes:
        """Return a file record as it is stored."""
        size = self._boot.record_size
        if number < 0 or (number + 1) * size > self._mft.size:
            raise DamagedError(f"file record {number} is outside $MFT")
        return self._mft_chunks.read(number * size, size)

    def _all_attributes(self, record: Record) -> list[Attribute]:
        """Return a record's attributes and those of the records that extend it."""
        lists = _find(record.attributes, AttributeType.ATTRIBUTE_LIST)
        if not lists:
            return record.attributes
        what = f"file record {record.number}"
        value = self._value(lists, what)
        attributes = list(record.attributes)
        for reference in sorted(parse_attribute_list(value.read_at(0, value.size), what)):
            number = reference & REFERENCE_MASK
            if number == record.number:
                continue
            extension = self._record(number)
            if (
                not extension.flags & IN_USE
                or extension.sequence != reference >> 48
                or extension.base != record.number | record.sequence << 48
            ):
                raise DamagedError(f"{what}: record {number} does not extend it, as its list says")
            attributes += extension.attributes
        return attributes

    def _value(self, extents: Sequence[Attribute], what: str) -> BlockReader:
        """Return the bytes of an attribute from its extents."""
        if extents[0].value is not None:
            return BytesReader(extents[0].value)
        return RunsReader(
            self._reader,
            self._runs(extents, what),
            extents[0].size,
            initialized=extents[0].initialized,
            name=what,
        )

    def _runs(self, extents: Sequence[Attribute], what: str) -> Iterable[Run]:
        vcn = 0
        for extent in extents:
            if extent.first_vcn != vcn or extent.value is not None:
                raise DamagedError(f"{what}: where cluster {vcn} is stored is not known")
            vcn += extent.clusters
            for clusters, lcn in parse_runs(extent, what):
                yield Run(clusters * self.block_size, None if lcn is None else lcn * self.block_size)

    # nodes

    def _node(self, inode: int) -> tuple[int, Attributes]:
        """Return a record's sequence number and what it says of its node."""
        known = self._nodes.get(inode)
        if known is None:
            raw = self._raw_record(inode)
            known = quick_node(raw, inode) or self._node_of(parse_record(raw, inode))
            self._nodes.put(inode, known)
        return known

    def _referenced(self, name: str, reference: int) -> Attributes:
        """Return the attributes of what a directory entry refers to."""
        sequence, attributes = self._node(reference & REFERENCE_MASK)
        if sequence != reference >> 48:
            raise DamagedError(f"{name}: its file record {attributes.inode} has become another file's")
        return attributes

    def _node_of(self, record: Record) -> tuple[int, Attributes]:
        what = f"file record {record.number}"
        if not record.flags & IN_USE or record.base:
            raise DamagedError(f"{what} is not a file's")
        attributes = self._all_attributes(record)
        standard = next((a.value for a in attributes if a.type == AttributeType.STANDARD_INFORMATION), None)
        if standard is None or len(standard) < 36:
            raise DamagedError(f"{what}: no $STANDARD_INFORMATION")
        created, modified, changed, accessed, flags = struct.unpack_from("<QQQQI", standard)
        kind = NodeType.DIRECTORY if record.flags & DIRECTORY else NodeType.FILE
        kind = self._special_type(attributes, flags, kind, what)
        size = allocated = 0
        if kind is NodeType.LINK:
            size = len(os.fsencode(self._target(record.number, attributes)))
        elif kind is not NodeType.OTHER:
            data = (
                _find(attributes, AttributeType.DATA)
                if kind is NodeType.FILE
                else _find(attributes, AttributeType.INDEX_ALLOCATION, "$I30")
                or _find(attributes, AttributeType.INDEX_ROOT, "$I30")
            )
            if data:
                size, allocated = data[0].size, data[0].allocated
        links = sum(
            1
            for attribute in attributes
            if attribute.type == AttributeType.FILE_NAME
            and attribute.value
            and attribute.value[65:66] != b"\2"
        )
        return record.sequence, Attributes(
            inode=record.number,
            type=kind,
            size=size,
            mode=_MODES[kind],
            links=max(1, links),
            modified=unix_nanoseconds(modified),
            accessed=unix_nanoseconds(accessed),
            changed=unix_nanoseconds(changed),
            created=unix_nanoseconds(created),
            allocated=allocated,
        )

    def _special_type(self, attributes: list[Attribute], flags: int, kind: NodeType, what: str) -> NodeType:
        """Return what a node is beyond directory and file: a link by reparse point or of Interix."""
        reparse = _find(attributes, AttributeType.REPARSE_POINT)
        if reparse:
            value = self._value(reparse, what)
            return reparse_type(reparse_tag(value.read_at(0, value.size), what), kind)
        if flags & FILE_SYSTEM and kind is NodeType.FILE:
            head = self._intx(attributes, what)
            return intx_type(head) or kind
        return kind

    def _intx(self, attributes: list[Attribute], what: str) -> bytes:
        """Return the data of what may be a link of Interix, b"" where it can't be one."""
        data = _find(attributes, AttributeType.DATA)
        if not data or not 8 < data[0].size <= INTX_LIMIT or data[0].flags & (COMPRESSED | ENCRYPTED):
            return b""
        value = self._value(data, what)
        return value.read_at(0, value.size)

    def _target(self, inode: int, attributes: list[Attribute]) -> str:
        what = f"link {inode}"
        reparse = _find(attributes, AttributeType.REPARSE_POINT)
        if reparse:
            value = self._value(reparse, what)
            return reparse_target(value.read_at(0, value.size), what)
        return intx_target(self._intx(attributes, what))

    # directories

    def _listing(self, inode: int) -> _Listing:
        known = self._listings.get(inode)
        if known is None:
            if self.attributes(inode).type is not NodeType.DIRECTORY:
                raise not_a_directory(str(inode))
            known = self._load_listing(inode)
            self._listings.put(inode, known)
        return known

    def _load_listing(self, inode: int) -> _Listing:
        entries: list[Entry] = []
        references: list[int] = []
        hidden: dict[str, int] = {}
        for names in self._index(inode):
            for name, reference, file_attributes in names:
                number = reference & REFERENCE_MASK
                if number < FIRST_USER:
                    if name != ".":
                        hidden[name] = reference
                    continue
                if "/" in name or "\0" in name or name in (".", ".."):
                    raise DamagedError(f"directory {inode}: the name {name!r} can't be")
                kind = NodeType.DIRECTORY if file_attributes & FILE_DIRECTORY else NodeType.FILE
                if file_attributes & (FILE_REPARSE | FILE_SYSTEM):
                    kind = self._recorded_type(number, kind)
                entries.append(Entry(name, number, kind))
                references.append(reference)
        return _Listing(entries, references, hidden)

    def _recorded_type(self, inode: int, otherwise: NodeType) -> NodeType:
        """Return a node's type by its record; ``otherwise`` where that is damaged, as it tells itself."""
        try:
            return self.attributes(inode).type
        except FormatError:
            return otherwise

    def _index(self, inode: int) -> Iterable[list[tuple[str, int, int]]]:
        """Yield a directory's names from its index root and from each index block in use."""
        what = f"directory {inode}"
        attributes = self._all_attributes(self._record(inode))
        root = _find(attributes, AttributeType.INDEX_ROOT, "$I30")
        if not root or root[0].value is None or len(root[0].value) < 32:
            raise DamagedError(f"{what}: no index root")
        yield parse_index_entries(root[0].value, 16, what)
        allocation = _find(attributes, AttributeType.INDEX_ALLOCATION, "$I30")
        if not allocation:
            if root[0].value[28] & 1:
                raise DamagedError(f"{what}: its index blocks are missing")
            return
        used = _find(attributes, AttributeType.BITMAP, "$I30")
        if not used:
            raise DamagedError(f"{what}: no bitmap of its index blocks")
        bitmap = self._value(used, what)
        yield from self._index_blocks(
            self._value(allocation, what),
            int.from_bytes(bitmap.read_at(0, bitmap.size), "little"),
            int(struct.unpack_from("<I", root[0].value, 8)[0]),
            what,
        )

    def _index_blocks(
        self, blocks: BlockReader, bitmap: int, size: int, what: str
    ) -> Iterable[list[tuple[str, int, int]]]:
        if size < 512 or size > 1 << 16 or size % 512:
            raise DamagedError(f"{what}: index blocks of {size} bytes")
        if bitmap >> (blocks.size // size):
            raise DamagedError(f"{what}: more index blocks in use than there are")
        for at in range(0, blocks.size, _INDEX_STEP):
            part = blocks.read_at(at, min(_INDEX_STEP, blocks.size - at))
            for inside in range(0, len(part) // size * size, size):
                if bitmap >> ((at + inside) // size) & 1:
                    block = apply_fixups(part[inside : inside + size], b"INDX", what)
                    yield parse_index_entries(block, 24, what)

    # the volume, and what TSK reads

    def _read_label(self) -> str:
        names = _find(self._record(VOLUME).attributes, AttributeType.VOLUME_NAME)
        return decode_name(names[0].value or b"") if names else ""

    def _open_compressed(self, inode: int, data: Attribute, what: str) -> BlockReader:
        with self._tsk_lock:
            if self._tsk is None:
                image = TskImage(self._reader, self._sector_size)
                with image.calls("NTFS volume"):
                    self._tsk = image, pytsk3.FS_Info(image, 0, pytsk3.TSK_FS_TYPE_NTFS)
            image, fs = self._tsk
        return TskFile(image, fs, inode, data.size, what)


def node_size(extents: Sequence[Attribute]) -> int:
    """Return the bytes of an attribute."""
    return extents[0].size


def _find(attributes: Iterable[Attribute], kind: AttributeType, name: str = "") -> list[Attribute]:
    """Return the extents of an attribute in order."""
    found = [attribute for attribute in attributes if attribute.type == kind and attribute.name == name]
    if len(found) > 1:
        found.sort(key=lambda attribute: attribute.first_vcn)
    return found


def _file_attributes(attributes: Iterable[Attribute], what: str) -> int:
    for attribute in attributes:
        if attribute.type == AttributeType.STANDARD_INFORMATION and attribute.value is not None:
            return int(struct.unpack_from("<I", attribute.value, 32)[0])
    raise DamagedError(f"{what}: no $STANDARD_INFORMATION")
