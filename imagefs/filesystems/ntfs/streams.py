"""Named streams of NTFS: $DATA attributes beside a file's own, also of directories."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from imagefs.filesystems.base import Stream
from imagefs.filesystems.names import decode_name
from imagefs.filesystems.ntfs.layout import Attribute, AttributeType, data_size
from imagefs.filesystems.ntfs.mft import check_extents

WOF_STREAM = "WofCompressedData"  # of a file that WOF compressed: its stored bytes, which Windows hides
_FIRST_NUMBER = 1 << 47  # record numbers have 32 bits; a tree takes the bits from 48 on
_LONGEST_NAME = 255  # UTF-16 units of a file's name


class StreamNode(NamedTuple):
    """A stream as a node of its own."""

    record: int
    name: str


class StaleNode(NamedTuple):
    """What a directory entry stands for whose file record is another's, or lies elsewhere."""

    record: int
    wrong: str  # with it


class NodeNumbers:
    """Inode numbers for nodes without a file record of their own. Safe from several threads.

    A number is given when it is first asked for, and kept as long as the file system is open.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[StreamNode | StaleNode, int] = {}
        self._nodes: list[StreamNode | StaleNode] = []

    def number(self, node: StreamNode | StaleNode) -> int:
        """Return the inode number of a node."""
        with self._lock:
            found = self._numbers.get(node)
            if found is None:
                found = self._numbers[node] = _FIRST_NUMBER + len(self._nodes)
                self._nodes.append(node)
            return found

    def node(self, inode: int) -> StreamNode | StaleNode | None:
        """Return the node of a number, None for a file record's."""
        at = inode - _FIRST_NUMBER
        return self._nodes[at] if 0 <= at < len(self._nodes) else None


def named_data(attributes: Iterable[Attribute]) -> dict[str, list[Attribute]]:
    """Return the extents of each named stream in order, under its name."""
    found: dict[str, list[Attribute]] = {}
    for attribute in attributes:
        if attribute.type == AttributeType.DATA and attribute.name:
            found.setdefault(attribute_name(attribute), []).append(attribute)
    for extents in found.values():
        extents.sort(key=lambda extent: extent.first_vcn)
    return found


def attribute_name(attribute: Attribute) -> str:
    """Return an attribute's name, as file names are given."""
    if attribute.name.isascii():
        return attribute.name
    return decode_name(attribute.name.encode("utf-16-le", "surrogatepass"))


def is_name(name: str) -> bool:
    """Tell whether a name can be one of Windows: a damaged record may have another."""
    return "\0" not in name


def describe(name: str, extents: Sequence[Attribute], what: str, *, raw_efs: bool = False) -> Stream:
    """Return what is known of a stream; DamagedError where its first part is missing, or there twice."""
    check_extents(extents, f"{what}, stream {name!r}")
    first = extents[0]
    return Stream(name, data_size(first, raw_efs=raw_efs), first.allocated)


def split_name(name: str) -> Iterator[tuple[str, str]]:
    """Yield what "name:stream" or "name:stream:$DATA" may mean, as (name, stream), the shortest name first.

    An empty name is the directory itself; an empty stream, which needs the type, is the file's own data.
    """
    whole = [(name, False)]
    if name[-6:].upper() == ":$DATA":
        whole.append((name[:-6], True))
    for text, is_typed in whole:
        at = text.find(":")
        while 0 <= at <= _LONGEST_NAME:
            if at + 1 < len(text) or is_typed:
                yield text[:at], text[at + 1 :]
            at = text.find(":", at + 1)
