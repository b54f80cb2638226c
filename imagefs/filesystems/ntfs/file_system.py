"""NTFS, read from its own records.

pytsk3 does not tell how much of a file is valid (what lies beyond reads as zeros), nor times before
1970, nor reparse points, and reads directories ten times slower. So records, indexes and data are read here.
"""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from formats.blockreader import BlockReader, BytesReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.base import (
    NODES_KEPT,
    FileSystem,
    LeastRecentlyUsed,
    RecordedTimes,
    Stream,
    VolumeOptions,
)
from imagefs.filesystems.names import decode_name
from imagefs.filesystems.ntfs.data import REPARSE_LIMIT, open_attribute, open_file, stored_size
from imagefs.filesystems.ntfs.directories import Directories
from imagefs.filesystems.ntfs.extended import (
    VALUE_LIMIT,
    SystemAttributes,
    attribute_names,
    security_id,
    stream_of,
)
from imagefs.filesystems.ntfs.layout import (
    COMPRESSED,
    DIRECTORY,
    ENCRYPTED,
    FILE_SYSTEM,
    FIRST_USER,
    IN_USE,
    REFERENCE_MASK,
    ROOT,
    VOLUME,
    Attribute,
    AttributeType,
    Record,
    data_size,
    parse_boot,
    parse_record,
    unix_nanoseconds,
)
from imagefs.filesystems.ntfs.links import Links, Names, ShownLink
from imagefs.filesystems.ntfs.listing import Listing
from imagefs.filesystems.ntfs.mft import MasterFileTable, find, standard_information
from imagefs.filesystems.ntfs.owners import Owners
from imagefs.filesystems.ntfs.quick import quick_node
from imagefs.filesystems.ntfs.reparse import (
    INTX_LIMIT,
    LINKS,
    ReparseTag,
    intx_type,
    parse_intx,
    parse_link,
    reparse_tag,
    reparse_type,
)
from imagefs.filesystems.ntfs.security import Security
from imagefs.filesystems.ntfs.streams import (
    WOF_STREAM,
    NodeNumbers,
    StaleNode,
    StreamNode,
    describe,
    named_data,
    split_name,
)
from imagefs.filesystems.ntfs.times import recorded_times, system_entries
from mounters.tree import (
    Attributes,
    Columns,
    Entry,
    NodeType,
    is_a_directory,
    no_such_attribute,
    not_a_directory,
    not_found,
)

_MODES = {NodeType.DIRECTORY: 0o555, NodeType.FILE: 0o444, NodeType.LINK: 0o777, NodeType.OTHER: 0o444}


class NtfsFileSystem(FileSystem):
    """An NTFS volume. Raises FormatError from the constructor when its boot sector or $MFT is damaged."""

    kind = "NTFS"
    root = ROOT
    _table: ClassVar[type[MasterFileTable]] = MasterFileTable

    def __init__(
        self,
        reader: BlockReader,
        options: VolumeOptions | None = None,
        known_as: Callable[[], Names | None] = lambda: None,
    ) -> None:
        self._options = options or VolumeOptions()
        self._reader = reader
        boot = parse_boot(reader.read_at(0, 512))
        self.block_size = boot.cluster_size
        self._nodes: LeastRecentlyUsed[int, tuple[int, Attributes]] = LeastRecentlyUsed(NODES_KEPT)
        self._numbers = NodeNumbers()
        self._mft = self._table(reader, boot)
        security = Security(self._mft, self.block_size)
        self._owners = Owners(self._mft, security)
        self._system_attributes = SystemAttributes(
            self._mft, security, self.block_size, self._find, raw_efs=self._options.raw_efs
        )
        self._directories = Directories(self._mft, self.block_size, reader.size, self._recorded_type)
        self._links = Links(self._mft, self._directories, known_as)
        self.label = self._read_label()

    def attributes(self, inode: int) -> Attributes:
        """Return a node's attributes."""
        return self._node(inode)[1]

    def entries(self, inode: int) -> Sequence[Entry]:
        """Return a directory's entries, without the file system's own files."""
        return self._listing(inode).entries()

    def columns(self, inode: int) -> Columns:
        """Return a directory's entries column by column."""
        return self._listing(inode).columns

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        """Return a directory's entries with their attributes, None where these can't be read.

        Entries that refer to what has become another file's record get an inode number of their own,
        whose attributes can't be read.
        """
        listing = self._listing(inode)
        entries, references = listing.entries(), listing.references.tolist()
        found: list[tuple[Entry, Attributes | None]] = [(entry, None) for entry in entries]
        numbers = [entry.inode for entry in entries]
        positions = sorted(range(len(found)), key=numbers.__getitem__)  # in the order of the records
        for position, raw in zip(
            positions, self._mft.raw_records(map(numbers.__getitem__, positions)), strict=True
        ):
            entry, reference = entries[position], references[position]
            try:
                sequence, node = quick_node(raw, entry.inode, self._owners) or self._node(entry.inode)
            except FormatError:
                continue
            if sequence != reference >> 48:
                found[position] = self._stale(entry, reference), None
            elif node.type is entry.type:
                found[position] = entry, node
            else:
                found[position] = entry._replace(type=node.type), node
        return found

    def lookup(self, inode: int, name: str) -> int:
        """Return the inode number of a name, or of "name:stream"; $MFT and its like are found in the root."""
        found = self._find(inode, name)
        if found is None and ":" in name:
            found = self._stream_node(inode, name)
        if found is None:
            raise not_found(name)
        return found

    def _find(self, inode: int, name: str) -> int | None:
        """Return the inode number of a name, compared exactly or else without regard to case."""
        self._check_directory(inode)
        reference = self._directories.reference(inode, name)
        return None if reference is None else self._referenced(name, reference).inode

    def read_link(self, inode: int) -> str:
        """Return the target of a symbolic link, junction or mount point."""
        if self.attributes(inode).type is not NodeType.LINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        shown = self._shown_link(self._mft.attributes(self._mft.record(inode)), f"link {inode}")
        if shown is None or shown.target is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return shown.target

    def open(self, inode: int) -> BlockReader:
        """Return a file's unnamed data, or a stream's."""
        stream = self._numbers.node(inode)
        if isinstance(stream, StreamNode):
            return self.open_stream(*stream)
        node = self.attributes(inode)
        if node.type is NodeType.DIRECTORY:
            raise is_a_directory(str(inode))
        if node.type is not NodeType.FILE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        attributes = self._mft.attributes(self._mft.record(inode))
        shown = self._shown_link(attributes, f"link {inode}")
        if shown is not None:
            return BytesReader(shown.text)
        return open_file(self._mft, attributes, f"file {inode}", self._options)

    def streams(self, inode: int) -> Sequence[Stream]:
        """Return the named streams of a file or directory, without the one that WOF's compression keeps."""
        what = f"file {inode}"
        attributes = self._attributes_of(inode)
        found = named_data(attributes)
        if WOF_STREAM in found and self._is_wof(attributes, what):
            del found[WOF_STREAM]
        return [
            describe(name, extents, what, raw_efs=self._options.raw_efs) for name, extents in found.items()
        ]

    def open_stream(self, inode: int, name: str) -> BlockReader:
        """Return the data of a named stream, listed or not."""
        return open_attribute(
            self._mft, self._stream(inode, name), f"stream {name!r} of file {inode}", self._options
        )

    def extended_attributes(self, inode: int) -> Sequence[str]:
        """Return the streams that are the user's attributes; a link and its like have none."""
        if not self._is_user(inode):
            return ()
        names = attribute_names([stream.name for stream in self.streams(inode)])
        return [*names, *self._system_attributes.listed(self._whole_record(inode))]

    def extended_attribute(self, inode: int, name: str) -> bytes:
        """Return the value of an attribute; E2BIG for a stream that is too large to be one."""
        if isinstance(self._numbers.node(inode), StreamNode):
            raise no_such_attribute(name)
        value = None
        if name in self._system_attributes:
            value = self._system_attributes.value(self._whole_record(inode), name)
        elif self._is_user(inode):
            value = self._stream_value(inode, stream_of(name))
        if value is None:
            raise no_such_attribute(name)
        return value

    def recorded_times(self, inode: int) -> Sequence[RecordedTimes]:
        """Return the times of a node's $STANDARD_INFORMATION, then of every $FILE_NAME."""
        return recorded_times(self._mft, self.recorded_number(inode))

    def recorded_number(self, inode: int) -> int:
        """Return the number of a node's file record, of a stream that of its file's."""
        made = self._numbers.node(inode)
        return made.record if isinstance(made, StreamNode) else inode

    def system_entries(self) -> Sequence[Entry]:
        """Return $MFT and its like."""
        return system_entries(self._mft)

    def close(self) -> None:
        """Forget the caches."""
        self._directories.clear()
        self._nodes.clear()
        self._mft.chunks.clear()

    # nodes

    def _node(self, inode: int) -> tuple[int, Attributes]:
        """Return a record's sequence number and what it says of its node."""
        known = self._nodes.get(inode)
        if known is None:
            made = self._numbers.node(inode)
            if isinstance(made, StaleNode):
                raise DamagedError(f"file record {made.reference & REFERENCE_MASK} has become another file's")
            if made is not None:
                known = self._node_of_stream(inode, made)
            else:
                raw = self._mft.raw_record(inode)
                known = quick_node(raw, inode, self._owners) or self._node_of(parse_record(raw, inode))
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
        attributes = self._mft.attributes(record)
        created, modified, changed, accessed, flags = standard_information(attributes, what)
        kind = NodeType.DIRECTORY if record.flags & DIRECTORY else NodeType.FILE
        kind, shown = self._special_type(attributes, flags, kind, what)
        size = allocated = 0
        if shown is not None:
            size = len(shown.text if shown.target is None else os.fsencode(shown.target))
        elif kind is not NodeType.OTHER:
            data = (
                find(attributes, AttributeType.DATA)
                if kind is NodeType.FILE
                else find(attributes, AttributeType.INDEX_ALLOCATION, "$I30")
                or find(attributes, AttributeType.INDEX_ROOT, "$I30")
            )
            if data:
                size = data_size(data[0], raw_efs=self._options.raw_efs)
                allocated = stored_size(attributes, data[0])
                if data[0].first_vcn or size >> 63:
                    raise DamagedError(f"{what}: the first part of its data is missing, or {size} bytes long")
        links = sum(
            1
            for attribute in attributes
            if attribute.type == AttributeType.FILE_NAME
            and attribute.value
            and attribute.value[65:66] != b"\2"
        )
        user, group, execute = self._owners.of_file(
            attributes, security_id(record._replace(attributes=attributes))
        )
        return record.sequence, Attributes(
            inode=record.number,
            type=kind,
            size=size,
            mode=_MODES[kind] | execute,
            links=max(1, links),
            uid=user,
            gid=group,
            modified=unix_nanoseconds(modified),
            accessed=unix_nanoseconds(accessed),
            changed=unix_nanoseconds(changed),
            created=unix_nanoseconds(created),
            allocated=allocated,
        )

    def _special_type(
        self, attributes: list[Attribute], flags: int, kind: NodeType, what: str
    ) -> tuple[NodeType, ShownLink | None]:
        """Return what a node is beyond directory and file, and what it is shown as if it is a link."""
        shown = self._shown_link(attributes, what)
        if shown is not None:
            return NodeType.FILE if shown.target is None else NodeType.LINK, shown
        reparse = find(attributes, AttributeType.REPARSE_POINT)
        if reparse:
            value = self._mft.small_value(reparse, REPARSE_LIMIT, what)
            return reparse_type(reparse_tag(value, what), kind), None
        if flags & FILE_SYSTEM and kind is NodeType.FILE:
            return intx_type(self._intx(attributes, what)) or kind, None
        return kind, None

    def _shown_link(self, attributes: list[Attribute], what: str) -> ShownLink | None:
        """Return what a link by reparse point or of Interix is shown as; None for what is no link."""
        reparse = find(attributes, AttributeType.REPARSE_POINT)
        if reparse:
            value = self._mft.small_value(reparse, REPARSE_LIMIT, what)
            if reparse_tag(value, what) in LINKS:
                return self._links.shown(attributes, parse_link(value, what), what)
        elif standard_information(attributes, what)[-1] & FILE_SYSTEM:
            head = self._intx(attributes, what)
            if intx_type(head) is NodeType.LINK:
                return self._links.shown(attributes, parse_intx(head, what), what)
        return None

    def _intx(self, attributes: list[Attribute], what: str) -> bytes:
        """Return the data of what may be a link of Interix, b"" where it can't be one."""
        data = find(attributes, AttributeType.DATA)
        if not data or not 8 < data[0].size <= INTX_LIMIT or data[0].flags & (COMPRESSED | ENCRYPTED):
            return b""
        return self._mft.small_value(data, INTX_LIMIT, what)

    # streams

    def _stream_node(self, directory: int, name: str) -> int | None:
        """Return the inode number of "name:stream", and of "name:stream:$DATA"; None: it is not there."""
        for host, stream in split_name(name):
            inode = self._find(directory, host) if host else directory
            if inode is None:
                continue
            if not stream:
                return inode
            if stream in named_data(self._attributes_of(inode)):
                return self._numbers.number(StreamNode(inode, stream))
        return None

    def _stream(self, inode: int, name: str) -> list[Attribute]:
        """Return the extents of a stream; ENOENT when there is none of this name."""
        extents = named_data(self._attributes_of(inode)).get(name)
        if not extents:
            raise not_found(name)
        return extents

    def _stream_value(self, inode: int, name: str | None) -> bytes | None:
        """Return what a stream holds, None when there is none; E2BIG where Linux takes no such attribute."""
        if name is None or name not in named_data(self._attributes_of(inode)):
            return None
        reader = self.open_stream(inode, name)
        if reader.size > VALUE_LIMIT:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), name)
        return reader.read_at(0, reader.size)

    def _whole_record(self, inode: int) -> Record:
        """Return a file's record with all its attributes, also those that are in others."""
        return self._mft.record(inode)._replace(attributes=self._attributes_of(inode))

    def _is_user(self, inode: int) -> bool:
        """Tell whether a node has attributes of the user: a file or directory not of the volume itself."""
        if self._numbers.node(inode) is not None or (inode < FIRST_USER and inode != ROOT):
            return False
        return self.attributes(inode).type in (NodeType.FILE, NodeType.DIRECTORY)

    def _node_of_stream(self, inode: int, node: StreamNode) -> tuple[int, Attributes]:
        sequence, host = self._node(node.record)
        known = describe(node.name, self._stream(*node), f"file {node.record}", raw_efs=self._options.raw_efs)
        return sequence, replace(
            host,
            inode=inode,
            type=NodeType.FILE,
            size=known.size,
            mode=host.mode & _MODES[NodeType.FILE],
            links=1,
            allocated=known.allocated,
        )

    def _is_wof(self, attributes: list[Attribute], what: str) -> bool:
        reparse = find(attributes, AttributeType.REPARSE_POINT)
        return (
            bool(reparse)
            and reparse_tag(self._mft.small_value(reparse, REPARSE_LIMIT, what), what) == ReparseTag.WOF
        )

    def _attributes_of(self, inode: int) -> list[Attribute]:
        """Return the attributes of a file's record; a stream has none of its own."""
        if isinstance(self._numbers.node(inode), StreamNode):
            return []
        self._node(inode)  # which raises what is wrong with it
        return self._mft.attributes(self._mft.record(inode))

    def _stale(self, entry: Entry, reference: int) -> Entry:
        """Return an entry for an earlier use of a file record, with a number of its own."""
        return entry._replace(inode=self._numbers.number(StaleNode(reference)))

    # directories

    def _listing(self, inode: int) -> Listing:
        self._check_directory(inode)
        return self._directories.listing(inode)

    def _check_directory(self, inode: int) -> None:
        if self.attributes(inode).type is not NodeType.DIRECTORY:
            raise not_a_directory(str(inode))

    def _recorded_type(self, inode: int, otherwise: NodeType) -> NodeType:
        """Return a node's type by its record; ``otherwise`` where that is damaged, as it tells itself."""
        try:
            return self.attributes(inode).type
        except FormatError:
            return otherwise

    # the volume

    def _read_label(self) -> str:
        names = find(self._mft.record(VOLUME).attributes, AttributeType.VOLUME_NAME)
        return decode_name(names[0].value or b"") if names else ""
