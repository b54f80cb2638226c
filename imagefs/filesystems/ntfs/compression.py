"""Files that NTFS compresses itself, by units of 16 clusters: LZNT1 ([MS-XCA] 2.5).

A unit whose clusters are all there holds its bytes as they are; one without any is a hole; of one with fewer
clusters than it has, they hold what is compressed. Facts: the Linux-NTFS documentation
(https://flatcap.github.io/linux-ntfs/ntfs/concepts/compression.html).
"""

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from formats.blockreader import BlockCache, BlockReader, Extent
from formats.errors import DamagedError
from formats.unpacking import unpack_lznt1
from imagefs.filesystems.runs import Run, RunsReader

LARGEST_UNIT = 1 << 20  # bytes; 16 clusters of 64 KiB, of which Windows compresses none above 4 KiB
_KEPT = 1 << 20  # bytes of decoded units that a reader keeps


class _Kind(Enum):
    HOLE = 0
    PLAIN = 1
    COMPRESSED = 2


class _Range(NamedTuple):
    """Bytes of one kind: a part of one unit where they are compressed, else of any number."""

    offset: int
    length: int
    kind: _Kind


class CompressedReader(BlockReader):
    """The bytes of a compressed attribute; its units without clusters are holes.

    ``runs`` cover all units that hold any of the ``valid`` bytes; what lies beyond these up to ``size`` reads
    as zeros. Raises DamagedError when they don't, and from reading where a unit holds fewer bytes than are
    valid.
    """

    def __init__(
        self, volume: BlockReader, runs: Iterable[Run], size: int, *, valid: int, unit: int, name: str
    ) -> None:
        super().__init__(size)
        self._unit = unit
        self._valid = min(valid, size)
        self._name = name
        self._stored = RunsReader(volume, runs, -(-self._valid // unit) * unit, name=name)
        self._cache = BlockCache(max(_KEPT, unit))

    def _ranges(self, offset: int, length: int) -> Iterator[_Range]:
        end = offset + length
        valid = min(end, self._valid)
        while offset < valid:
            start = offset - offset % self._unit
            _, step, place = next(self._stored.parts(start, self._stored.size - start))
            whole = step - step % self._unit
            if whole:
                kind = _Kind.HOLE if place is None else _Kind.PLAIN
            else:
                whole, kind = self._unit, self._kind(start)
            stop = min(start + whole, valid)
            yield _Range(offset, stop - offset, kind)
            offset = stop
        if offset < end:
            yield _Range(offset, end - offset, _Kind.HOLE)

    def _kind(self, start: int) -> _Kind:
        """Return what a unit of several runs is."""
        are_stored = [place is not None for _, _, place in self._stored.parts(start, self._unit)]
        if all(are_stored):
            return _Kind.PLAIN
        if not any(are_stored):
            return _Kind.HOLE
        if are_stored != sorted(are_stored, reverse=True):
            raise DamagedError(
                f"{self._name}: a hole before the end of compression unit {start // self._unit}"
            )
        return _Kind.COMPRESSED

    def _decoded(self, start: int) -> bytes:
        """Return the valid bytes of a compressed unit."""
        parts = self._stored.parts(start, self._unit)
        stored = sum(step for _, step, place in parts if place is not None)
        wanted = min(self._unit, self._valid - start)
        unit = unpack_lznt1(self._stored.read_at(start, stored), wanted)
        if unit is None or len(unit) != wanted:
            what = "can't be decoded" if unit is None else f"holds {len(unit)} of {wanted} bytes"
            raise DamagedError(f"{self._name}: compression unit {start // self._unit} {what}")
        return unit

    def _read(self, offset: int, length: int) -> bytes:
        pieces = [self._read_range(*part) for part in self._ranges(offset, length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_range(self, offset: int, length: int, kind: _Kind) -> bytes:
        if kind is _Kind.HOLE:
            return bytes(length)
        if kind is _Kind.PLAIN:
            return self._stored.read_at(offset, length)
        inside = offset % self._unit
        start = offset - inside
        if length == self._unit:  # who reads whole units does not come back to them
            return self._cache.get(start) or self._decoded(start)
        unit = self._cache.get_or_decode(start, lambda: self._decoded(start))
        return unit[inside : inside + length]

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for at, step, kind in self._ranges(offset, length):
            if kind is _Kind.PLAIN:
                yield from self._stored.extents(at, step)
            else:
                yield Extent(at, step, kind is _Kind.COMPRESSED)

    def _prefetch(self, offset: int, length: int) -> None:
        start = offset - offset % self._unit
        end = min(-(-(offset + length) // self._unit) * self._unit, self._stored.size)
        if start < end:
            self._stored.prefetch(start, end - start)
