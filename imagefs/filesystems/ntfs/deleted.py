"""The deleted files of an NTFS volume, by what their file records still say.

They stand where they were: in directories that are there still, in deleted ones whose records are, and
else in ``$Orphans``. A name that is taken has ``~`` and the number of its record behind it; what has no name
is called ``OrphanFile-`` and that number. Only directories that lead to deleted files are shown.

A file is whole when no living file has its clusters, no deleted one had them later as far as their records
tell, and the image has them. What overwrote it and has left no record can't be told: a checksum of the
original is the only proof. What others have is an error when it is read, and never shown.
"""

import struct
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.base import (
    ENTRIES_KEPT,
    GoneError,
    LeastRecentlyUsed,
    RecordedTimes,
    Recovery,
    RecoveryState,
    VolumeOptions,
)
from imagefs.filesystems.deleted import DELETED_ATTRIBUTE, free_name
from imagefs.filesystems.ntfs.deleted_records import DeletedTable, NtfsRemains, file_names, recorded_size
from imagefs.filesystems.ntfs.deleted_scan import ORPHANS, DeletedFiles, Scan
from imagefs.filesystems.ntfs.file_system import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import (
    DIRECTORY,
    ROOT,
    Attribute,
    AttributeType,
    parse_boot,
    unix_nanoseconds,
)
from imagefs.filesystems.ntfs.mft import find
from imagefs.filesystems.ntfs.streams import WOF_STREAM, StreamNode
from mounters.tree import Attributes, Entry, NodeType, not_a_directory

_TIMES = struct.Struct("<8x4Q")  # of a name: created, modified, changed, accessed


class DeletedNtfs(NtfsFileSystem):
    """The deleted files of an NTFS volume; $MFT is gone through when the first is asked for.

    ``is_held`` says that the reader has what is in free clusters. Raises FormatError from the constructor
    as ``NtfsFileSystem`` does, and when $Bitmap's record is damaged.
    """

    _table = DeletedTable

    def __init__(
        self,
        reader: BlockReader,
        options: VolumeOptions | None = None,
        *,
        is_held: bool = True,
    ) -> None:
        super().__init__(reader, options)
        self._records = cast(DeletedTable, self._mft)
        self._remains = NtfsRemains(reader, parse_boot(reader.read_at(0, 512)), is_held=is_held)
        self._records.open(self._remains)
        self._files: DeletedFiles | None = None
        self._scanning = threading.Lock()
        self._shown: LeastRecentlyUsed[int, dict[str, Entry]] = LeastRecentlyUsed(ENTRIES_KEPT, len)

    def entries(self, inode: int) -> Sequence[Entry]:
        """Return what was in a directory, and the directories that lead to more."""
        return list(self._names(inode).values())

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        """Return a directory's entries with their attributes, None where these can't be read."""
        return [(entry, self._readable(entry.inode)) for entry in self._names(inode).values()]

    def is_deleted(self, inode: int) -> bool:
        """Whether a file or directory was deleted, and does not only lead to what was."""
        number = self.recorded_number(inode)
        return number < ORPHANS and self._records.is_deleted(number)

    def recorded_times(self, inode: int) -> Sequence[RecordedTimes]:
        """Return the times of a node's record; nothing of the directory of orphans, which has none."""
        return () if inode == ORPHANS else super().recorded_times(inode)

    def recovery(self, inode: int) -> Recovery | None:
        """Return what is left of a deleted file or stream, None for directories, links and what is alive."""
        self._deleted_files()
        made = self._numbers.node(inode)
        if isinstance(made, StreamNode):
            what = f"stream {made.name!r} of file {made.record}"
            return self._records.recovery(self._stream(*made), what)
        if inode >= ORPHANS or not self._records.is_deleted(inode):
            return None
        if self.attributes(inode).type is not NodeType.FILE:
            return None
        return self._recovery(self._mft.attributes(self._mft.record(inode)), f"file {inode}")

    def open(self, inode: int) -> BlockReader:
        """Return a deleted file's data; GoneError when all of it is lost, and where others' is read."""
        recovery = self.recovery(inode)
        if recovery is not None and recovery.state is RecoveryState.LOST:
            reason = recovery.reason or "others have all of its clusters, or the image has none"
            raise GoneError(f"file {inode} is deleted and lost: {reason}")
        return super().open(inode)

    def open_stream(self, inode: int, name: str) -> BlockReader:
        """Return the data of a named stream; reading it raises GoneError where others have it."""
        self._deleted_files()
        return super().open_stream(inode, name)

    def extended_attributes(self, inode: int) -> Sequence[str]:
        """Return the names of a node's extended attributes; one tells what is left of it."""
        marked = [DELETED_ATTRIBUTE] if self.recovery(inode) is not None else []
        return [*super().extended_attributes(inode), *marked]

    def extended_attribute(self, inode: int, name: str) -> bytes:
        """Return the value of an extended attribute; ENODATA when there is none."""
        if name == DELETED_ATTRIBUTE and (recovery := self.recovery(inode)) is not None:
            return recovery.state.encode()
        return super().extended_attribute(inode, name)

    def system_entries(self) -> Sequence[Entry]:
        """Return nothing: the file system's own files are not deleted."""
        return ()

    def close(self) -> None:
        """Forget the caches."""
        self._shown.clear()
        super().close()

    # nodes

    def _node(self, inode: int) -> tuple[int, Attributes]:
        if inode == ORPHANS:
            sequence, known = super()._node(ROOT)
            return sequence, replace(known, inode=ORPHANS, size=0, allocated=0)
        try:
            return super()._node(inode)
        except DamagedError:
            if not self._records.is_deleted(inode):
                raise
            return self._incomplete_node(inode)

    def _incomplete_node(self, inode: int) -> tuple[int, Attributes]:
        """Return what a name says of its file, whose record does not tell any more."""
        record = self._mft.record(inode)
        for attribute in record.attributes:
            value = attribute.value or b""
            if attribute.type == AttributeType.FILE_NAME and len(value) >= 66:
                created, modified, changed, accessed = map(unix_nanoseconds, _TIMES.unpack_from(value))
                is_directory = bool(record.flags & DIRECTORY)
                return record.sequence, Attributes(
                    inode,
                    NodeType.DIRECTORY if is_directory else NodeType.FILE,
                    0 if is_directory else recorded_size([attribute]),
                    0o555 if is_directory else 0o444,
                    modified=modified,
                    accessed=accessed,
                    changed=changed,
                    created=created,
                    allocated=0,
                )
        raise DamagedError(f"file record {inode} is deleted, and does not tell of its file any more")

    def _readable(self, inode: int) -> Attributes | None:
        try:
            return self.attributes(inode)
        except FormatError:
            return None

    def _recovery(self, attributes: Sequence[Attribute], what: str) -> Recovery:
        data = find(attributes, AttributeType.DATA)
        if not data or data[0].first_vcn:
            return Recovery(RecoveryState.LOST, reason="where its data was is not recorded any more")
        if data[0].value is None and not data[0].size and recorded_size(attributes):
            return Recovery(RecoveryState.LOST, reason="its size and place were cleared")
        return self._records.recovery(find(attributes, AttributeType.DATA, WOF_STREAM) or data, what)

    # directories

    def _find(self, inode: int, name: str) -> int | None:
        entry = self._names(inode).get(name)
        return None if entry is None else entry.inode

    def _deleted_files(self) -> DeletedFiles:
        with self._scanning:
            if self._files is None:
                found, self._remains.contested = Scan(self._records, self._remains.clusters).run()
                self._files = found
            return self._files

    def _names(self, inode: int) -> dict[str, Entry]:
        known = self._shown.get(inode)
        if known is None:
            if self.attributes(inode).type is not NodeType.DIRECTORY:
                raise not_a_directory(str(inode))
            known = self._load_names(inode)
            self._shown.put(inode, known)
        return known

    def _load_names(self, directory: int) -> dict[str, Entry]:
        files = self._deleted_files()
        found: dict[str, Entry] = {}
        if directory == ROOT and files.in_directory(ORPHANS):
            found["$Orphans"] = Entry("$Orphans", ORPHANS, NodeType.DIRECTORY)
        for number in files.in_directory(directory):
            record = self._mft.record(number)
            named = file_names(self._mft.attributes(record))
            if record.flags & DIRECTORY:
                names = [name for _, name in named[:1]]
            else:
                names = [name for reference, name in named if files.directory_of(reference) == directory]
            for name in names or [f"OrphanFile-{number}"]:
                shown = free_name(name, number, found)
                found[shown] = Entry(shown, number, self._type(number, record.flags))
        return found

    def _type(self, number: int, flags: int) -> NodeType:
        known = self._readable(number)
        if known is not None:
            return known.type
        return NodeType.DIRECTORY if flags & DIRECTORY else NodeType.FILE
