"""FAT12, FAT16 and FAT32: an entry of the file allocation table for each cluster, 0 where it is free."""

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from imagefs.filesystems.fat import FatFileSystem
from imagefs.filesystems.fat_layout import Geometry, parse_fat_boot
from imagefs.imaging.used_space.base import (
    PIECE,
    Bits,
    ClusterMap,
    Facts,
    MappedVolume,
    UsedSpace,
    WholeVolume,
)
from imagefs.imaging.used_space.fat_files import excluded_files
from imagefs.imaging.used_space.left_out import LeftOut
from imagefs.imaging.used_space.options import STORED_WHOLE, Options

_BAD = {12: 0xFF7, 16: 0xFFF7, 32: 0x0FFF_FFF7}
_CLEAN = {12: 0, 16: 0x8000, 32: 0x0800_0000}  # set in the second entry of a volume that was unmounted
_UNMOUNTED, _FLAWLESS = 0x1, 0x2  # in the boot sector's byte, set where a check, or a surface test, is due

Entries = NDArray[np.uint32]


class _Copies(NamedTuple):
    """Where the copies of the table lie, in bytes, that in use first."""

    starts: tuple[int, ...]
    are_mirrored: bool  # False: only the first means anything


class FatMap(ClusterMap):
    """The entries of all copies, read when they are asked for. A cluster is free if all copies say so."""

    def __init__(self, volume: BlockReader, geometry: Geometry, copies: _Copies) -> None:
        self._volume = volume
        self._bits = geometry.entry_bits
        self._copies = copies
        self.clusters = geometry.clusters
        self.is_mirror_broken = False

    def entries(self, copy: int, first: int, count: int) -> Entries:
        """Return ``count`` entries of a copy, from that of the map's cluster ``first``, a multiple of 8."""
        at = first + 2
        start, end = at * self._bits // 8, -(-(at + count) * self._bits // 8)
        if self._bits == 12:
            end += (
                -(end - start) % 3
            )  # whole pairs; the table ends with a sector, and more than a byte behind
        base = self._copies.starts[copy]
        raw = self._volume.read_at(base + start, min(end - start, self._volume.size - base - start))
        if self._bits == 32:
            return np.frombuffer(raw, "<u4").astype(np.uint32) & np.uint32(0x0FFF_FFFF)
        if self._bits == 16:
            return np.frombuffer(raw, "<u2").astype(np.uint32)
        threes = np.frombuffer(raw.ljust(end - start, b"\0"), np.uint8).reshape(-1, 3).astype(np.uint32)
        low = threes[:, 0] | (threes[:, 1] & 15) << 8
        high = threes[:, 1] >> 4 | threes[:, 2] << 4
        return np.stack([low, high], axis=1).ravel()[:count].astype(np.uint32)

    def used(self, first: int, count: int) -> Bits:
        """Return which clusters are in use by any copy; those marked as bad are not."""
        found = np.zeros(count, np.bool_)
        for copy in range(len(self._copies.starts)):
            entries = self.entries(copy, first, count)
            found |= (entries != 0) & (entries != _BAD[self._bits])
        return found

    def bad(self, first: int, count: int) -> int:
        """Return how many clusters are marked as bad."""
        bad = self.entries(0, first, count) == _BAD[self._bits]
        return int(np.count_nonzero(bad & ~self.used(first, count)))

    def check(self) -> None:
        """Go through the whole table; DamagedError where an entry names what is free or no cluster.

        Tells by the way whether the copies differ. Keeps a bit for each cluster: 32 MiB at the most.
        """
        named = np.zeros(-(-(self.clusters + 2) // 8), np.uint8)
        for first in range(0, self.clusters, PIECE):
            count = min(PIECE, self.clusters - first)
            entries = self.entries(0, first, count)
            if self._copies.are_mirrored:
                for copy in range(1, len(self._copies.starts)):
                    self.is_mirror_broken |= not np.array_equal(entries, self.entries(copy, first, count))
            links = entries[(entries > 1) & (entries < _BAD[self._bits])].astype(np.int64) - 2
            if len(links) and int(links.max()) >= self.clusters:
                raise DamagedError(f"FAT{self._bits}: an entry names cluster {int(links.max()) + 2}")
            np.bitwise_or.at(named, links >> 3, np.uint8(1) << (links & 7).astype(np.uint8))
        for first in range(0, self.clusters, PIECE):
            count = min(PIECE, self.clusters - first)
            piece = named[first // 8 : -(-(first + count) // 8)]
            bits = np.unpackbits(piece, count=count, bitorder="little").view(np.bool_)
            if (bits & ~self.used(first, count)).any():
                raise DamagedError(f"FAT{self._bits}: a chain goes through a free cluster")


def fat_space(volume: BlockReader, options: Options) -> UsedSpace:
    """Return the used space of a FAT volume; DamagedError where its geometry or root directory can't be.

    Reads the whole table once, to hold it against itself and its copies.
    """
    sector = volume.read_at(0, 512)
    geometry = parse_fat_boot(sector)
    sector_size, total = _check_size(volume, sector, geometry)
    copies = _find_copies(sector, geometry, sector_size)
    clusters = FatMap(volume, geometry, copies)
    facts = Facts(
        geometry.kind,
        FatFileSystem(volume, is_exfat=False).label,
        geometry.cluster_size,
        sector_size,
        total,
        geometry.cluster_start,
        reserved_length=geometry.cluster_start,
    )
    warnings = []
    if _is_dirty(volume, sector, geometry):
        warnings.append("the volume is marked as dirty: it needs a check")
    try:
        clusters.check()
        root = geometry.root_cluster
        if root and not clusters.all_used([(root - 2, root - 1)]):
            raise DamagedError(f"{geometry.kind}: the root directory's cluster is free")
    except DamagedError as error:
        return WholeVolume(volume.size, facts, [*warnings, f"{error}: {STORED_WHOLE}"])
    if clusters.is_mirror_broken:
        warnings.append("the copies of the FAT differ: what any of them calls used is stored")
    left_out = LeftOut()
    if options.exclude and not options.exact:
        if clusters.is_mirror_broken:
            warnings.append("the copies of the FAT differ: no files are excluded")
        else:
            try:
                left_out = excluded_files(volume, geometry, options.exclude)
            except DamagedError as error:
                warnings.append(f"{error}: no files are excluded")
    return MappedVolume(
        volume.size, facts, clusters,
        warnings=warnings, left_out=left_out.paths, holes=left_out.clusters, exact=options.exact,
    )  # fmt: skip


def _check_size(volume: BlockReader, sector: bytes, geometry: Geometry) -> tuple[int, int]:
    """Return the bytes of a sector and the number of clusters; DamagedError where they don't fit."""
    sector_size, per_cluster = struct.unpack_from("<HB", sector, 11)
    sectors = struct.unpack_from("<H", sector, 19)[0] or struct.unpack_from("<I", sector, 32)[0]
    total = (sectors - geometry.cluster_start // sector_size) // per_cluster
    if sectors * sector_size > volume.size:
        raise DamagedError(f"{geometry.kind}: {sectors} sectors in a volume of {volume.size} bytes")
    if total > geometry.clusters:
        raise DamagedError(f"{geometry.kind}: a FAT for {geometry.clusters} of {total} clusters")
    return sector_size, total


def _find_copies(sector: bytes, geometry: Geometry, sector_size: int) -> _Copies:
    reserved, number = struct.unpack_from("<HB", sector, 14)
    starts = [reserved * sector_size + copy * geometry.fat_length for copy in range(number)]
    starts.sort(key=lambda start: start != geometry.fat_start)
    flags = struct.unpack_from("<H", sector, 40)[0] if geometry.entry_bits == 32 else 0
    return _Copies(tuple(starts), not flags & 0x80)


def _is_dirty(volume: BlockReader, sector: bytes, geometry: Geometry) -> bool:
    """Whether the boot sector or the FAT say so; DamagedError where the FAT does not start as one."""
    raw = volume.read_at(geometry.fat_start, 8)
    first, second = struct.unpack_from("<II" if geometry.entry_bits == 32 else "<HH", raw)
    if first & 0xFF < 0xF0:
        raise DamagedError(f"{geometry.kind}: its FAT does not start with the medium's number")
    clean = _CLEAN[geometry.entry_bits]
    state = sector[0x41 if geometry.entry_bits == 32 else 0x25]
    return bool(state & (_UNMOUNTED | _FLAWLESS)) or second & clean != clean
