"""NTFS reparse points ([MS-FSCC] 2.1.2) and the symbolic links of Interix and ntfs-3g, as they are stored."""

import struct
from enum import Enum, IntEnum
from typing import NamedTuple

from formats.errors import DamagedError, UnsupportedError
from imagefs.filesystems.names import decode_name
from mounters.tree import NodeType

INTX_LINK = b"IntxLNK\x01"  # then the target in UTF-16; in a file with the "system" attribute
INTX_DEVICES = (b"IntxCHR\x00", b"IntxBLK\x00")
_WSL_VERSION = b"\2\0\0\0"  # as ntfs-3g knows them: the target follows, in UTF-8
INTX_LIMIT = 8 + 2 * 4096  # bytes; longer files are no links


class ReparseTag(IntEnum):
    """The tags that have a meaning here."""

    MOUNT_POINT = 0xA0000003
    SYMLINK = 0xA000000C
    WOF = 0x80000017
    LX_SYMLINK = 0xA000001D
    AF_UNIX = 0x80000023
    LX_FIFO = 0x80000024
    LX_CHR = 0x80000025
    LX_BLK = 0x80000026


class LinkKind(Enum):
    """How a link's target is meant."""

    RELATIVE = (
        "relative"  # of Windows: to the link's directory, or with a first backslash to the volume's root
    )
    ABSOLUTE = "absolute"  # a path of the Windows object manager
    POSIX = "posix"  # of WSL or Interix


class StoredLink(NamedTuple):
    """A link as it is stored."""

    kind: LinkKind
    target: str
    shown: str  # the target as Windows shows it


LINKS = (ReparseTag.MOUNT_POINT, ReparseTag.SYMLINK, ReparseTag.LX_SYMLINK)
_SPECIAL = (ReparseTag.AF_UNIX, ReparseTag.LX_FIFO, ReparseTag.LX_CHR, ReparseTag.LX_BLK)
_NAMES = {
    0x80000013: "data deduplication",
    0x80000017: "compressed by Windows (WOF)",
    0x80000018: "Windows container",
    0x8000001B: "app execution alias",
    0x80000021: "OneDrive",
    0xC0000004: "hierarchical storage",
    0x80000006: "hierarchical storage",
    0x9000001C: "projected file system",
}


def reparse_type(tag: int, otherwise: NodeType) -> NodeType:
    """Return what a node with a reparse point is; ``otherwise`` where its tag says nothing of that."""
    if tag in LINKS:
        return NodeType.LINK
    return NodeType.OTHER if tag in _SPECIAL else otherwise


def tag_name(tag: int) -> str:
    """Return a tag in words and as its number."""
    name = "cloud file" if tag & 0xFFFF0FFF == 0x9000001A else _NAMES.get(tag, "unknown")
    return f"{name}, reparse tag {tag:#010x}"


def reparse_tag(data: bytes, what: str) -> int:
    """Return the tag of a reparse point."""
    if len(data) < 8:
        raise DamagedError(f"{what}: a reparse point of {len(data)} bytes")
    return int(struct.unpack_from("<I", data)[0])


def parse_link(data: bytes, what: str) -> StoredLink:
    """Return what a link's reparse point says; DamagedError where that can't be."""
    tag = reparse_tag(data, what)
    (length,) = struct.unpack_from("<H", data, 4)
    if length > len(data) - 8:
        raise DamagedError(f"{what}: a reparse point of {len(data)} bytes that says {length}")
    if tag == ReparseTag.LX_SYMLINK:
        if length >= 4 and data[8:12] != _WSL_VERSION:
            raise UnsupportedError(f"{what}: a link of WSL in version {int.from_bytes(data[8:12], 'little')}")
        target = data[12 : 8 + length].decode("utf-8", "surrogateescape")
        return _sound(StoredLink(LinkKind.POSIX, target, target), what)
    has_flags = tag == ReparseTag.SYMLINK
    names = 20 if has_flags else 16
    if 8 + length < names:
        raise DamagedError(f"{what}: a reparse point of {len(data)} bytes")
    offset, size, print_offset, print_size = struct.unpack_from("<HHHH", data, 8)
    is_relative = has_flags and struct.unpack_from("<I", data, 16)[0] & 1
    if max(offset + size, print_offset + print_size) > 8 + length - names or (size | print_size) & 1:
        raise DamagedError(f"{what}: a link's target reaches outside the reparse point")
    target = decode_name(data[names + offset : names + offset + size])
    shown = decode_name(data[names + print_offset : names + print_offset + print_size])
    kind = LinkKind.RELATIVE if is_relative else LinkKind.ABSOLUTE
    return _sound(StoredLink(kind, target, shown or target.removeprefix("\\??\\")), what)


def _sound(link: StoredLink, what: str) -> StoredLink:
    if not link.target or "\0" in link.target:
        raise DamagedError(f"{what}: a link's target is empty, or has a NUL in it")
    return link


def intx_type(data: bytes) -> NodeType | None:
    """Return what a "system" file of Interix is by its first bytes, None for an ordinary file."""
    if data[:8] == INTX_LINK:
        return NodeType.LINK
    return NodeType.OTHER if data[:8] in INTX_DEVICES else None


def parse_intx(data: bytes, what: str) -> StoredLink:
    """Return what a link of Interix says; DamagedError where that can't be."""
    target = decode_name(data[8 : 8 + (len(data) - 8) // 2 * 2])
    return _sound(StoredLink(LinkKind.POSIX, target, target), what)
