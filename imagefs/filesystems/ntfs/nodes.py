"""What file records say of their nodes: type, size, owner and times; and what links are shown as."""

from collections.abc import Sequence
from dataclasses import replace

from formats.errors import DamagedError
from imagefs.filesystems.base import Stream, VolumeOptions
from imagefs.filesystems.names import bytes_of_name
from imagefs.filesystems.ntfs.data import REPARSE_LIMIT, stored_size
from imagefs.filesystems.ntfs.extended import security_id
from imagefs.filesystems.ntfs.layout import (
    COMPRESSED,
    DIRECTORY,
    DOS_NAME,
    ENCRYPTED,
    FILE_SYSTEM,
    IN_USE,
    ROOT,
    Attribute,
    AttributeType,
    Record,
    data_size,
    unix_nanoseconds,
)
from imagefs.filesystems.ntfs.links import Links, ShownLink
from imagefs.filesystems.ntfs.mft import MasterFileTable, check_extents, find, standard_information
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
from mounters.tree import Attributes, NodeType

_MODES = {NodeType.DIRECTORY: 0o555, NodeType.FILE: 0o444, NodeType.LINK: 0o777, NodeType.OTHER: 0o444}


class RecordNodes:
    """The nodes of a volume's file records. Safe from several threads."""

    def __init__(self, mft: MasterFileTable, owners: Owners, links: Links, options: VolumeOptions) -> None:
        self._mft = mft
        self._owners = owners
        self._links = links
        self._options = options

    def of_record(self, raw: bytes, number: int) -> tuple[int, Attributes]:
        """Return the sequence number of a stored record and what it says of its node.

        Raises DamagedError where it is no file's, or contradicts itself.
        """
        return quick_node(raw, number, self._owners) or self._of_record(self._mft.parsed(raw, number))

    def _of_record(self, record: Record) -> tuple[int, Attributes]:
        what = f"file record {record.number}"
        if not record.flags & IN_USE or record.base:
            raise DamagedError(f"{what} is not a file's")
        attributes = self._mft.attributes(record)
        created, modified, changed, accessed, flags = standard_information(attributes, what)
        kind = NodeType.DIRECTORY if record.flags & DIRECTORY else NodeType.FILE
        kind, shown = self._special_type(attributes, flags, kind, what)
        size = allocated = 0
        if shown is not None:
            size = len(shown.text if shown.target is None else bytes_of_name(shown.target))
        elif kind is not NodeType.OTHER:
            size, allocated = self._sizes(attributes, kind, what)
        user, group, execute = self._owners.of_file(
            attributes, security_id(record._replace(attributes=attributes))
        )
        return record.sequence, Attributes(
            inode=record.number,
            type=kind,
            size=size,
            mode=_MODES[kind] | execute,
            links=max(1, _links(attributes)),
            uid=user,
            gid=group,
            modified=unix_nanoseconds(modified),
            accessed=unix_nanoseconds(accessed),
            changed=unix_nanoseconds(changed),
            created=unix_nanoseconds(created),
            allocated=allocated,
            # Every root is hidden, which a drive does not show; a folder would be.
            file_attributes=flags if record.number != ROOT else 0,
        )

    def _sizes(self, attributes: list[Attribute], kind: NodeType, what: str) -> tuple[int, int]:
        """Return the bytes of a file or of a directory's index, and how many are stored."""
        if kind is NodeType.FILE:
            data = find(attributes, AttributeType.DATA)
        else:
            data = find(attributes, AttributeType.INDEX_ALLOCATION, "$I30")
            data = data or find(attributes, AttributeType.INDEX_ROOT, "$I30")
        if not data:
            return 0, 0
        check_extents(data, what)
        return data_size(data[0], raw_efs=self._options.raw_efs), stored_size(attributes, data[0])

    def _special_type(
        self, attributes: list[Attribute], flags: int, kind: NodeType, what: str
    ) -> tuple[NodeType, ShownLink | None]:
        """Return what a node is beyond directory and file, and what it is shown as if it is a link."""
        shown = self.shown_link(attributes, what)
        if shown is not None:
            return NodeType.FILE if shown.target is None else NodeType.LINK, shown
        reparse = find(attributes, AttributeType.REPARSE_POINT)
        if reparse:
            value = self._mft.small_value(reparse, REPARSE_LIMIT, what)
            return reparse_type(reparse_tag(value, what), kind), None
        if flags & FILE_SYSTEM and kind is NodeType.FILE:
            return intx_type(self._intx(attributes, what)) or kind, None
        return kind, None

    def shown_link(self, attributes: list[Attribute], what: str) -> ShownLink | None:
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

    def is_wof(self, attributes: Sequence[Attribute], what: str) -> bool:
        """Tell whether the reparse point of a file says that WOF compressed it."""
        reparse = find(attributes, AttributeType.REPARSE_POINT)
        return (
            bool(reparse)
            and reparse_tag(self._mft.small_value(reparse, REPARSE_LIMIT, what), what) == ReparseTag.WOF
        )


def of_stream(inode: int, host: Attributes, stream: Stream) -> Attributes:
    """Return the attributes of a stream as a node of its own, from those of the file that has it."""
    return replace(
        host,
        inode=inode,
        type=NodeType.FILE,
        size=stream.size,
        mode=host.mode & _MODES[NodeType.FILE],
        links=1,
        allocated=stream.allocated,
    )


def _links(attributes: Sequence[Attribute]) -> int:
    """Return how many names a file has; 8.3 twins do not count."""
    return sum(
        1
        for attribute in attributes
        if attribute.type == AttributeType.FILE_NAME
        and attribute.value
        and attribute.value[65:66] != bytes([DOS_NAME])
    )
