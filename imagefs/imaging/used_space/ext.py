"""ext2, ext3 and ext4: a bitmap for each group of blocks.

Specification: https://www.kernel.org/doc/html/latest/filesystems/ext4/. A group that was never used has no
bitmap: what it holds follows from where the file system's own structures lie.
"""

import struct

import numpy as np

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from imagefs.filesystems.ext_layout import parse_superblock
from imagefs.imaging.used_space.base import (
    PIECE,
    Bits,
    ClusterMap,
    Facts,
    MappedVolume,
    UsedSpace,
    WholeVolume,
)
from imagefs.imaging.used_space.cluster_runs import parts_inside
from imagefs.imaging.used_space.ext_groups import Geometry, Groups, read_groups, structures
from imagefs.imaging.used_space.options import STORED_WHOLE, Options

_RECOVER = 0x4  # incompatible feature: the journal has to be replayed
_CLEAN, _ERRORS = 0x1, 0x2  # state
_CHECKSUMS = 0x10 | 0x400  # read-only compatible features
# In order: sparse_super, large_file, btree_dir, huge_file, gdt_csum, dir_nlink, extra_isize, quota, bigalloc,
# metadata_csum, read-only, project, verity, orphan_present. What any other means for bitmaps is not known.
_KNOWN = (
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x8000 | 0x10000
)


class ExtMap(ClusterMap):
    """The groups' bitmaps, read when they are asked for."""

    def __init__(self, volume: BlockReader, geometry: Geometry, groups: Groups) -> None:
        self._volume = volume
        self._geometry = geometry
        self._groups = groups
        self._own = structures(geometry, groups)

    def used(self, first: int, count: int) -> Bits:
        """Return which clusters are in use."""
        found = np.empty(count, np.bool_)
        per_group = self._geometry.clusters_per_group
        at = first
        while at < first + count:
            group, inside = divmod(at, per_group)
            step = min(per_group - inside, first + count - at)
            found[at - first : at - first + step] = self._group(group)[inside : inside + step]
            at += step
        return found

    def check(self) -> None:
        """Go through all bitmaps; DamagedError where one contradicts its group's own structures or count."""
        tables = structures(self._geometry, self._groups, with_backups=False)
        for group in range(len(self._groups.free)):
            used = self._group(group)
            first = group * self._geometry.clusters_per_group
            own = parts_inside(tables, first, len(used))
            if not all(used[start:end].all() for start, end in own.tolist()):
                raise DamagedError(f"ext: the bitmap of group {group} calls its own structures free")
            free = len(used) - int(np.count_nonzero(used))
            if free != self._groups.free[group]:
                told = self._groups.free[group]
                raise DamagedError(
                    f"ext: {free} clusters are free in group {group}, {told} by its descriptor"
                )

    def _group(self, group: int) -> Bits:
        first = group * self._geometry.clusters_per_group
        count = min(self._geometry.clusters_per_group, self._geometry.clusters - first)
        if self._groups.is_unused[group]:
            used = np.zeros(count, np.bool_)
            for start, end in parts_inside(self._own, first, count).tolist():
                used[start:end] = True
            return used
        at = int(self._groups.bitmap[group]) * self._geometry.block_size
        raw = np.frombuffer(self._volume.read_at(at, -(-count // 8)), np.uint8)
        return np.unpackbits(raw, count=count, bitorder="little").view(np.bool_)


def ext_space(volume: BlockReader, options: Options) -> UsedSpace:
    """Return the used space of an ext volume; DamagedError, UnsupportedError where its superblock can't be.

    A volume whose journal has to be replayed, or that was not unmounted, is wholly used: what was allocated
    last is not in the bitmaps yet. Reads all bitmaps once, to hold them against what the groups say of them.
    """
    raw = volume.read_at(1024, 1024)
    parsed = parse_superblock(raw)
    (state,) = struct.unpack_from("<H", raw, 58)
    geometry = Geometry.of(raw, parsed)
    name = parsed.kind.upper()
    facts = Facts(
        name,
        parsed.label,
        geometry.block_size * geometry.ratio,
        options.sector_size,
        geometry.clusters,
        geometry.first_block * geometry.block_size,
    )
    warnings = []
    if options.exclude and not options.exact:
        warnings.append(f"files can't be excluded on {parsed.kind}")
    doubt = ""
    if parsed.incompatible & _RECOVER:
        doubt = "the volume was not unmounted, its journal has to be replayed"
    elif state & _ERRORS:
        doubt = "the volume is marked as having errors: it needs a check"
    elif state != _CLEAN:
        doubt = "the volume is marked as dirty, it was not unmounted: it needs a check"
    elif parsed.read_only & ~_KNOWN:
        doubt = f"ext: unknown features {parsed.read_only & ~_KNOWN:#x}"
    if doubt:
        return WholeVolume(volume.size, facts, [*warnings, f"{doubt}: {STORED_WHOLE}"])
    try:
        if geometry.blocks * geometry.block_size > volume.size:
            raise DamagedError(f"ext: {geometry.blocks} blocks in a volume of {volume.size} bytes")
        groups = read_groups(volume, geometry, has_flags=bool(parsed.read_only & _CHECKSUMS))
        clusters = ExtMap(volume, geometry, groups)
        clusters.check()
    except DamagedError as error:
        return WholeVolume(volume.size, facts, [*warnings, f"{error}: {STORED_WHOLE}"])
    per_piece = geometry.clusters_per_group * max(1, PIECE // geometry.clusters_per_group)
    return MappedVolume(volume.size, facts, clusters, warnings=warnings, piece=per_piece, exact=options.exact)
