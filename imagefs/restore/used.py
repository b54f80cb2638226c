"""A volume's bytes less what its file system has free."""

import threading
from collections.abc import Iterator

import numpy as np

from formats.blockreader import BlockReader, Extent
from imagefs.imaging.used_space import UsedSpace
from imagefs.imaging.used_space.base import Runs

_WINDOW = 1 << 32  # bytes asked for at once: what bounds the memory of a volume's runs


class SolidReader(BlockReader):
    """A reader all of whose bytes count as data: a hole of a sparse file may lie in what is used.

    What is free may keep what a target had there; what is used and zeros must become zeros.
    """

    def __init__(self, lower: BlockReader) -> None:
        super().__init__(lower.size)
        self._lower = lower

    def _read(self, offset: int, length: int) -> bytes:
        return self._lower.read_at(offset, length)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        self._lower.read_into(offset, buffer)


class UsedReader(BlockReader):
    """A volume in which all that its file system has free is a hole, and reads as zeros.

    ``used`` is the volume's. Its runs are rounded out to sectors, the file system's own ones where
    ``sector_size`` (bytes) does not say otherwise. Holes of ``reader`` stay holes. Safe from threads; raises
    what ``reader`` does. It closes nothing: the reader below is its owner's.
    """

    def __init__(self, reader: BlockReader, used: UsedSpace, sector_size: int | None = None) -> None:
        super().__init__(reader.size)
        self._reader = reader
        self._used = used
        self._unit = sector_size or used.sector_size or 512
        self._lock = threading.Lock()  # UsedSpace keeps what it read last

    def _runs(self, offset: int, length: int) -> Runs:
        """Return the used runs of a range, rounded out to sectors and clipped to it."""
        unit, end = self._unit, offset + length
        first = offset // unit * unit
        last = min(self.size, -(-end // unit) * unit)
        with self._lock:
            runs = self._used.runs(first, last - first)
        starts = runs[:, 0] // unit * unit
        ends = -(-runs[:, 1] // unit) * unit
        return np.clip(np.stack([starts, ends], axis=1), offset, end)

    def _read(self, offset: int, length: int) -> bytes:
        runs = self._runs(offset, length).tolist()
        if runs == [[offset, offset + length]]:
            return self._reader.read_at(offset, length)
        data = bytearray(length)
        self._fill(offset, memoryview(data), runs)
        return bytes(data)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        runs = self._runs(offset, len(buffer)).tolist()
        if runs != [[offset, offset + len(buffer)]]:
            buffer[:] = bytes(len(buffer))
        self._fill(offset, buffer, runs)

    def _fill(self, offset: int, buffer: memoryview, runs: list[list[int]]) -> None:
        for start, end in runs:
            self._reader.read_into(start, buffer[start - offset : end - offset])

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end:
            step = min(_WINDOW, end - offset)
            yield from self._window(offset, step)
            offset += step

    def _window(self, offset: int, length: int) -> Iterator[Extent]:
        position = offset
        for first, stop in self._runs(offset, length).tolist():
            start = max(first, position)  # two runs can round out into one sector
            if start > position:
                yield Extent(position, start - position, False)
            if stop > start:
                yield from self._reader.extents(start, stop - start)
                position = stop
        if position < offset + length:
            yield Extent(position, offset + length - position, False)
