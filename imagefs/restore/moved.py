"""What a volume says of its own place on the disk, when it is put elsewhere.

NTFS and FAT keep the sectors before them ("hidden sectors", 4 bytes at 0x1C of the boot sector), which boot
code adds to every address it reads; exFAT has PartitionOffset (8 bytes at 0x40), under the checksum of its
boot region. Sources: Microsoft, FAT32 File System Specification 1.03, 3.1; exFAT 1.00, 3.1, 3.4.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

from formats.blockreader import BlockReader, Blocks, Extent
from formats.errors import DamagedError
from imagefs.filesystems.detect import recognise, signatures
from imagefs.filesystems.fat_layout import parse_fat_boot
from imagefs.restore.layout import Volume

_HIDDEN = 0x1C
_SAME_VOLUME = slice(0x0B, 0x54)  # parameters and, of NTFS, the serial number: what a backup must share
_EXFAT_PLACE = 0x40
_EXFAT_REGION = 12  # sectors; the last one holds the checksum of the others
_EXFAT_UNSUMMED = {106, 107, 112}  # bytes of the boot sector: flags, and how full the volume is


def moved(volume: Volume, offset: int, size: int, sector_size: int) -> Volume:
    """Return a volume that knows it starts at ``offset`` of its disk; see ``moved_bytes``."""
    changes = moved_bytes(volume, offset, size, sector_size)
    reader = PatchedReader(volume.reader, changes) if changes else volume.reader
    return replace(volume, offset=offset, reader=reader)


def moved_bytes(volume: Volume, offset: int, size: int, sector_size: int) -> list[tuple[int, bytes]]:
    """Return what changes inside a volume that is put at ``offset`` of a disk: offsets in it, and bytes.

    Only where it says the place it has now; another value (0 of a volume made as a file, one counted from an
    extended partition) stays as it is, and so does it where the new place is beyond what the field holds.
    ``size`` is what the volume has there; ``sector_size`` the disk's. Ascending, apart from one another.
    """
    reader = volume.reader
    family = recognise(reader)
    if family not in ("NTFS", "FAT", "exFAT") or len(signatures(reader)) > 1:
        return []
    old, new = volume.offset // sector_size, offset // sector_size
    if old == new or volume.offset % sector_size or offset % sector_size:
        return []
    if family == "exFAT":
        return _exfat(reader, old, new)
    if new > 0xFFFFFFFF:
        return []
    boot = reader.read_at(0, 512)
    places = {0, *_backups(family, boot, min(size, volume.size))}
    changes = []
    for at in sorted(places):
        if at + 512 > reader.size:
            continue
        copy = reader.read_at(at, 512)
        same = copy[:11] == boot[:11] and copy[_SAME_VOLUME] == boot[_SAME_VOLUME]
        if same and struct.unpack_from("<I", copy, _HIDDEN)[0] == old:
            changes.append((at + _HIDDEN, struct.pack("<I", new)))
    return changes


def _backups(family: str, boot: bytes, size: int) -> Iterator[int]:
    """Yield where copies of the boot sector can lie."""
    (unit,) = struct.unpack_from("<H", boot, 11)
    if family == "NTFS":  # behind the sectors that it counts, which is the partition's last one
        yield struct.unpack_from("<Q", boot, 0x28)[0] * unit
        yield size - unit
        yield size - 512
        return
    try:
        kind = parse_fat_boot(boot).kind
    except DamagedError:
        return
    (sector,) = struct.unpack_from("<H", boot, 0x32)
    if kind == "FAT32" and 0 < sector < 0xFFFF:
        yield sector * unit


def _exfat(reader: BlockReader, old: int, new: int) -> list[tuple[int, bytes]]:
    """Return the changes of an exFAT's two boot regions: the place, and the checksum of each."""
    shift = reader.read_at(0, 512)[108]
    if not 9 <= shift <= 12:
        return []
    unit = 1 << shift
    changes = []
    for at in (0, _EXFAT_REGION * unit):
        if at + _EXFAT_REGION * unit > reader.size:
            continue
        region = bytearray(reader.read_at(at, _EXFAT_REGION * unit))
        sums = slice((_EXFAT_REGION - 1) * unit, None)
        found = _exfat_sum(region[: sums.start], unit)
        if region[3:11] != b"EXFAT   " or region[sums] != found:
            continue  # a region that is not valid is not made to look so
        if struct.unpack_from("<Q", region, _EXFAT_PLACE)[0] != old:
            continue
        struct.pack_into("<Q", region, _EXFAT_PLACE, new)
        changes.append((at + _EXFAT_PLACE, bytes(region[_EXFAT_PLACE : _EXFAT_PLACE + 8])))
        changes.append((at + sums.start, _exfat_sum(region[: sums.start], unit)))
    return changes


def _exfat_sum(region: bytes | bytearray, unit: int) -> bytes:
    """Return the checksum sector of the eleven sectors before it."""
    total = 0
    for index, byte in enumerate(region):
        if index not in _EXFAT_UNSUMMED:
            total = ((total << 31 | total >> 1) + byte) & 0xFFFFFFFF
    return struct.pack("<I", total) * (unit // 4)


class PatchedReader(BlockReader):
    """A reader in which some bytes are others; ``changes`` are ascending and don't overlap."""

    def __init__(self, lower: BlockReader, changes: Sequence[tuple[int, bytes]]) -> None:
        super().__init__(lower.size)
        self._lower = lower
        self._changes = tuple(changes)

    def _touching(self, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        """Yield the parts of changes that lie in a range."""
        for at, data in self._changes:
            start, end = max(at, offset), min(at + len(data), offset + length)
            if start < end:
                yield start, data[start - at : end - at]

    def _read(self, offset: int, length: int) -> bytes:
        changes = list(self._touching(offset, length))
        if not changes:
            return self._lower.read_at(offset, length)
        data = bytearray(self._lower.read_at(offset, length))
        for at, new in changes:
            data[at - offset : at - offset + len(new)] = new
        return bytes(data)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        self._lower.read_into(offset, buffer)
        for at, new in self._touching(offset, len(buffer)):
            buffer[at - offset : at - offset + len(new)] = new

    def _blocks(self, offset: int, length: int) -> Iterator[Blocks]:
        """Yield the blocks of the reader below; of those that are changed the hash is not known.

        What is changed is data already: only what says its place is.
        """
        changes = list(self._touching(offset, length))
        for blocks in self._lower.blocks(offset, length):
            md5 = blocks.md5.copy()
            for at, data in changes:
                md5[(blocks.offset < at + len(data)) & (at < blocks.offset + blocks.length)] = bytes(16)
            yield blocks._replace(md5=md5)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield the extents of the reader below, with what is changed as data."""
        position, end = offset, offset + length
        for at, data in self._touching(offset, length):
            if at > position:
                yield from self._lower.extents(position, at - position)
            yield Extent(at, len(data), True)
            position = at + len(data)
        if position < end:
            yield from self._lower.extents(position, end - position)
