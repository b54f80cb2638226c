"""ext2, ext3 and ext4, read from their own structures.

TSK takes holes for missing data, the block of a long symbolic link for its number, cuts block numbers
to 32 bits, and writes "^" over control characters in names; so nothing here goes through it. A
journal is not replayed: a volume imaged while mounted shows what was written back by then.
"""

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence

from formats.blockreader import BlockReader, BytesReader
from formats.errors import DamagedError, UnsupportedError
from imagefs.filesystems.base import CachedFileSystem
from imagefs.filesystems.ext_layout import (
    COMPRESSED,
    ENCRYPTED,
    EXTENTS,
    FILETYPE,
    HUGE_FILE,
    INLINE_DATA,
    LARGE_DIRECTORIES,
    META_BG,
    NDIR,
    ROOT,
    SPARSE_SUPER2,
    ExtentRun,
    Inode,
    Superblock,
    inline_value,
    parse_extents,
    parse_inode,
    parse_names,
    parse_superblock,
)
from imagefs.filesystems.names import name_of_bytes
from imagefs.filesystems.runs import ChunkedReader, Run, RunsReader
from mounters.tree import Attributes, Entry, NodeType, is_a_directory

_TYPES = {0x8: NodeType.FILE, 0x4: NodeType.DIRECTORY, 0xA: NodeType.LINK}
_NAME_TYPES = {1: NodeType.FILE, 2: NodeType.DIRECTORY, 7: NodeType.LINK}
_STEP = 1 << 20


class ExtFileSystem(CachedFileSystem):
    """An ext volume. Raises FormatError from the constructor when its superblock can't be used."""

    root = ROOT

    def __init__(self, reader: BlockReader) -> None:
        super().__init__()
        if reader.size < 2048:
            raise DamagedError("ext: a volume shorter than its superblock")
        self._reader = reader
        self._super = parse_superblock(reader.read_at(1024, 1024))
        self._metadata = ChunkedReader(reader)
        self.kind = self._super.kind
        self.label = self._super.label
        self.block_size = self._super.block_size

    def read_link(self, inode: int) -> str:
        """Return a symbolic link's target."""
        node = self._inode(inode)
        if _type_of(node) is not NodeType.LINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if node.flags & ENCRYPTED:
            raise UnsupportedError(f"link {inode} is encrypted")
        if node.size > self.block_size:
            raise DamagedError(f"link {inode}: {node.size} bytes")
        if node.size < len(node.block) and not node.flags & (INLINE_DATA | EXTENTS):
            target = node.block[: node.size]  # blocks that are counted are of its extended attributes
        else:
            target = self._data(node, f"link {inode}").read_at(0, node.size)
        return name_of_bytes(target.rstrip(b"\0"))

    def open(self, inode: int) -> BlockReader:
        """Return a file's data."""
        node = self._inode(inode)
        kind = _type_of(node)
        if kind is NodeType.DIRECTORY:
            raise is_a_directory(str(inode))
        if kind is not NodeType.FILE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if node.flags & ENCRYPTED:
            raise UnsupportedError(f"file {inode} is encrypted by fscrypt")
        if node.flags & COMPRESSED:
            raise UnsupportedError(f"file {inode} is compressed by e2compr")
        return self._data(node, f"file {inode}")

    def _load_attributes(self, inode: int) -> Attributes:
        node = self._inode(inode)
        unit = self.block_size if node.flags & HUGE_FILE else 512
        return Attributes(
            inode=inode,
            type=_type_of(node),
            size=node.size if _type_of(node) is not NodeType.OTHER else 0,
            mode=node.mode & 0o7777,
            links=node.links,
            uid=node.uid,
            gid=node.gid,
            modified=node.modified,
            accessed=node.accessed,
            changed=node.changed,
            created=node.created,
            allocated=node.blocks * unit,
        )

    def _load_listing(self, inode: int) -> Iterator[Entry]:
        what = f"directory {inode}"
        node = self._inode(inode)
        if node.flags & ENCRYPTED:
            raise UnsupportedError(f"{what} is encrypted by fscrypt")
        has_types = bool(self._super.incompatible & FILETYPE)
        for block in self._directory_blocks(node, what):
            for raw, number, code in parse_names(block, has_types, what):
                if raw in (b".", b".."):
                    continue
                if not raw or b"/" in raw or b"\0" in raw:
                    raise DamagedError(f"{what}: the name {raw!r} can't be")
                kind = _NAME_TYPES.get(code, NodeType.OTHER) if code else self.attributes(number).type
                yield Entry(name_of_bytes(raw), number, kind)

    def _directory_blocks(self, node: Inode, what: str) -> Iterator[bytes]:
        reader = self._data(node, what)
        if node.flags & INLINE_DATA:
            data = reader.read_at(0, reader.size)
            yield data[4:60]  # behind the parent's number
            yield data[60:]
            return
        if reader.size % self.block_size or reader.size > self._reader.size:
            raise DamagedError(f"{what}: {reader.size} bytes")
        for at in range(0, reader.size, _STEP):
            part = reader.read_at(at, min(_STEP, reader.size - at))
            for inside in range(0, len(part), self.block_size):
                yield part[inside : inside + self.block_size]

    # inodes

    def _inode(self, number: int) -> Inode:
        """Return an inode."""
        if not 0 < number <= self._super.inodes:
            raise DamagedError(f"inode {number} is none of the {self._super.inodes} of the volume")
        group, index = divmod(number - 1, self._super.inodes_per_group)
        descriptor = self.descriptor(group)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if len(descriptor) >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        size = self._super.inode_size
        return parse_inode(
            self._read(table * self.block_size + index * size, size, f"inode {number}"),
            number,
            bool(self._super.incompatible & LARGE_DIRECTORIES),
        )

    @property
    def superblock(self) -> Superblock:
        """What the superblock says."""
        return self._super

    def descriptor(self, group: int) -> bytes:
        """Return the descriptor of a group."""
        size = self._super.descriptor_size
        at = self._descriptor_block(group) * self.block_size + group % (self.block_size // size) * size
        return self._read(at, size, f"descriptor of group {group}")

    def _descriptor_block(self, group: int) -> int:
        """Return the block of the volume that holds a group's descriptor."""
        per_block = self.block_size // self._super.descriptor_size
        meta = group // per_block
        if not self._super.incompatible & META_BG or meta < self._super.first_meta_group:
            return 1024 // self.block_size + 1 + meta  # behind the superblock
        first = meta * per_block
        block = self._super.first_data_block + first * self._super.blocks_per_group
        if not first and self.block_size == 1024 and not self._super.first_data_block:
            block += 1  # the first block is the boot sector's
        return block + self._has_superblock(first)

    def _has_superblock(self, group: int) -> bool:
        if self._super.compatible & SPARSE_SUPER2:
            raise UnsupportedError("ext: meta_bg together with sparse_super2")
        if not self._super.read_only & 1 or group <= 1:
            return True
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return True
        return False

    def _read(self, at: int, length: int, what: str) -> bytes:
        if at + length > self._reader.size:
            raise DamagedError(f"{what}: at {at}, outside the volume")
        return self._metadata.read(at, length)

    # data

    def _data(self, node: Inode, what: str) -> BlockReader:
        if node.flags & INLINE_DATA:
            data = node.block + inline_value(node.body, what)
            if node.size > len(data):
                raise DamagedError(f"{what}: {len(data)} of {node.size} bytes are inside its inode")
            return BytesReader(data[: node.size])
        if not node.size:
            return BytesReader(b"")
        blocks = -(-node.size // self.block_size)
        found = self._extents(node, what) if node.flags & EXTENTS else self._indirect(node, blocks, what)
        return RunsReader(self._reader, self._runs(found, blocks, what), node.size, name=what)

    def _runs(self, found: Iterable[ExtentRun], blocks: int, what: str) -> Iterator[Run]:
        """Yield runs in bytes up to ``blocks``; what no extent covers is a hole."""
        position = 0
        for run in found:
            if run.first < position or run.length == 0:
                raise DamagedError(f"{what}: its extents overlap at block {run.first}")
            if run.first > position:
                yield Run((run.first - position) * self.block_size, None)
            yield Run(
                run.length * self.block_size, None if run.start is None else run.start * self.block_size
            )
            position = run.first + run.length
        if position < blocks:
            yield Run((blocks - position) * self.block_size, None)

    def _extents(self, node: Inode, what: str) -> Iterator[ExtentRun]:
        depth, runs = parse_extents(node.block, None, what)
        yield from self._leaves(depth, runs, what)

    def _leaves(self, depth: int, runs: Iterable[ExtentRun], what: str) -> Iterator[ExtentRun]:
        if not depth:
            yield from runs
            return
        for child in runs:
            block = self._read((child.start or 0) * self.block_size, self.block_size, what)
            found, below = parse_extents(block, depth - 1, what)
            if below[0].first != child.first:
                raise DamagedError(f"{what}: its extents start at block {below[0].first}, not {child.first}")
            yield from self._leaves(found, below, what)

    def _indirect(self, node: Inode, blocks: int, what: str) -> Iterator[ExtentRun]:
        """Yield the runs of the older block map; block number 0 is a hole."""
        numbers = struct.unpack("<15I", node.block)
        yield from _neighbours(numbers[:NDIR], 0, blocks)
        first = NDIR
        seen: set[int] = set()
        for level, start in enumerate(numbers[NDIR:], 1):
            yield from self._mapped(start, level, first, blocks, seen, what)
            first += (self.block_size // 4) ** level

    def _mapped(
        self, start: int, level: int, first: int, blocks: int, seen: set[int], what: str
    ) -> Iterator[ExtentRun]:
        """Yield the runs below a block of block numbers; ``seen`` are those gone through already."""
        if not start or first >= blocks:
            return
        if start in seen:
            raise DamagedError(f"{what}: block {start} holds block numbers twice")
        seen.add(start)
        block = self._read(start * self.block_size, self.block_size, what)
        numbers = struct.unpack(f"<{self.block_size // 4}I", block)
        if level == 1:
            yield from _neighbours(numbers, first, blocks)
            return
        span = (self.block_size // 4) ** (level - 1)
        for number in numbers:
            yield from self._mapped(number, level - 1, first, blocks, seen, what)
            first += span


def _neighbours(numbers: Sequence[int], first: int, blocks: int) -> Iterator[ExtentRun]:
    """Yield the runs of block numbers, which are those of a file's blocks from ``first`` on; 0 is a hole."""
    at, end = 0, min(len(numbers), blocks - first)
    while at < end:
        begin, start = at, numbers[at]
        at += 1
        while at < end and start and numbers[at] == start + at - begin:
            at += 1
        if start:
            yield ExtentRun(first + begin, at - begin, start)


def _type_of(node: Inode) -> NodeType:
    return _TYPES.get(node.mode >> 12, NodeType.OTHER)
