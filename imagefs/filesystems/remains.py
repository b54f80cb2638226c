"""What is left of deleted files: which clusters still hold what they had there."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from formats.blockreader import BlockReader, Extent
from imagefs.filesystems.base import GoneError, Recovery, RecoveryState
from imagefs.filesystems.runs import Run

Bits = NDArray[np.bool_]

NOBODY = -1  # an owner that has no claim
NOT_HELD = "the image was made of used clusters only, without what is deleted"
_PIECE = 1 << 20  # clusters looked at together


class Remains(ABC):
    """The clusters of a volume that nobody else has taken since a file was deleted.

    ``is_held`` says that free clusters are as they were on the source. Where they are not, as in an image
    of used blocks only, nothing that lies in them is left; neither is what lies in a hole of the volume's
    reader.
    Safe from several threads.
    """

    def __init__(self, volume: BlockReader, cluster_size: int, first: int, clusters: int, *, is_held: bool):
        self.volume = volume
        self.cluster_size = cluster_size
        self.first = first  # byte of the volume where cluster 0 lies
        self.clusters = clusters
        self.is_held = is_held

    @abstractmethod
    def _free(self, owner: int, first: int, count: int) -> Bits:
        """Return for clusters of the volume whether they are free, and nobody's but ``owner``'s last."""

    def left(self, owner: int, first: int, count: int) -> Bits:
        """Return for ``count`` clusters from ``first`` whether what ``owner`` had there is left."""
        found = np.zeros(count, np.bool_)
        low, high = max(first, 0), min(first + count, self.clusters)
        if not self.is_held or low >= high:
            return found
        inside = found[low - first : high - first]
        inside[:] = self._free(owner, low, high - low)
        start, length = self.first + low * self.cluster_size, (high - low) * self.cluster_size
        for extent in self.volume.extents(start, length):
            if not extent.is_data:
                at = (extent.offset - start) // self.cluster_size
                inside[at : -((start - extent.end) // self.cluster_size)] = False
        return found

    def left_of(self, owner: int, start: int, length: int) -> int:
        """Return how many of the clusters that hold bytes of the volume are left."""
        first = (start - self.first) // self.cluster_size
        end = -((self.first - start - length) // self.cluster_size)
        if first < 0 or end > self.clusters:
            return 0
        return sum(
            int(np.count_nonzero(self.left(owner, at, min(_PIECE, end - at))))
            for at in range(first, end, _PIECE)
        )

    def recovery(self, owner: int, runs: Iterable[Run]) -> Recovery:
        """Return what is left of data that is stored in ``runs``; what these raise says that it is lost."""
        size = self.cluster_size
        stored = left = 0
        for run in runs:
            if run.start is not None:
                stored += -(-run.length // size)
                left += self.left_of(owner, run.start, run.length)
        if left == stored:
            return Recovery(RecoveryState.WHOLE, 0, stored * size)
        gone = (stored - left) * size
        if left:
            return Recovery(RecoveryState.PARTLY, gone, stored * size)
        return Recovery(RecoveryState.LOST, gone, stored * size, "" if self.is_held else NOT_HELD)


class RemainsReader(BlockReader):
    """A volume of which only the bytes of one deleted file can be read; GoneError for those of others."""

    def __init__(self, remains: Remains, owner: int, what: str) -> None:
        super().__init__(remains.volume.size)
        self._remains = remains
        self._owner = owner
        self._what = what

    def _read(self, offset: int, length: int) -> bytes:
        remains, size = self._remains, self._remains.cluster_size
        first = (offset - remains.first) // size
        end = -((remains.first - offset - length) // size)
        if not remains.left(self._owner, first, end - first).all():
            reason = "belong to others now, or are not in the image" if remains.is_held else NOT_HELD
            raise GoneError(f"{self._what} is deleted: bytes of it {reason}")
        return remains.volume.read_at(offset, length)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(
            offset, length, is_data=True
        )  # also where the image has a hole: it is none of the file's

    def _prefetch(self, offset: int, length: int) -> None:
        self._remains.volume.prefetch(offset, length)


class GoneReader(BlockReader):
    """Bytes of a deleted file whose place is not known."""

    def __init__(self, size: int, what: str) -> None:
        super().__init__(size)
        self._what = what

    def _read(self, offset: int, length: int) -> bytes:
        raise GoneError(f"{self._what} is deleted: where the rest of it was is not known")
