"""FAT12, FAT16, FAT32 and exFAT, read from their own structures.

TSK cuts long names, writes "^" over characters of 8.3 names, so that different names become one, leaves
out entries that it doubts, and runs times through the machine's time zone; so nothing here goes through it.
"""

import errno
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.base import CachedFileSystem, LeastRecentlyUsed, RecordedTimes
from imagefs.filesystems.fat_layout import (
    ENTRY_SIZE,
    ROOT,
    Geometry,
    Node,
    exfat_label,
    exfat_names,
    exfat_upcase_place,
    fat_label,
    fat_names,
    parse_exfat_boot,
    parse_exfat_node,
    parse_exfat_upcase,
    parse_fat_boot,
    parse_fat_node,
)
from imagefs.filesystems.runs import ChunkedReader, Run, RunsReader
from imagefs.filesystems.upcase import UpCase, unicode_upcase
from mounters.tree import Attributes, Entry, NodeType, is_a_directory

log = logging.getLogger(__name__)

_FIRST_INODE = 3  # of the first directory entry; each 32 bytes of the data area have a number, as in TSK
_PIECE = 6144  # bytes of the FAT decoded at once: whole entries of 12, 16 and 32 bits
_PIECES_KEPT = 64
_LARGEST_UPCASE = 1 << 18  # bytes; a table that is not compressed has half of them
_LARGEST_FAT, _LARGEST_EXFAT = 2 << 20, 256 << 20  # bytes of a directory


class FatFileSystem(CachedFileSystem):
    """A FAT or exFAT volume. Raises FormatError from the constructor when it can't be used."""

    root = ROOT

    def __init__(self, reader: BlockReader, *, is_exfat: bool) -> None:
        super().__init__()
        self._reader = reader
        self._metadata = ChunkedReader(reader)
        self._pieces: LeastRecentlyUsed[int, Sequence[int]] = LeastRecentlyUsed(_PIECES_KEPT)
        self._owners: dict[int, int] = {}  # the directory that starts at a cluster
        self._is_exfat = is_exfat
        sector = reader.read_at(0, 512)
        self._geometry = parse_exfat_boot(sector) if is_exfat else parse_fat_boot(sector)
        self.kind = self._geometry.kind
        self.block_size = self._geometry.cluster_size
        self._root_node = Node(True, self._geometry.root_cluster, 0, 0, True, 0, 0, 0)
        if not any(self._piece(0)[:2]):
            raise DamagedError(f"{self.kind}: its FAT is empty")
        root = self._directory(ROOT)
        self._root_size = root.size
        content = root.read_at(0, root.size)
        self.label = exfat_label(content) if is_exfat else fat_label(content)

    def read_link(self, inode: int) -> str:
        """Raise EINVAL: there are no links."""
        self.attributes(inode)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def recorded_times(self, inode: int) -> Sequence[RecordedTimes]:
        """Return the times of a node's entry, which has none of a change of itself."""
        return [times._replace(changed=None) for times in super().recorded_times(inode)]

    def open(self, inode: int) -> BlockReader:
        """Return a file's data."""
        if inode == ROOT:
            raise is_a_directory(str(inode))
        node = self._node(inode)
        if node.is_directory:
            raise is_a_directory(str(inode))
        return self._data(node, node.size, f"file {inode}")

    @property
    def geometry(self) -> Geometry:
        """Where what lies on the volume."""
        return self._geometry

    def entry(self, inode: int, count: int = 1) -> bytes:
        """Return the directory entry that a node's number is the place of, and those that lie behind it."""
        at = self._geometry.data_start + (inode - _FIRST_INODE) * ENTRY_SIZE
        if inode < _FIRST_INODE or at + count * ENTRY_SIZE > self._reader.size:
            raise DamagedError(f"inode {inode} is outside the volume")
        return self._metadata.read(at, count * ENTRY_SIZE)

    def fat_entries(self, first: int, count: int) -> list[int]:
        """Return what the FAT says of clusters; the first is number 2."""
        per_piece = _PIECE * 8 // self._geometry.entry_bits
        found: list[int] = []
        while count > len(found):
            number, inside = divmod(first + len(found), per_piece)
            found += self._piece(number)[inside : inside + count - len(found)]
        return found

    def root_content(self) -> bytes:
        """Return the root directory's bytes; an exFAT names its own files there."""
        root = self._directory(ROOT)
        return root.read_at(0, root.size)

    def system_file(self, first_cluster: int, size: int, what: str) -> RunsReader:
        """Return what the root directory of an exFAT names without a file's entries, by its chain."""
        return self._data(Node(False, first_cluster, size, size, True, 0, 0, 0), size, what)

    def system_places(self, first_cluster: int, size: int, what: str) -> list[Run]:
        """Return where the clusters of a ``system_file`` lie, in order."""
        return self.clusters(Node(False, first_cluster, size, size, True, 0, 0, 0), size, what)

    def places(self, inode: int) -> list[Run]:
        """Return where the clusters of a file or directory lie, in order; of a file those its size needs.

        Raises DamagedError where that is not told without a contradiction.
        """
        what = f"inode {inode}"
        if inode == ROOT and not self._geometry.root_cluster:
            return []
        node = self._root_node if inode == ROOT else self._node(inode)
        if node.is_directory and (inode == ROOT or not self._is_exfat):
            limit = _LARGEST_EXFAT if self._is_exfat else _LARGEST_FAT
            return self._chain(node.first_cluster, None, limit // self.block_size + 1, what)
        return self.clusters(node, node.size, what)

    def close(self) -> None:
        """Forget the caches."""
        super().close()
        self._metadata.clear()
        self._pieces.clear()

    # nodes

    def _upcase(self) -> UpCase | None:
        return self._exfat_upcase if self._is_exfat else unicode_upcase()

    @cached_property
    def _exfat_upcase(self) -> UpCase | None:
        """The volume's own upper case; None where it is damaged: names are exact then."""
        try:
            place = exfat_upcase_place(self.root_content())
            if place is None:
                raise DamagedError("exFAT: no up-case table")
            checksum, cluster, size = place
            if size > _LARGEST_UPCASE:
                raise DamagedError(f"exFAT: an up-case table of {size} bytes")
            table = self.system_file(cluster, size, "up-case table").read_at(0, size)
            upcase = UpCase(parse_exfat_upcase(table, checksum))
            if not upcase.is_sensible():
                raise DamagedError("exFAT: its up-case table can't be one of letters")
        except FormatError as error:
            log.warning("names are compared exactly: %s", error)
            return None
        return upcase

    def _load_attributes(self, inode: int) -> Attributes:
        if inode == ROOT:
            return Attributes(ROOT, NodeType.DIRECTORY, size=self._root_size, mode=0o555)
        node = self._node(inode)
        allocated = -(-node.size // self.block_size) * self.block_size
        return Attributes(
            inode=inode,
            type=NodeType.DIRECTORY if node.is_directory else NodeType.FILE,
            size=node.size,
            mode=0o555 if node.is_directory else 0o444,
            modified=node.modified,
            accessed=node.accessed,
            changed=node.modified,
            created=node.created,
            allocated=allocated,
            file_attributes=node.file_attributes,
        )

    def _node(self, inode: int) -> Node:
        """Return what a node's directory entry says, which its number is the place of."""
        at = self._geometry.data_start + (inode - _FIRST_INODE) * ENTRY_SIZE
        what = f"inode {inode}"
        entry = self.entry(inode)
        return self._exfat_node(at, entry, what) if self._is_exfat else parse_fat_node(entry, what)

    def _exfat_node(self, at: int, entry: bytes, what: str) -> Node:
        """Return a node by the set of entries at ``at``.

        They may go on in another cluster: the one the FAT names or, where the directory lies in one
        piece and its part of the FAT means nothing, the next. Their sum tells.
        """
        cluster, inside = divmod(at - self._geometry.cluster_start, self.block_size)
        length = ENTRY_SIZE * (1 + entry[1])
        first = self._metadata.read(at, min(length, self.block_size - inside, self._reader.size - at))
        if len(first) == length:
            return parse_exfat_node(first, what)
        for following in (cluster + 3, self._next(cluster + 2)):
            if 2 <= following < self._geometry.clusters + 2:
                start = self._place(following)
                if start + length - len(first) <= self._reader.size:
                    entries = first + self._metadata.read(start, length - len(first))
                    try:
                        return parse_exfat_node(entries, what)
                    except DamagedError:
                        continue
        raise DamagedError(f"{what}: the sum of its directory entries is wrong")

    # directories

    def _load_listing(self, inode: int) -> Iterator[Entry]:
        what = f"directory {inode}"
        directory = self._directory(inode)
        content = directory.read_at(0, directory.size)
        if not self._is_exfat and inode != ROOT and content[:1] != b".":
            raise DamagedError(f"{what}: it does not start with itself")
        names = exfat_names(content, what) if self._is_exfat else fat_names(content, what)
        for number, name, is_directory in names:
            at = directory.place(number * ENTRY_SIZE)
            assert at is not None
            own = _FIRST_INODE + (at - self._geometry.data_start) // ENTRY_SIZE
            yield Entry(name, own, NodeType.DIRECTORY if is_directory else NodeType.FILE)

    def _directory(self, inode: int) -> RunsReader:
        """Return the bytes of a directory; DamagedError where they are another's as well."""
        what = f"directory {inode}"
        geometry = self._geometry
        limit = _LARGEST_EXFAT if self._is_exfat else _LARGEST_FAT
        if inode == ROOT and not geometry.root_cluster:
            size = geometry.cluster_start - geometry.data_start
            return RunsReader(self._reader, [Run(size, geometry.data_start)], size, name=what)
        node = self._root_node if inode == ROOT else self._node(inode)
        if node.first_cluster and self._owners.setdefault(node.first_cluster, inode) != inode:
            raise DamagedError(f"{what}: directory {self._owners[node.first_cluster]} is in the same place")
        if inode != ROOT and self._is_exfat:
            if node.size > limit:
                raise DamagedError(f"{what}: {node.size} bytes")
            return self._data(node, node.size, what)
        runs = self._chain(node.first_cluster, None, limit // self.block_size + 1, what)
        return RunsReader(self._reader, runs, sum(run.length for run in runs), name=what)

    # data

    def _data(self, node: Node, size: int, what: str) -> RunsReader:
        runs = self.clusters(node, size, what)
        return RunsReader(self._reader, runs, size, initialized=node.valid, name=what)

    def clusters(self, node: Node, size: int, what: str) -> list[Run]:
        """Return the places of the clusters that ``size`` bytes of a node take."""
        if not size:
            return []
        count = -(-size // self.block_size)
        if node.is_chained:
            return self._chain(node.first_cluster, count, count, what)
        if 2 <= node.first_cluster <= self._geometry.clusters + 2 - count:
            return [Run(count * self.block_size, self._place(node.first_cluster))]
        raise DamagedError(f"{what}: clusters {node.first_cluster}+{count} are outside the volume")

    def _place(self, cluster: int) -> int:
        return self._geometry.cluster_start + (cluster - 2) * self.block_size

    def _chain(self, first: int, count: int | None, limit: int, what: str) -> list[Run]:
        """Return the places of a chain's first ``count`` clusters; None: of all of it.

        Raises DamagedError where the chain is shorter, goes outside the volume or through a cluster twice,
        or is longer than ``limit``.
        """
        ends = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFF_FFF8}[self._geometry.entry_bits]
        end = 0xFFFF_FFF8 if self._is_exfat else ends
        beyond = self._geometry.clusters + 2
        starts: list[list[int]] = []  # [first cluster, clusters] of each piece
        cluster, total, previous = first, 0, -1
        while count is None or total < count:
            if not 2 <= cluster < beyond:
                if count is None and cluster >= end and total:
                    break
                raise DamagedError(f"{what}: cluster {cluster:#x} follows the first {total} of its chain")
            if total == limit:
                raise DamagedError(f"{what}: a chain of more than {limit} clusters")
            if cluster == previous + 1:
                starts[-1][1] += 1
            else:
                starts.append([cluster, 1])
            total += 1
            previous, cluster = cluster, self._next(cluster)
        at = 0
        for start, length in sorted(starts):
            if start < at:
                raise DamagedError(f"{what}: its chain goes through cluster {start} twice")
            at = start + length
        return [Run(length * self.block_size, self._place(start)) for start, length in starts]

    def _next(self, cluster: int) -> int:
        """Return what the FAT says of a cluster."""
        per_piece = _PIECE * 8 // self._geometry.entry_bits
        return self._piece(cluster // per_piece)[cluster % per_piece]

    def _piece(self, number: int) -> Sequence[int]:
        """Return the entries of a piece of the FAT."""
        known = self._pieces.get(number)
        if known is None:
            start, length = number * _PIECE, self._geometry.fat_length
            if self._geometry.fat_start + length > self._reader.size:
                raise DamagedError(f"{self.kind}: its FAT reaches outside the volume")
            raw = self._reader.read_at(self._geometry.fat_start + start, min(_PIECE, length - start))
            known = _decode(raw, self._geometry.entry_bits, self._is_exfat)
            self._pieces.put(number, known)
        return known


def _decode(raw: bytes, bits: int, is_exfat: bool) -> Sequence[int]:
    if bits == 16:
        return struct.unpack(f"<{len(raw) // 2}H", raw)
    if bits == 32:
        entries = struct.unpack(f"<{len(raw) // 4}I", raw)
        return entries if is_exfat else [entry & 0x0FFF_FFFF for entry in entries]
    pairs = [int.from_bytes(raw[at : at + 3], "little") for at in range(0, len(raw), 3)]
    return [half for pair in pairs for half in (pair & 0xFFF, pair >> 12)]
