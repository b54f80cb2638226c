"""The JSON document of an image file.

``parse_document`` returns what reading needs as typed records. The whole document stays beside them in
``Document.json`` with every key, also those that no schema names: whoever rewrites a file rewrites that.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from formats.errors import DamagedError, UnsupportedError
from formats.mrimgx.layout import MAX_BLOCK_SIZE

COMPRESSION_LEVELS = ("none", "medium", "high")
KEY_SIZES = {"aes-128": 16, "aes-192": 24, "aes-256": 32}  # bytes
SECTOR_SIZES = (512, 1024, 2048, 4096)
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the blocks of a file are encrypted."""

    aes_type: str
    hmac: bytes  # HMAC-SHA-256 of nothing under the right key
    iterations: int  # of PBKDF2

    @property
    def key_size(self) -> int:
        """The bytes of the key that AES uses."""
        return KEY_SIZES[self.aes_type]


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    """A partition as its file's document tells it. Offsets and lengths are bytes."""

    number: int
    start: int  # on the disk
    length: int
    boot_sector_offset: int  # of the reserved sectors, from start
    reserved_length: int  # of the reserved sectors (FAT)
    data_offset: int  # of block 0, from start
    block_size: int
    block_count: int
    file_system: str
    label: str
    drive_letter: str  # "C"; "" if none is recorded
    volume_guid: str  # \\?\Volume{…} or \??\Volume{…}; "" if none is recorded
    history: frozenset[int]  # the numbers of the files that existed when this one was written
    name: str  # "p1"; "p1-2" is the second one of that number

    @property
    def block_end(self) -> int:
        """The number behind the last block that a delta can name."""
        return max(self.block_count, -(-(self.length - self.data_offset) // self.block_size))


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """A disk as its file's document tells it."""

    number: int
    size: int  # bytes; of an incremental it can be too small
    sector_size: int
    scheme: str
    signature: str  # MBR signature or GPT disk GUID; "" where it is not recorded
    partitions: tuple[PartitionRecord, ...]
    name: str  # "disk4"; "disk4-2" is the second one of that number


_Named = TypeVar("_Named", PartitionRecord, DiskRecord)


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says of itself."""

    image_id: str  # 16 hex digits, as recorded
    file_number: int
    increment: int
    index_position: int  # bytes from the start of the file, to the metadata lists
    delta_index: bool
    split_file: bool
    merged_files: frozenset[int]
    backup_type: str  # of the definition; not this file's role
    created: datetime
    compression: str
    encryption: Encryption | None
    disks: tuple[DiskRecord, ...]
    json: Mapping[str, Any]

    @property
    def image_id_bytes(self) -> bytes:
        """The image id's 8 bytes."""
        return bytes.fromhex(self.image_id)

    def partitions(self) -> Iterator[tuple[tuple[int, int], PartitionRecord]]:
        """Yield each partition with the positions of its disk and of itself."""
        for at, disk in enumerate(self.disks):
            for number, partition in enumerate(disk.partitions):
                yield (at, number), partition

    @property
    def has_every_sector(self) -> bool:
        """Whether the file says that it was made of every sector, not of what is in use alone."""
        definition = self._auxiliary.get("backup_definition")
        return isinstance(definition, dict) and definition.get("intelligent_sector_copy") is False

    @property
    def is_by_imagefs(self) -> bool:
        """Whether the file names imagefs among the programs that took part in writing it."""
        software = self._auxiliary.get("third_party_software_version_list")
        names = [item.get("name_and_version") for item in software or () if isinstance(item, dict)]
        return any(isinstance(name, str) and name.startswith("imagefs ") for name in names)

    @property
    def _auxiliary(self) -> dict[str, Any]:
        found = self.json.get("_auxiliary_data")
        return found if isinstance(found, dict) else {}

    @property
    def history(self) -> frozenset[int]:
        """The file numbers that any partition's history names."""
        return frozenset().union(*(partition.history for _, partition in self.partitions()))


class _Object:
    """A JSON object whose values are taken by key and kind; complains with the place and the file."""

    def __init__(self, value: object, place: str, path: Path) -> None:
        self.place = place
        self.path = path
        if not isinstance(value, dict):
            raise self.wrong("", "an object")
        self.value = cast(dict[str, Any], value)

    def wrong(self, key: str, wanted: str) -> DamagedError:
        place = f"{self.place}.{key}" if key else self.place
        return DamagedError(f"JSON: {place} is not {wanted}", path=self.path)

    def object(self, key: str) -> "_Object":
        return _Object(self.value.get(key), f"{self.place}.{key}", self.path)

    def objects(self, key: str, *, required: bool) -> list["_Object"]:
        value = self.value.get(key, None if required else [])
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return [_Object(item, f"{self.place}.{key}[{i}]", self.path) for i, item in enumerate(value)]

    def integer(self, key: str, default: int | None = None, *, highest: int = _LARGEST) -> int:
        value = self.value.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
            raise self.wrong(key, f"a whole number from 0 to {highest}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.value.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        # JSON can spell halves of characters, which nobody could print.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.value.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def numbers(self, key: str) -> frozenset[int]:
        value = self.value.get(key, [])
        if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= 65535 for item in value):
            raise self.wrong(key, "a list of file numbers")
        return frozenset(value)


def parse_document(data: bytes, path: Path) -> Document:
    """Return the document of a $JSON payload (UTF-8).

    Raises DamagedError where a value that reading needs is absent or of the wrong type or range, and
    UnsupportedError for a compression or encryption that is not known.
    """
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"the $JSON block is not JSON: {error}", path=path) from error
    root = _Object(loaded, "document", path)
    header = root.object("_header")
    image_id = header.text("imageid")
    try:
        if len(bytes.fromhex(image_id)) != 8 or len(image_id) != 16:
            raise header.wrong("imageid", "16 hex digits")
    except ValueError:
        raise header.wrong("imageid", "16 hex digits") from None
    split = header.flag("split_file", default=False)
    disks = [] if split else root.objects("disks", required=True)  # a split's data file has no lists
    return Document(
        image_id=image_id,
        file_number=header.integer("file_number", highest=65535),
        increment=header.integer("increment_number", highest=2**31),
        index_position=header.integer("index_file_position"),
        delta_index=header.flag("delta_index", default=True),
        split_file=split,
        merged_files=header.numbers("merged_files"),
        backup_type=header.text("backup_type", ""),
        created=_time(header),
        compression=_compression(root.object("_compression")),
        encryption=_encryption(root.object("_encryption")),
        disks=_named("disk", map(_disk, disks)),
        json=root.value,
    )


def _time(header: _Object) -> datetime:
    seconds = header.integer("backup_time", 0)
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise header.wrong("backup_time", "a time in Unix seconds") from None


def _compression(record: _Object) -> str:
    level = record.text("compression_level")
    method = record.text("compression_method", "zstd")
    if level not in COMPRESSION_LEVELS or (level != "none" and method != "zstd"):
        raise UnsupportedError(f"compression {method!r} {level!r} is not known", path=record.path)
    return level


def _encryption(record: _Object) -> Encryption | None:
    """Return the encryption; ``aes_type`` switches it on, not ``enable``."""
    aes_type = record.text("aes_type", "none")
    if aes_type == "none":
        return None
    derivation = record.text("key_derivation", "pbkdf2")
    if aes_type not in KEY_SIZES or derivation != "pbkdf2":
        raise UnsupportedError(f"encryption {aes_type!r} with {derivation!r} is not known", path=record.path)
    try:
        hmac = bytes.fromhex(record.text("hmac"))
    except ValueError:
        hmac = b""
    if len(hmac) != 32:
        raise record.wrong("hmac", "64 hex digits")
    # More rounds than these would stall the opening for minutes: 600,000 take a fifth of a second.
    iterations = record.integer("key_iterations", highest=100_000_000)
    if not iterations:
        raise record.wrong("key_iterations", "a whole number above 0")
    return Encryption(aes_type, hmac, iterations)


def _disk(record: _Object) -> DiskRecord:
    geometry, header = record.object("_geometry"), record.object("_header")
    sector_size = geometry.integer("bytes_per_sector")
    if sector_size not in SECTOR_SIZES:
        raise geometry.wrong("bytes_per_sector", f"one of {SECTOR_SIZES}")
    return DiskRecord(
        number=header.integer("disk_number", highest=65535),
        size=geometry.integer("disk_size"),
        sector_size=sector_size,
        scheme=header.text("disk_format"),
        signature=header.text("disk_signature", ""),
        partitions=_named("p", map(_partition, record.objects("partitions", required=True))),
        name="",
    )


def _partition(record: _Object) -> PartitionRecord:
    geometry, header = record.object("_geometry"), record.object("_header")
    system = record.object("_file_system")
    block_size = header.integer("block_size", highest=MAX_BLOCK_SIZE)
    if not block_size or block_size % 512:
        raise header.wrong("block_size", "a multiple of 512 above 0")
    start = geometry.integer("start")
    boot_sector_offset = geometry.integer("boot_sector_offset", 0)
    reserved_length = system.integer("reserved_sectors_byte_length", 0)
    # The vendor's reader counts block 0 from the file system's start. File and folder backups record a
    # start that has nothing to do with their partition: there block 0 follows the reserved sectors.
    first = system.integer("lcn0_offset")
    data_offset = first - system.integer("start", start)
    if reserved_length and first == start + boot_sector_offset + reserved_length:
        data_offset = first - start
    length = geometry.integer("length", highest=_LARGEST - start)
    if not 0 <= data_offset <= length:
        raise system.wrong("lcn0_offset", "inside the partition")
    if boot_sector_offset + reserved_length > length:
        raise system.wrong("reserved_sectors_byte_length", "inside the partition")
    return PartitionRecord(
        number=header.integer("partition_number", highest=65535),
        start=start,
        length=length,
        boot_sector_offset=boot_sector_offset,
        reserved_length=reserved_length,
        data_offset=data_offset,
        block_size=block_size,
        block_count=header.integer("block_count", highest=2**32),
        file_system=system.text("type", "unknown"),
        label=system.text("volume_label", ""),
        drive_letter=_letter(system.integer("drive_letter", 0)),
        volume_guid=system.text("volume_guid", ""),
        history=frozenset(
            entry.integer("file_number", highest=65535)
            for entry in header.objects("file_history", required=False)
        ),
        name="",
    )


def _letter(code: int) -> str:
    """Return a drive letter, which is recorded as its character's number; 0 is none."""
    return chr(code) if chr(min(code, 127)).isalpha() else ""


def _named(prefix: str, records: Iterable[_Named]) -> tuple[_Named, ...]:
    """Give records their names, which are unique where numbers are not."""
    met: Counter[int] = Counter()
    named = []
    for record in records:
        met[record.number] += 1
        again = f"-{met[record.number]}" if met[record.number] > 1 else ""
        named.append(replace(record, name=f"{prefix}{record.number}{again}"))
    return tuple(named)
