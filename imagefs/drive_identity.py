"""What a drive of Windows is called that shows an image: label, serial number, moment of its making."""

import struct
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from formats.blockreader import BlockReader
from formats.container import Container, Partition, Point
from formats.errors import FormatError
from imagefs.filesystems.detect import recognise
from imagefs.source import Source

_LONGEST_LABEL = 32  # UTF-16 units, as NTFS has it
# Where the boot sector has the volume's serial number: NTFS ([MS] "NTFS", BIOS parameter block; Windows shows
# the lower half), exFAT ("exFAT file system specification", 3.1.11), FAT12/16 and FAT32 (the FAT
# specification of August 2005, BS_VolID).
_NTFS, _EXFAT, _FAT16, _FAT32 = 0x48, 0x64, 0x27, 0x43


class DriveIdentity(NamedTuple):
    """How Windows tells drives apart. The same image always gives the same."""

    label: str  # at most 32 UTF-16 units
    serial: int  # 32 bits, never 0
    created: int  # nanoseconds since 1970-01-01 UTC; 0: not known


def drive_identity(source: Source, volume: str = "") -> DriveIdentity:
    """Return the identity of a drive that shows a source, or one volume of it ("disk4/p1").

    A volume alone is called what it was called, and has the serial number that it had; all of an image is
    called by its set and its day, a folder by its name.
    """
    point, partition = _find(source, [part for part in volume.split("/") if part])
    if point is None:
        name = source.path.absolute().name or str(source.path)
        return DriveIdentity(_cut(name), _hashed(name), 0)
    created = _nanoseconds(point.created)
    if partition is None:
        label = f"{point.image_id} {point.created:%Y-%m-%d}"
        return DriveIdentity(_cut(label), _hashed(f"{point.image_id}/{point.name}"), created)
    name = f"{point.image_id}/{volume.strip('/')}"
    try:
        serial = _volume_serial(partition.reader())
    except FormatError:  # said when it is read
        serial = 0
    return DriveIdentity(_cut(partition.label or partition.name), serial or _hashed(name), created)


def _find(source: Source, path: list[str]) -> tuple[Point | None, Partition | None]:
    """Return the point that is shown, and the partition where that is all of it."""
    point = source.point
    if point is None:
        if len(path) < 2:
            return None, None
        point = next((each for each in _points(source.sets, path[0]) if each.name == path[1]), None)
        path = path[2:]
    if point is None or len(path) != 2:
        return point, None
    partitions = (part for disk in point.disks if disk.name == path[0] for part in disk.partitions)
    return point, next((part for part in partitions if part.name == path[1]), None)


def _points(sets: Sequence[Container], image_id: str) -> list[Point]:
    return [point for each in sets if each.image_id == image_id for point in each.points]


def _volume_serial(reader: BlockReader) -> int:
    """Return the serial number as Windows showed it, 0 where the file system has none."""
    family = recognise(reader)
    if family == "NTFS":
        at = _NTFS
    elif family == "exFAT":
        at = _EXFAT
    elif family == "FAT":
        sectors_per_fat = int.from_bytes(reader.read_at(22, 2), "little")  # 0: FAT32
        at = _FAT16 if sectors_per_fat else _FAT32
    else:
        return 0
    return int(struct.unpack("<I", reader.read_at(at, 4))[0])


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000


def _hashed(name: str) -> int:
    return zlib.crc32(name.encode("utf-8", "surrogateescape")) or 1


def _cut(label: str) -> str:
    """Return a label as short as Windows takes it, half a pair of surrogates never."""
    raw = label.encode("utf-16-le", "replace")[: 2 * _LONGEST_LABEL]
    return raw.decode("utf-16-le", "ignore")
