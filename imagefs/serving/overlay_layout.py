"""The record at the start of an overlay file; the whole file is described in OVERLAY.md beside this module.

All integers are little-endian. The format is our own.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

from construct import Bytes, ConstructError, Int32ul, Int64sl, Int64ul, Struct

from formats.errors import DamagedError, UnsupportedError
from imagefs.errors import RefusedError

MAGIC = b"IFSOVERLAY\r\n\x1a\n\x00\x00"
VERSION = 1
HEADER_SIZE = 4096  # bytes; the map follows it
BLOCK_SIZE = 4096  # bytes of the disk that have one state; chosen by measurement, see OVERLAY.md
DATA_ALIGNMENT = 1 << 20

# A block's state, one byte of the map.
BASE = 0  # as in the image
DATA = 1  # here
ZERO = 2  # zeros that are stored nowhere

HEADER = Struct(
    "magic" / Bytes(16),
    "version" / Int32ul,
    "block_size" / Int32ul,  # bytes
    "disk_size" / Int64ul,  # bytes
    "data_offset" / Int64ul,  # bytes from the start of the file, to byte 0 of the disk
    "created" / Int64sl,  # of the backup point, seconds since 1970
    "file_number" / Int32ul,  # of the backup point
    "disk_number" / Int32ul,  # as recorded in the image
    "image_id" / Bytes(64),  # ASCII, padded with zeros
    "checksum" / Int32ul,  # CRC-32 of all before it
)
_CHECKED = 120
assert HEADER.sizeof() == _CHECKED + 4


@dataclass(frozen=True, slots=True)
class Owner:
    """The disk that an overlay belongs to, and to no other."""

    image_id: str
    file_number: int
    created: int  # seconds since 1970
    disk_number: int
    size: int  # bytes

    def __str__(self) -> str:
        return f"disk{self.disk_number} of set {self.image_id}, file number {self.file_number}"


def data_offset(size: int) -> int:
    """Return where the data of a disk's overlay begin: behind the header and a byte for each block."""
    end = HEADER_SIZE + block_count(size)
    return end + -end % DATA_ALIGNMENT


def block_count(size: int) -> int:
    """Return how many blocks a disk has; the last may be shorter."""
    return -(-size // BLOCK_SIZE)


def build_header(owner: Owner) -> bytes:
    """Return the header of a disk's overlay, ``HEADER_SIZE`` bytes."""
    values = {
        "magic": MAGIC,
        "version": VERSION,
        "block_size": BLOCK_SIZE,
        "disk_size": owner.size,
        "data_offset": data_offset(owner.size),
        "created": owner.created,
        "file_number": owner.file_number,
        "disk_number": owner.disk_number,
        "image_id": owner.image_id.encode("ascii").ljust(64, b"\0"),
        "checksum": 0,
    }
    values["checksum"] = zlib.crc32(HEADER.build(values)[:_CHECKED])
    return bytes(HEADER.build(values)).ljust(HEADER_SIZE, b"\0")


def parse_header(data: bytes, path: Path) -> Owner:
    """Return whose overlay a file is.

    Raises RefusedError for a file that is none, DamagedError and UnsupportedError for one that can't be
    understood.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise RefusedError("is no overlay", path=path, hint="name a file that is not there, or an overlay")
    try:
        header = HEADER.parse(data)
    except ConstructError as error:
        raise DamagedError("the overlay ends in its header", path=path) from error
    if header.checksum != zlib.crc32(data[:_CHECKED]):
        raise DamagedError("the overlay's header is damaged: its checksum is wrong", path=path)
    if header.version != VERSION:
        raise UnsupportedError(f"overlays of version {header.version} are not known", path=path)
    owner = Owner(
        header.image_id.rstrip(b"\0").decode("ascii", "replace"),
        header.file_number,
        header.created,
        header.disk_number,
        header.disk_size,
    )
    if (header.block_size, header.data_offset) != (BLOCK_SIZE, data_offset(owner.size)):
        raise UnsupportedError(
            f"an overlay with blocks of {header.block_size} bytes and its data at {header.data_offset}",
            path=path,
        )
    return owner
