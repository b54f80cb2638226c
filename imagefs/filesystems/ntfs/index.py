"""The names of an NTFS directory: its index root and index blocks."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from imagefs.filesystems.ntfs.index_blocks import Names, names_of_blocks
from imagefs.filesystems.ntfs.layout import (
    AttributeType,
    apply_fixups,
    parse_children,
    parse_index_entries,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find

_STEP = 1 << 21  # bytes of an index read at once
_MANY = 24  # blocks; fewer take less time entry by entry than by numpy
_BITMAP_LIMIT = 1 << 24  # bytes
_UNIT = 512  # bytes of a VCN in an index whose blocks are smaller than a cluster


@dataclass(frozen=True, slots=True)
class DirectoryIndex:
    """Where the index of a directory lies. ``what`` names it in errors."""

    what: str
    root: bytes  # $INDEX_ROOT
    bitmap: bytes  # of the blocks in use
    blocks: BlockReader | None  # $INDEX_ALLOCATION; None: all is in the root
    block_size: int
    unit: int  # bytes of a VCN

    def __len__(self) -> int:
        return len(self.root) + len(self.bitmap)

    def is_used(self, number: int) -> bool:
        """Tell whether the bitmap says that a block is part of the index."""
        return number >> 3 < len(self.bitmap) and bool(self.bitmap[number >> 3] >> (number & 7) & 1)

    def block(self, vcn: int) -> bytearray:
        """Return an index block, its fixups applied; DamagedError when it is none of this index."""
        number, rest = divmod(vcn * self.unit, self.block_size)
        if rest or not self.is_used(number):
            raise DamagedError(f"{self.what}: a part of its index is said to be unused")
        if self.blocks is None or (number + 1) * self.block_size > self.blocks.size:
            raise DamagedError(f"{self.what}: more index blocks in use than there are")
        raw = self.blocks.read_at(number * self.block_size, self.block_size)
        return self.checked(raw, number)

    def checked(self, raw: bytes, number: int) -> bytearray:
        """Return a block that was read with its fixups applied."""
        block = apply_fixups(raw, b"INDX", self.what)
        if struct.unpack_from("<Q", block, 16)[0] * self.unit != number * self.block_size:
            raise DamagedError(f"{self.what}: index block {number} is another one")
        return block


def open_index(mft: MasterFileTable, inode: int, cluster_size: int) -> DirectoryIndex:
    """Return the index of a directory; DamagedError when its parts are not all there."""
    what = f"directory {inode}"
    attributes = mft.attributes(mft.record(inode))
    found = find(attributes, AttributeType.INDEX_ROOT, "$I30")
    root = found[0].value if found else None
    if root is None or len(root) < 32:
        raise DamagedError(f"{what}: no index root")
    allocation = find(attributes, AttributeType.INDEX_ALLOCATION, "$I30")
    if not allocation:
        if root[28] & 1:
            raise DamagedError(f"{what}: its index blocks are missing")
        return DirectoryIndex(what, root, b"", None, 0, _UNIT)
    bitmap = find(attributes, AttributeType.BITMAP, "$I30")
    if not bitmap:
        raise DamagedError(f"{what}: no bitmap of its index blocks")
    (size,) = struct.unpack_from("<I", root, 8)
    if size < 512 or size > 1 << 16 or size % 512:
        raise DamagedError(f"{what}: index blocks of {size} bytes")
    used = mft.small_value(bitmap, _BITMAP_LIMIT, what)
    unit = cluster_size if cluster_size <= size else _UNIT
    return DirectoryIndex(what, root, used, mft.value(allocation, what), size, unit)


def read_index(mft: MasterFileTable, inode: int, cluster_size: int, volume_size: int) -> Iterator[Names]:
    """Yield the names of a directory, many nodes at once.

    Blocks that the index's bitmap calls unused are left out: what they hold is old. Raises DamagedError
    where one of them is part of the index all the same.
    """
    index = open_index(mft, inode, cluster_size)
    what, size = index.what, index.block_size
    yield Names.of(parse_index_entries(index.root, 16, what))
    if index.blocks is None:
        return
    used = _set_bits(index.bitmap)
    if used and (used[-1] + 1) * size > min(index.blocks.size, volume_size):
        raise DamagedError(f"{what}: more index blocks in use than there are")
    children = parse_children(index.root, 16, what)
    for first, count in _neighbours(used, max(1, _STEP // size)):
        part = index.blocks.read_at(first * size, count * size)
        quick = None
        if count >= _MANY:
            quick = names_of_blocks(part, size, first * size // index.unit, max(1, size // index.unit))
        if quick is not None:
            names, inner = quick
        else:
            inner, entries = [], []
            for number in range(first, first + count):
                inside = (number - first) * size
                block = index.checked(part[inside : inside + size], number)
                entries += parse_index_entries(block, 24, what)
                inner += parse_children(block, 24, what)
            names = Names.of(entries)
        yield names
        children += inner
    if {vcn * index.unit for vcn in children} - {number * size for number in used}:
        raise DamagedError(f"{what}: a part of its index is said to be unused")


def _set_bits(bitmap: bytes) -> list[int]:
    return [at * 8 + bit for at, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1]


def _neighbours(numbers: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of ascending numbers that follow one another, at most ``most`` at once."""
    first = count = 0
    for number in numbers:
        if count and (number != first + count or count == most):
            yield first, count
            count = 0
        if not count:
            first = number
        count += 1
    if count:
        yield first, count
