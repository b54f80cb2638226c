"""The on-disk records of MBR, EBR and GPT.

Source: UEFI Specification 2.10, chapter 5 "GUID Partition Table (GPT) Disk Layout" (5.2.1 legacy MBR,
5.3.2 GPT header, 5.3.3 partition entries), https://uefi.org/specs/UEFI/2.10/05_GUID_Partition_Table_Format.html.
The EBR chain is in no specification: its form is that of the MBR, its meaning what DOS, Windows and Linux do.

All integers are little-endian, all records packed. GUIDs are stored in mixed order (``uuid`` calls it
``bytes_le``). LBAs count sectors of the disk's logical sector size. Unknown: what Windows keeps in the two
bytes behind the MBR's disk signature (0x5A5A: "copy protected"); they are neither judged nor kept.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from construct import (
    Array,
    Bytes,
    Const,
    Construct,
    ConstructError,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Struct,
)

from formats.errors import DamagedError, UnsupportedError

BOOT_RECORD_SIZE = 512
BOOT_CODE_SIZE = 440
GPT_SIGNATURE = b"EFI PART"
GPT_REVISION = 0x00010000
GPT_HEADER_SIZE = 92  # bytes of revision 1.0; a later one may be longer, up to a sector
GPT_ENTRY_SIZE = 128  # bytes that are defined; a slot may be longer
NAME_SIZE = 72  # bytes: 36 UTF-16 units
MAX_ARRAY_SIZE = 4 << 20  # bytes; bounds what a damaged header can make us read

TYPE_UNUSED = 0x00
TYPE_PROTECTIVE = 0xEE
_CHS_UNUSABLE = b"\xfe\xff\xff"  # 1023/254/63: the LBA counts
TYPES_EXTENDED = frozenset({0x05, 0x0F, 0x85})

MBR_ENTRY = Struct(
    "boot_indicator" / Int8ul,  # 0x80 active, else 0x00
    "starting_chs" / Bytes(3),  # not read: the LBA counts
    "os_type" / Int8ul,
    "ending_chs" / Bytes(3),
    "starting_lba" / Int32ul,  # LBA; in an EBR relative, see mbr.py
    "size_in_lba" / Int32ul,  # sectors
)
assert MBR_ENTRY.sizeof() == 16

BOOT_RECORD = Struct(  # MBR and EBR
    "boot_code" / Bytes(BOOT_CODE_SIZE),
    "unique_mbr_disk_signature" / Int32ul,
    "unknown" / Int16ul,
    "partition_record" / Array(4, MBR_ENTRY),
    "signature" / Const(b"\x55\xaa"),
)
assert BOOT_RECORD.sizeof() == BOOT_RECORD_SIZE

GPT_HEADER = Struct(
    "signature" / Const(GPT_SIGNATURE),
    "revision" / Int32ul,
    "header_size" / Int32ul,  # bytes, covered by header_crc32
    "header_crc32" / Int32ul,  # computed with this field zero
    "reserved" / Int32ul,
    "my_lba" / Int64ul,
    "alternate_lba" / Int64ul,  # of the other header
    "first_usable_lba" / Int64ul,
    "last_usable_lba" / Int64ul,  # LBA, inclusive
    "disk_guid" / Bytes(16),
    "partition_entry_lba" / Int64ul,
    "number_of_partition_entries" / Int32ul,
    "size_of_partition_entry" / Int32ul,  # bytes
    "partition_entry_array_crc32" / Int32ul,
)
assert GPT_HEADER.sizeof() == GPT_HEADER_SIZE

GPT_ENTRY = Struct(
    "partition_type_guid" / Bytes(16),  # all zero: the slot is not used
    "unique_partition_guid" / Bytes(16),
    "starting_lba" / Int64ul,
    "ending_lba" / Int64ul,  # LBA, inclusive
    "attributes" / Int64ul,
    "partition_name" / Bytes(NAME_SIZE),  # UTF-16, ends at the first zero unit where there is one
)
assert GPT_ENTRY.sizeof() == GPT_ENTRY_SIZE


@dataclass(frozen=True, slots=True)
class BootEntry:
    """A used slot of an MBR or EBR."""

    slot: int  # from 1
    status: int  # 0x80 active, 0x00 not; anything else: no partition table
    type: int
    start: int  # sectors, relative to what the record's place says
    sectors: int

    @property
    def is_extended(self) -> bool:
        """It holds, or links to, logical partitions."""
        return self.type in TYPES_EXTENDED


@dataclass(frozen=True, slots=True)
class BootRecord:
    """An MBR or EBR; slots without a type or without sectors are left out."""

    disk_signature: int
    entries: tuple[BootEntry, ...]
    has_valid_status: bool  # all four slots, used or not, say 0x80 or 0x00


@dataclass(frozen=True, slots=True)
class GptHeader:
    """A GPT header whose CRC is right and whose ranges make sense."""

    revision: int
    header_size: int  # bytes
    my_lba: int
    alternate_lba: int
    first_usable_lba: int
    last_usable_lba: int  # inclusive
    disk_guid: str
    partition_entry_lba: int
    entry_count: int
    entry_size: int  # bytes
    array_crc32: int

    @property
    def array_size(self) -> int:
        """The entry array in bytes."""
        return self.entry_count * self.entry_size


@dataclass(frozen=True, slots=True)
class GptEntry:
    """A used slot of the entry array."""

    slot: int  # from 1
    type_guid: str
    unique_guid: str
    starting_lba: int
    ending_lba: int  # inclusive
    attributes: int
    name: str


def _parse(record: Construct, data: bytes, what: str, offset: int, path: Path | None) -> Any:
    try:
        return record.parse(data)
    except ConstructError as error:
        field = (error.path or "(parsing)").removeprefix("(parsing)").replace(" -> ", ".").strip(".")
        raise DamagedError(f"{what} at {offset}: {field or 'record'} is not valid", path=path) from error


def parse_boot_record(data: bytes, offset: int, what: str, path: Path | None = None) -> BootRecord:
    """Parse the 512 bytes of an MBR or EBR (``what``) that lie at ``offset`` on the disk.

    Raises DamagedError when they don't end in 55 AA.
    """
    raw = _parse(BOOT_RECORD, data, what, offset, path)
    entries = tuple(
        BootEntry(slot, entry.boot_indicator, entry.os_type, entry.starting_lba, entry.size_in_lba)
        for slot, entry in enumerate(raw.partition_record, 1)
        if entry.os_type != TYPE_UNUSED and entry.size_in_lba
    )
    valid = all(entry.boot_indicator in {0x00, 0x80} for entry in raw.partition_record)
    return BootRecord(raw.unique_mbr_disk_signature, entries, valid)


def build_boot_record(
    entries: Sequence[BootEntry], sector_size: int, *, disk_signature: int = 0, boot_code: bytes = b""
) -> bytes:
    """Build an MBR or EBR, filled up to a sector; of ``boot_code`` the first 440 bytes count."""
    empty = {"boot_indicator": 0, "starting_chs": bytes(3), "os_type": TYPE_UNUSED, "ending_chs": bytes(3)}
    records = [empty | {"starting_lba": 0, "size_in_lba": 0} for _ in range(4)]
    for entry in entries:
        guard = entry.type == TYPE_PROTECTIVE  # UEFI 5.2.3 gives its CHS
        records[entry.slot - 1] = {
            "boot_indicator": entry.status,
            "starting_chs": b"\x00\x02\x00" if guard else _CHS_UNUSABLE,
            "os_type": entry.type,
            "ending_chs": b"\xff\xff\xff" if guard else _CHS_UNUSABLE,
            "starting_lba": entry.start,
            "size_in_lba": entry.sectors,
        }
    record: bytes = BOOT_RECORD.build(
        {
            "boot_code": boot_code[:BOOT_CODE_SIZE].ljust(BOOT_CODE_SIZE, b"\0"),
            "unique_mbr_disk_signature": disk_signature,
            "unknown": 0,
            "partition_record": records,
        }
    )
    return record.ljust(sector_size, b"\0")


def header_crc(data: bytes, header_size: int) -> int:
    """Compute the CRC-32 of a GPT header, its own CRC field taken as zero (UEFI 5.3.2)."""
    return zlib.crc32(data[:16] + bytes(4) + data[20:header_size])


def parse_gpt_header(sector: bytes, lba: int, path: Path | None = None) -> GptHeader:
    """Parse and check the GPT header in ``sector``, one logical sector, read from ``lba``.

    Raises DamagedError for a wrong signature, size, CRC, place or range, and UnsupportedError for an entry
    array beyond 4 MiB.
    """
    offset = lba * len(sector)

    def require(holds: bool, field: str, value: object) -> None:
        if not holds:
            raise DamagedError(f"GPT header at {offset}: {field} {value} is not valid", path=path)

    raw = _parse(GPT_HEADER, sector, "GPT header", offset, path)
    require(GPT_HEADER_SIZE <= raw.header_size <= len(sector), "header_size", raw.header_size)
    crc = header_crc(sector, raw.header_size)
    require(crc == raw.header_crc32, "header_crc32", f"{raw.header_crc32:08X}")
    require(raw.my_lba == lba, "my_lba", raw.my_lba)
    require(raw.alternate_lba not in {0, lba}, "alternate_lba", raw.alternate_lba)
    require(raw.partition_entry_lba >= 2, "partition_entry_lba", raw.partition_entry_lba)
    entry_size = raw.size_of_partition_entry
    # UEFI 2.10 wants 128 shifted by any number of bits, earlier versions allowed multiples of 8
    is_entry_size = entry_size >= GPT_ENTRY_SIZE and entry_size % 8 == 0
    require(is_entry_size, "size_of_partition_entry", entry_size)
    count = raw.number_of_partition_entries
    require(count > 0, "number_of_partition_entries", count)
    if count * entry_size > MAX_ARRAY_SIZE:
        raise UnsupportedError(f"GPT header at {offset}: {count} entries are too many", path=path)
    return GptHeader(
        revision=raw.revision,
        header_size=raw.header_size,
        my_lba=raw.my_lba,
        alternate_lba=raw.alternate_lba,
        first_usable_lba=raw.first_usable_lba,
        last_usable_lba=raw.last_usable_lba,
        disk_guid=guid_text(raw.disk_guid),
        partition_entry_lba=raw.partition_entry_lba,
        entry_count=count,
        entry_size=entry_size,
        array_crc32=raw.partition_entry_array_crc32,
    )


def parse_gpt_entries(array: bytes, header: GptHeader, path: Path | None = None) -> tuple[GptEntry, ...]:
    """Parse the used slots of an entry array.

    Raises DamagedError when its CRC is not the header's, or when an entry ends before it starts.
    """
    offset = f"entry array at LBA {header.partition_entry_lba}"
    if zlib.crc32(array) != header.array_crc32:
        raise DamagedError(
            f"GPT {offset}: partition_entry_array_crc32 {header.array_crc32:08X} is not valid", path=path
        )
    entries = []
    for slot in range(header.entry_count):
        at = slot * header.entry_size
        if array[at : at + 16] == bytes(16):
            continue
        raw = _parse(GPT_ENTRY, array[at : at + GPT_ENTRY_SIZE], f"GPT entry {slot + 1}", at, path)
        if raw.starting_lba > raw.ending_lba:
            raise DamagedError(f"GPT {offset}: entry {slot + 1} ends before its starting_lba", path=path)
        entries.append(
            GptEntry(
                slot + 1,
                guid_text(raw.partition_type_guid),
                guid_text(raw.unique_partition_guid),
                raw.starting_lba,
                raw.ending_lba,
                raw.attributes,
                decode_name(raw.partition_name),
            )
        )
    return tuple(entries)


def guid_text(stored: bytes) -> str:
    """Return a stored GUID as upper-case text."""
    return str(UUID(bytes_le=stored)).upper()


def guid_bytes(text: str) -> bytes:
    """Return the stored form of a GUID; raises ValueError when it isn't one."""
    return UUID(text).bytes_le


def decode_name(stored: bytes) -> str:
    """Return a partition's label; unpaired surrogates stay."""
    text = stored.decode("utf-16-le", "surrogatepass")
    return text.split("\0", 1)[0]


def encode_name(name: str) -> bytes:
    """Return the 72 stored bytes of a label; raises ValueError when it is longer than 36 UTF-16 units."""
    stored = name.encode("utf-16-le", "surrogatepass")
    if len(stored) > NAME_SIZE:
        raise ValueError(f"a GPT label has at most 36 UTF-16 units: {name!r}")
    return stored.ljust(NAME_SIZE, b"\0")
