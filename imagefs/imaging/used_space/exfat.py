"""exFAT: an allocation bitmap, a file that the root directory names; TexFAT has two."""

import struct
from collections.abc import Sequence

import numpy as np

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from imagefs.filesystems.fat import FatFileSystem
from imagefs.filesystems.fat_layout import ENTRY_SIZE, Geometry, parse_exfat_boot
from imagefs.filesystems.runs import Run
from imagefs.imaging.used_space.base import (
    Bits,
    ClusterMap,
    Facts,
    MappedVolume,
    Runs,
    UsedSpace,
    WholeVolume,
)
from imagefs.imaging.used_space.cluster_runs import union
from imagefs.imaging.used_space.fat_files import excluded_files
from imagefs.imaging.used_space.left_out import LeftOut
from imagefs.imaging.used_space.options import STORED_WHOLE, Options

_BITMAP, _UPCASE = 0x81, 0x82  # directory entries
_SECOND, _DIRTY = 0x1, 0x2  # volume flags: the second FAT and bitmap are in use; to be checked


class ExfatMap(ClusterMap):
    """The bitmaps, read when they are asked for. A cluster is free if all say so."""

    def __init__(self, bitmaps: Sequence[BlockReader]) -> None:
        self._bitmaps = bitmaps

    def used(self, first: int, count: int) -> Bits:
        """Return which clusters are in use."""
        raw = np.zeros(-(-count // 8), np.uint8)
        for bitmap in self._bitmaps:
            raw |= np.frombuffer(bitmap.read_at(first // 8, len(raw)), np.uint8)
        return np.unpackbits(raw, count=count, bitorder="little").view(np.bool_)


def exfat_space(volume: BlockReader, options: Options) -> UsedSpace:
    """Return the used space of an exFAT volume; DamagedError where its root directory can't be read."""
    sector = volume.read_at(0, 512)
    geometry = parse_exfat_boot(sector)
    sector_shift = sector[108]
    (sectors,) = struct.unpack_from("<Q", sector, 72)
    end = geometry.cluster_start + geometry.clusters * geometry.cluster_size
    if max(end, sectors << sector_shift) > volume.size:
        raise DamagedError(f"exFAT: {sectors} sectors in a volume of {volume.size} bytes")
    fs = FatFileSystem(volume, is_exfat=True)
    (flags,) = struct.unpack_from("<H", sector, 106)
    facts = Facts(
        "exFAT", fs.label, geometry.cluster_size, 1 << sector_shift, geometry.clusters, geometry.cluster_start
    )
    warnings = ["the volume is marked as dirty: it needs a check"] if flags & _DIRTY else []
    try:
        clusters, system = _open_map(fs, geometry, bool(flags & _SECOND))
    except DamagedError as error:
        return WholeVolume(volume.size, facts, [*warnings, f"{error}: {STORED_WHOLE}"])
    left_out = LeftOut()
    if options.exclude and not options.exact:
        try:
            left_out = excluded_files(volume, geometry, options.exclude, system)
        except DamagedError as error:
            warnings.append(f"{error}: no files are excluded")
    return MappedVolume(
        volume.size, facts, clusters,
        warnings=warnings, left_out=left_out.paths, holes=left_out.clusters, exact=options.exact,
    )  # fmt: skip


def _open_map(fs: FatFileSystem, geometry: Geometry, is_second: bool) -> tuple[ExfatMap, Runs]:
    """Return the map, and the clusters of the file system's own files, all of which it must call used."""
    content = fs.root_content()
    needed = -(-geometry.clusters // 8)
    bitmaps: dict[int, BlockReader] = {}
    places: list[Run] = fs.places(fs.root)
    for at in range(0, len(content), ENTRY_SIZE):
        kind = content[at]
        if kind == 0:
            break
        if kind not in (_BITMAP, _UPCASE):
            continue
        first, size = struct.unpack_from("<IQ", content, at + 20)
        places += fs.system_places(first, size, f"exFAT: the file of entry {kind:#x}")
        if kind == _BITMAP:
            if size < needed:
                raise DamagedError(f"exFAT: a bitmap of {size} bytes for {geometry.clusters} clusters")
            if content[at + 1] & 1 in bitmaps:
                raise DamagedError("exFAT: two bitmaps for one FAT")
            bitmaps[content[at + 1] & 1] = fs.system_file(first, size, "exFAT: a bitmap")
    if int(is_second) not in bitmaps:
        raise DamagedError("exFAT: no bitmap for the FAT in use")
    runs = np.array([(run.start, (run.start or 0) + run.length) for run in places], np.int64).reshape(-1, 2)
    system = union((runs - geometry.cluster_start) // geometry.cluster_size)
    clusters = ExfatMap(list(bitmaps.values()))
    if not clusters.all_used(map(tuple, system.tolist())):
        raise DamagedError("exFAT: the bitmap calls clusters of the file system's own files free")
    return clusters, system
