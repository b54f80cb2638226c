"""What Windows' drivers answer to questions about disks and volumes: control codes and structures.

Source: Microsoft, "winioctl.h header" (https://learn.microsoft.com/windows/win32/api/winioctl/), the page of
each structure, which the comments name; control codes by the macro CTL_CODE of the same header. All is
little-endian, and aligned as on a 64-bit Windows.
"""

import re
import struct
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from formats.partition_table.layout import TYPE_UNUSED, TYPES_EXTENDED
from imagefs.machine.windows.api import ERROR_INVALID_DATA, ApiError


def _code(device: int, function: int, method: int = 0, access: int = 0) -> int:
    """CTL_CODE; access 0 is FILE_ANY_ACCESS, 1 FILE_READ_ACCESS."""
    return device << 16 | access << 14 | function << 2 | method


IOCTL_STORAGE_QUERY_PROPERTY = _code(0x2D, 0x500)
IOCTL_DISK_GET_DRIVE_GEOMETRY_EX = _code(7, 0x28)
IOCTL_DISK_GET_LENGTH_INFO = _code(7, 0x17, access=1)
IOCTL_DISK_GET_DRIVE_LAYOUT_EX = _code(7, 0x14)
IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS = _code(0x56, 0)
FSCTL_LOCK_VOLUME = _code(9, 6)
FSCTL_ALLOW_EXTENDED_DASD_IO = _code(9, 32, method=3)  # reading behind the end of a volume's file system

_QUERY = struct.Struct("<III")  # STORAGE_PROPERTY_QUERY: PropertyId, QueryType, AdditionalParameters
QUERY_DEVICE = _QUERY.pack(0, 0, 0)  # StorageDeviceProperty, PropertyStandardQuery
QUERY_ALIGNMENT = _QUERY.pack(6, 0, 0)  # StorageAccessAlignmentProperty

# STORAGE_DEVICE_DESCRIPTOR: Version, Size, DeviceType, DeviceTypeModifier, RemovableMedia, CommandQueueing,
# offsets of vendor, product, revision and serial number (0: none), BusType, RawPropertiesLength
_DESCRIPTOR = struct.Struct("<IIBB??IIIIII")
# STORAGE_ACCESS_ALIGNMENT_DESCRIPTOR: Version, Size, BytesPerCacheLine, BytesOffsetForCacheAlignment,
# BytesPerLogicalSector, BytesPerPhysicalSector, BytesOffsetForSectorAlignment
_ALIGNMENT = struct.Struct("<7I")
# DISK_GEOMETRY_EX up to its Data: Cylinders, MediaType, TracksPerCylinder, SectorsPerTrack, BytesPerSector,
# DiskSize
_GEOMETRY = struct.Struct("<qIIIIq")
_LENGTH = struct.Struct("<q")  # GET_LENGTH_INFORMATION
# DRIVE_LAYOUT_INFORMATION_EX: PartitionStyle, PartitionCount, and a union of 40 bytes: the MBR's Signature,
# or the GPT's DiskId, StartingUsableOffset, UsableLength, MaxPartitionCount
_LAYOUT = struct.Struct("<II40s")
# PARTITION_INFORMATION_EX: PartitionStyle, StartingOffset, PartitionLength, PartitionNumber,
# RewritePartition, IsServicePartition, and a union of 112 bytes, of which the MBR's first is PartitionType
_PARTITION = struct.Struct("<I4xqqI??2x112s")
_PARTITION_GPT = struct.Struct("<16s16sQ72s")  # PartitionType, PartitionId, Attributes, Name
_EXTENTS = struct.Struct("<I4x")  # VOLUME_DISK_EXTENTS: NumberOfDiskExtents, then that many of
_EXTENT = struct.Struct("<I4xqq")  # DISK_EXTENT: DiskNumber, StartingOffset, ExtentLength
assert [one.size for one in (_QUERY, _DESCRIPTOR, _ALIGNMENT, _GEOMETRY, _LENGTH)] == [12, 36, 28, 32, 8]
assert [one.size for one in (_LAYOUT, _PARTITION, _PARTITION_GPT)] == [48, 144, 112]
assert [one.size for one in (_EXTENTS, _EXTENT)] == [8, 24]

DESCRIPTOR_SIZE = 1024  # bytes to ask with: the structure and the texts behind it
ALIGNMENT_SIZE = _ALIGNMENT.size
GEOMETRY_SIZE = 256  # with the partition and detection data, which differ in length
LENGTH_SIZE = _LENGTH.size

_STYLES = {0: "mbr", 1: "gpt"}  # PARTITION_STYLE; 2 is none
_BUSES = {  # STORAGE_BUS_TYPE
    1: "scsi",
    2: "atapi",
    3: "ata",
    4: "firewire",
    6: "fc",
    7: "usb",
    8: "raid",
    9: "iscsi",
    10: "sas",
    11: "sata",
    12: "sd",
    13: "mmc",
    14: "virtual",
    15: "file",  # BusTypeFileBackedVirtual: an attached VHD
    16: "spaces",
    17: "nvme",
    18: "scm",
    19: "ufs",
}
_SWAPPED_SERIAL = re.compile(rb"[0-9a-fA-F]{40}")  # the 20 characters of an ATA serial number


@dataclass(frozen=True, slots=True)
class DeviceDescriptor:
    """What a disk says of itself; "" where it says nothing."""

    vendor: str
    product: str
    revision: str
    serial: str
    bus: str
    removable: bool


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """A partition as the partition manager knows it. Offset and size are bytes."""

    number: int  # as imagefs numbers partitions: the MBR's slot, logical ones from 5; of a GPT Windows' own
    offset: int
    size: int
    type: str  # GPT: type GUID, upper case; MBR: two upper-case hex digits
    id: str  # GPT: the partition's GUID
    name: str  # GPT


@dataclass(frozen=True, slots=True)
class DriveLayout:
    """A partition table as the partition manager knows it; extended and unused entries left out."""

    scheme: str  # "mbr", "gpt" or ""
    disk_id: str  # GUID, or eight hex digits
    entries: tuple[LayoutEntry, ...]


@dataclass(frozen=True, slots=True)
class DiskExtent:
    """Where a part of a volume lies; bytes."""

    disk: int  # N of PhysicalDriveN
    offset: int
    size: int


def parse_descriptor(data: bytes) -> DeviceDescriptor:
    """Parse STORAGE_DEVICE_DESCRIPTOR and the texts behind it."""
    _, size, _, _, removable, _, vendor, product, revision, serial, bus, _ = _unpack(_DESCRIPTOR, data)
    data = data[:size] if size else data

    def text(offset: int) -> bytes:
        return data[offset:].partition(b"\0")[0] if _DESCRIPTOR.size <= offset < len(data) else b""

    def told(offset: int) -> str:
        return " ".join(text(offset).decode("latin-1").split())

    return DeviceDescriptor(
        told(vendor), told(product), told(revision), _serial(text(serial)), _BUSES.get(bus, ""), removable
    )


def _serial(raw: bytes) -> str:
    """Return a serial number. Older ATA drivers give its characters in hex, the two of each word swapped."""
    if _SWAPPED_SERIAL.fullmatch(raw):
        words = bytes.fromhex(raw.decode())
        swapped = bytes(words[at ^ 1] for at in range(len(words)))
        if swapped.isascii() and swapped.decode().isprintable():
            raw = swapped
    text = " ".join(raw.decode("latin-1").split())
    return text if text.isprintable() else ""


def parse_alignment(data: bytes) -> tuple[int, int]:
    """Return the bytes of a logical and of a physical sector of STORAGE_ACCESS_ALIGNMENT_DESCRIPTOR."""
    values = _unpack(_ALIGNMENT, data)
    return values[4], values[5]


def parse_geometry(data: bytes) -> tuple[int, int]:
    """Return the bytes of a sector and of the disk of DISK_GEOMETRY_EX."""
    *_, sector, size = _unpack(_GEOMETRY, data)
    return sector, size


def parse_length(data: bytes) -> int:
    """Return the bytes that GET_LENGTH_INFORMATION tells."""
    (length,) = _unpack(_LENGTH, data)
    return int(length)


def layout_size(entries: int) -> int:
    """Return the bytes of DRIVE_LAYOUT_INFORMATION_EX with so many entries."""
    return _LAYOUT.size + entries * _PARTITION.size


def parse_layout(data: bytes) -> DriveLayout:
    """Parse DRIVE_LAYOUT_INFORMATION_EX.

    On an MBR disk its entries come by four: those of the MBR, then those of each extended boot record, of
    which the first is the logical partition and the next the link.
    """
    style, count, union = _unpack(_LAYOUT, data)
    scheme = _STYLES.get(style, "")
    if not scheme:
        return DriveLayout("", "", ())
    entries = []
    logical = 4
    for at in range(count):
        _, offset, size, number, _, _, told = _unpack(_PARTITION, data, layout_size(at))
        if scheme == "gpt":
            kind, own, _, name = _PARTITION_GPT.unpack(told)
            text = name.decode("utf-16-le", "surrogatepass").partition("\0")[0]
            entries.append(LayoutEntry(number, offset, size, _guid(kind), _guid(own), text))
            continue
        type_byte = told[0]
        if type_byte == TYPE_UNUSED or type_byte in TYPES_EXTENDED:
            continue
        if at >= 4:
            logical += 1
        entries.append(LayoutEntry(at + 1 if at < 4 else logical, offset, size, f"{type_byte:02X}", "", ""))
    disk_id = _guid(union[:16]) if scheme == "gpt" else f"{struct.unpack_from('<I', union)[0]:08X}"
    return DriveLayout(scheme, disk_id, tuple(entries))


def extents_size(count: int) -> int:
    """Return the bytes of VOLUME_DISK_EXTENTS with so many extents."""
    return _EXTENTS.size + count * _EXTENT.size


def extent_count(data: bytes) -> int:
    """Return how many extents there are, also of an answer that was cut short."""
    (count,) = _unpack(_EXTENTS, data)
    return int(count)


def parse_extents(data: bytes) -> tuple[DiskExtent, ...]:
    """Parse VOLUME_DISK_EXTENTS."""
    return tuple(DiskExtent(*_unpack(_EXTENT, data, extents_size(at))) for at in range(extent_count(data)))


def _guid(data: bytes) -> str:
    return str(UUID(bytes_le=data)).upper()


def _unpack(structure: struct.Struct, data: bytes, offset: int = 0) -> tuple[Any, ...]:
    if len(data) < offset + structure.size:
        raise ApiError(
            ERROR_INVALID_DATA, "DeviceIoControl", f"a driver answered with {len(data)} bytes only"
        )
    return structure.unpack_from(data, offset)
