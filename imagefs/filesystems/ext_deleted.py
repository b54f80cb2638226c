"""Deleted files of ext volumes.

What Linux deletes on ext3 and ext4 has no runs left, and is lost; other systems, and tools such as debugfs,
leave them.
"""

import struct
from typing import Any

import numpy as np
import pytsk3

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from imagefs.filesystems.ext import ExtFileSystem
from imagefs.filesystems.remains import Bits
from imagefs.filesystems.runs import ChunkedReader, Run
from imagefs.filesystems.tsk_deleted import ContestedRemains, DeletedFileSystem, Placed
from imagefs.filesystems.tsk_image import TskImage, data_attribute
from mounters.tree import Attributes, NodeType

_CLUSTERS = 0x200  # read-only feature "bigalloc": a bit of a bitmap is not a block's
_NOT_WRITTEN = 0x2  # group flag: its bitmap means nothing yet
_NONRESIDENT = int(pytsk3.TSK_FS_ATTR_NONRES)
_SPARSE, _FILLER = int(pytsk3.TSK_FS_ATTR_RUN_FLAG_SPARSE), int(pytsk3.TSK_FS_ATTR_RUN_FLAG_FILLER)
_POINTERS = {int(pytsk3.TSK_FS_ATTR_TYPE_UNIX_INDIR), int(pytsk3.TSK_FS_ATTR_TYPE_UNIX_EXTENT)}


class _ExtRemains(ContestedRemains):
    """The blocks that the groups' bitmaps call free."""

    def __init__(self, volume: BlockReader, ext: ExtFileSystem, *, is_held: bool) -> None:
        blocks = min(ext.superblock.blocks, volume.size // ext.block_size)
        super().__init__(volume, ext.block_size, 0, blocks, is_held=is_held)
        self._ext = ext
        self._blocks = ChunkedReader(volume)

    def _free(self, owner: int, first: int, count: int) -> Bits:
        free = np.zeros(count, np.bool_)
        above, per_group = self._ext.superblock, self._ext.superblock.blocks_per_group
        if above.read_only & _CLUSTERS:
            return free
        at = max(first, above.first_data_block)
        while at < first + count:
            group, inside = divmod(at - above.first_data_block, per_group)
            length = min(per_group - inside, first + count - at)
            free[at - first : at - first + length] = self._free_in(group)[inside : inside + length]
            at += length
        self.contested.exclude(owner, first, free)
        return free

    def _free_in(self, group: int) -> Bits:
        """Return which blocks of a group are free."""
        per_group = self._ext.superblock.blocks_per_group
        descriptor = self._ext.descriptor(group)
        (bitmap,) = struct.unpack_from("<I", descriptor, 0)
        if len(descriptor) >= 64:
            bitmap |= struct.unpack_from("<I", descriptor, 0x20)[0] << 32
        if descriptor[0x12] & _NOT_WRITTEN:
            return np.zeros(per_group, np.bool_)
        size = self.cluster_size
        if (bitmap + 1) * size > self.volume.size or per_group > 8 * size:
            raise DamagedError(f"the bitmap of group {group} is outside the volume")
        free = np.zeros(per_group, np.bool_)
        bits = np.frombuffer(self._blocks.read(bitmap * size, size), np.uint8)
        free[:] = np.unpackbits(bits, bitorder="little")[:per_group] == 0
        return free


class DeletedExt(DeletedFileSystem):
    """The deleted files of an ext volume. Raises FormatError as ``ExtFileSystem`` does."""

    def __init__(self, reader: BlockReader, sector_size: int, *, is_held: bool) -> None:
        ext = ExtFileSystem(reader)
        super().__init__(
            ext,
            TskImage(reader, sector_size),
            pytsk3.TSK_FS_TYPE_EXT_DETECT,
            _ExtRemains(reader, ext, is_held=is_held),
            with_orphans=True,
        )

    def _placed(self, fs: Any, inode: int) -> Placed:
        node = fs.open_meta(inode)
        meta = node.info.meta
        kind = NodeType.FILE
        if int(meta.type) == int(pytsk3.TSK_FS_META_TYPE_DIR):
            kind = NodeType.DIRECTORY
        runs: list[Run] = []
        pointers: list[Run] = []
        data = data_attribute(node)
        reason = "" if data is not None and int(data.info.flags) & _NONRESIDENT else "its data has no runs"
        for attribute in node:
            if int(attribute.info.type) in _POINTERS:
                pointers += self._runs(attribute)
        if data is not None and not reason:
            try:
                runs = self._runs(data)
            except DamagedError as error:
                reason = error.what
        size = int(meta.size)
        stored = any(run.start is not None for run in runs)
        if not reason and (not size or not stored or sum(run.length for run in runs) < size):
            reason = "where its data was is not recorded any more"
        if not reason and any(not self._is_left(inode, run) for run in pointers):
            reason = "the blocks that told where its data was are others' now, or not in the image"
        attributes = Attributes(
            inode,
            kind,
            size,
            int(meta.mode) & 0o7777,
            max(1, int(meta.nlink)),
            int(meta.uid),
            int(meta.gid),
            _nanoseconds(meta.mtime, meta.mtime_nano),
            _nanoseconds(meta.atime, meta.atime_nano),
            _nanoseconds(meta.ctime, meta.ctime_nano),
            _nanoseconds(meta.crtime, meta.crtime_nano),
            sum(run.length for run in runs if run.start is not None),
        )
        return Placed(attributes, () if reason else runs, size, reason=reason)

    def _is_left(self, inode: int, run: Run) -> bool:
        if run.start is None:
            return False
        return self._remains.left_of(inode, run.start, run.length) == -(-run.length // self.block_size)

    def _runs(self, attribute: Any) -> list[Run]:
        """Return the runs of a TSK attribute in bytes; DamagedError where there are gaps between them."""
        found, position = [], 0
        for run in sorted(attribute, key=lambda run: int(run.offset)):
            if int(run.flags) & _FILLER or int(run.offset) != position:
                raise DamagedError(f"where its block {position} was is not recorded any more")
            position += int(run.len)
            start = None if int(run.flags) & _SPARSE else int(run.addr) * self.block_size
            found.append(Run(int(run.len) * self.block_size, start))
        return found


def _nanoseconds(seconds: Any, more: Any) -> int:
    return int(seconds) * 1_000_000_000 + int(more)
