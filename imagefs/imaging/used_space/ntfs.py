"""NTFS: $Bitmap has a bit for each cluster."""

import struct
from collections.abc import Iterator

import numpy as np

from formats.blockreader import BlockReader
from formats.errors import DamagedError, UnsupportedError
from imagefs.filesystems.names import decode_name
from imagefs.filesystems.nested.shadows import has_shadows
from imagefs.filesystems.ntfs.layout import (
    COMPRESSED,
    ENCRYPTED,
    IN_USE,
    VOLUME,
    Attribute,
    AttributeType,
    Boot,
    parse_boot,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.imaging.used_space.base import (
    Bits,
    ClusterMap,
    Facts,
    MappedVolume,
    Runs,
    UsedSpace,
    WholeVolume,
)
from imagefs.imaging.used_space.cluster_runs import NO_RUNS, union
from imagefs.imaging.used_space.left_out import LeftOut
from imagefs.imaging.used_space.ntfs_files import cluster_runs, excluded_files, paging_files
from imagefs.imaging.used_space.ntfs_shadows import ShadowedMap
from imagefs.imaging.used_space.options import STORED_WHOLE, Options

_BITMAP, _BAD_CLUSTERS = 6, 8  # file records
_LAST_OF_SYSTEM = 11  # $Extend; those behind it hold nothing
_DIRTY = 0x0001 | 0x4000  # volume flags: to be checked; a check is under way


class NtfsMap(ClusterMap):
    """The bits of $Bitmap, read when they are asked for."""

    def __init__(self, bitmap: BlockReader) -> None:
        self._bitmap = bitmap

    def used(self, first: int, count: int) -> Bits:
        """Return which clusters are in use."""
        raw = np.frombuffer(self._bitmap.read_at(first // 8, -(-count // 8)), np.uint8)
        return np.unpackbits(raw, count=count, bitorder="little").view(np.bool_)


def ntfs_space(volume: BlockReader, options: Options) -> UsedSpace:
    """Return the used space of an NTFS volume; DamagedError where not even its $MFT can be read.

    $BadClus's clusters are left out, and the contents of pagefile.sys, hiberfil.sys and swapfile.sys in the
    root directory, by what $Bitmap says as of an undamaged volume; of a dirty one nothing is left out.
    """
    sector = volume.read_at(0, 512)
    boot = parse_boot(sector)
    mft = MasterFileTable(volume, boot)
    label, is_dirty = _volume_facts(mft)
    facts = Facts(
        "NTFS",
        label,
        boot.cluster_size,
        struct.unpack_from("<H", sector, 11)[0],
        boot.clusters,
        mft_offset=boot.mft_cluster * boot.cluster_size,
        mft_record_size=boot.record_size,
    )
    warnings = ["the volume is marked as dirty: it needs a check"] if is_dirty else []
    clusters: ClusterMap
    try:
        clusters = _open_map(volume, mft, boot)
    except DamagedError as error:
        return WholeVolume(volume.size, facts, [*warnings, f"{error}: {STORED_WHOLE}"])
    if options.exact:
        return MappedVolume(volume.size, facts, clusters, warnings=warnings, exact=True)
    left_out = LeftOut()
    if not is_dirty:
        left_out = paging_files(mft, boot)
    if options.exclude and is_dirty:
        warnings.append("the volume is dirty: no files are excluded")
    elif options.exclude:
        try:
            left_out += excluded_files(mft, boot, options.exclude)
        except DamagedError as error:
            warnings.append(f"{error}: no files are excluded")
    if options.shadows and has_shadows(volume):
        try:
            clusters = ShadowedMap(clusters, volume, boot.cluster_size)
        except (DamagedError, UnsupportedError) as error:
            return WholeVolume(volume.size, facts, [*warnings, f"{error}: {STORED_WHOLE}"])
        warnings += clusters.warnings
    holes = union(np.concatenate([left_out.clusters, _bad_clusters(mft, boot)]))
    return MappedVolume(volume.size, facts, clusters, warnings=warnings, left_out=left_out.paths, holes=holes)


def _volume_facts(mft: MasterFileTable) -> tuple[str, bool]:
    """Return the label, and whether the volume is dirty."""
    attributes = mft.attributes(mft.record(VOLUME))
    names = find(attributes, AttributeType.VOLUME_NAME)
    information = find(attributes, AttributeType.VOLUME_INFORMATION)
    value = information[0].value if information else None
    if value is None or len(value) < 12:
        raise DamagedError("NTFS: $Volume does not say whether it is dirty")
    (flags,) = struct.unpack_from("<H", value, 10)
    return decode_name(names[0].value or b"") if names else "", bool(flags & _DIRTY)


def _open_map(volume: BlockReader, mft: MasterFileTable, boot: Boot) -> NtfsMap:
    """Return the map, held against the volume's size and the file system's own files."""
    if boot.clusters * boot.cluster_size > volume.size:
        raise DamagedError(
            f"NTFS: {boot.clusters} clusters of {boot.cluster_size} bytes in a volume of {volume.size} bytes"
        )
    data = find(_attributes(mft, _BITMAP), AttributeType.DATA)
    if not data or data[0].value is not None or data[0].flags & (COMPRESSED | ENCRYPTED):
        raise DamagedError("NTFS: $Bitmap has no data runs")
    needed = -(-boot.clusters // 8)
    if min(data[0].size, data[0].initialized) < needed:
        raise DamagedError(
            f"NTFS: $Bitmap has {min(data[0].size, data[0].initialized)} bytes for {boot.clusters} clusters"
        )
    if any(run.start is None for run in mft.runs(data, "$Bitmap")):
        raise DamagedError("NTFS: $Bitmap has holes")
    clusters = NtfsMap(mft.value(data, "$Bitmap"))
    if not clusters.all_used([(0, 1), *_system_runs(mft, boot)]):
        raise DamagedError("NTFS: $Bitmap calls clusters of the file system's own files free")
    return clusters


def _attributes(mft: MasterFileTable, number: int) -> list[Attribute]:
    record = mft.record(number)
    if not record.flags & IN_USE or record.base:
        raise DamagedError(f"file record {number} is not a file's")
    return mft.attributes(record)


def _system_runs(mft: MasterFileTable, boot: Boot) -> Iterator[tuple[int, int]]:
    """Yield the runs (start, end) of clusters of the file system's own files and of the root directory."""
    for number in range(_LAST_OF_SYSTEM + 1):
        if number == _BAD_CLUSTERS or not mft.record(number).flags & IN_USE:
            continue
        runs = cluster_runs(mft, boot, _attributes(mft, number), f"file record {number}")
        yield from map(tuple, runs.tolist())


def _bad_clusters(mft: MasterFileTable, boot: Boot) -> Runs:
    """Return the clusters that $BadClus keeps from use: they hold nothing, and can't be read."""
    try:
        extents = find(_attributes(mft, _BAD_CLUSTERS), AttributeType.DATA, "$Bad")
        return cluster_runs(mft, boot, extents, "$BadClus") if extents else NO_RUNS
    except DamagedError:
        return NO_RUNS
