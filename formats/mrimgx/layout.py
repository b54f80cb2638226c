"""The records of the Macrium Reflect X container.

Source: Macrium, "Macrium Reflect X Image File layout",
https://github.com/macrium/mrimgx_file_layout (docs/FILE_LAYOUT.md), and real files of builds 8069 and
8119. All integers are little-endian, all records packed. Unknown: the meaning of $AUXDATA, and the
metadata blocks $FAT, $CBT and $MFT, which the vendor declares and no file seen holds.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from construct import Bytes, ConstructError, Int8ul, Int16ul, Int32ul, Int64sl, Int64ul, Padding, Struct

from formats.errors import DamagedError

MAGIC = b"MACRIUM_FILE"
OLD_FORMAT_MARK = b"__79241006_2651_11D4_"  # in the trailer of files by Reflect 7 and 8

FOOTER = Struct(
    "root_offset" / Int64ul,  # bytes from the start of the file, to the first root metadata block
    "magic" / Bytes(12),
)
FOOTER_SIZE = 20
assert FOOTER.sizeof() == FOOTER_SIZE

METADATA_BLOCK_HEADER = Struct(
    "block_name" / Bytes(8),  # ASCII, padded with spaces
    "block_length" / Int32ul,  # bytes of the payload, which follows
    "hash" / Bytes(16),  # MD5 of the payload as stored; zeros for an empty payload
    "flags" / Int8ul,
    Padding(3),
)
METADATA_BLOCK_HEADER_SIZE = 32
assert METADATA_BLOCK_HEADER.sizeof() == METADATA_BLOCK_HEADER_SIZE

FLAG_LAST = 1  # the last block of its list
FLAG_COMPRESSED = 2
FLAG_ENCRYPTED = 4

JSON = "$JSON"
AUXILIARY = "$AUXDATA"
TRACK_0 = "$TRACK0"
EXTENDED_PARTITIONS = "$EPT"
BITMAP = "$BITMAP"
INDEX = "$INDEX"
# Ours, not the vendor's; other readers skip them by their names.
OWN = "$IMAGEFS"  # root list, after $JSON: what the format has no place for, as JSON
OWN_TAGS = "$IFSTAGS"  # a partition's list, before $INDEX: tags of stored blocks
OWN_AUTHENTICATION = "$IFSAUTH"  # last of the root list: the file's tag

DATA_BLOCK_INDEX_ELEMENT = Struct(
    "file_position" / Int64sl,  # bytes from the start of the file that holds the block
    "md5_hash" / Bytes(16),  # of the plain block
    "block_length" / Int32ul,  # stored bytes; 0 is a hole
    "file_number" / Int16ul,  # the file that holds the block
)
ELEMENT = np.dtype(
    [("position", "<i8"), ("md5", "<u8", 2), ("length", "<u4"), ("file_number", "<u2")],
)
DELTA_ELEMENT = np.dtype([*((name, ELEMENT[name]) for name in ELEMENT.names or ()), ("block", "<u4")])
assert DATA_BLOCK_INDEX_ELEMENT.sizeof() == ELEMENT.itemsize == 30
assert DELTA_ELEMENT.itemsize == 34

BOOT_RECORD_SIZE = 512
# An $EPT entry: boot record, u64 byte offset on the disk, u16 partition number. The vendor's code lets
# the compiler pad it to 528 bytes, the vendor's page shows it packed.
EXTENDED_PARTITION_SIZES = (528, 522, 520)

RESERVED_BLOCK_SIZE = 4 * 1024 * 1024  # bytes of a block of reserved sectors
MAX_BLOCK_SIZE = 64 * 1024 * 1024  # far above any seen (65536, 262144)


@dataclass(frozen=True, slots=True)
class MetadataBlock:
    """A metadata block's header, and where its payload is."""

    name: str
    offset: int  # of the payload in the file
    length: int  # bytes of the payload as stored
    md5: bytes
    flags: int

    @property
    def start(self) -> int:
        """The offset of the header."""
        return self.offset - METADATA_BLOCK_HEADER_SIZE

    @property
    def end(self) -> int:
        """The offset behind the payload."""
        return self.offset + self.length

    @property
    def is_last(self) -> bool:
        """Whether this is the last block of its list."""
        return bool(self.flags & FLAG_LAST)

    @property
    def is_compressed(self) -> bool:
        """Whether the payload is one zstd frame."""
        return bool(self.flags & FLAG_COMPRESSED)

    @property
    def is_encrypted(self) -> bool:
        """Whether the payload is encrypted (AES-ECB)."""
        return bool(self.flags & FLAG_ENCRYPTED)


def parse_footer(data: bytes, file_size: int, path: Path) -> int:
    """Return the root list's offset from the file's last 20 bytes.

    The magic has been looked at before. Raises DamagedError when the offset is outside the file.
    """
    try:
        root_offset = int(FOOTER.parse(data).root_offset)
    except ConstructError as error:
        raise DamagedError(f"the footer can't be read: {error}", path=path) from error
    if root_offset + METADATA_BLOCK_HEADER_SIZE + FOOTER_SIZE > file_size:
        raise DamagedError(
            f"the footer's root_offset {root_offset} is outside the file of {file_size} bytes", path=path
        )
    return root_offset


def parse_metadata_block_header(data: bytes, offset: int, end: int, path: Path) -> MetadataBlock:
    """Return the block whose 32-byte header stands at ``offset``; its payload must end by ``end``."""
    try:
        header = METADATA_BLOCK_HEADER.parse(data)
        name = header.block_name.decode("ascii").rstrip(" ")
    except (ConstructError, UnicodeDecodeError) as error:
        raise DamagedError(f"no metadata block header at {offset}", path=path) from error
    if not name.startswith("$") or not name.isprintable():
        raise DamagedError(f"no metadata block header at {offset}: block_name {name!r}", path=path)
    payload = offset + METADATA_BLOCK_HEADER_SIZE
    if payload + header.block_length > end:
        raise DamagedError(
            f"metadata block {name} at {offset}: block_length {header.block_length} reaches beyond {end}",
            path=path,
        )
    return MetadataBlock(name, payload, header.block_length, header.hash, header.flags)


@dataclass(frozen=True, slots=True)
class ExtendedPartition:
    """A logical partition's boot record and where it lies."""

    boot_record: bytes  # 512 bytes
    offset: int  # bytes from the start of the disk


def parse_extended_partitions(data: bytes, path: Path) -> tuple[ExtendedPartition, ...]:
    """Return the entries of an $EPT payload, whichever packing its writer used."""
    if not data:
        return ()
    count = int.from_bytes(data[:4], "little")
    if not count:
        return ()
    # Up to 15 bytes more where the payload was padded to be encrypted.
    fitting = [size for size in EXTENDED_PARTITION_SIZES if 0 <= len(data) - 4 - count * size < 16]
    exact = [size for size in fitting if 4 + count * size == len(data)]
    size = next((size for size in exact or fitting if _has_boot_records(data, count, size)), 0)
    if not size:
        raise DamagedError(f"$EPT: {count} entries don't fit its {len(data)} bytes", path=path)
    entries = []
    for number in range(count):
        entry = data[4 + number * size :][:size]
        offset = int.from_bytes(entry[BOOT_RECORD_SIZE : BOOT_RECORD_SIZE + 8], "little")
        entries.append(ExtendedPartition(entry[:BOOT_RECORD_SIZE], offset))
    return tuple(entries)


def build_extended_partitions(entries: Sequence[ExtendedPartition]) -> bytes:
    """Return an $EPT payload in the vendor's own packing: 528 bytes for each entry.

    The partition number that its records have room for is not used by any reader, and left 0.
    """
    payload = struct.pack("<I", len(entries))
    for entry in entries:
        record = entry.boot_record[:BOOT_RECORD_SIZE].ljust(BOOT_RECORD_SIZE, b"\0")
        payload += record + struct.pack("<Q8x", entry.offset)
    return payload


def _has_boot_records(data: bytes, count: int, size: int) -> bool:
    ends = range(4 + BOOT_RECORD_SIZE, 4 + count * size, size)
    return all(data[end - 2 : end] == b"\x55\xaa" for end in ends)
