"""What of a source goes into an image: its disks as they are recorded, and the blocks to be read."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from formats.errors import ReadError
from formats.mrimgx.layout import RESERVED_BLOCK_SIZE, ExtendedPartition
from formats.mrimgx.new_document import NewDisk, NewPartition, TableEntry
from formats.partition_table import Kind
from imagefs.errors import RefusedError, SourceReadError, UsageError
from imagefs.imaging.sources import Source, SourceDisk, SourcePartition
from imagefs.imaging.tasks import BlockArray
from imagefs.imaging.used_space import UsedSpace, used_space
from imagefs.imaging.used_space.base import Facts, WholeVolume

BLOCK_SIZE = 65536  # bytes
# An index is one metadata block, whose length has 32 bits: more blocks than these are made larger instead.
_MOST_BLOCKS = 1 << 26
_TRACK_SECTORS = 63  # that Reflect keeps of a disk's beginning
_LARGEST_TRACK_0 = 1024 * 1024
# What an MBR would say of a file system; a GPT entry has no such byte.
_TYPE_BYTES = {"NTFS": 0x07, "exFAT": 0x07, "FAT12": 0x01, "FAT16": 0x0E, "FAT32": 0x0C, "ext": 0x83}
_IMAGE_TYPES = frozenset({"NTFS", "exFAT", "FAT12", "FAT16", "FAT32", "ReFS", "ext"})


@dataclass(frozen=True, slots=True)
class PlannedPartition:
    """A partition to be imaged."""

    source: SourcePartition
    used: UsedSpace
    record: NewPartition


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    """A disk to be imaged; ``record`` holds the records of its partitions."""

    source: SourceDisk
    partitions: tuple[PlannedPartition, ...]
    record: NewDisk


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that an image is to hold."""

    disks: tuple[PlannedDisk, ...]

    @property
    def warnings(self) -> list[str]:
        """What is to be said of the volumes, a line each."""
        return [
            f"{disk.source.name} partition {partition.source.number}: {line}"
            for disk in self.disks
            for partition in disk.partitions
            for line in partition.used.warnings
        ]

    @property
    def left_out(self) -> list[str]:
        """The files whose contents are left out, as paths in the tree."""
        return [
            f"disk{disk.record.number}/p{partition.record.number}/{name.lstrip('/')}"
            for disk in self.disks
            for partition in disk.partitions
            for name in partition.used.left_out
        ]

    def numbered(self, numbers: Sequence[int]) -> "Plan":
        """Return the plan with the disks' numbers as a set has them."""
        disks = zip(self.disks, numbers, strict=True)
        return Plan(tuple(replace(disk, record=replace(disk.record, number=n)) for disk, n in disks))

    def fingerprint(self) -> str:
        """Return what changes where the source's tables, or the shape or kind of a partition, do."""
        digest = hashlib.sha256()
        for disk in self.disks:
            record = disk.record
            digest.update(f"{record.size} {record.sector_size} {record.signature}".encode())
            digest.update(record.track0)
            for extended in record.extended:
                digest.update(struct.pack("<Q", extended.offset) + extended.boot_record)
            for part in record.partitions:
                shape = part.number, part.start, part.length, part.file_system, part.reserved_length
                digest.update(repr((*shape, part.block_size)).encode())
        return digest.hexdigest()

    def arrays(self) -> list[BlockArray]:
        """Return the arrays of blocks, in the order of their reading: reserved sectors, then blocks."""
        arrays = []
        for disk_at, disk in enumerate(self.disks):
            for part_at, partition in enumerate(disk.partitions):
                record, reader = partition.record, partition.source.reader
                name = f"{disk.source.name} partition {record.number}"
                whose = (disk_at, part_at), disk.record.number, record.number
                if record.reserved_length:
                    arrays.append(
                        BlockArray(
                            f"{name} reserved sectors", whose[0], True, *whose[1:], reader, 0,
                            record.reserved_length, RESERVED_BLOCK_SIZE,
                        )
                    )  # fmt: skip
                arrays.append(
                    BlockArray(
                        name, whose[0], False, *whose[1:], reader, record.reserved_length,
                        record.data_length, record.block_size, partition.used.runs,
                    )
                )  # fmt: skip
        return arrays


def make_plan(
    source: Source, *, exact: bool = False, exclude: Sequence[str] = (), skip_bad: bool = False
) -> Plan:
    """Look at the volumes of a source and plan its image; raises RefusedError, UsageError, SourceReadError.

    With ``skip_bad``, all of a volume is used where what tells of it can't be read.
    """
    if exact and exclude:
        raise UsageError("an exact image has every byte: nothing can be excluded from it")
    if not any(disk.partitions for disk in source.disks):
        raise RefusedError("there is no partition to image", path=source.path)
    disks = (_plan_disk(disk, exact=exact, exclude=exclude, skip_bad=skip_bad) for disk in source.disks)
    return Plan(tuple(disks))


def _plan_disk(disk: SourceDisk, *, exact: bool, exclude: Sequence[str], skip_bad: bool) -> PlannedDisk:
    partitions = []
    for partition in disk.partitions:
        used: UsedSpace
        try:
            used = used_space(partition.reader, disk.sector_size, exact=exact, exclude=exclude)
            record = _record(disk, partition, used)
        except (ReadError, SourceReadError) as error:
            if not skip_bad:
                error.hint = error.hint or "--skip-bad images the rest and records what is lost"
                raise
            facts = Facts("unknown", sector_size=disk.sector_size)
            used = WholeVolume(partition.size, facts, [f"{error}: all of the volume is stored"])
            record = _record(disk, partition, used)
        partitions.append(PlannedPartition(partition, used, record))
    whole = NewDisk(
        number=disk.number,
        size=disk.size,
        sector_size=disk.sector_size,
        scheme=disk.table.scheme if disk.table is not None else "unknown",
        signature=disk.table.disk_id if disk.table is not None else _volume_id(disk),
        removable=disk.removable,
        description=disk.identity.description,
        manufacturer=disk.identity.manufacturer,
        product=disk.identity.product,
        revision=disk.identity.revision,
        serial=disk.identity.serial,
        track0=_track0(disk),
        extended=tuple(ExtendedPartition(data[:512], offset) for offset, data in disk.extended_records),
        partitions=tuple(partition.record for partition in partitions),
    )
    return PlannedDisk(disk, tuple(partitions), whole)


def _record(disk: SourceDisk, partition: SourcePartition, used: UsedSpace) -> NewPartition:
    kind = "ext" if used.file_system.upper().startswith("EXT") else used.file_system
    kind = kind if kind in _IMAGE_TYPES else "unknown"
    return NewPartition(
        number=partition.number,
        start=partition.offset,
        length=partition.size,
        file_system=kind,
        label=used.label,
        reserved_length=used.reserved_length,
        block_size=_block_size(partition.size),
        table_entry=_table_entry(disk, partition, kind),
        cluster_size=used.cluster_size,
        total_clusters=used.total_clusters,
        free_clusters=used.free_clusters,
        mft_offset=partition.offset + used.mft_offset if used.mft_record_size else 0,
        mft_record_size=used.mft_record_size,
    )


def _block_size(size: int) -> int:
    """Return the bytes of a block: 64 KiB for partitions up to 4 TiB."""
    block_size = BLOCK_SIZE
    while size > _MOST_BLOCKS * block_size:
        block_size *= 2
    return block_size


def _table_entry(disk: SourceDisk, partition: SourcePartition, kind: str) -> TableEntry:
    """Return what the partition's record in its MBR or extended boot record says."""
    entry = partition.entry
    if entry is None or disk.table is None or disk.table.scheme != "mbr":
        return TableEntry(_TYPE_BYTES.get(kind, 0))
    logical = entry.kind is Kind.LOGICAL
    slot = 0 if logical else entry.number - 1
    raw = disk.reader.read_at((entry.record_offset if logical else 0) + 446 + 16 * slot, 16)
    status, head, sector, cylinder, type_byte, end_head, end_sector, end_cylinder = raw[:8]
    return TableEntry(
        type=type_byte,
        status=status,
        start_head=head,
        start_cylinder=cylinder | (sector & 0xC0) << 2,
        end_head=end_head,
        end_cylinder=end_cylinder | (end_sector & 0xC0) << 2,
        logical=logical,
    )


def _track0(disk: SourceDisk) -> bytes:
    """Return the disk's first bytes: 63 sectors, and what a boot loader keeps behind them.

    They reach neither into the first partition nor beyond 1 MiB; of a bare volume they are its own beginning.
    """
    first = min(partition.offset for partition in disk.partitions)
    if disk.table is not None:
        # Partitions that are not imaged bound it too.
        first = min([first, *(e.offset for e in disk.table.partitions if e.kind is not Kind.EXTENDED)])
    usual = _TRACK_SECTORS * disk.sector_size
    data = disk.reader.read_at(0, min(disk.size, max(usual, min(first or usual, _LARGEST_TRACK_0))))
    kept = -(-len(data.rstrip(b"\0")) // disk.sector_size) * disk.sector_size
    length = max(kept, usual)
    if first:
        length = min(length, first)
    return data[: min(length, len(data))]


def _volume_id(disk: SourceDisk) -> str:
    """Return what tells a bare volume from others: the serial number or UUID of its file system."""
    head = disk.reader.read_at(0, min(disk.size, 4096)).ljust(4096, b"\0")
    if head[3:11] == b"NTFS    ":
        return head[0x48:0x50][::-1].hex().upper()
    if head[3:11] == b"EXFAT   ":
        return head[0x64:0x68][::-1].hex().upper()
    if head[1080:1082] == b"\x53\xef":
        return head[1024 + 0x68 : 1024 + 0x78].hex().upper()
    if head[510:512] == b"\x55\xaa" and head[0x52:0x55] == b"FAT":
        return head[0x43:0x47][::-1].hex().upper()
    if head[510:512] == b"\x55\xaa" and head[0x36:0x39] == b"FAT":
        return head[0x27:0x2B][::-1].hex().upper()
    return ""
