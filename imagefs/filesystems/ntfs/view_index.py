"""Indexes of NTFS beside those of directories, searched by key: $SII of $Secure, $O of $ObjId.

Layout: https://flatcap.github.io/linux-ntfs/ntfs/concepts/index_record.html. Keys are in order of the 32-bit
numbers they consist of (collations 16 and 19).
"""

import struct

from formats.errors import DamagedError
from imagefs.filesystems.ntfs.layout import Attribute, AttributeType, apply_fixups
from imagefs.filesystems.ntfs.mft import MasterFileTable, find

_ENTRY = struct.Struct("<HH4xHHH2x")  # data's offset and length; length, key length, flags
_DEPTH = 16  # nodes from the root to a leaf
_UNIT = 512  # bytes of a VCN in an index whose blocks are smaller than a cluster
_HAS_CHILD, _IS_LAST = 1, 2  # flags of an entry


class ViewIndex:
    """An index by its name in a file record; FormatError from the constructor where it can't be read.

    Safe from several threads.
    """

    def __init__(self, mft: MasterFileTable, inode: int, name: str, cluster_size: int) -> None:
        self._what = what = f"index {name} of file {inode}"
        attributes = mft.attributes(mft.record(inode))
        root: list[Attribute] = find(attributes, AttributeType.INDEX_ROOT, name)
        if not root or root[0].value is None or len(root[0].value) < 32:
            raise DamagedError(f"{what}: no index root")
        self._root = root[0].value
        (self._block_size,) = struct.unpack_from("<I", self._root, 8)
        if not 512 <= self._block_size <= 1 << 16 or self._block_size % 512:
            raise DamagedError(f"{what}: index blocks of {self._block_size} bytes")
        self._unit = cluster_size if cluster_size <= self._block_size else _UNIT
        allocation = find(attributes, AttributeType.INDEX_ALLOCATION, name)
        self._blocks = mft.value(allocation, what) if allocation else None

    def find(self, key: bytes) -> bytes | None:
        """Return the data of a key, None when it is not there; DamagedError where the way to it is broken."""
        wanted = _order(key)
        node, header = self._root, 16
        for _ in range(_DEPTH):
            found = self._search(node, header, wanted)
            if not isinstance(found, int):
                return found
            node, header = self._block(found), 24
        raise DamagedError(f"{self._what}: deeper than {_DEPTH} nodes")

    def _search(self, node: bytes, header: int, wanted: tuple[int, ...]) -> bytes | int | None:
        """Return the data of a key in a node, or the VCN of the node where it would be, else None."""
        try:
            start, used = struct.unpack_from("<II", node, header)
            position, end = header + start, header + used
            if start < 16 or end > len(node):
                raise DamagedError(f"{self._what}: an index node of {used} bytes")
            while True:
                data, data_length, length, key_length, flags = _ENTRY.unpack_from(node, position)
                following = position + length
                if length < 16 + 8 * (flags & _HAS_CHILD) or following > end or key_length > length - 16:
                    raise DamagedError(f"{self._what}: an index entry of {length} bytes")
                key = () if flags & _IS_LAST else _order(node[position + 16 : position + 16 + key_length])
                if key == wanted:
                    if data + data_length > length:
                        raise DamagedError(f"{self._what}: an entry's data reaches outside it")
                    return node[position + data : position + data + data_length]
                if flags & _IS_LAST or key > wanted:
                    if not flags & _HAS_CHILD:
                        return None
                    return int(struct.unpack_from("<Q", node, following - 8)[0])
                position = following
        except struct.error as error:
            raise DamagedError(f"{self._what}: an index entry reaches outside its node") from error

    def _block(self, vcn: int) -> bytes:
        at = vcn * self._unit
        if self._blocks is None or at + self._block_size > self._blocks.size:
            raise DamagedError(f"{self._what}: index block {vcn} is missing")
        block = bytes(apply_fixups(self._blocks.read_at(at, self._block_size), b"INDX", self._what))
        if struct.unpack_from("<Q", block, 16)[0] != vcn:
            raise DamagedError(f"{self._what}: index block {vcn} is another one")
        return block


def _order(key: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(key) // 4}I", key[: len(key) // 4 * 4])
