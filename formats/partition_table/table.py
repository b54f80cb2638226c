"""What a partition table says, free of its encoding: the one shape that MBR and GPT are read into."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from formats.blockreader import BlockReader, BytesReader
from formats.errors import DamagedError

Piece = tuple[int, bytes]  # bytes to be written, and their offset on the disk


class Kind(StrEnum):
    """Where a partition is described, and whether it holds others."""

    PRIMARY = "primary"
    EXTENDED = "extended"  # holds the logical partitions; its bytes overlap theirs
    LOGICAL = "logical"


@dataclass(frozen=True, slots=True)
class PartitionEntry:
    """One partition as its table describes it."""

    number: int  # slot from 1; logical partitions from 5 in the order of their chain
    offset: int  # bytes from the start of the disk
    size: int  # bytes
    type: str  # GPT: type GUID, upper case; MBR: type byte as two upper-case hex digits
    name: str = ""  # GPT label; an unpaired surrogate in it survives
    id: str = ""  # GPT: the partition's own GUID, upper case
    attributes: int = 0  # GPT: the 64 attribute bits; MBR: the status byte, 0x80 is active
    kind: Kind = Kind.PRIMARY
    record_offset: int = 0  # logical: bytes from the start of the disk to the EBR that describes it

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + self.size

    @property
    def bootable(self) -> bool:
        """MBR: marked active. GPT: marked as legacy BIOS bootable (attribute bit 2)."""
        return bool(self.attributes & (0x04 if len(self.type) > 2 else 0x80))


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A disk's partitions in ascending order of number.

    ``problems`` holds one line for each thing that is wrong but did not hinder reading.
    """

    scheme: str  # "gpt" or "mbr"
    disk_id: str  # GPT: disk GUID, upper case; MBR: signature as eight upper-case hex digits
    sector_size: int  # bytes
    partitions: tuple[PartitionEntry, ...]
    entry_count: int = 128  # GPT: slots of the entry array
    entry_size: int = 128  # GPT: bytes of a slot
    problems: tuple[str, ...] = ()


def check_sector_size(sector_size: int) -> None:
    """Raise ValueError for a sector size that no disk has."""
    if not 512 <= sector_size <= 4096 or sector_size & (sector_size - 1):
        raise ValueError(f"a sector can't have {sector_size} bytes")


def as_reader(data: bytes | bytearray | memoryview | BlockReader) -> BlockReader:
    """Return bytes as a BlockReader."""
    return data if isinstance(data, BlockReader) else BytesReader(bytes(data))


def path_of(reader: BlockReader) -> Path | None:
    """Return the file that a reader reads, for messages; None where there isn't one."""
    path = getattr(reader, "path", None)
    return path if isinstance(path, Path) else None


def read_range(reader: BlockReader, offset: int, length: int, what: str) -> bytes:
    """Read a structure that a table points to; raises DamagedError where the reader ends before it."""
    if offset + length > reader.size:
        raise DamagedError(
            f"{what} at {offset}+{length} lies behind the end at {reader.size}", path=path_of(reader)
        )
    return reader.read_at(offset, length)


def layout_problems(partitions: Iterable[PartitionEntry], disk_size: int) -> Iterator[str]:
    """Yield a line for each partition that overlaps its neighbour or ends behind the disk."""
    ordered = sorted(partitions, key=lambda item: (item.offset, item.number))
    for entry in ordered:
        if entry.end > disk_size:
            yield f"partition {entry.number} ends at {entry.end}, behind the disk's {disk_size} bytes"
    for kinds in ({Kind.PRIMARY, Kind.EXTENDED}, {Kind.LOGICAL}):
        for before, behind in pairwise(entry for entry in ordered if entry.kind in kinds):
            if before.end > behind.offset:
                yield f"partitions {before.number} and {behind.number} overlap"


def check_layout(partitions: Iterable[PartitionEntry], sector_size: int, disk_size: int) -> None:
    """Raise ValueError for partitions that can't be written to a disk of ``disk_size`` bytes."""
    partitions = tuple(partitions)
    if disk_size % sector_size:
        raise ValueError(f"a disk of {disk_size} bytes has no whole number of {sector_size}-byte sectors")
    for entry in partitions:
        if entry.offset % sector_size or entry.size % sector_size or entry.size <= 0 or entry.offset <= 0:
            raise ValueError(
                f"partition {entry.number} at {entry.offset}+{entry.size} "
                f"doesn't lie on whole {sector_size}-byte sectors"
            )
    for problem in layout_problems(partitions, disk_size):
        raise ValueError(problem)
    numbers = [entry.number for entry in partitions]
    if len(set(numbers)) != len(numbers):
        raise ValueError("two partitions have one number")
