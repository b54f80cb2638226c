"""Finding a name in a directory's index without reading all of it.

$I30 is a B-tree: the nodes on the way to a name say whether it is there. That is believed where the
names in them are in order and between those of the node above; else who asks reads the whole listing.
"""

import struct
import threading
from bisect import bisect_left
from collections import Counter
from typing import NamedTuple

from formats.errors import DamagedError
from imagefs.filesystems.base import LeastRecentlyUsed
from imagefs.filesystems.names import decode_name, plain_name
from imagefs.filesystems.ntfs.index import DirectoryIndex, open_index
from imagefs.filesystems.ntfs.layout import DOS_NAME
from imagefs.filesystems.ntfs.mft import MasterFileTable
from imagefs.filesystems.upcase import UpCase

_DEPTH = 16  # nodes from the root to a leaf; with 35 names in each, 6 are enough for a billion
_SMALL = 16  # blocks of an index that is read whole at once
_SHARE = 8  # reading all blocks takes as long as searching in an eighth of them
_INDEXES_KEPT = 1 << 24  # bytes
_NAMES_KEPT = 50_000  # in nodes
_ENTRY = struct.Struct("<QHHH")  # reference, length, key length, flags

Key = tuple[bytes, bytes]


class _Node(NamedTuple):
    """An index node: names in ascending order, and what lies below, one more than names or nothing."""

    keys: list[Key]
    references: list[int]
    is_short: list[bool]  # an 8.3 name beside a long one
    children: list[int]  # VCNs


class Descents:
    """Searches in the indexes of a volume's directories. Safe from several threads."""

    def __init__(self, mft: MasterFileTable, cluster_size: int) -> None:
        self._mft = mft
        self._cluster_size = cluster_size
        self._indexes: LeastRecentlyUsed[int, DirectoryIndex] = LeastRecentlyUsed(_INDEXES_KEPT, len)
        self._nodes: LeastRecentlyUsed[tuple[int, int | None], _Node] = LeastRecentlyUsed(
            _NAMES_KEPT, lambda node: len(node.keys) + 1
        )
        self._searches: Counter[int] = Counter()
        self._lock = threading.Lock()

    def pays(self, inode: int) -> bool:
        """Tell whether a search in a directory pays: it is large, and few came before."""
        index = self._index(inode)
        if index.blocks is None:
            return False
        blocks = index.blocks.size // index.block_size
        with self._lock:
            if len(self._searches) > 1000:
                self._searches.clear()
            self._searches[inode] += 1
            return blocks > _SMALL and self._searches[inode] <= max(_SMALL, blocks // _SHARE)

    def find(self, inode: int, name: str, upcase: UpCase, *, ignore_case: bool) -> tuple[str, int] | None:
        """Return a name and its reference, or the first that differs by case alone; None: there is none.

        Raises FormatError where a node on the way is damaged.
        """
        try:
            folded, exact = upcase.key(plain_name(name))
        except UnicodeError:  # nothing that UTF-16 can hold
            return None
        reference, others = self._search(inode, (folded, exact), upcase)
        if reference is None and others and ignore_case:
            exact, reference = min(self._search(inode, (folded, b""), upcase)[1])
        if reference is None:
            return None
        return decode_name(
            exact.decode("utf-16-be", "surrogatepass").encode("utf-16-le", "surrogatepass")
        ), reference

    def clear(self) -> None:
        """Forget what is cached."""
        self._indexes.clear()
        self._nodes.clear()

    def _index(self, inode: int) -> DirectoryIndex:
        index = self._indexes.get(inode)
        if index is None:
            index = open_index(self._mft, inode, self._cluster_size)
            self._indexes.put(inode, index)
        return index

    def _search(self, inode: int, key: Key, upcase: UpCase) -> tuple[int | None, list[tuple[bytes, int]]]:
        """Return the reference of a key, and the (exact, reference) on the way that differ by case alone.

        Of these the one before the key and the one behind it are always on the way.
        """
        index = self._index(inode)
        lowest: Key | None = None
        highest: Key | None = None
        others: list[tuple[bytes, int]] = []
        vcn: int | None = None
        for _ in range(_DEPTH):
            node = self._node(inode, index, vcn, upcase)
            if node.keys and (
                (lowest is not None and node.keys[0] <= lowest)
                or (highest is not None and node.keys[-1] >= highest)
            ):
                raise DamagedError(f"{index.what}: the names in its index are out of order")
            at = bisect_left(node.keys, key)
            if at < len(node.keys) and node.keys[at] == key and not node.is_short[at]:
                return node.references[at], others
            for near in range(bisect_left(node.keys, (key[0], b"")), len(node.keys)):
                if node.keys[near][0] != key[0]:
                    break
                if not node.is_short[near]:
                    others.append((node.keys[near][1], node.references[near]))
            if not node.children:
                return None, others
            vcn = node.children[at]
            lowest = node.keys[at - 1] if at else lowest
            highest = node.keys[at] if at < len(node.keys) else highest
        raise DamagedError(f"{index.what}: its index is more than {_DEPTH} blocks deep")

    def _node(self, inode: int, index: DirectoryIndex, vcn: int | None, upcase: UpCase) -> _Node:
        known = self._nodes.get((inode, vcn))
        if known is None:
            block = index.root if vcn is None else index.block(vcn)
            known = _parse(block, 16 if vcn is None else 24, upcase, index.what)
            self._nodes.put((inode, vcn), known)
        return known


def _parse(node: bytes | bytearray, header: int, upcase: UpCase, what: str) -> _Node:
    """Return an index node; DamagedError where its names are out of order, too."""
    names: list[str] = []
    found = _Node([], [], [], [])
    try:
        start, used = struct.unpack_from("<II", node, header)
        is_inner = node[header + 12] & 1
        position, end, flags = header + start, header + used, 0
        if end > len(node) or start < 16:
            raise DamagedError(f"{what}: an index node of {used} bytes")
        while not flags & 2:
            reference, length, key_length, flags = _ENTRY.unpack_from(node, position)
            following = position + length
            if length < 16 or following > end or flags & 1 != is_inner:
                raise DamagedError(f"{what}: an index entry of {length} bytes")
            if is_inner:
                found.children.append(struct.unpack_from("<Q", node, following - 8)[0])
            if not flags & 2:
                letters = node[position + 80]
                if 66 + 2 * letters > key_length or 16 + key_length > length or not letters:
                    raise DamagedError(f"{what}: an index entry's name reaches outside it")
                raw = node[position + 82 : position + 82 + 2 * letters]
                names.append(raw.decode("utf-16-le", "surrogatepass"))
                found.references.append(reference)
                found.is_short.append(node[position + 81] == DOS_NAME)
            position = following
    except (struct.error, IndexError) as error:
        raise DamagedError(f"{what}: an index entry reaches outside its node") from error
    found.keys.extend(map(upcase.key, names))
    if any(first >= second for first, second in zip(found.keys, found.keys[1:], strict=False)):
        raise DamagedError(f"{what}: the names in its index are out of order")
    return found
