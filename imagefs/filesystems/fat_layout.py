"""FAT12, FAT16, FAT32 and exFAT on disk: boot sectors and directory entries.

Specifications: Microsoft, FAT32 File System Specification 1.03; exFAT file system specification 1.00.
Little endian. Names of the 8.3 kind are in the code page of who wrote them, which is stored nowhere: they
are taken as code page 437, as by Linux. Times have no zone in FAT: they are taken as UTC.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from formats.errors import DamagedError
from imagefs.filesystems.names import decode_name

ENTRY_SIZE = 32
ROOT = 2

DIRECTORY = 0x10  # attributes
_LABEL = 0x08
_LONG_NAME = 0x0F
_DELETED = 0xE5

EXFAT_FILE, EXFAT_STREAM, EXFAT_NAME, EXFAT_LABEL, EXFAT_UPCASE = 0x85, 0xC0, 0xC1, 0x83, 0x82
_NO_CHAIN = 0x02  # stream flag: the clusters follow one another, the FAT says nothing of them

# name; attributes; case, tens; created, accessed, cluster high, modified, cluster low; size
_FAT_ENTRY = struct.Struct("<11sBBBHHHHHHHI")
_EXFAT_TIMES = struct.Struct("<8xIIIBBBBB")  # created, modified, accessed; tens; zones
_EXFAT_STREAM = struct.Struct("<xBxB4xQ4xIQ")  # flags; name length; valid length; first cluster; length


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a boot sector says. Sizes and places in bytes."""

    kind: str
    cluster_size: int
    clusters: int  # numbered from 2
    entry_bits: int  # of the FAT
    fat_start: int  # the FAT in use
    fat_length: int
    data_start: int  # behind the FATs: nodes are numbered by directory entries from here
    cluster_start: int  # of cluster 2
    root_cluster: int  # 0 where the root directory lies before the clusters


class Node(NamedTuple):
    """What directory entries say of a file or directory. Times in nanoseconds since 1970."""

    is_directory: bool
    first_cluster: int
    size: int  # bytes; 0 for a directory of FAT
    valid: int  # bytes; what lies beyond reads as zeros
    is_chained: bool  # False: the clusters follow one another
    created: int
    modified: int
    accessed: int
    file_attributes: int = 0  # as Windows numbers them


def parse_fat_boot(sector: bytes) -> Geometry:
    """Parse a FAT's boot sector; DamagedError where its values can't be."""
    size, per_cluster, reserved, fats, root_entries, total = struct.unpack_from("<HBHBHH", sector, 11)
    (fat_sectors,) = struct.unpack_from("<H", sector, 22)
    is_fat32 = fat_sectors == 0
    active = root_cluster = 0
    total = total or struct.unpack_from("<I", sector, 32)[0]
    if is_fat32:
        fat_sectors, flags, _, root_cluster = struct.unpack_from("<IHHI", sector, 36)
        active = flags & 0xF if flags & 0x80 else 0
    root_sectors = -(-root_entries * ENTRY_SIZE // size)
    first = reserved + fats * fat_sectors + root_sectors
    clusters = (total - first) // per_cluster
    bits = 32 if is_fat32 else 12 if clusters < 4085 else 16
    if clusters < 1 or active >= fats or fat_sectors * size * 8 // bits < 3:
        raise DamagedError(f"FAT boot sector: {total} sectors, {first} before the first cluster")
    return Geometry(
        kind=f"FAT{bits}",
        cluster_size=per_cluster * size,
        clusters=min(clusters, fat_sectors * size * 8 // bits - 2),
        entry_bits=bits,
        fat_start=(reserved + active * fat_sectors) * size,
        fat_length=fat_sectors * size,
        data_start=(reserved + fats * fat_sectors) * size,
        cluster_start=first * size,
        root_cluster=root_cluster,
    )


def parse_exfat_boot(sector: bytes) -> Geometry:
    """Parse an exFAT's boot sector; DamagedError where its values can't be."""
    fat, fat_length, heap, clusters, root_cluster = struct.unpack_from("<IIIII", sector, 80)
    flags, shift, cluster_shift, fats = struct.unpack_from("<HBBB", sector, 106)
    if not 9 <= shift <= 12 or cluster_shift > 25 - shift or fats not in (1, 2) or not clusters:
        raise DamagedError(f"exFAT boot sector: sectors of 2^{shift} bytes, 2^{cluster_shift} in a cluster")
    if not fat or heap < fat + fats * fat_length or (fat_length << shift) // 4 < clusters + 2:
        raise DamagedError(f"exFAT boot sector: a FAT of {fat_length} sectors at {fat}, clusters at {heap}")
    active = fat_length if flags & 1 and fats == 2 else 0
    return Geometry(
        kind="exFAT",
        cluster_size=1 << shift + cluster_shift,
        clusters=clusters,
        entry_bits=32,
        fat_start=fat + active << shift,
        fat_length=fat_length << shift,
        data_start=heap << shift,
        cluster_start=heap << shift,
        root_cluster=root_cluster,
    )


def parse_fat_node(entry: bytes, what: str) -> Node:
    """Parse a FAT's directory entry; DamagedError where it is none of a file or directory."""
    _, attributes, _, tens, time, date, accessed, high, modified, modified_date, low, size = (
        _FAT_ENTRY.unpack(entry)
    )
    if entry[0] in (0, 0x2E, _DELETED) or attributes & (0xC0 | _LABEL):
        raise DamagedError(f"{what}: its directory entry is none")
    is_directory = bool(attributes & DIRECTORY)
    size = 0 if is_directory else size
    return Node(
        is_directory,
        high << 16 | low,
        size,
        size,
        True,
        _nanoseconds(date, time, tens),
        _nanoseconds(modified_date, modified),
        _nanoseconds(accessed, 0),
        attributes,
    )


def parse_exfat_node(entries: bytes, what: str) -> Node:
    """Parse the set of directory entries of a file; DamagedError where it is none, or damaged."""
    if entries[0] != EXFAT_FILE or entries[32:33] != bytes([EXFAT_STREAM]):
        raise DamagedError(f"{what}: its directory entries are not a file's")
    if _sum(entries) != entries[2] | entries[3] << 8:
        raise DamagedError(f"{what}: the sum of its directory entries is wrong")
    flags, _, valid, first_cluster, size = _EXFAT_STREAM.unpack_from(entries, 32)
    if valid > size:
        raise DamagedError(f"{what}: {valid} bytes valid of {size}")
    created, modified, accessed, tens, modified_tens, zone, modified_zone, accessed_zone = (
        _EXFAT_TIMES.unpack_from(entries)
    )
    return Node(
        bool(entries[4] & DIRECTORY),
        first_cluster,
        size,
        valid,
        not flags & _NO_CHAIN,
        _nanoseconds(created >> 16, created & 0xFFFF, tens) - _offset(zone),
        _nanoseconds(modified >> 16, modified & 0xFFFF, modified_tens) - _offset(modified_zone),
        _nanoseconds(accessed >> 16, accessed & 0xFFFF) - _offset(accessed_zone),
        entries[4],
    )


def fat_names(directory: bytes, what: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (number of the entry, name, is a directory) of a FAT directory up to its end mark.

    A long name counts where it is whole and belongs to the entry behind it, as its sum tells.
    """
    parts: list[bytes] = []
    expected = 0  # number of the next part of a long name; 0 when the short entry comes
    check = -1
    for number in range(len(directory) // ENTRY_SIZE):
        entry = directory[number * ENTRY_SIZE : (number + 1) * ENTRY_SIZE]
        mark, attributes = entry[0], entry[11]
        if mark == 0:
            return
        if mark != _DELETED and attributes & 0x3F == _LONG_NAME:
            if mark & 0x40:
                parts, expected, check = [], mark & 0x3F, entry[13]
            if mark & 0x3F == expected and check == entry[13] and expected:
                parts.append(entry[1:11] + entry[14:26] + entry[28:32])
                expected -= 1
            else:
                check = -1
            continue
        if mark != _DELETED and attributes & 0xC0:
            raise DamagedError(f"{what}: entry {number} with attributes {attributes:#x}")
        if mark not in (_DELETED, 0x2E) and not attributes & _LABEL:
            is_long = parts and not expected and check == _short_sum(entry)
            name = _long_name(parts) if is_long else _short_name(entry, what)
            if not name or "/" in name:
                raise DamagedError(f"{what}: an entry with the name {name!r}")
            yield number, name, bool(attributes & DIRECTORY)
        parts, check = [], -1


def _long_name(parts: list[bytes]) -> str:
    units = b"".join(reversed(parts))
    end = next((at for at in range(0, len(units), 2) if units[at : at + 2] == b"\0\0"), len(units))
    return decode_name(units[:end])


def _short_name(entry: bytes, what: str) -> str:
    raw = b"\xe5" + entry[1:11] if entry[0] == 5 else entry[:11]
    if min(raw) < 0x20:
        raise DamagedError(f"{what}: an entry with the name {raw!r}")
    base, extension = raw[:8].decode("cp437").rstrip(" "), raw[8:].decode("cp437").rstrip(" ")
    if entry[12] & 0x08:
        base = base.lower()
    if entry[12] & 0x10:
        extension = extension.lower()
    return f"{base}.{extension}" if extension else base


def _short_sum(entry: bytes) -> int:
    total = 0
    for byte in entry[:11]:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def fat_label(directory: bytes) -> str:
    """Return the label that a FAT's root directory holds, "" if none."""
    for at in range(0, len(directory), ENTRY_SIZE):
        mark, attributes = directory[at], directory[at + 11]
        if mark == 0:
            break
        if mark != _DELETED and attributes & 0x3F == _LABEL:
            return directory[at : at + 11].decode("cp437").rstrip(" \0")
    return ""


def exfat_names(directory: bytes, what: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (number of the first entry, name, is a directory) of an exFAT directory up to its end mark."""
    number = 0
    while number < len(directory) // ENTRY_SIZE and directory[number * ENTRY_SIZE]:
        at = number * ENTRY_SIZE
        number += 1
        if directory[at] in (EXFAT_STREAM, EXFAT_NAME):
            raise DamagedError(f"{what}: a part of a file's entries stands alone")
        if directory[at] != EXFAT_FILE:
            continue
        entries = directory[at : at + ENTRY_SIZE * (1 + directory[at + 1])]
        node = parse_exfat_node(entries, what)
        length = 2 * _EXFAT_STREAM.unpack_from(entries, ENTRY_SIZE)[1]
        units = b"".join(
            entries[part + 2 : part + ENTRY_SIZE]
            for part in range(2 * ENTRY_SIZE, len(entries), ENTRY_SIZE)
            if entries[part] == EXFAT_NAME
        )
        name = decode_name(units[:length])
        if not length or len(units) < length or "/" in name or "\0" in name or name in (".", ".."):
            raise DamagedError(f"{what}: an entry with the name {name!r}")
        yield number - 1, name, node.is_directory
        number += directory[at + 1]


def exfat_label(directory: bytes) -> str:
    """Return the label that an exFAT's root directory holds, "" if none."""
    for at in range(0, len(directory), ENTRY_SIZE):
        if directory[at] == 0:
            break
        if directory[at] == EXFAT_LABEL:
            return directory[at + 2 : at + 2 + 2 * min(directory[at + 1], 11)].decode("utf-16-le", "replace")
    return ""


def exfat_upcase_place(directory: bytes) -> tuple[int, int, int] | None:
    """Return checksum, first cluster and bytes of the up-case table that an exFAT's root directory names."""
    for at in range(0, len(directory), ENTRY_SIZE):
        if directory[at] == 0:
            break
        if directory[at] == EXFAT_UPCASE:
            checksum, cluster, size = struct.unpack_from("<I12xIQ", directory, at + 4)
            return checksum, cluster, size
    return None


def parse_exfat_upcase(table: bytes, checksum: int) -> str:
    """Return an up-case table as the 65,536 characters it maps to (exFAT specification, 7.2).

    Raises DamagedError where it is not the one its checksum is of, or maps more.
    """
    total = 0
    for byte in table:
        total = ((total & 1) << 31 | total >> 1) + byte & 0xFFFF_FFFF
    if total != checksum or len(table) % 2:
        raise DamagedError("exFAT: the checksum of its up-case table is wrong")
    units = iter(struct.unpack(f"<{len(table) // 2}H", table))
    found: list[int] = []
    for unit in units:
        if unit == 0xFFFF:  # then how many characters are their own upper case
            found.extend(range(len(found), len(found) + next(units, 0)))
        else:
            found.append(unit)
    found.extend(range(len(found), 1 << 16))
    if len(found) > 1 << 16:
        raise DamagedError(f"exFAT: an up-case table of {len(found)} characters")
    return "".join(map(chr, found))


def _sum(entries: bytes) -> int:
    """Return the checksum of an exFAT entry set, its own place left out."""
    total = 0
    for byte in entries[:2] + entries[4:]:
        total = ((total & 1) << 15 | total >> 1) + byte & 0xFFFF
    return total


def _nanoseconds(date: int, time: int, tens: int = 0) -> int:
    """Return a DOS date and time (2 s, and units of 10 ms) in nanoseconds; 0 where there is none."""
    try:
        moment = datetime(
            1980 + (date >> 9),
            date >> 5 & 15,
            date & 31,
            time >> 11,
            time >> 5 & 63,
            2 * (time & 31),
            tzinfo=UTC,
        )
    except ValueError:
        return 0
    return int(moment.timestamp()) * 1_000_000_000 + min(tens, 199) * 10_000_000


def _offset(zone: int) -> int:
    """Return an exFAT zone's offset from UTC in nanoseconds; 0 where it is not given."""
    if not zone & 0x80:
        return 0
    quarters = zone & 0x7F
    return (quarters - 128 if quarters >= 64 else quarters) * 900 * 1_000_000_000
