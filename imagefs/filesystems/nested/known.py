"""Which bytes of an NTFS volume its image is known to have: of the others shadow copies are given none.

A shadow copy's blocks that have not changed are the volume's as it is now, also where that calls them free.
But an image of used blocks has no free clusters: they read as zeros, alone or beside others in a block. And
Reflect leaves out where shadow copies are stored, whatever it is told, unless it was started from its rescue
medium (https://blog.macrium.com/what-is-in-an-image-backup-fe3c0264acd7).
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from formats.blockreader import BlockReader
from formats.errors import UnsupportedError
from imagefs.filesystems.nested.shadows import Shadows
from imagefs.imaging.used_space import UsedSpace, used_space
from imagefs.imaging.used_space.base import MappedVolume

_WINDOW = 1 << 16  # blocks that are held against what is used together
_STEP = 1 << 36  # bytes whose used runs are looked at together


def known_shadows(
    volume: BlockReader,
    sector_size: int,
    name: str,
    *,
    excluded: Sequence[str] = (),
    is_held: bool = False,
    is_ours: bool = False,
) -> Shadows:
    """Return the shadow copies of an image's volume: what they give is known to be in the image.

    ``excluded`` are the patterns of files that the image left out; ``is_held``: its free clusters are as they
    were; ``is_ours``: imagefs made it. Raises DamagedError, and UnsupportedError where the image lacks what
    they are stored in.
    """
    known = KnownBytes(volume, sector_size, name, excluded=excluded, is_held=is_held, is_ours=is_ours)
    return Shadows(known, name)


class KnownBytes(BlockReader):
    """Those bytes of a volume that its image is known to have; of the others UnsupportedError.

    What is used is told as it is when images are made, from the same structures. Of what is stored, known is

    - what the volume itself uses: each image of ours has it, as it was;
    - what shadow copies use, in an image of ours, when all of that is stored, and a block that the volume
      itself does not use;
    - everything, when the image is one of all sectors.

    The other blocks and clusters may be missing, or zeros. Nothing is known of another program's image that
    lacks a block of what the volume uses: what else it left out may be zeros beside others in a block. For
    one thread.
    """

    def __init__(
        self,
        volume: BlockReader,
        sector_size: int,
        name: str,
        *,
        excluded: Sequence[str] = (),
        is_held: bool = False,
        is_ours: bool = False,
    ) -> None:
        super().__init__(volume.size)
        self._is_held = is_held
        self._is_ours = is_ours
        self._volume = volume
        self._name = name
        self._sector_size = sector_size
        self._excluded = excluded
        self._own = used_space(volume, sector_size, exclude=excluded, shadows=False)

    @cached_property
    def _all(self) -> UsedSpace:
        return used_space(self._volume, self._sector_size, exclude=self._excluded)

    def _read(self, offset: int, length: int) -> bytes:
        if not self._is_ours and self._lacks_what_is_used:
            raise UnsupportedError(
                f"{self._name}: the program that made the image left out what shadow copies are stored in"
            )
        data = self._volume.read_at(offset, length)
        unknown = self._unknown(offset, length)
        if unknown is not None:
            raise UnsupportedError(
                f"{self._name}: the bytes at {unknown} are not in the image: they were free when it was made"
            )
        return data

    def _unknown(self, offset: int, length: int) -> int | None:
        """Return where the first byte of a range lies that may not be in the image."""
        for extent in self._volume.extents(offset, length):
            if not extent.is_data:
                return extent.offset
        if self._is_held:
            return None
        if isinstance(self._own, MappedVolume):
            free = _first_free(self._own, offset, length)
        else:  # what is used is not told, and was not when the image was made: it has everything then
            free = None if self._has_all_blocks else offset
        if free is not None and self._is_ours and self._has_all_of_shadows:
            free = _first_free(self._all, offset, length)
        return free

    @cached_property
    def _has_all_blocks(self) -> bool:
        return all(extent.is_data for extent in self._volume.extents())

    @cached_property
    def _lacks_what_is_used(self) -> bool:
        """Whether a block is not stored in which the volume uses anything."""
        return any(
            len(self._own.runs(at, min(_STEP, extent.end - at)))
            for extent in self._volume.extents()
            if not extent.is_data
            for at in range(extent.offset, extent.end, _STEP)
        )

    @cached_property
    def _has_all_of_shadows(self) -> bool:
        if not self._stores_a_free_block():
            return False
        steps = ((at, min(_STEP, self.size - at)) for at in range(0, self.size, _STEP))
        return all(
            extent.is_data
            for step in steps
            for start, end in self._all.runs(*step).tolist()
            for extent in self._volume.extents(start, end - start)
        )

    def _stores_a_free_block(self) -> bool:
        """Whether a block is stored in which the volume itself uses nothing."""
        for blocks in self._volume.blocks():
            for at in range(0, len(blocks.offset), _WINDOW):
                starts = blocks.offset[at : at + _WINDOW]
                ends = starts + blocks.length[at : at + _WINDOW]
                runs = self._own.runs(int(starts[0]), int(ends[-1] - starts[0]))
                following = np.searchsorted(
                    runs[:, 1], starts, side="right"
                )  # the first run that ends behind
                if np.any(np.append(runs[:, 0], self.size)[following] >= ends):
                    return True
        return False


def _first_free(used: UsedSpace, offset: int, length: int) -> int | None:
    """Return where the first byte of a range lies that is not used."""
    edges = [offset, *used.runs(offset, length).ravel().tolist(), offset + length]
    return next(_free_starts(edges), None)


def _free_starts(edges: Sequence[int]) -> Iterator[int]:
    return (start for start, end in list(pairwise(edges))[::2] if start < end)
