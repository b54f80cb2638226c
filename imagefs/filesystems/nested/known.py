"""Which bytes of a volume its image is known to have."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from formats.blockreader import BlockReader
from formats.errors import UnsupportedError
from imagefs.imaging.used_space import used_space
from imagefs.imaging.used_space.base import MappedVolume

_WINDOW = 1 << 16  # blocks that are held against the free space together


class KnownBytes(BlockReader):
    """Those bytes of an NTFS volume that its image is known to have; of the others UnsupportedError.

    An image of used blocks has a cluster when it has the block that it lies in, and the volume calls it
    used, and it is not of the files that are left out (imagefs and Reflect fill the others with zeros). What
    is used is told as it is when images are made, from the same structures. An image has all clusters when
    it has all blocks, and one at least in which none is used. For one thread.
    """

    def __init__(
        self, volume: BlockReader, sector_size: int, name: str, excluded: Sequence[str] = ()
    ) -> None:
        super().__init__(volume.size)
        self._volume = volume
        self._name = name
        self._used = used_space(volume, sector_size, exclude=excluded)
        self._has_all: bool | None = None

    def _read(self, offset: int, length: int) -> bytes:
        data = self._volume.read_at(offset, length)
        unknown = next(self._unknown(offset, length), None)
        if unknown is not None and not self._is_complete():
            raise UnsupportedError(
                f"{self._name}: the bytes at {unknown} are not in the image: they were free when it was made"
            )
        return data

    def _unknown(self, offset: int, length: int) -> Iterator[int]:
        """Yield where what may not be in the image begins."""
        for extent in self._volume.extents(offset, length):
            if not extent.is_data:
                yield extent.offset
        if not isinstance(self._used, MappedVolume):  # it is not told what is used, and was not then
            if not self._has_all_blocks():
                yield offset
            return
        edges = [offset, *self._used.runs(offset, length).ravel().tolist(), offset + length]
        for start, end in list(pairwise(edges))[::2]:
            if start < end:
                yield start

    def _is_complete(self) -> bool:
        if self._has_all is None:
            self._has_all = self._has_all_blocks() and (
                not isinstance(self._used, MappedVolume) or self._has_free_block()
            )
        return self._has_all

    def _has_all_blocks(self) -> bool:
        return all(extent.is_data for extent in self._volume.extents())

    def _has_free_block(self) -> bool:
        """Whether a block is stored in which nothing is used."""
        for blocks in self._volume.blocks():
            for at in range(0, len(blocks.offset), _WINDOW):
                starts = blocks.offset[at : at + _WINDOW]
                ends = starts + blocks.length[at : at + _WINDOW]
                runs = self._used.runs(int(starts[0]), int(ends[-1] - starts[0]))
                following = np.searchsorted(
                    runs[:, 1], starts, side="right"
                )  # the first run that ends behind
                if np.any(np.append(runs[:, 0], self.size)[following] >= ends):
                    return True
        return False
