"""A disk to image: its partitions, found by its table or by an image's record, chosen and checked."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeVar

from formats.blockreader import BlockReader, SliceReader
from formats.errors import FormatError
from formats.partition_table import Kind, PartitionEntry, PartitionTable, read_table
from formats.partition_table.gpt import has_gpt_signature
from formats.partition_table.layout import BOOT_RECORD_SIZE, parse_boot_record
from imagefs.errors import RefusedError, UsageError
from imagefs.machine.identity import Identity

SECTOR_SIZES = (512, 4096, 2048, 1024)  # bytes; the likeliest first

_MAX_CHAIN = 1024  # EBRs, as many as the table's reader follows


@dataclass(frozen=True, slots=True)
class SourcePartition:
    """A partition to image. Offset and size are bytes on the disk."""

    number: int  # its table entry's, logical ones from 5; a bare volume's is 1; an image's as recorded
    offset: int
    size: int
    entry: PartitionEntry | None  # None for a bare volume
    reader: BlockReader  # its bytes, as they are to be imaged
    file_system: str = ""  # as an image records it; "" where its contents have to tell
    label: str = ""


@dataclass(frozen=True)
class SourceDisk:
    """A disk with the partitions to image, in ascending order of offset; sizes are bytes.

    ``extended_records`` are the EBRs of an MBR disk: each one's offset on the disk and its 512 bytes, in
    ascending order. The extended partition itself is no partition to image.
    """

    name: str  # for messages: "/dev/sda", "disk.raw", "x.mrimgx disk4"
    number: int  # a file's is 0, a device's its place among the machine's disks, an image's as recorded
    reader: BlockReader
    size: int
    sector_size: int  # logical
    physical_sector_size: int
    identity: Identity
    removable: bool
    table: PartitionTable | None
    partitions: tuple[SourcePartition, ...]
    extended_records: tuple[tuple[int, bytes], ...] = ()

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The start and the end of each partition to image, bytes on the disk."""
        return [(part.offset, part.offset + part.size) for part in self.partitions]


class KeptSnapshots(Protocol):
    """Snapshots that outlive the run that made them, while an unfinished backup needs them."""

    @property
    def id(self) -> str:
        """The name by which the backup that goes on asks for them."""

    def needed_by(self, state: Path) -> None:
        """Keep them for as long as this file exists; raises SnapshotError."""


@dataclass
class OpenedDevice:
    """A device that is ready to be imaged."""

    kind: str  # "disk" or "partition"
    disk: SourceDisk
    warnings: list[str] = field(default_factory=list)
    checks: list[Callable[[], None]] = field(default_factory=list)
    snapshots: KeptSnapshots | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller of ``open_source`` asked for."""

    path: Path
    live: bool
    snapshot: bool
    direct: bool
    sector_size: int | None
    partitions: frozenset[int]  # empty: all
    snapshots: str = ""  # those to read again, by their name


def find_partitions(
    wanted: Wanted, reader: BlockReader, table: PartitionTable | None
) -> tuple[SourcePartition, ...]:
    """Return the partitions to image of a disk; without a table all of it is partition 1.

    Raises UsageError for an unknown number, RefusedError for partitions that overlap or leave the disk.
    """
    if table is None:
        found = [SourcePartition(1, 0, reader.size, None, reader)]
        return choose(wanted, found)
    entries = [entry for entry in table.partitions if entry.kind is not Kind.EXTENDED and entry.size > 0]
    chosen = choose(wanted, entries)
    for entry in chosen:
        if entry.end > reader.size:
            raise RefusedError(
                f"partition {entry.number} ends at {entry.end}, behind the end of the disk at {reader.size}",
                path=wanted.path,
                hint="name the partitions to image without it",
            )
    refuse_overlaps(wanted.path, [(entry.number, entry.offset, entry.size) for entry in chosen])
    return tuple(
        SourcePartition(
            entry.number, entry.offset, entry.size, entry, SliceReader(reader, entry.offset, entry.size)
        )
        for entry in chosen
    )


_Part = TypeVar("_Part", SourcePartition, PartitionEntry)


def choose(wanted: Wanted, found: Sequence[_Part]) -> tuple[_Part, ...]:
    """Return the wanted ones in ascending order of offset; raises UsageError for an unknown number."""
    refuse_unknown(wanted, (part.number for part in found))
    chosen = [part for part in found if not wanted.partitions or part.number in wanted.partitions]
    return tuple(sorted(chosen, key=lambda part: (part.offset, part.number)))


def refuse_unknown(wanted: Wanted, numbers: Iterable[int]) -> None:
    """Raise UsageError for a wanted partition that is not among these."""
    numbers = sorted(set(numbers))
    unknown = sorted(wanted.partitions - set(numbers))
    if unknown:
        there = f"there are {', '.join(map(str, numbers))}" if numbers else "there are none"
        raise UsageError(f"there is no partition {unknown[0]}; {there}", path=wanted.path)


def refuse_overlaps(path: Path, parts: Iterable[tuple[int, int, int]]) -> None:
    """Raise RefusedError where two partitions (number, offset, size) share bytes."""
    ordered = sorted(parts, key=lambda part: part[1:])
    for (first, offset, size), (second, start, _) in pairwise(ordered):
        if offset + size > start:
            raise RefusedError(
                f"partitions {first} and {second} overlap", path=path, hint="name the ones to image"
            )


def table_warnings(disk: SourceDisk) -> list[str]:
    """Return a line for each thing that is wrong with a disk's table but does no harm."""
    if disk.table is None:
        return []
    lines = [f"{disk.name}: {problem}" for problem in disk.table.problems]
    if not disk.partitions:
        lines.append(f"{disk.name}: its partition table is empty; nothing but the table is imaged")
    return lines


def detect_sector_size(reader: BlockReader) -> int:
    """Return the sector size at which a GPT can be read, 512 where there is none."""
    for size in SECTOR_SIZES:
        if has_gpt_signature(reader, size):
            try:
                table = read_table(reader, size)
            except FormatError:
                continue
            if table is not None and table.scheme == "gpt":
                return size
    return SECTOR_SIZES[0]


def extended_records(reader: BlockReader, table: PartitionTable | None) -> tuple[tuple[int, bytes], ...]:
    """Return the EBRs of an MBR disk, those without a partition too: the chain runs through them."""
    found: dict[int, bytes] = {}
    if table is None or table.scheme != "mbr":
        return ()
    for extended in table.partitions:
        place: int | None = extended.offset if extended.kind is Kind.EXTENDED else None
        while place is not None and place not in found and len(found) < _MAX_CHAIN:
            data = reader.read_at(place, BOOT_RECORD_SIZE)
            if not any(data):
                break  # an extended partition that was made and never filled
            found[place] = data
            record = parse_boot_record(data, place, "EBR")
            link = next((entry for entry in record.entries if entry.is_extended), None)
            place = extended.offset + link.start * table.sector_size if link is not None else None
    return tuple(sorted(found.items()))


def make_disk(
    wanted: Wanted, name: str, number: int, reader: BlockReader, sizes: tuple[int, int],
    identity: Identity, *, removable: bool = False,
) -> SourceDisk:  # fmt: skip
    """Make a disk of its bytes; ``sizes`` are the bytes of a logical and of a physical sector.

    Raises what ``find_partitions`` does, and DamagedError or UnsupportedError for its table.
    """
    table = read_table(reader, sizes[0], disk_size=reader.size)
    return SourceDisk(
        name, number, reader, reader.size, *sizes, identity, removable, table,
        find_partitions(wanted, reader, table), extended_records(reader, table),
    )  # fmt: skip
