"""FAT12, FAT16, FAT32 and exFAT through TSK, with what TSK drops from directory entries.

TSK runs times through the machine's time zone, shows the volume label as a file, and does not tell how
much of an exFAT file is valid; so a node's own directory entry is read beside it. FAT times have no
zone: they are taken as UTC. Specifications: Microsoft, FAT32 File System Specification 1.03; exFAT file
system specification 1.00. Little endian.
"""

import struct
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from imagefs.filesystems.runs import ChunkedReader
from imagefs.filesystems.tsk import TskFileSystem, data_runs
from imagefs.filesystems.tsk_image import TskImage
from mounters.tree import Attributes, Entry, NodeType

_FIRST_INODE = 3  # of the first directory entry; TSK numbers every 32 bytes of the data area
_VOLUME_ID = 0x08  # attribute of the label's entry
_EXFAT_FILE, _EXFAT_STREAM, _EXFAT_LABEL = 0x85, 0xC0, 0x83
_FAT_ENTRY = struct.Struct("<11sB1xBHHH2xHH2xI")  # name, attributes, tens; created, accessed, modified; size
_EXFAT_TIMES = struct.Struct("<8xIIIBBBBB")  # created, modified, accessed; tens; zones
_EXFAT_LENGTHS = struct.Struct("<8xQ8xQ")  # valid, whole


class FatFileSystem(TskFileSystem):
    """A FAT or exFAT volume."""

    def __init__(self, reader: BlockReader, image: TskImage, fs: Any, *, kind: str) -> None:
        super().__init__(reader, image, fs, kind=kind)
        self._is_exfat = kind == "exFAT"
        self._metadata = ChunkedReader(reader)
        sector = reader.read_at(0, 512)
        if self._is_exfat:
            fat, _, heap = struct.unpack_from("<III", sector, 80)
            self._data_start = heap << sector[108]
            self._fat_start = fat << sector[108]
            self.block_size = 1 << sector[108] + sector[109]
        else:
            size, per_cluster, reserved, fats = struct.unpack_from("<HBHB", sector, 11)
            length = struct.unpack_from("<H", sector, 22)[0] or struct.unpack_from("<I", sector, 36)[0]
            self._data_start = (reserved + fats * length) * size
            self.block_size = per_cluster * size
        self._find_label()

    def _find_label(self) -> None:
        """Set the label from the root directory's entry for it."""
        with self._image.calls("root directory"):
            for node in self._fs.open_dir(inode=self.root):
                inode = int(node.info.name.meta_addr)
                raw = self._entry(inode) if inode >= _FIRST_INODE else b""
                if self._is_exfat and raw[:1] == bytes([_EXFAT_LABEL]):
                    self.label = raw[2 : 2 + 2 * min(raw[1], 11)].decode("utf-16-le", "replace")
                    return
                if raw and not self._is_exfat and raw[11] & 0x3F == _VOLUME_ID and raw[0] != 0xE5:
                    self.label = raw[:11].decode("cp437").rstrip(" \0")
                    return

    def _entry(self, inode: int) -> bytes:
        at = self._data_start + (inode - _FIRST_INODE) * 32
        if inode < _FIRST_INODE or at + 32 > self._reader.size:
            return b""  # the root, and what TSK adds
        return self._metadata.read(at, 32)

    def _load_listing(self, inode: int) -> Iterable[Entry]:
        """Return what TSK lists of the names that the directory holds; it has to list all of them."""
        stored = self._stored(inode)
        entries = [entry for entry in super()._load_listing(inode) if entry.inode in stored]
        if len(entries) < len(stored):
            raise DamagedError(f"directory {inode}: {len(entries)} of its {len(stored)} names can be read")
        return entries

    def _stored(self, inode: int) -> set[int]:
        """Return the inode numbers of a directory's entries, up to its end mark.

        TSK goes beyond that, and leaves out without a word what it takes for no entry.
        """
        with self._image.calls(f"directory {inode}"):
            node = self._fs.open_meta(inode)
            size = int(node.info.meta.size)
            runs = data_runs(node)
        if sum(run.length for run in runs) * self._unit < size:
            raise DamagedError(f"directory {inode}: a part of its {size} bytes has no place on the volume")
        numbers: set[int] = set()
        for run in runs:
            at = run.addr * self._unit
            if at + run.length * self._unit > self._reader.size:
                raise DamagedError(f"directory {inode}: its data at {at} lies outside the volume")
            raw = self._reader.read_at(at, run.length * self._unit)
            first = _FIRST_INODE + (at - self._data_start) // 32
            for index, (mark, attributes) in enumerate(zip(raw[::32], raw[11::32], strict=True)):
                if mark == 0:
                    return numbers
                if self._is_exfat:
                    is_node = mark == _EXFAT_FILE
                else:  # neither deleted, "." or "..", the label, nor a part of a long name
                    is_node = mark not in (0xE5, 0x2E) and not attributes & _VOLUME_ID
                if is_node:
                    numbers.add(first + index)
        return numbers

    def _load_attributes(self, inode: int) -> Attributes:
        node = super()._load_attributes(inode)
        mode = 0o555 if node.type is NodeType.DIRECTORY else 0o444
        node = replace(node, mode=mode, uid=0, gid=0, links=1, changed=0, modified=0, accessed=0, created=0)
        raw = self._entry(inode)
        if not raw:
            return node
        created, modified, accessed = self._exfat_times(raw) if self._is_exfat else self._fat_times(raw, node)
        return replace(node, created=created, modified=modified, changed=modified, accessed=accessed)

    def _fat_times(self, raw: bytes, node: Attributes) -> tuple[int, int, int]:
        _, _, tens, time, date, accessed, modified_time, modified_date, size = _FAT_ENTRY.unpack(raw)
        if node.type is NodeType.FILE and size != node.size:
            raise DamagedError(f"file {node.inode}: {node.size} bytes, its directory entry says {size}")
        return (
            _nanoseconds(date, time, tens),
            _nanoseconds(modified_date, modified_time),
            _nanoseconds(accessed, 0),
        )

    def _exfat_times(self, raw: bytes) -> tuple[int, int, int]:
        created, modified, accessed, tens, modified_tens, zone, modified_zone, accessed_zone = (
            _EXFAT_TIMES.unpack_from(raw)
        )
        return (
            _nanoseconds(created >> 16, created & 0xFFFF, tens) - _offset(zone),
            _nanoseconds(modified >> 16, modified & 0xFFFF, modified_tens) - _offset(modified_zone),
            _nanoseconds(accessed >> 16, accessed & 0xFFFF) - _offset(accessed_zone),
        )

    def _initialized(self, inode: int, size: int) -> int:
        """Return an exFAT file's valid length, from the second entry of its set."""
        if not self._is_exfat:
            return size
        entries = self._entry_set(inode)
        valid, whole = _EXFAT_LENGTHS.unpack_from(entries, 32)
        if whole != size or valid > whole:
            raise DamagedError(f"file {inode}: {valid} bytes valid of {whole}, {size} expected")
        return int(valid)

    def _entry_set(self, inode: int) -> bytes:
        """Return the directory entries of an exFAT file, checked by their sum.

        They may go on in another cluster: the one the FAT names or, where the directory lies in one
        piece and its part of the FAT means nothing, the next.
        """
        at = self._data_start + (inode - _FIRST_INODE) * 32
        cluster = (at - self._data_start) // self.block_size
        end = self._data_start + (cluster + 1) * self.block_size
        length = 32 * (1 + self._entry(inode)[1])
        first = self._metadata.read(at, min(length, end - at))
        starts = [end]
        if len(first) < length:
            fat = self._metadata.read(self._fat_start + 4 * (cluster + 2), 4)
            starts.append(self._data_start + (int.from_bytes(fat, "little") - 2) * self.block_size)
        for start in starts:
            if len(first) < length and not self._data_start <= start <= self._reader.size - length:
                continue
            rest = self._metadata.read(start, length - len(first)) if len(first) < length else b""
            entries = first + rest
            if entries[32:33] == bytes([_EXFAT_STREAM]) and _sum(entries) == entries[2] | entries[3] << 8:
                return entries
        raise DamagedError(f"file {inode}: the sum of its directory entries is wrong")


def _sum(entries: bytes) -> int:
    """Return the checksum of an exFAT entry set, its own place left out."""
    total = 0
    for index, byte in enumerate(entries):
        if index not in (2, 3):
            total = ((total & 1) << 15 | total >> 1) + byte & 0xFFFF
    return total


def _nanoseconds(date: int, time: int, tens: int = 0) -> int:
    """Return a DOS date and time (2 s, and units of 10 ms) in nanoseconds; 0 where there is none."""
    try:
        moment = datetime(
            1980 + (date >> 9),
            date >> 5 & 15,
            date & 31,
            time >> 11,
            time >> 5 & 63,
            2 * (time & 31),
            tzinfo=UTC,
        )
    except ValueError:
        return 0
    return int(moment.timestamp()) * 1_000_000_000 + min(tens, 199) * 10_000_000


def _offset(zone: int) -> int:
    """Return an exFAT zone's offset from UTC in nanoseconds; 0 where it is not given."""
    if not zone & 0x80:
        return 0
    quarters = zone & 0x7F
    return (quarters - 128 if quarters >= 64 else quarters) * 900 * 1_000_000_000
