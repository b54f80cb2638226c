"""What a disk has besides its volumes: boot code, partition tables, boot records, made for a target."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from formats.partition_table import PartitionTable, backup_gpt, build_table
from formats.partition_table.layout import (
    BOOT_CODE_SIZE,
    BOOT_RECORD_SIZE,
    TYPE_PROTECTIVE,
    parse_boot_record,
)
from imagefs.errors import RefusedError
from imagefs.imaging.sources import SourceDisk

MIB = 1 << 20
_LARGEST_HEAD = MIB  # what a boot loader keeps before the first partition ends here


@dataclass(frozen=True, slots=True)
class Records:
    """Bytes outside of the volumes; ``head`` starts at 0 and is written last, when all else is safe."""

    head: bytes
    others: tuple[tuple[int, bytes], ...]  # ascending: (offset, bytes)


def make_records(disk: SourceDisk, table: PartitionTable | None, target_size: int) -> Records:
    """Return the records of ``disk`` as a target of ``target_size`` bytes needs them.

    ``table`` is the one to write; where it is the disk's own and nothing has to change, the records are the
    disk's own bytes. Raises RefusedError for a table that can't be made for the target.
    """
    if disk.table is None or table is None:
        return Records(b"", ())
    first = min((entry.offset for entry in table.partitions), default=_LARGEST_HEAD)
    old_first = min((entry.offset for entry in disk.table.partitions), default=_LARGEST_HEAD)
    head = bytearray(disk.reader.read_at(0, min(first, old_first, _LARGEST_HEAD, disk.size)))
    others: list[tuple[int, bytes]] = []
    unchanged = table == disk.table
    backup = backup_gpt(disk.reader, disk.sector_size) if table.scheme == "gpt" else []
    if table.scheme == "mbr" and unchanged:
        others += disk.extended_records
    elif backup and unchanged and target_size == disk.size:
        others += backup
    else:
        hybrid = _hybrid(bytes(head[:BOOT_RECORD_SIZE])) if table.scheme == "gpt" else None
        try:
            pieces = build_table(
                replace(table, problems=()), target_size, boot_code=bytes(head[:BOOT_CODE_SIZE])
            )
        except ValueError as error:
            raise RefusedError(
                f"its partition table can't be made for a target of {target_size} bytes: {error}"
            ) from error
        for offset, data in pieces:
            if offset + len(data) <= len(head):
                head[offset : offset + len(data)] = data
            elif offset < len(head):
                head[offset:] = data  # a table that needs more room than there was
            else:
                others.append((offset, data))
        if hybrid is not None:
            head[:BOOT_RECORD_SIZE] = hybrid
    return Records(bytes(head), tuple(sorted(others)))


def _hybrid(sector: bytes) -> bytes | None:
    """Return an MBR beside a GPT that has partitions of its own, which is kept as it is."""
    if sector[510:] != b"\x55\xaa":
        return None
    entries = parse_boot_record(sector, 0, "MBR").entries
    return sector if any(entry.type != TYPE_PROTECTIVE for entry in entries) else None


def room_behind(table: PartitionTable | None) -> int:
    """Return the bytes that a table needs at the end of a disk."""
    if table is None or table.scheme != "gpt":
        return 0
    array = max(16384, table.entry_count * table.entry_size)
    return -(-array // table.sector_size) * table.sector_size + table.sector_size


def needed_size(table: PartitionTable | None, ends: Sequence[int]) -> int:
    """Return the least bytes a target has to have for partitions that end there."""
    if table is not None:
        ends = [*ends, *(e.end for e in table.partitions)]
    return max(ends, default=0) + room_behind(table)
