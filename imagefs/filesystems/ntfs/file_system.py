"""NTFS, read from its own records.

pytsk3 does not tell how much of a file is valid (what lies beyond reads as zeros), nor times before
1970, nor reparse points, and reads directories ten times slower. So records, indexes and data are read here.
"""

import errno
import os
from collections.abc import Callable, Collection, Sequence
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
from imagefs.filesystems.ntfs.data import open_attribute, open_file
from imagefs.filesystems.ntfs.directories import Directories
from imagefs.filesystems.ntfs.extended import (
    VALUE_LIMIT,
    SystemAttributes,
    attribute_names,
    stream_of,
)
from imagefs.filesystems.ntfs.layout import (
    FIRST_USER,
    REFERENCE_MASK,
    ROOT,
    VOLUME,
    Attribute,
    AttributeType,
    Record,
    parse_boot,
)
from imagefs.filesystems.ntfs.links import Links, Names, directories_of
from imagefs.filesystems.ntfs.listing import Listing
from imagefs.filesystems.ntfs.mft import MasterFileTable, check_extents, find
from imagefs.filesystems.ntfs.nodes import RecordNodes, of_stream
from imagefs.filesystems.ntfs.owners import Owners
from imagefs.filesystems.ntfs.quick import quick_node
from imagefs.filesystems.ntfs.security import Security
from imagefs.filesystems.ntfs.streams import (
    WOF_STREAM,
    NodeNumbers,
    StaleNode,
    StreamNode,
    describe,
    is_name,
    named_data,
    split_name,
)
from imagefs.filesystems.ntfs.times import recorded_times, system_entries
from imagefs.filesystems.upcase import fold_names
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
        self._places: LeastRecentlyUsed[int, frozenset[int]] = LeastRecentlyUsed(NODES_KEPT)
        self._numbers = NodeNumbers()
        self._mft = self._table(reader, boot)
        security = Security(self._mft, self.block_size)
        self._owners = Owners(self._mft, security)
        self._system_attributes = SystemAttributes(
            self._mft, security, self.block_size, self._find, raw_efs=self._options.raw_efs
        )
        self._directories = Directories(self._mft, self.block_size, reader.size, self._recorded_type)
        self._links = Links(self._mft, self._directories, known_as)
        self._record_nodes = RecordNodes(self._mft, self._owners, self._links, self._options)
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
                wrong = self._what_is_wrong(inode, reference, sequence, node)
            except FormatError:
                continue
            if wrong:
                made = StaleNode(reference & REFERENCE_MASK, wrong)
                found[position] = entry._replace(inode=self._numbers.number(made)), None
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
        return None if reference is None else self._referenced(inode, name, reference).inode

    def read_link(self, inode: int) -> str:
        """Return the target of a symbolic link, junction or mount point."""
        if self.attributes(inode).type is not NodeType.LINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        shown = self._record_nodes.shown_link(self._mft.attributes(self._mft.record(inode)), f"link {inode}")
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
        shown = self._record_nodes.shown_link(attributes, f"link {inode}")
        if shown is not None:
            return BytesReader(shown.text)
        return open_file(self._mft, attributes, f"file {inode}", self._options)

    def streams(self, inode: int) -> Sequence[Stream]:
        """Return the named streams of a file or directory, without the one that WOF's compression keeps."""
        what = f"file {inode}"
        attributes = self._attributes_of(inode)
        found = named_data(attributes)
        if WOF_STREAM in found and self._record_nodes.is_wof(attributes, what):
            del found[WOF_STREAM]
        return [
            describe(name, extents, what, raw_efs=self._options.raw_efs) for name, extents in found.items()
        ]

    def open_stream(self, inode: int, name: str) -> BlockReader:
        """Return the data of a named stream, listed or not."""
        extents, what = self._stream(inode, name), f"stream {name!r} of file {inode}"
        check_extents(extents, what)
        return open_attribute(self._mft, extents, what, self._options)

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
        self._places.clear()
        self._mft.chunks.clear()

    # nodes

    def _node(self, inode: int) -> tuple[int, Attributes]:
        """Return a record's sequence number and what it says of its node."""
        known = self._nodes.get(inode)
        if known is None:
            made = self._numbers.node(inode)
            if isinstance(made, StaleNode):
                raise DamagedError(f"file record {made.record} {made.wrong}")
            if made is not None:
                sequence, host = self._node(made.record)
                known = sequence, of_stream(inode, host, self._described(made))
            else:
                raw = self._mft.raw_record(inode)
                known = self._record_nodes.of_record(raw, inode)
            self._nodes.put(inode, known)
        return known

    def _referenced(self, directory: int, name: str, reference: int) -> Attributes:
        """Return the attributes of what a directory entry refers to."""
        sequence, attributes = self._node(reference & REFERENCE_MASK)
        wrong = self._what_is_wrong(directory, reference, sequence, attributes)
        if wrong:
            raise DamagedError(f"{name}: its file record {attributes.inode} {wrong}")
        return attributes

    def _what_is_wrong(self, directory: int, reference: int, sequence: int, node: Attributes) -> str:
        """Return why what an entry of a directory refers to is not what it stands for, "" where it is.

        A directory or a link has to be where its own record says: a link's target is told from there, and
        would lead out of the volume from elsewhere.
        """
        if sequence != reference >> 48:
            return "has become another file's"
        if node.type in (NodeType.DIRECTORY, NodeType.LINK):
            known = self._places.get(node.inode)
            if known is None:
                known = directories_of(self._mft.attributes(self._mft.record(node.inode)))
                self._places.put(node.inode, known)
            if directory not in known or (node.type is NodeType.DIRECTORY and len(known) > 1):
                return "says that it lies elsewhere"
        return ""

    # streams

    def _stream_node(self, directory: int, name: str) -> int | None:
        """Return the inode number of "name:stream", and of "name:stream:$DATA"; None: it is not there."""
        for host, stream in split_name(name):
            inode = self._find(directory, host) if host else directory
            if inode is None:
                continue
            if not stream:
                return inode
            stored = self._stored_name(named_data(self._attributes_of(inode)), stream)
            if stored is not None:
                return self._numbers.number(StreamNode(inode, stored))
        return None

    def _stored_name(self, streams: Collection[str], name: str) -> str | None:
        """Return a stream's name as it is stored, found exactly or else without regard to case."""
        if name in streams:
            return name
        upcase = self._directories.upcase()
        return None if upcase is None else fold_names(upcase, filter(is_name, streams)).get(upcase.fold(name))

    def _stream(self, inode: int, name: str) -> list[Attribute]:
        """Return the extents of a stream; ENOENT when there is none of this name."""
        streams = named_data(self._attributes_of(inode))
        stored = self._stored_name(streams, name)
        if stored is None:
            raise not_found(name)
        return streams[stored]

    def _described(self, node: StreamNode) -> Stream:
        what = f"file {node.record}"
        return describe(node.name, self._stream(*node), what, raw_efs=self._options.raw_efs)

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

    def _attributes_of(self, inode: int) -> list[Attribute]:
        """Return the attributes of a file's record; a stream has none of its own."""
        if isinstance(self._numbers.node(inode), StreamNode):
            return []
        self._node(inode)  # which raises what is wrong with it
        return self._mft.attributes(self._mft.record(inode))

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
