"""ext2, ext3 and ext4 on disk: superblock, group descriptors, inodes, extents, directory blocks.

Specification: https://www.kernel.org/doc/html/latest/filesystems/ext4/. Little endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from formats.errors import DamagedError, UnsupportedError

ROOT = 2
NDIR = 12  # block numbers in an inode before the indirect ones

HAS_JOURNAL = 0x4  # compatible features
SPARSE_SUPER2 = 0x200
FILETYPE = 0x2  # incompatible features
META_BG = 0x10
LARGE_DIRECTORIES = 0x4000
BITS_64 = 0x80
# in order: filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir,
# inline_data, encrypt (told by inode), casefold
SUPPORTED = (
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
)

COMPRESSED = 0x4  # inode flags
ENCRYPTED = 0x800
HUGE_FILE = 0x40000
EXTENTS = 0x80000
INLINE_DATA = 0x10000000

_INODE = struct.Struct("<HHIiiiiHHI I4x60s4xII4xHHHH")
_INODE_EXTRA = struct.Struct("<H2xIIIiI")  # size of it; ctime, mtime, atime fractions; crtime, fraction
_EXTENT_HEADER = struct.Struct("<HHHH4x")  # magic, entries, capacity, depth
_EXTENT = struct.Struct("<IHHI")  # first block of the file, length, start high, start low
_EXTENT_INDEX = struct.Struct("<IIH2x")  # first block of the file, child low, child high
_NAME = struct.Struct("<IHBB")  # inode, length of the entry, of the name, file type
_XATTR = struct.Struct("<BBHIII")  # name length, index, value's place, value's inode, size, hash


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock says. Sizes in bytes, counts in blocks."""

    kind: str
    label: str
    inodes: int
    blocks: int
    first_data_block: int
    block_size: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    first_meta_group: int  # of descriptor blocks that lie in their own groups
    compatible: int
    incompatible: int
    read_only: int


class Inode(NamedTuple):
    """An inode. Times in nanoseconds since 1970."""

    number: int
    mode: int
    uid: int
    gid: int
    size: int  # bytes
    links: int
    blocks: int  # as stored, see HUGE_FILE
    flags: int
    block: bytes  # the 60 bytes of block numbers, extents, or the data itself
    modified: int
    accessed: int
    changed: int
    created: int
    body: bytes  # what follows the fields: extended attributes


class ExtentRun(NamedTuple):
    """Blocks of a file that lie together; None: unwritten, zeros."""

    first: int
    length: int
    start: int | None


def parse_superblock(raw: bytes) -> Superblock:
    """Parse and check a superblock; UnsupportedError where a feature changes what is read here."""
    inodes, blocks = struct.unpack_from("<II", raw, 0)
    first_data_block, log_size = struct.unpack_from("<II", raw, 20)
    (blocks_per_group,) = struct.unpack_from("<I", raw, 32)
    (inodes_per_group,) = struct.unpack_from("<I", raw, 40)
    (revision,) = struct.unpack_from("<I", raw, 76)
    inode_size = struct.unpack_from("<H", raw, 88)[0] if revision else 128
    features = struct.unpack_from("<III", raw, 92) if revision else (0, 0, 0)
    compatible, incompatible, read_only = features
    descriptor_size, first_meta_group = struct.unpack_from("<H4xI", raw, 254)
    if incompatible & ~SUPPORTED:
        raise UnsupportedError(f"ext: incompatible features {incompatible & ~SUPPORTED:#x}")
    if incompatible & BITS_64:
        blocks |= struct.unpack_from("<I", raw, 0x150)[0] << 32
    else:
        descriptor_size = 32
    if log_size > 6 or first_data_block > 1 or not blocks_per_group or not inodes_per_group:
        raise DamagedError("ext superblock: sizes that can't be")
    if inode_size < 128 or inode_size & (inode_size - 1) or inode_size > 1024 << log_size:
        raise DamagedError(f"ext superblock: inodes of {inode_size} bytes")
    if descriptor_size < 32 or descriptor_size > 1024:
        raise DamagedError(f"ext superblock: group descriptors of {descriptor_size} bytes")
    return Superblock(
        kind=kind_of(*features),
        label=raw[120:136].split(b"\0")[0].decode("utf-8", "surrogateescape"),
        inodes=inodes,
        blocks=blocks,
        first_data_block=first_data_block,
        block_size=1024 << log_size,
        blocks_per_group=blocks_per_group,
        inodes_per_group=inodes_per_group,
        inode_size=inode_size,
        descriptor_size=descriptor_size,
        first_meta_group=first_meta_group,
        compatible=compatible,
        incompatible=incompatible,
        read_only=read_only,
    )


def kind_of(compatible: int, incompatible: int, read_only: int) -> str:
    """Return ext2, ext3 or ext4 by the features, as blkid does."""
    # ext3 knows: filetype, recover, meta_bg; and sparse_super, large_file, btree_dir
    if incompatible & ~0x16 or read_only & ~0x7:
        return "ext4"
    return "ext3" if compatible & HAS_JOURNAL else "ext2"


def parse_inode(raw: bytes, number: int, has_large_directories: bool) -> Inode:
    """Parse an inode; DamagedError where it is not in use.

    Only files, and directories where the volume says so, have sizes of 64 bits: others keep something
    else in the upper half.
    """
    mode, uid, size, atime, ctime, mtime, deleted, gid, links, blocks, flags, block, _, size_high, *high = (
        _INODE.unpack_from(raw)
    )
    blocks_high, _, uid_high, gid_high = high
    if not mode or (not links and deleted):
        raise DamagedError(f"inode {number} is not in use")
    ctime_extra = mtime_extra = atime_extra = created = created_extra = extra = 0
    if len(raw) > 128:
        values = _INODE_EXTRA.unpack_from(raw, 128)
        extra = values[0]
        if extra >= 24:
            _, ctime_extra, mtime_extra, atime_extra, created, created_extra = values
    return Inode(
        number=number,
        mode=mode,
        uid=uid | uid_high << 16,
        gid=gid | gid_high << 16,
        size=size | size_high << 32 if mode >> 12 == 8 or has_large_directories else size,
        links=links,
        blocks=blocks | blocks_high << 32,
        flags=flags,
        block=block,
        modified=_nanoseconds(mtime, mtime_extra),
        accessed=_nanoseconds(atime, atime_extra),
        changed=_nanoseconds(ctime, ctime_extra),
        created=_nanoseconds(created, created_extra),
        body=raw[128 + extra :],
    )


def _nanoseconds(seconds: int, extra: int) -> int:
    """Join signed seconds and the field of 30 bits of nanoseconds and two more bits of seconds."""
    return (seconds + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)


def parse_extents(node: bytes, depth: int | None, what: str) -> tuple[int, list[ExtentRun]]:
    """Return (depth, runs) of a node of an extent tree; at depth above 0 the runs are child blocks.

    Raises DamagedError where the node is not one, or not of the ``depth`` that its parent expects.
    """
    magic, entries, capacity, found = _EXTENT_HEADER.unpack_from(node)
    if magic != 0xF30A or found > 5 or depth not in (None, found):
        raise DamagedError(f"{what}: not a node of its extent tree")
    if entries > capacity or 12 + 12 * capacity > len(node) or (depth is not None and not entries):
        raise DamagedError(f"{what}: {entries} extents in a node for {capacity}")
    runs = []
    for at in range(12, 12 + 12 * entries, 12):
        if found:
            first, low, high = _EXTENT_INDEX.unpack_from(node, at)
            runs.append(ExtentRun(first, 1, low | high << 32))
        else:
            first, length, high, low = _EXTENT.unpack_from(node, at)
            is_written = length <= 0x8000
            start = low | high << 32 if is_written else None
            runs.append(ExtentRun(first, length if is_written else length - 0x8000, start))
    return found, runs


def parse_names(block: bytes, has_types: bool, what: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield the (name, inode, file type) of a directory block; its entries must fill it exactly."""
    position = 0
    while position < len(block):
        if position + 8 > len(block):
            raise DamagedError(f"{what}: an entry reaches outside its block")
        inode, length, name_length, kind = _NAME.unpack_from(block, position)
        if not has_types:
            name_length, kind = name_length | kind << 8, 0
        if length in (0, 0xFFFF) and len(block) == 65536 and any(block):
            length = 65536
        if length < 8 + name_length or length % 4 or position + length > len(block):
            raise DamagedError(f"{what}: an entry of {length} bytes at {position}")
        if inode:
            yield block[position + 8 : position + 8 + name_length], inode, kind
        position += length


def inline_value(body: bytes, what: str) -> bytes:
    """Return what follows the first 60 bytes of data kept inside an inode: attribute "system.data"."""
    if len(body) < 4 or body[:4] != b"\x00\x00\x02\xea":
        return b""
    position = 4
    while position + 16 <= len(body) and body[position : position + 4] != b"\0\0\0\0":
        name_length, index, offset, inode, size, _ = _XATTR.unpack_from(body, position)
        name = body[position + 16 : position + 16 + name_length]
        if index == 7 and name == b"data":
            if inode or 4 + offset + size > len(body):
                raise DamagedError(f"{what}: its inline data reaches outside the inode")
            return body[4 + offset : 4 + offset + size]
        position += 16 + (name_length + 3) // 4 * 4
    return b""
