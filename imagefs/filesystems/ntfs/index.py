"""The names of an NTFS directory: its index root and index blocks."""

import struct
from collections.abc import Iterator

from formats.errors import DamagedError
from imagefs.filesystems.ntfs.layout import (
    AttributeType,
    apply_fixups,
    parse_children,
    parse_index_entries,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find

_STEP = 1 << 20  # bytes of an index read at once
_BITMAP_LIMIT = 1 << 24  # bytes
_UNIT = 512  # bytes of a VCN in an index whose blocks are smaller than a cluster


def read_index(
    mft: MasterFileTable, inode: int, cluster_size: int, volume_size: int
) -> Iterator[list[tuple[str, int, int]]]:
    """Yield the (name, reference, file attributes) of a directory, node by node.

    Blocks that the index's bitmap calls unused are left out: what they hold is old. Raises DamagedError
    where one of them is part of the index all the same.
    """
    what = f"directory {inode}"
    attributes = mft.attributes(mft.record(inode))
    found = find(attributes, AttributeType.INDEX_ROOT, "$I30")
    root = found[0].value if found else None
    if root is None or len(root) < 32:
        raise DamagedError(f"{what}: no index root")
    yield parse_index_entries(root, 16, what)
    allocation = find(attributes, AttributeType.INDEX_ALLOCATION, "$I30")
    if not allocation:
        if root[28] & 1:
            raise DamagedError(f"{what}: its index blocks are missing")
        return
    bitmap = find(attributes, AttributeType.BITMAP, "$I30")
    if not bitmap:
        raise DamagedError(f"{what}: no bitmap of its index blocks")
    used = _set_bits(mft.small_value(bitmap, _BITMAP_LIMIT, what))
    (size,) = struct.unpack_from("<I", root, 8)
    if size < 512 or size > 1 << 16 or size % 512:
        raise DamagedError(f"{what}: index blocks of {size} bytes")
    blocks = mft.value(allocation, what)
    if used and (used[-1] + 1) * size > min(blocks.size, volume_size):
        raise DamagedError(f"{what}: more index blocks in use than there are")
    unit = cluster_size if cluster_size <= size else _UNIT
    children = parse_children(root, 16, what)
    for first, count in _neighbours(used, max(1, _STEP // size)):
        part = blocks.read_at(first * size, count * size)
        for number in range(first, first + count):
            inside = (number - first) * size
            block = apply_fixups(part[inside : inside + size], b"INDX", what)
            if struct.unpack_from("<Q", block, 16)[0] * unit != number * size:
                raise DamagedError(f"{what}: index block {number} is another one")
            yield parse_index_entries(block, 24, what)
            children += parse_children(block, 24, what)
    if {vcn * unit for vcn in children} - {number * size for number in used}:
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
