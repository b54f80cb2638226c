"""NTFS on disk: the boot sector, file records, attributes, data runs, index blocks, reparse points.

Specification: none is published; this follows the Linux-NTFS documentation
(https://flatcap.github.io/linux-ntfs/ntfs/) and [MS-FSCC] 2.1.2 for reparse points. Little endian.
Records are parsed by the ten thousand, so with struct.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from formats.errors import DamagedError
from imagefs.filesystems.names import decode_name

SECTOR = 512  # bytes that one fixup protects, whatever the device's sectors are
REFERENCE_MASK = (1 << 48) - 1  # record number of a file reference; above it the sequence number
EPOCH = 116_444_736_000_000_000  # 1970-01-01 in 100 ns since 1601-01-01

ROOT = 5
VOLUME = 3
SECURE = 9
EXTEND = 11
FIRST_USER = 16  # records below are the file system's own

IN_USE = 0x1  # record flags
DIRECTORY = 0x2

COMPRESSED = 0x00FF  # attribute flags: the method
LZNT1 = 0x0001
ENCRYPTED = 0x4000
SPARSE = 0x8000

FILE_SYSTEM = 0x4  # file attributes in $STANDARD_INFORMATION and $FILE_NAME
FILE_REPARSE = 0x400
FILE_OFFLINE = 0x1000
FILE_ENCRYPTED = 0x4000
FILE_RECALL_ON_OPEN = 0x40000
FILE_RECALL_ON_DATA_ACCESS = 0x400000
FILE_DIRECTORY = 0x10000000  # in $FILE_NAME only

PAGING_FILES = ("pagefile.sys", "hiberfil.sys", "swapfile.sys")  # in the root; Windows makes them anew

DOS_NAME = 2  # namespace of an 8.3 name beside a long one

_BOOT = struct.Struct("<3x8sHB")  # jump; OEM name; bytes per sector; sectors per cluster
_BOOT_EXTENDED = struct.Struct("<40xQQQb3xb")  # sectors; $MFT, $MFTMirr cluster; record, index block size
_RECORD = struct.Struct("<4sHH8xHHHHII Q")  # magic, fixup offset, count; sequence, links, first, flags, …
_ATTRIBUTE = struct.Struct("<IIBBHHH")  # type, length, non-resident, name length, offset, flags, id
_RESIDENT = struct.Struct("<IH")  # length, offset; at 16
_NONRESIDENT = struct.Struct("<QQHHIQQQ")  # first and last VCN, runs' offset, unit, -, allocated, size, valid
_LIST_ENTRY = struct.Struct("<IHBBQQH")  # type, length, name length, offset, first VCN, reference, id
_INDEX_ENTRY = struct.Struct("<QHHH")  # reference, length, key length, flags
_FILE_NAME_KEY = struct.Struct("<72xI4xBB")  # of an entry: file attributes, name length, namespace


class AttributeType(IntEnum):
    """The attributes that are read here."""

    STANDARD_INFORMATION = 0x10
    ATTRIBUTE_LIST = 0x20
    FILE_NAME = 0x30
    OBJECT_ID = 0x40
    SECURITY_DESCRIPTOR = 0x50
    VOLUME_NAME = 0x60
    VOLUME_INFORMATION = 0x70
    DATA = 0x80
    INDEX_ROOT = 0x90
    INDEX_ALLOCATION = 0xA0
    BITMAP = 0xB0
    REPARSE_POINT = 0xC0
    EA = 0xE0
    LOGGED_UTILITY_STREAM = 0x100


@dataclass(frozen=True, slots=True)
class Boot:
    """What the boot sector says. Sizes in bytes."""

    cluster_size: int
    clusters: int
    mft_cluster: int
    record_size: int
    index_block_size: int


class Attribute(NamedTuple):
    """One attribute, or one extent of it, in a record."""

    type: int
    name: str
    flags: int
    id: int
    value: bytes | None  # None: non-resident
    first_vcn: int = 0
    clusters: int = 0  # that ``mapping`` maps
    mapping: bytes = b""  # mapping pairs, see parse_runs
    allocated: int = 0  # bytes on the volume
    size: int = 0  # bytes
    initialized: int = 0  # bytes; what lies beyond reads as zeros
    unit: int = 0  # clusters that are compressed together, as a power of two; 0: none


class ListEntry(NamedTuple):
    """What an attribute list says of an attribute, or of one extent of it."""

    type: int
    is_named: bool
    first_vcn: int
    reference: int  # of the record that holds it
    id: int  # in that record


class Record(NamedTuple):
    """A file record."""

    number: int
    sequence: int
    flags: int  # IN_USE, DIRECTORY
    base: int  # reference of the record this one extends, 0 if it is one itself
    attributes: list[Attribute]


def parse_boot(sector: bytes) -> Boot:
    """Parse and check a boot sector; DamagedError where its values can't be."""
    _, sector_size, per_cluster = _BOOT.unpack_from(sector)
    sectors, mft_cluster, _, record, index = _BOOT_EXTENDED.unpack_from(sector)
    if sector_size not in (256, 512, 1024, 2048, 4096):
        raise DamagedError(f"NTFS boot sector: {sector_size} bytes per sector")
    count = per_cluster if per_cluster <= 128 else 1 << (256 - per_cluster)
    if count == 0 or count & (count - 1) or count * sector_size > 1 << 21:
        raise DamagedError(f"NTFS boot sector: {per_cluster} sectors per cluster")
    cluster_size = count * sector_size
    record_size = record * cluster_size if record > 0 else 1 << -record
    index_block_size = index * cluster_size if index > 0 else 1 << -index
    for what, size in (("file record", record_size), ("index block", index_block_size)):
        if not SECTOR <= size <= 1 << 16 or size % SECTOR:
            raise DamagedError(f"NTFS boot sector: a {what} of {size} bytes")
    return Boot(cluster_size, sectors // count, mft_cluster, record_size, index_block_size)


def apply_fixups(raw: bytes, magic: bytes, what: str) -> bytearray:
    """Return a record or index block with its sectors' last two bytes put back.

    Raises DamagedError on another magic, or when a sector does not carry the update sequence number:
    it was not written together with the others.
    """
    if raw[:4] != magic:
        raise DamagedError(f"{what}: {raw[:4]!r} in place of {magic!r}")
    offset, count = struct.unpack_from("<HH", raw, 4)
    if count != len(raw) // SECTOR + 1 or offset + 2 * count > SECTOR - 2:
        raise DamagedError(f"{what}: {count} fixups at {offset}")
    fixed = bytearray(raw)
    number = raw[offset : offset + 2]
    for index in range(1, count):
        end = index * SECTOR
        if raw[end - 2 : end] != number:
            raise DamagedError(f"{what}: sector {index - 1} is of another version")
        fixed[end - 2 : end] = raw[offset + 2 * index : offset + 2 * index + 2]
    return fixed


def parse_record(raw: bytes, number: int) -> Record:
    """Parse a file record with all its attributes; DamagedError where they contradict themselves."""
    what = f"file record {number}"
    record = bytes(apply_fixups(raw, b"FILE", what))
    _, _, _, sequence, _, first, flags, used, _, base = _RECORD.unpack_from(record)
    try:
        attributes = list(_attributes(record, first, min(used, len(record)), what))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DamagedError(f"{what}: an attribute reaches outside the record") from error
    return Record(number, sequence, flags, base, attributes)


def _attributes(record: bytes, position: int, used: int, what: str) -> Iterator[Attribute]:
    while record[position : position + 4] != b"\xff\xff\xff\xff":
        kind, length, nonresident, name_length, name_offset, flags, number = _ATTRIBUTE.unpack_from(
            record, position
        )
        end = position + length
        if length < 24 or length % 8 or end > used:
            raise DamagedError(f"{what}: an attribute of {length} bytes at {position}")
        name = ""
        if name_length:
            name = _inside(record, position + name_offset, 2 * name_length, end, what).decode(
                "utf-16-le", "surrogatepass"
            )
        if nonresident:
            yield _nonresident(record, position, end, (kind, name, flags, number), what)
        else:
            size, offset = _RESIDENT.unpack_from(record, position + 16)
            value = _inside(record, position + offset, size, end, what)
            yield Attribute(kind, name, flags, number, value, size=size, initialized=size)
        position = end


def _inside(record: bytes, start: int, length: int, end: int, what: str) -> bytes:
    if start + length > end:
        raise DamagedError(f"{what}: an attribute's value reaches outside it")
    return record[start : start + length]


def _nonresident(
    record: bytes, position: int, end: int, head: tuple[int, str, int, int], what: str
) -> Attribute:
    kind, name, flags, number = head
    first, last, runs_offset, unit, _, allocated, size, valid = _NONRESIDENT.unpack_from(
        record, position + 16
    )
    if runs_offset < 64 or position + runs_offset > end:
        raise DamagedError(f"{what}: data runs at {runs_offset} of an attribute")
    clusters = (last + 1 - first) & 0xFFFF_FFFF_FFFF_FFFF
    mapping = record[position + runs_offset : end]
    if first == 0 and flags & (COMPRESSED | SPARSE) and unit and runs_offset >= 72:
        (allocated,) = struct.unpack_from("<Q", record, position + 64)
    return Attribute(kind, name, flags, number, None, first, clusters, mapping, allocated, size, valid, unit)


def parse_runs(attribute: Attribute, what: str) -> Iterator[tuple[int, int | None]]:
    """Yield the (clusters, LCN) of mapping pairs; None in place of the LCN where nothing is stored.

    Raises DamagedError where they can't be read, or don't map as many clusters as the attribute says.
    """
    data = attribute.mapping
    position = lcn = total = 0
    while position < len(data) and data[position]:
        length_size, offset_size = data[position] & 15, data[position] >> 4
        middle = position + 1 + length_size
        end = middle + offset_size
        length = int.from_bytes(data[position + 1 : middle], "little", signed=True)
        if not 1 <= length_size <= 8 or offset_size > 8 or end > len(data) or length <= 0:
            raise DamagedError(f"{what}: a data run can't be read")
        if offset_size:
            lcn += int.from_bytes(data[middle:end], "little", signed=True)
            if lcn < 0:
                raise DamagedError(f"{what}: a data run lies before the volume")
            yield length, lcn
        else:
            yield length, None
        position = end
        total += length
    if total != attribute.clusters:
        raise DamagedError(f"{what}: data runs of {total} clusters, {attribute.clusters} expected")


def parse_attribute_list(data: bytes, what: str) -> list[ListEntry]:
    """Return what an attribute list says; DamagedError where an entry reaches outside it."""
    entries = []
    position = 0
    while position + _LIST_ENTRY.size <= len(data):
        kind, length, name_length, _, vcn, reference, number = _LIST_ENTRY.unpack_from(data, position)
        if length < _LIST_ENTRY.size or position + length > len(data):
            raise DamagedError(f"{what}: an attribute list entry of {length} bytes")
        entries.append(ListEntry(kind, bool(name_length), vcn, reference, number))
        position += length
    return entries


def parse_index_entries(node: bytes | bytearray, header: int, what: str) -> list[tuple[str, int, int]]:
    """Return the (name, reference, file attributes) of an index node; 8.3 twins are left out.

    ``header`` is where the node's own header is. Plain tuples and one loop: a million names come by.
    """
    found: list[tuple[str, int, int]] = []
    try:
        start, used = struct.unpack_from("<II", node, header)
        position, end = header + start, header + used
        if end > len(node) or start < 16:
            raise DamagedError(f"{what}: an index node of {used} bytes")
        while True:
            reference, length, key_length, flags = _INDEX_ENTRY.unpack_from(node, position)
            following = position + length
            if length < 16 or following > end:
                raise DamagedError(f"{what}: an index entry of {length} bytes")
            if flags & 2:  # the last one, without a name
                return found
            file_attributes, name_length, space = _FILE_NAME_KEY.unpack_from(node, position)
            if 66 + 2 * name_length > key_length or 16 + key_length > length or not name_length:
                raise DamagedError(f"{what}: an index entry's name reaches outside it")
            if space != DOS_NAME:
                name = decode_name(node[position + 82 : position + 82 + 2 * name_length])
                found.append((name, reference, file_attributes))
            position = following
    except struct.error as error:
        raise DamagedError(f"{what}: an index entry reaches outside its node") from error


def parse_children(node: bytes | bytearray, header: int, what: str) -> list[int]:
    """Return the VCNs of the blocks below an index node; ``parse_index_entries`` has checked it."""
    if not node[header + 12] & 1:
        return []
    children: list[int] = []
    start, _ = struct.unpack_from("<II", node, header)
    position, flags = header + start, 0
    while not flags & 2:
        _, length, _, flags = _INDEX_ENTRY.unpack_from(node, position)
        position += length
        if flags & 1:
            if length < 24:
                raise DamagedError(f"{what}: an index entry of {length} bytes with a block below it")
            children += struct.unpack_from("<Q", node, position - 8)
    return children


def data_size(first: Attribute, *, raw_efs: bool) -> int:
    """Return the bytes that are given of a $DATA attribute, by its first extent.

    With ``raw_efs`` those that EFS encrypted are given in whole sectors of 512 bytes: that is what EFS
    encrypts, and without the rest of the last one what is in it could not be decrypted.
    """
    if raw_efs and first.flags & ENCRYPTED and first.value is None:
        return -(-first.size // SECTOR) * SECTOR
    return first.size


def unix_nanoseconds(filetime: int) -> int:
    """Return a FILETIME (100 ns since 1601) as nanoseconds since 1970."""
    return (filetime - EPOCH) * 100
