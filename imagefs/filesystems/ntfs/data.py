"""The data of NTFS files: from the attributes of a record to a reader of what the file holds."""

from collections.abc import Iterable, Sequence

from formats.blockreader import BlockReader, BytesReader
from formats.errors import DamagedError, UnsupportedError
from imagefs.filesystems.base import VolumeOptions
from imagefs.filesystems.ntfs.compression import LARGEST_UNIT, CompressedReader
from imagefs.filesystems.ntfs.layout import (
    COMPRESSED,
    ENCRYPTED,
    FILE_ENCRYPTED,
    LZNT1,
    SECTOR,
    Attribute,
    AttributeType,
    data_size,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find, standard_information
from imagefs.filesystems.ntfs.placeholders import check_is_here
from imagefs.filesystems.ntfs.reparse import ReparseTag, reparse_tag
from imagefs.filesystems.ntfs.streams import WOF_STREAM
from imagefs.filesystems.ntfs.wof import WofReader, parse_wof

REPARSE_LIMIT = 1 << 16  # bytes of a reparse point; Windows stops at 16 KiB


def open_file(
    mft: MasterFileTable, attributes: Sequence[Attribute], what: str, options: VolumeOptions
) -> BlockReader:
    """Return a file's unnamed data from all attributes of its record, as Windows shows it.

    Raises UnsupportedError where it is not on the volume, or where EFS encrypted it, unless
    ``options.raw_efs``.
    """
    data = find(attributes, AttributeType.DATA)
    flags = standard_information(attributes, what)[-1]
    reparse = find(attributes, AttributeType.REPARSE_POINT)
    point = mft.small_value(reparse, REPARSE_LIMIT, what) if reparse else None
    if point is not None and reparse_tag(point, what) == ReparseTag.WOF:
        return _open_wof(mft, attributes, point, what, options)
    check_is_here(mft, data, flags, None if point is None else reparse_tag(point, what), what)
    if not data:
        return BytesReader(b"")
    if flags & FILE_ENCRYPTED:
        _check_encrypted(what, options)
    return open_attribute(mft, data, what, options)


def open_attribute(
    mft: MasterFileTable, extents: Sequence[Attribute], what: str, options: VolumeOptions
) -> BlockReader:
    """Return the bytes of a $DATA attribute, named or not, from its extents in order; holes as extents.

    Raises UnsupportedError where EFS encrypted it, unless ``options.raw_efs``; its size is ``data_size``.
    """
    first = extents[0]
    if first.flags & ENCRYPTED:
        _check_encrypted(what, options)
        valid = -(-first.initialized // SECTOR) * SECTOR
        extents = [first._replace(size=data_size(first, raw_efs=True), initialized=valid), *extents[1:]]
    if first.flags & COMPRESSED and first.value is None:
        return _open_compressed(mft, extents, what)
    return mft.value(extents, what)


def stored_size(attributes: Iterable[Attribute], first: Attribute) -> int:
    """Return the bytes of the volume that data takes up; of what WOF compressed, those of its stream."""
    points = [item.value or b"" for item in attributes if item.type == AttributeType.REPARSE_POINT]
    if points and points[0][:4] == ReparseTag.WOF.to_bytes(4, "little"):
        stream = find(attributes, AttributeType.DATA, WOF_STREAM)
        return first.allocated + sum(extent.allocated or extent.size for extent in stream[:1])
    return first.allocated


def _check_encrypted(what: str, options: VolumeOptions) -> None:
    if not options.raw_efs:
        raise UnsupportedError(f"{what} is encrypted by EFS", hint="--raw-efs gives the stored bytes")


def _open_compressed(mft: MasterFileTable, extents: Sequence[Attribute], what: str) -> BlockReader:
    first = extents[0]
    if first.flags & COMPRESSED != LZNT1:
        raise UnsupportedError(f"{what} is compressed by method {first.flags & COMPRESSED}")
    unit = mft.cluster_size << first.unit if first.unit < 32 else 0
    if not first.unit or not 0 < unit <= LARGEST_UNIT:
        raise DamagedError(f"{what}: compressed by units of 2^{first.unit} clusters")
    return CompressedReader(
        mft.volume, mft.runs(extents, what), first.size, valid=first.initialized, unit=unit, name=what
    )


def _open_wof(
    mft: MasterFileTable, attributes: Sequence[Attribute], point: bytes, what: str, options: VolumeOptions
) -> BlockReader:
    algorithm = parse_wof(point, what)
    data = find(attributes, AttributeType.DATA)
    stream = find(attributes, AttributeType.DATA, WOF_STREAM)
    if not data or not stream:
        missing = f"stream {WOF_STREAM}" if data else "$DATA"
        raise DamagedError(
            f"{what} is compressed by Windows (WOF, reparse tag 0x80000017), but has no {missing}"
        )
    if data[0].flags & ENCRYPTED:
        raise DamagedError(f"{what} is said to be compressed by Windows (WOF) and encrypted, which can't be")
    return WofReader(open_attribute(mft, stream, what, options), data[0].size, algorithm, what)
