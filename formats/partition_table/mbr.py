"""MBR and the chain of EBRs behind an extended partition, read and built.

The LBAs of an MBR count from the start of the disk. In an EBR the logical partition's LBA counts from that
EBR, and the link's from the start of the extended partition (not in any specification; so do DOS, Windows,
Linux and util-linux).
"""

from collections.abc import Iterator, Sequence

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from formats.partition_table.layout import (
    BOOT_RECORD_SIZE,
    TYPES_EXTENDED,
    BootEntry,
    BootRecord,
    build_boot_record,
    parse_boot_record,
)
from formats.partition_table.table import (
    Kind,
    PartitionEntry,
    PartitionTable,
    Piece,
    check_layout,
    check_sector_size,
    layout_problems,
    path_of,
    read_range,
)

_MAX_CHAIN = 1024  # EBRs; Linux shows at most 251 logical partitions
_FILE_SYSTEMS = (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-", b"ReFS\0\0\0\0")
_FIRST_LOGICAL = 5


def is_file_system(sector: bytes) -> bool:
    """Tell whether a boot sector is that of FAT, exFAT, NTFS, ReFS or BitLocker.

    They end with 55 AA as an MBR does. A boot loader may leave an old one's fields in a real MBR.
    """
    if sector[3:11] in _FILE_SYSTEMS:
        return True
    bytes_per_sector = int.from_bytes(sector[11:13], "little")
    cluster, reserved, fats, media = sector[13], sector[14:16], sector[16], sector[21]
    return (
        (sector[0] == 0xE9 or (sector[0] == 0xEB and sector[2] == 0x90))
        and bytes_per_sector in {512, 1024, 2048, 4096}
        and cluster.bit_count() == 1
        and any(reserved)
        and fats in {1, 2}
        and (media == 0xF0 or media >= 0xF8)
    )


def is_mbr(sector: bytes, record: BootRecord, sector_size: int, disk_size: int) -> bool:
    """Tell whether a boot sector that ends with 55 AA holds a partition table.

    A table without entries is one when it has a disk signature and no boot code that jumps over fields, as
    the boot sector of a volume does.
    """
    if not record.has_valid_status:
        return False
    if not record.entries:
        is_volume = sector[0] in {0xEB, 0xE9} or is_file_system(sector)
        return record.disk_signature != 0 and not any(sector[446:510]) and not is_volume
    if not is_file_system(sector):
        return True
    if any(entry.start == 0 for entry in record.entries):
        return False
    return not any(layout_problems(_entries(record, sector_size), disk_size))


def _entries(record: BootRecord, sector_size: int) -> list[PartitionEntry]:
    return [
        PartitionEntry(
            number=entry.slot,
            offset=entry.start * sector_size,
            size=entry.sectors * sector_size,
            type=f"{entry.type:02X}",
            attributes=entry.status,
            kind=Kind.EXTENDED if entry.is_extended else Kind.PRIMARY,
        )
        for entry in record.entries
    ]


def read_mbr(
    reader: BlockReader, record: BootRecord, sector_size: int, disk_size: int | None = None
) -> PartitionTable:
    """Read the partitions of an MBR whose first sector is ``record``, logical ones too.

    ``reader`` may hold the beginning of a disk of ``disk_size`` bytes; EBRs that it lacks are then a problem
    of the table. Raises DamagedError for a chain that loops, leaves its partition or holds no EBR.
    """
    partitions = _entries(record, sector_size)
    size = reader.size if disk_size is None else disk_size
    problems: list[str] = []
    logical: list[PartitionEntry] = []
    for extended in [entry for entry in partitions if entry.kind is Kind.EXTENDED]:
        for place, ebr in _chain(reader, extended, sector_size, size, problems):
            data = [entry for entry in ebr.entries if not entry.is_extended]
            if len(data) > 1:
                problems.append(f"EBR at {place}: only the first of its {len(data)} partitions is shown")
            for entry in data[:1]:
                found = PartitionEntry(
                    number=_FIRST_LOGICAL + len(logical),
                    offset=place + entry.start * sector_size,
                    size=entry.sectors * sector_size,
                    type=f"{entry.type:02X}",
                    attributes=entry.status,
                    kind=Kind.LOGICAL,
                    record_offset=place,
                )
                logical.append(found)
                if found.end > extended.end:
                    problems.append(f"partition {found.number} ends behind its extended partition")
    partitions += logical
    return PartitionTable(
        scheme="mbr",
        disk_id=f"{record.disk_signature:08X}",
        sector_size=sector_size,
        partitions=tuple(partitions),
        problems=(*problems, *layout_problems(partitions, size)),
    )


def _chain(
    reader: BlockReader, extended: PartitionEntry, sector_size: int, disk_size: int, problems: list[str]
) -> Iterator[tuple[int, BootRecord]]:
    """Yield the EBRs of an extended partition with their offsets on the disk."""
    path = path_of(reader)
    place = extended.offset
    seen: set[int] = set()
    while True:
        if place in seen or len(seen) == _MAX_CHAIN:
            what = "loops" if place in seen else f"has more than {_MAX_CHAIN} links"
            raise DamagedError(f"the EBR chain of partition {extended.number} {what} at {place}", path=path)
        seen.add(place)
        if place + BOOT_RECORD_SIZE > reader.size and reader.size < disk_size:
            problems.append(
                f"logical partitions from {place} on are not known: only {reader.size} bytes are here"
            )
            return
        data = read_range(reader, place, BOOT_RECORD_SIZE, "EBR")
        if place == extended.offset and not any(data):
            return  # made, and never filled
        record = parse_boot_record(data, place, "EBR", path)
        yield place, record
        link = next((entry for entry in record.entries if entry.is_extended), None)
        if link is None:
            return
        target = extended.offset + link.start * sector_size
        if target >= extended.end:
            raise DamagedError(
                f"EBR at {place}: its link to {target} leaves partition {extended.number},"
                f" which ends at {extended.end}",
                path=path,
            )
        place = target


def build_mbr(table: PartitionTable, disk_size: int, *, boot_code: bytes = b"") -> list[Piece]:
    """Build the MBR and all EBRs of a table for a disk of ``disk_size`` bytes.

    The pieces are whole sectors in ascending order of offset. Of ``boot_code`` the first 440 bytes count.
    Raises ValueError for partitions that overlap, don't fit, aren't on whole sectors or lie beyond 2³²
    sectors, and for logical partitions outside an extended one or without room for their EBR.
    """
    sector_size = table.sector_size
    check_sector_size(sector_size)
    check_layout(table.partitions, sector_size, disk_size)
    entries = []
    for item in table.partitions:
        if item.kind is not Kind.LOGICAL:
            if not 1 <= item.number <= 4:
                raise ValueError(f"partition {item.number} has no slot in an MBR")
            entries.append(_boot_entry(item, item.number, item.offset, sector_size))
    signature = int(table.disk_id or "0", 16)
    pieces = [(0, build_boot_record(entries, sector_size, disk_signature=signature, boot_code=boot_code))]
    logical = [item for item in table.partitions if item.kind is Kind.LOGICAL]
    for extended in table.partitions:
        if extended.kind is Kind.EXTENDED:
            inside = [item for item in logical if extended.offset <= item.offset and item.end <= extended.end]
            logical = [item for item in logical if item not in inside]
            pieces += build_ebr_chain(extended, inside, sector_size)
    if logical:
        raise ValueError(f"logical partition {logical[0].number} lies in no extended partition")
    return sorted(pieces)


def build_ebr_chain(
    extended: PartitionEntry, logical: Sequence[PartitionEntry], sector_size: int
) -> list[Piece]:
    """Build the EBRs of an extended partition, linked in ascending order of number.

    An EBR lies at its partition's ``record_offset``; where that is 0 the first lies at the start of the
    extended partition, another right behind the partition before it. Raises ValueError when one would lie
    inside a logical partition or outside the extended one.
    """
    ordered = sorted(logical, key=lambda item: item.number)
    by_offset = sorted(logical, key=lambda item: item.offset)
    places = []
    for item in ordered:
        before = [other.end for other in by_offset if other.end <= item.offset]
        place = item.record_offset or max(before, default=extended.offset)
        taken = any(other.offset < place + sector_size and place < other.end for other in logical)
        fits = extended.offset <= place and place + sector_size <= item.offset and item.end <= extended.end
        if taken or not fits or place % sector_size:
            raise ValueError(f"partition {item.number} has no room for its EBR at {place}")
        places.append(place)
    if len(set(places)) != len(places):
        raise ValueError("two logical partitions have one EBR")
    chain: list[tuple[int, PartitionEntry | None]] = list(zip(places, ordered, strict=True))
    if extended.offset not in places[:1]:
        if extended.offset in places:
            raise ValueError("the first EBR must be that of the first logical partition")
        chain.insert(0, (extended.offset, None))
    pieces = []
    for number, (place, item_here) in enumerate(chain):
        entries = [_boot_entry(item_here, 1, item_here.offset - place, sector_size)] if item_here else []
        if number + 1 < len(chain):
            next_place, next_item = chain[number + 1]
            assert next_item is not None
            sectors = (next_item.end - next_place) // sector_size
            entries.append(BootEntry(2, 0, 0x05, (next_place - extended.offset) // sector_size, sectors))
        pieces.append((place, build_boot_record(entries, sector_size)))
    return pieces


def _boot_entry(item: PartitionEntry, slot: int, distance: int, sector_size: int) -> BootEntry:
    """Return the slot of a partition that starts ``distance`` bytes behind what its LBA counts from."""
    start, sectors = distance // sector_size, item.size // sector_size
    kind = int(item.type, 16)
    if not 0 < kind <= 0xFF or (kind in TYPES_EXTENDED) != (item.kind is Kind.EXTENDED):
        raise ValueError(f"partition {item.number} of kind {item.kind} can't have type {item.type}")
    if item.attributes not in {0x00, 0x80}:
        raise ValueError(f"partition {item.number} can't have status {item.attributes:#04x} in an MBR")
    if start > 0xFFFFFFFF or sectors > 0xFFFFFFFF:
        raise ValueError(f"partition {item.number} does not fit the 32 bits of an MBR slot")
    return BootEntry(slot, item.attributes, kind, start, sectors)
