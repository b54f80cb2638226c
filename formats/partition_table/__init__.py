"""Partition tables: MBR, EBR chains and GPT, read and built.

``read_table`` reads whichever a disk has, ``build_table`` makes the bytes of one for a disk of a given size;
``backup_gpt`` and ``disk_size_from_gpt`` work from the first sectors of a disk alone.
"""

from dataclasses import replace

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from formats.partition_table.gpt import (
    backup_gpt,
    build_gpt,
    disk_size_from_gpt,
    has_gpt_signature,
    protective_mbr,
    read_gpt,
)
from formats.partition_table.layout import BOOT_RECORD_SIZE, TYPE_PROTECTIVE, parse_boot_record
from formats.partition_table.mbr import build_ebr_chain, build_mbr, is_file_system, is_mbr, read_mbr
from formats.partition_table.table import (
    Kind,
    PartitionEntry,
    PartitionTable,
    Piece,
    check_sector_size,
    path_of,
)

__all__ = [
    "Kind",
    "PartitionEntry",
    "PartitionTable",
    "Piece",
    "backup_gpt",
    "build_ebr_chain",
    "build_gpt",
    "build_mbr",
    "build_table",
    "disk_size_from_gpt",
    "protective_mbr",
    "read_table",
]


def read_table(
    reader: BlockReader, sector_size: int, *, disk_size: int | None = None
) -> PartitionTable | None:
    """Read the partition table at the start of a disk; None when there is none, as on a bare volume.

    ``sector_size`` is the disk's logical one in bytes. ``disk_size`` is given where the reader holds only the
    beginning of the disk, or where a GPT is to be held against the real size. A GPT with its protective
    entry wins over other MBR entries (hybrid MBR); without that entry an MBR wins, as in Linux. Raises
    DamagedError, or UnsupportedError for a GPT of more than 4 MiB of entries.
    """
    check_sector_size(sector_size)
    if reader.size < max(sector_size, BOOT_RECORD_SIZE):
        return None
    sector = reader.read_at(0, BOOT_RECORD_SIZE)
    signed = has_gpt_signature(reader, sector_size)
    if sector[510:] != b"\x55\xaa":
        return _unguarded_gpt(reader, sector, sector_size, disk_size) if signed else None
    record = parse_boot_record(sector, 0, "MBR", path_of(reader))
    guards = [entry for entry in record.entries if entry.type == TYPE_PROTECTIVE]
    if any(entry.start == 1 for entry in guards):
        return read_gpt(reader, sector_size, disk_size)
    if guards and signed:
        try:
            return read_gpt(reader, sector_size, disk_size)
        except DamagedError:
            pass  # a protective entry in the wrong place guards nothing
    if signed and not record.entries:
        return _unguarded_gpt(reader, sector, sector_size, disk_size)
    if not is_mbr(sector, record, sector_size, reader.size if disk_size is None else disk_size):
        return None
    table = read_mbr(reader, record, sector_size, disk_size)
    if signed:
        stale = "a GPT header lies at LBA 1 and is ignored: the MBR does not protect it"
        table = replace(table, problems=(stale, *table.problems))
    return table


def _unguarded_gpt(
    reader: BlockReader, sector: bytes, sector_size: int, disk_size: int | None
) -> PartitionTable | None:
    """Read a GPT whose MBR is empty or lost; a volume made over an old GPT has a boot sector instead."""
    if is_file_system(sector):
        return None
    table = read_gpt(reader, sector_size, disk_size)
    return replace(table, problems=("there is no protective MBR", *table.problems))


def build_table(table: PartitionTable, disk_size: int, *, boot_code: bytes = b"") -> list[Piece]:
    """Build a table of either scheme for a disk of ``disk_size`` bytes; see build_gpt and build_mbr."""
    build = {"gpt": build_gpt, "mbr": build_mbr}.get(table.scheme)
    if build is None:
        raise ValueError(f"there is no partition table of scheme {table.scheme!r}")
    return build(table, disk_size, boot_code=boot_code)
