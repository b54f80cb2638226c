"""Deleted files of FAT and exFAT volumes.

A FAT forgets the chain of what is deleted: its data is taken to have been in one piece, from the cluster
that its entry still names, up to the first one that others have now; where it went on behind that is not
known. An exFAT's entry says so itself, or the chain is still there; its sum is checked.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytsk3

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from imagefs.filesystems.base import RecordedTimes
from imagefs.filesystems.fat import FatFileSystem
from imagefs.filesystems.fat_layout import ENTRY_SIZE, Node, parse_exfat_node, parse_fat_node
from imagefs.filesystems.remains import Bits
from imagefs.filesystems.runs import ChunkedReader, Run
from imagefs.filesystems.tsk_deleted import ContestedRemains, DeletedFileSystem, Placed
from imagefs.filesystems.tsk_image import TskImage
from mounters.tree import Attributes, NodeType

_BITMAP = 0x81  # type of the exFAT entry that names the bitmap of clusters
_IN_USE = 0x80  # bit of an exFAT entry's type
_DELETED = 0xE5
_LOW_CLUSTERS = 1 << 16  # clusters whose numbers need no more than the lower half
_PIECE = 1 << 16  # clusters looked at together
_ORPHANS_LIMIT = 4 << 30  # bytes of a volume: TSK reads all of it to find what has no directory any more


class _FatRemains(ContestedRemains):
    """The clusters that the FAT, or an exFAT's bitmap, calls free. Cluster 0 here is number 2 there."""

    def __init__(self, volume: BlockReader, fat: FatFileSystem, *, is_held: bool) -> None:
        geometry = fat.geometry
        clusters = min(geometry.clusters, (volume.size - geometry.cluster_start) // geometry.cluster_size)
        super().__init__(volume, geometry.cluster_size, geometry.cluster_start, clusters, is_held=is_held)
        self._fat = fat
        self._bitmap: ChunkedReader | None = None
        if fat.kind == "exFAT":
            content = fat.root_content()
            for at in range(0, len(content), ENTRY_SIZE):
                if content[at] == _BITMAP:
                    cluster, size = struct.unpack_from("<IQ", content, at + 20)
                    if size * 8 < clusters:
                        raise DamagedError(f"exFAT: an allocation bitmap of {size} bytes")
                    self._bitmap = ChunkedReader(fat.system_file(cluster, size, "allocation bitmap"))
                    break
            else:
                raise DamagedError("exFAT: no allocation bitmap")

    def _free(self, owner: int, first: int, count: int) -> Bits:
        free = np.zeros(count, np.bool_)
        if self._bitmap is None:
            free[:] = np.array(self._fat.fat_entries(first + 2, count)) == 0
        else:
            start, end = first // 8, -(-(first + count) // 8)
            bits = np.frombuffer(self._bitmap.read(start, end - start), np.uint8)
            free[:] = np.unpackbits(bits, bitorder="little")[first - 8 * start :][:count] == 0
        self.contested.exclude(owner, first, free)
        return free


class DeletedFat(DeletedFileSystem):
    """The deleted files of a FAT or exFAT volume. Raises FormatError as ``FatFileSystem`` does."""

    def __init__(self, reader: BlockReader, sector_size: int, *, is_exfat: bool, is_held: bool) -> None:
        self._fat = FatFileSystem(reader, is_exfat=is_exfat)
        kind = pytsk3.TSK_FS_TYPE_EXFAT if is_exfat else pytsk3.TSK_FS_TYPE_FAT_DETECT
        super().__init__(
            self._fat,
            TskImage(reader, sector_size),
            kind,
            _FatRemains(reader, self._fat, is_held=is_held),
            with_orphans=reader.size <= _ORPHANS_LIMIT,
        )

    def recorded_times(self, inode: int) -> Sequence[RecordedTimes]:
        """Return the times of a node's entry, which has none of a change of itself."""
        return [times._replace(changed=None) for times in super().recorded_times(inode)]

    def _placed(self, fs: Any, inode: int) -> Placed:
        what = f"inode {inode}"
        node = self._parse(inode, what)
        if self._fat.kind != "exFAT":
            size = self.block_size if node.is_directory else node.size  # it has one cluster at least
            node = node._replace(size=size, valid=size, is_chained=False)
        attributes = Attributes(
            inode,
            NodeType.DIRECTORY if node.is_directory else NodeType.FILE,
            node.size,
            0o555 if node.is_directory else 0o444,
            modified=node.modified,
            accessed=node.accessed,
            changed=node.modified,
            created=node.created,
            allocated=-(-node.size // self.block_size) * self.block_size,
            file_attributes=node.file_attributes,
        )
        if self._may_lack_half(node) and not self._names_itself(node):
            return Placed(attributes, reason="the upper half of its first cluster's number may be cleared")
        try:
            runs = self._fat.clusters(node, node.size, what)
        except DamagedError as error:
            return Placed(attributes, reason=error.what)
        if self._fat.kind == "exFAT" or not runs:
            return Placed(attributes, runs, node.valid)
        known = min(self._first_taken(inode, runs[0]) * self.block_size, node.size)
        return Placed(attributes, [runs[0]._replace(length=known)], node.valid, node.size - known)

    def _first_taken(self, inode: int, run: Run) -> int:
        """Return how many clusters of a run lie before the first that is not the file's any more."""
        size = self.block_size
        first = ((run.start or 0) - self._remains.first) // size
        count = run.length // size
        for at in range(0, count, _PIECE):
            taken = np.flatnonzero(~self._remains.left(inode, first + at, min(_PIECE, count - at)))
            if len(taken):
                return at + int(taken[0])
        return count

    def _may_lack_half(self, node: Node) -> bool:
        """Whether the first cluster may be another: on FAT32 Windows clears the upper half of its number."""
        is_low = node.first_cluster < _LOW_CLUSTERS < self._fat.geometry.clusters
        return self._fat.kind == "FAT32" and node.size > 0 and is_low

    def _names_itself(self, node: Node) -> bool:
        """Whether a directory's first entry says that it starts at the cluster that the node names."""
        at = (node.first_cluster - 2) * self.block_size
        if not node.is_directory or not 0 <= at < self._remains.clusters * self.block_size:
            return False
        first = self._remains.volume.read_at(self._remains.first + at, ENTRY_SIZE)
        high, low = struct.unpack_from("<H4xH", first, 20)
        return first[:2] == b". " and high << 16 | low == node.first_cluster

    def _parse(self, inode: int, what: str) -> Node:
        """Return what a deleted entry says, its mark put back."""
        first = self._fat.entry(inode)
        if self._fat.kind != "exFAT":
            return parse_fat_node(b"_" + first[1:] if first[0] == _DELETED else first, what)
        entries = bytearray(self._fat.entry(inode, 1 + first[1]))
        for at in range(0, len(entries), ENTRY_SIZE):
            entries[at] |= _IN_USE
        return parse_exfat_node(bytes(entries), what)
