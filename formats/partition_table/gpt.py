"""GPT: the header, its entry array and their backups, read and built (UEFI 2.10, 5.3)."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError, UnsupportedError
from formats.partition_table.layout import (
    GPT_ENTRY,
    GPT_ENTRY_SIZE,
    GPT_HEADER,
    GPT_HEADER_SIZE,
    GPT_REVISION,
    GPT_SIGNATURE,
    MAX_ARRAY_SIZE,
    TYPE_PROTECTIVE,
    BootEntry,
    GptHeader,
    build_boot_record,
    encode_name,
    guid_bytes,
    header_crc,
    parse_gpt_entries,
    parse_gpt_header,
)
from formats.partition_table.table import (
    PartitionEntry,
    PartitionTable,
    Piece,
    as_reader,
    check_layout,
    check_sector_size,
    layout_problems,
    path_of,
    read_range,
)

_MIN_ARRAY_SIZE = 16384  # bytes that UEFI 2.10, 5.3.1 reserves for the entry array
_ZERO_GUID = "00000000-0000-0000-0000-000000000000"


def has_gpt_signature(reader: BlockReader, sector_size: int) -> bool:
    """Tell whether LBA 1 starts like a GPT header."""
    if reader.size < 2 * sector_size:
        return False
    return reader.read_at(sector_size, len(GPT_SIGNATURE)) == GPT_SIGNATURE


def read_gpt(reader: BlockReader, sector_size: int, disk_size: int | None = None) -> PartitionTable:
    """Read the GPT of a disk of ``disk_size`` bytes; ``reader`` may hold its beginning only.

    Where the primary header or its array is damaged the backup is read instead, and the table's
    ``problems`` say so. Raises DamagedError when both are, and UnsupportedError for more than 4 MiB of
    entries.
    """
    try:
        return _read_copy(reader, sector_size, 1, disk_size)
    except DamagedError as error:
        primary = error
    for lba in _backup_places(reader, sector_size):
        try:
            table = _read_copy(reader, sector_size, lba, disk_size)
        except (DamagedError, UnsupportedError):
            continue  # the primary's error is the one to show
        return replace(table, problems=(f"read from the backup GPT: {primary.what}", *table.problems))
    others = [size for size in (512, 4096) if size != sector_size and has_gpt_signature(reader, size)]
    raise DamagedError(
        f"{primary.what}; no valid backup GPT either",
        path=path_of(reader),
        hint=f"the disk seems to have sectors of {others[0]} bytes" if others else "",
    ) from primary


def _backup_places(reader: BlockReader, sector_size: int) -> list[int]:
    """Return the LBAs where a backup header can be: the last one, and where the primary points."""
    places = [reader.size // sector_size - 1]
    if has_gpt_signature(reader, sector_size):
        places.append(int.from_bytes(reader.read_at(sector_size + 32, 8), "little"))
    return [lba for lba in dict.fromkeys(places) if 2 < lba < reader.size // sector_size]


def _read_copy(reader: BlockReader, sector_size: int, lba: int, disk_size: int | None) -> PartitionTable:
    path = path_of(reader)
    header = parse_gpt_header(read_range(reader, lba * sector_size, sector_size, "GPT header"), lba, path)
    array = read_range(reader, header.partition_entry_lba * sector_size, header.array_size, "GPT entry array")
    entries = parse_gpt_entries(array, header, path)
    partitions = tuple(
        PartitionEntry(
            number=entry.slot,
            offset=entry.starting_lba * sector_size,
            size=(entry.ending_lba + 1 - entry.starting_lba) * sector_size,
            type=entry.type_guid,
            name=entry.name,
            id=entry.unique_guid,
            attributes=entry.attributes,
        )
        for entry in entries
    )
    return PartitionTable(
        scheme="gpt",
        disk_id=header.disk_guid,
        sector_size=sector_size,
        partitions=partitions,
        entry_count=header.entry_count,
        entry_size=header.entry_size,
        problems=tuple(_problems(header, partitions, sector_size, disk_size)),
    )


def _problems(
    header: GptHeader, partitions: Sequence[PartitionEntry], sector_size: int, disk_size: int | None
) -> Iterator[str]:
    first, last = header.first_usable_lba, header.last_usable_lba
    for entry in partitions:
        if entry.offset < first * sector_size or entry.end > (last + 1) * sector_size:
            yield f"partition {entry.number} lies outside the usable LBAs {first} to {last}"
    recorded = (max(header.my_lba, header.alternate_lba) + 1) * sector_size
    if disk_size is not None and disk_size != recorded:
        yield f"the disk has {disk_size} bytes, its GPT was made for {recorded}"
    yield from layout_problems(partitions, recorded if disk_size is None else disk_size)


def _primary_header(reader: BlockReader, sector_size: int) -> tuple[GptHeader, bytes] | None:
    """Return the primary header and its sector where it is valid."""
    check_sector_size(sector_size)
    if not has_gpt_signature(reader, sector_size):
        return None
    sector = reader.read_at(sector_size, sector_size)
    try:
        return parse_gpt_header(sector, 1), sector
    except FormatError:
        return None


def disk_size_from_gpt(track0: bytes | bytearray | memoryview | BlockReader, sector_size: int) -> int | None:
    """Return the size in bytes of the disk whose first sectors ``track0`` holds.

    The backup header lies in the disk's last sector, and the primary names its LBA. None when there is no
    primary GPT header, or when it is damaged. A disk that grew after it was partitioned is larger.
    """
    found = _primary_header(as_reader(track0), sector_size)
    return (found[0].alternate_lba + 1) * sector_size if found else None


def backup_gpt(primary: bytes | bytearray | memoryview | BlockReader, sector_size: int) -> list[Piece]:
    """Compute the backup entry array and the backup header from the start of a disk.

    ``primary`` holds the disk from LBA 0 on. The array lies right before the backup header, the header where
    the primary says; both pieces are whole sectors. Empty when they can't be known: no primary header, a
    damaged one, an array that is damaged or longer than ``primary``, or no room behind the last usable LBA.
    """
    reader = as_reader(primary)
    found = _primary_header(reader, sector_size)
    if found is None:
        return []
    header, sector = found
    array_offset = header.partition_entry_lba * sector_size
    if array_offset + header.array_size > reader.size:
        return []
    array = reader.read_at(array_offset, header.array_size)
    if zlib.crc32(array) != header.array_crc32:
        return []
    sectors = _sectors(header.array_size, sector_size)
    array_lba = header.alternate_lba - sectors
    if array_lba <= max(header.last_usable_lba, header.partition_entry_lba + sectors - 1):
        return []
    raw = GPT_HEADER.parse(sector)
    raw.my_lba, raw.alternate_lba, raw.partition_entry_lba = header.alternate_lba, header.my_lba, array_lba
    tail = sector[GPT_HEADER_SIZE : header.header_size]
    return [
        (array_lba * sector_size, _pad(array, sector_size)),
        (header.alternate_lba * sector_size, _seal(GPT_HEADER.build(raw) + tail, sector_size)),
    ]


def protective_mbr(disk_size: int, sector_size: int, boot_code: bytes = b"") -> Piece:
    """Build the MBR that guards a GPT (UEFI 2.10, 5.2.3): one sector, for LBA 0."""
    guard = BootEntry(1, 0x00, TYPE_PROTECTIVE, 1, min(disk_size // sector_size - 1, 0xFFFFFFFF))
    return 0, build_boot_record([guard], sector_size, boot_code=boot_code)


def build_gpt(table: PartitionTable, disk_size: int, *, boot_code: bytes = b"") -> list[Piece]:
    """Build protective MBR, primary and backup GPT of a table for a disk of ``disk_size`` bytes.

    The pieces are whole sectors in ascending order of offset. ``boot_code`` is the MBR's, its first 440
    bytes count. Raises ValueError for partitions that overlap, don't fit, or aren't on whole sectors.
    """
    sector_size = table.sector_size
    check_sector_size(sector_size)
    check_layout(table.partitions, sector_size, disk_size)
    array = _build_array(table)
    sectors = _sectors(len(array), sector_size)
    last_lba = disk_size // sector_size - 1
    lowest = min((entry.offset // sector_size for entry in table.partitions), default=last_lba)
    first_usable = max(2 + sectors, min(2 + _sectors(_MIN_ARRAY_SIZE, sector_size), lowest))
    last_usable = last_lba - sectors - 1
    if last_usable < first_usable:
        raise ValueError(f"a disk of {disk_size} bytes is too small for a GPT")
    for entry in table.partitions:
        if entry.offset < first_usable * sector_size or entry.end > (last_usable + 1) * sector_size:
            raise ValueError(
                f"partition {entry.number} at {entry.offset}+{entry.size} lies outside the bytes"
                f" {first_usable * sector_size} to {(last_usable + 1) * sector_size} that a GPT leaves"
            )
    header = {
        "revision": GPT_REVISION,
        "header_size": GPT_HEADER_SIZE,
        "header_crc32": 0,
        "reserved": 0,
        "my_lba": 1,
        "alternate_lba": last_lba,
        "first_usable_lba": first_usable,
        "last_usable_lba": last_usable,
        "disk_guid": guid_bytes(table.disk_id),
        "partition_entry_lba": 2,
        "number_of_partition_entries": table.entry_count,
        "size_of_partition_entry": table.entry_size,
        "partition_entry_array_crc32": zlib.crc32(array),
    }
    backup = header | {"my_lba": last_lba, "alternate_lba": 1, "partition_entry_lba": last_lba - sectors}
    return [
        protective_mbr(disk_size, sector_size, boot_code),
        (sector_size, _seal(GPT_HEADER.build(header), sector_size)),
        (2 * sector_size, _pad(array, sector_size)),
        ((last_lba - sectors) * sector_size, _pad(array, sector_size)),
        (last_lba * sector_size, _seal(GPT_HEADER.build(backup), sector_size)),
    ]


def _build_array(table: PartitionTable) -> bytes:
    size = table.entry_size
    if size < GPT_ENTRY_SIZE or size % 8 or not 0 < table.entry_count * size <= MAX_ARRAY_SIZE:
        raise ValueError(f"a GPT can't have {table.entry_count} entries of {size} bytes")
    array = bytearray(table.entry_count * size)
    _check_numbers(table.partitions, table.entry_count)
    for entry in table.partitions:
        if entry.type == _ZERO_GUID:
            raise ValueError(f"partition {entry.number} has the type of an unused slot")
        first = entry.offset // table.sector_size
        at = (entry.number - 1) * size
        array[at : at + GPT_ENTRY_SIZE] = GPT_ENTRY.build(
            {
                "partition_type_guid": guid_bytes(entry.type),
                "unique_partition_guid": guid_bytes(entry.id),
                "starting_lba": first,
                "ending_lba": first + entry.size // table.sector_size - 1,
                "attributes": entry.attributes,
                "partition_name": encode_name(entry.name),
            }
        )
    return bytes(array)


def _check_numbers(partitions: Sequence[PartitionEntry], count: int) -> None:
    for entry in partitions:
        if not 1 <= entry.number <= count:
            raise ValueError(f"partition {entry.number} has no slot among {count}")


def _seal(header: bytes, sector_size: int) -> bytes:
    """Put its CRC into a header and fill the sector up with zeros."""
    crc = header_crc(header, len(header)).to_bytes(4, "little")
    return _pad(header[:16] + crc + header[20:], sector_size)


def _sectors(size: int, sector_size: int) -> int:
    return -(-size // sector_size)


def _pad(data: bytes, sector_size: int) -> bytes:
    return data.ljust(_sectors(len(data), sector_size) * sector_size, b"\0")
