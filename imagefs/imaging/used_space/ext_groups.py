"""The groups of an ext volume: their descriptors, and where the file system's own structures lie."""

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from imagefs.filesystems.ext_layout import BITS_64, META_BG, SPARSE_SUPER2, Superblock
from imagefs.imaging.used_space.base import Runs
from imagefs.imaging.used_space.cluster_runs import union

_SPARSE_SUPER = 0x1  # read-only compatible features
_BIGALLOC = 0x200
_UNUSED = 0x2  # group flag: its bitmap was never written
_STEP = 1 << 16  # groups read at once

Blocks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the superblock says of blocks and groups. Clusters are blocks but for bigalloc."""

    block_size: int  # bytes
    blocks: int
    first_block: int  # of group 0
    blocks_per_group: int
    ratio: int  # blocks of a cluster
    clusters: int  # from the first block on
    clusters_per_group: int
    groups: int
    inode_blocks: int  # of a group's inode table
    descriptor_size: int  # bytes
    reserved_descriptor_blocks: int
    first_meta_group: int  # from here on descriptors lie in their own groups
    backups: tuple[int, ...] | None  # groups with copies of the superblock; None: all

    @classmethod
    def of(cls, raw: bytes, parsed: Superblock) -> Self:
        """Return the geometry of a superblock; DamagedError where it contradicts itself."""
        log_block, log_cluster = struct.unpack_from("<II", raw, 24)
        (clusters_per_group,) = struct.unpack_from("<I", raw, 36)
        (reserved,) = struct.unpack_from("<H", raw, 206)
        ratio = 1
        if parsed.read_only & _BIGALLOC:
            if not 0 <= log_cluster - log_block <= 20 or parsed.first_data_block:
                raise DamagedError(f"ext superblock: clusters of 2^{10 + log_cluster} bytes")
            ratio = 1 << log_cluster - log_block
        else:
            clusters_per_group = parsed.blocks_per_group
        blocks = parsed.blocks - parsed.first_data_block
        groups = -(-blocks // parsed.blocks_per_group)
        if (
            blocks < 1
            or clusters_per_group * ratio != parsed.blocks_per_group
            or clusters_per_group > 8 * parsed.block_size
            or clusters_per_group % 8
            or blocks % ratio
            or groups * parsed.inodes_per_group != parsed.inodes
            or parsed.block_size % parsed.descriptor_size
        ):
            raise DamagedError(
                f"ext superblock: {parsed.blocks} blocks and {parsed.inodes} inodes in groups of"
                f" {parsed.blocks_per_group} and {parsed.inodes_per_group}"
            )
        per_block = parsed.block_size // parsed.descriptor_size
        return cls(
            block_size=parsed.block_size,
            blocks=parsed.blocks,
            first_block=parsed.first_data_block,
            blocks_per_group=parsed.blocks_per_group,
            ratio=ratio,
            clusters=blocks // ratio,
            clusters_per_group=clusters_per_group,
            groups=groups,
            inode_blocks=-(-parsed.inodes_per_group * parsed.inode_size // parsed.block_size),
            descriptor_size=parsed.descriptor_size if parsed.incompatible & BITS_64 else 32,
            reserved_descriptor_blocks=reserved,
            first_meta_group=(
                parsed.first_meta_group if parsed.incompatible & META_BG else -(-groups // per_block)
            ),
            backups=_backups(raw, parsed, groups),
        )

    @property
    def per_block(self) -> int:
        """The group descriptors in a block."""
        return self.block_size // self.descriptor_size

    def group_block(self, group: int) -> int:
        """Return a group's first block."""
        return self.first_block + group * self.blocks_per_group

    def has_superblock(self, group: int) -> bool:
        """Whether a group starts with a superblock, the first one or a copy."""
        return not group or self.backups is None or group in self.backups

    def descriptor_block(self, meta: int) -> int:
        """Return the block that holds the descriptors of a meta group: as many as fit into a block."""
        if meta < self.first_meta_group:
            return 1024 // self.block_size + 1 + meta
        group = meta * self.per_block
        return self._superblock(group) + self.has_superblock(group)

    def _superblock(self, group: int) -> int:
        """Return where a group's superblock lies, if it has one."""
        block = self.group_block(group)
        return block + (not group and self.block_size == 1024 and not self.first_block)


def _backups(raw: bytes, parsed: Superblock, groups: int) -> tuple[int, ...] | None:
    if parsed.compatible & SPARSE_SUPER2:
        return tuple(struct.unpack_from("<II", raw, 0x24C))
    if not parsed.read_only & _SPARSE_SUPER:
        return None
    found = {1}
    for base in (3, 5, 7):
        power = base
        while power < groups:
            found.add(power)
            power *= base
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Groups:
    """What the groups' descriptors say: arrays with an item for each. Places in blocks."""

    bitmap: Blocks
    inode_bitmap: Blocks
    inode_table: Blocks
    free: Blocks  # clusters
    is_unused: NDArray[np.bool_]  # its bitmap was never written


def read_groups(volume: BlockReader, geometry: Geometry, *, has_flags: bool) -> Groups:
    """Read all descriptors; DamagedError where one names blocks outside the volume.

    ``has_flags`` tells whether the descriptors' flags mean anything: they do with checksums only.
    """
    per_block = geometry.per_block
    fields = np.empty((geometry.groups, 5), np.int64)
    is_wide = geometry.descriptor_size >= 64
    for meta in range(-(-geometry.groups // per_block)):
        first = meta * per_block
        count = min(per_block, geometry.groups - first)
        at = geometry.descriptor_block(meta) * geometry.block_size
        if at + geometry.block_size > volume.size:
            raise DamagedError(f"ext: the descriptors of group {first} lie outside the volume")
        raw = np.frombuffer(volume.read_at(at, count * geometry.descriptor_size), np.uint8)
        rows = raw.reshape(count, geometry.descriptor_size)
        low = rows[:, :12].copy().view("<u4").astype(np.int64)
        halves = rows[:, 12:20].copy().view("<u2").astype(np.int64)
        part = fields[first : first + count]
        part[:, :3], part[:, 3], part[:, 4] = low, halves[:, 0], halves[:, 3]
        if is_wide:
            part[:, :3] |= rows[:, 0x20:0x2C].copy().view("<u4").astype(np.int64) << 32
            part[:, 3] |= rows[:, 0x2C:0x2E].copy().view("<u2").astype(np.int64)[:, 0] << 16
    groups = Groups(
        fields[:, 0],
        fields[:, 1],
        fields[:, 2],
        fields[:, 3],
        (fields[:, 4] & _UNUSED != 0) if has_flags else np.zeros(geometry.groups, np.bool_),
    )
    ends = np.stack([groups.bitmap + 1, groups.inode_bitmap + 1, groups.inode_table + geometry.inode_blocks])
    if ends.max() > geometry.blocks or fields[:, :3].min() <= geometry.first_block:
        raise DamagedError("ext: a group's descriptor names blocks outside the volume")
    return groups


def structures(geometry: Geometry, groups: Groups, *, with_backups: bool = True) -> Runs:
    """Return the clusters, in runs (start, end), of the bitmaps and inode tables of all groups.

    And of superblocks, descriptors, their copies, and blocks kept for more of them, if asked for.
    """
    runs = [
        np.stack([start, start + length], axis=1)
        for start, length in (
            (groups.bitmap, 1),
            (groups.inode_bitmap, 1),
            (groups.inode_table, geometry.inode_blocks),
        )
    ]
    if with_backups:
        runs.append(_descriptors(geometry))
    blocks = np.minimum(np.concatenate(runs), geometry.blocks) - geometry.first_block
    return union(np.stack([blocks[:, 0] // geometry.ratio, -(-blocks[:, 1] // geometry.ratio)], axis=1))


def _descriptors(geometry: Geometry) -> Runs:
    """Return the blocks of superblocks and descriptors, in runs (start, end)."""
    found = []
    is_meta = geometry.first_meta_group * geometry.per_block < geometry.groups
    shared = geometry.first_meta_group + (0 if is_meta else geometry.reserved_descriptor_blocks)
    for group in range(geometry.groups):
        start = geometry.group_block(group)
        end = start + geometry.has_superblock(group)
        meta, place = divmod(group, geometry.per_block)
        if meta < geometry.first_meta_group:
            if geometry.has_superblock(group):
                end += shared
        elif place in (0, 1, geometry.per_block - 1):
            end += 1
        if end > start:
            found.append((start, end))
    return np.array(found, np.int64).reshape(-1, 2)
