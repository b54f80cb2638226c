"""UsedSpace: which bytes of a volume hold anything, and how a map of clusters becomes runs of bytes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from formats.errors import DamagedError
from imagefs.imaging.used_space.cluster_runs import (
    NO_RUNS,
    clip_and_merge,
    mark,
    parts_inside,
    runs_of,
    union,
)

PIECE = 1 << 20  # clusters looked at together, a byte for each; a multiple of 8

Bits = NDArray[np.bool_]
Runs = NDArray[np.int64]


class UsedSpace(ABC):
    """Which bytes of a volume hold anything. ``runs`` is for one thread; it keeps what it read last.

    Offsets and lengths are in bytes of the volume, also ``mft_offset``.
    """

    file_system: str  # "NTFS", "FAT32", "exFAT", "EXT4", "HFS+", …; "unknown"
    label: str
    cluster_size: int  # bytes; 0: unknown
    sector_size: int  # bytes, the file system's
    total_clusters: int
    reserved_length: int  # bytes before cluster 2 of FAT12, FAT16 and FAT32; else 0
    mft_offset: int  # NTFS; else 0
    mft_record_size: int  # bytes; NTFS; else 0
    warnings: tuple[str, ...]  # one line each
    left_out: tuple[str, ...]  # paths of files whose contents are left out on purpose

    @property
    @abstractmethod
    def free_clusters(self) -> int:
        """The clusters that the file system calls free; counted when first asked for."""

    @abstractmethod
    def runs(self, offset: int, length: int) -> Runs:
        """Return the used runs inside a window: shape (n, 2), start and end in bytes of the volume.

        Ascending, merged, clipped to the window. Raises ValueError outside the volume, and what the
        volume's reader raises. Its memory is bounded but for the runs themselves: ask in windows.
        """


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file system says of itself. Sizes and places in bytes."""

    file_system: str
    label: str = ""
    cluster_size: int = 0
    sector_size: int = 512
    total_clusters: int = 0
    first_cluster: int = 0  # where the first cluster of the map lies; everything before it is used
    reserved_length: int = 0
    mft_offset: int = 0
    mft_record_size: int = 0


class ClusterMap(ABC):
    """A file system's own record of which clusters are in use. Clusters count from the map's first."""

    @abstractmethod
    def used(self, first: int, count: int) -> Bits:
        """Return for ``count`` clusters from ``first`` whether each is in use; the array is the caller's.

        ``first`` is a multiple of 8. Raises what the volume's reader raises.
        """

    def bad(self, first: int, count: int) -> int:
        """Return how many clusters are neither in use nor free: those that can't be read."""
        return 0

    def all_used(self, runs: Iterable[tuple[int, int]]) -> bool:
        """Whether all clusters of the runs (start, end) are in use."""
        for start, end in runs:
            for at in range(start // 8 * 8, end, PIECE):
                bits = self.used(at, min(PIECE, end - at))
                if not bits[max(0, start - at) :].all():
                    return False
        return True


class WholeVolume(UsedSpace):
    """Every byte is used: there is no telling, or it was asked for."""

    def __init__(self, size: int, facts: Facts, warnings: Iterable[str] = ()) -> None:
        self._size = size
        self.file_system = facts.file_system
        self.label = facts.label
        self.cluster_size = facts.cluster_size
        self.sector_size = facts.sector_size
        self.total_clusters = facts.total_clusters
        self.reserved_length = facts.reserved_length
        self.mft_offset = facts.mft_offset
        self.mft_record_size = facts.mft_record_size
        self.warnings = tuple(warnings)
        self.left_out = ()

    @property
    def free_clusters(self) -> int:
        """None: nothing is known to be free."""
        return 0

    def runs(self, offset: int, length: int) -> Runs:
        """Return the window as one run."""
        self._check(offset, length)
        return np.array([[offset, offset + length]] if length else [], np.int64).reshape(-1, 2)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"window {offset}+{length} is outside a volume of {self._size} bytes")


class MappedVolume(WholeVolume):
    """What a map of clusters calls used, less ``holes``; and all that lies before and behind the clusters.

    ``holes`` are runs of clusters (start, end) that hold nothing worth keeping, in any order. ``exact``
    makes everything used; the map still tells how many clusters are free.
    """

    def __init__(
        self,
        size: int,
        facts: Facts,
        clusters: ClusterMap,
        *,
        warnings: Iterable[str] = (),
        left_out: Iterable[str] = (),
        holes: Runs | None = None,
        piece: int = PIECE,
        exact: bool = False,
    ) -> None:
        super().__init__(size, facts, warnings)
        self.left_out = tuple(left_out)
        self._first = facts.first_cluster
        self._clusters = clusters
        self._holes = NO_RUNS if holes is None else union(holes)
        self._piece = piece
        self._exact = exact
        self._number = -1  # of the piece that is kept
        self._bits: Bits = np.empty(0, np.bool_)

    @cached_property
    def free_clusters(self) -> int:
        """The clusters that the file system calls free, counted by going through its whole map."""
        free = 0
        for first in range(0, self.total_clusters, self._piece):
            count = min(self._piece, self.total_clusters - first)
            used = self._clusters.used(first, count)
            free += count - int(np.count_nonzero(used)) - self._clusters.bad(first, count)
        return free

    def runs(self, offset: int, length: int) -> Runs:
        """Return the used runs of a window."""
        if self._exact:
            return super().runs(offset, length)
        self._check(offset, length)
        end = offset + length
        found = [np.array([[0, self._first]], np.int64)]
        found += self._mapped(offset, end)
        found.append(
            np.array([[self._first + self.total_clusters * self.cluster_size, self._size]], np.int64)
        )
        return clip_and_merge(np.concatenate(found), offset, end)

    def _mapped(self, offset: int, end: int) -> Iterator[Runs]:
        """Yield the used runs of the clusters that a window touches, piece by piece."""
        first = max(0, (offset - self._first) // self.cluster_size)
        last = min(self.total_clusters, -((self._first - end) // self.cluster_size))
        while first < last:
            number, inside = divmod(first, self._piece)
            bits = self._load(number)[inside : inside + last - first]
            yield (runs_of(bits) + first) * self.cluster_size + self._first
            first += len(bits)

    def _load(self, number: int) -> Bits:
        if number != self._number:
            first = number * self._piece
            count = min(self._piece, self.total_clusters - first)
            bits = self._clusters.used(first, count)
            if len(bits) != count:
                raise DamagedError(f"{self.file_system}: a map of {len(bits)} clusters, not {count}")
            holes = parts_inside(self._holes, first, count)
            if len(holes):
                bits &= ~mark(holes, count)
            self._bits, self._number = bits, number
        return self._bits
