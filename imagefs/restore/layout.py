"""What is written to a target, and where: the volumes of a disk, placed."""

from dataclasses import dataclass

from formats.blockreader import BlockReader
from formats.partition_table import PartitionEntry


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition's contents, from an image or a disk. Sizes and offsets are bytes."""

    number: int  # in its disk's table; as recorded in an image; a bare volume's is 1
    offset: int  # on the source's disk
    size: int
    file_system: str  # "NTFS", "FAT12", "FAT16", "FAT32", "exFAT", "ext" or "ext4", …; "unknown"
    label: str
    entry: PartitionEntry | None  # None for a bare volume
    reader: BlockReader  # ``size`` bytes; its holes are what the file system has free


@dataclass(frozen=True, slots=True)
class Placed:
    """A volume and where it goes on the target; where the sizes differ it is resized."""

    volume: Volume
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + self.size
