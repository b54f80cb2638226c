"""A file's data, read from its volume by data runs."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from formats.blockreader import BlockReader, Extent
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.base import LeastRecentlyUsed

CHUNK = 65536  # bytes of metadata read at once
_CHUNKS_KEPT = 64


class Run(NamedTuple):
    """``length`` bytes of a file that lie at ``start`` of the volume; None: a hole, read as zeros."""

    length: int
    start: int | None


class RunsReader(BlockReader):
    """A file's bytes, from the volume's reader, outside any lock.

    ``runs`` cover the file from its first byte on, and at least ``initialized`` bytes of it; what lies
    beyond that up to ``size`` reads as zeros. Raises DamagedError when they don't cover it, or reach
    outside the volume.
    """

    def __init__(
        self,
        volume: BlockReader,
        runs: Iterable[Run],
        size: int,
        *,
        initialized: int | None = None,
        name: str = "file",
    ) -> None:
        super().__init__(size)
        self._volume = volume
        valid = size if initialized is None else min(initialized, size)
        self._starts: list[int] = []  # offsets in the file, ascending
        self._runs: list[Run] = []
        position = 0
        for run in runs:
            if position >= valid:
                break
            clipped = Run(min(run.length, valid - position), run.start)
            if clipped.start is not None and clipped.start + clipped.length > volume.size:
                raise DamagedError(f"{name}: its data at {clipped.start} lies outside the volume")
            self._append(position, clipped)
            position += clipped.length
        if position < valid:
            raise DamagedError(f"{name}: only {position} of {valid} bytes have a place on the volume")
        if valid < size:
            self._append(valid, Run(size - valid, None))

    def place(self, offset: int) -> int | None:
        """Return where a byte lies on the volume, None where it is in a hole."""
        self._check(offset, 1)
        return next(self.parts(offset, 1))[2]

    def allocated(self) -> int:
        """Return how many bytes have a place on the volume."""
        return sum(run.length for run in self._runs if run.start is not None)

    def not_stored(self) -> int:
        """Return how many bytes have a place on the volume that is a hole of the volume's reader."""
        return sum(
            extent.length
            for run in self._runs
            if run.start is not None
            for extent in self._volume.extents(run.start, run.length)
            if not extent.is_data
        )

    def _append(self, position: int, run: Run) -> None:
        if self._runs:
            length, start = self._runs[-1]
            if (start is None and run.start is None) or (start is not None and run.start == start + length):
                self._runs[-1] = Run(length + run.length, start)
                return
        self._starts.append(position)
        self._runs.append(run)

    def parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int | None]]:
        """Yield (offset in the file, length, offset in the volume or None) of a range."""
        number = bisect_right(self._starts, offset) - 1
        while length:
            run, inside = self._runs[number], offset - self._starts[number]
            step = min(length, run.length - inside)
            yield offset, step, None if run.start is None else run.start + inside
            offset, length, number = offset + step, length - step, number + 1

    def _read(self, offset: int, length: int) -> bytes:
        pieces = [
            bytes(step) if start is None else self._volume.read_at(start, step)
            for _, step, start in self.parts(offset, length)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for at, step, start in self.parts(offset, length):
            if start is None:
                yield Extent(at, step, False)
                continue
            for extent in self._volume.extents(start, step):
                yield Extent(extent.offset - start + at, extent.length, extent.is_data)

    def _prefetch(self, offset: int, length: int) -> None:
        for _, step, start in self.parts(offset, length):
            if start is not None:
                self._volume.prefetch(start, step)


class ChunkedReader:
    """Small pieces of metadata, read 64 KiB at a time; the last chunks used are kept."""

    def __init__(self, lower: BlockReader) -> None:
        self._lower = lower
        self._chunks: LeastRecentlyUsed[int, bytes] = LeastRecentlyUsed(_CHUNKS_KEPT)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes; damage counts only where it lies inside them."""
        index, inside = divmod(offset, CHUNK)
        if inside + length > CHUNK:
            return self._lower.read_at(offset, length)
        piece = self.chunk(index)[inside : inside + length]
        return piece if len(piece) == length else self._lower.read_at(offset, length)

    def chunk(self, index: int) -> bytes:
        """Return a chunk, shorter at the end; b"" beyond it, or where not all can be read."""
        chunk = self._chunks.get(index)
        at = index * CHUNK
        if chunk is None and at < self._lower.size:
            try:
                chunk = self._lower.read_at(at, min(CHUNK, self._lower.size - at))
            except FormatError:
                return b""
            self._chunks.put(index, chunk)
        return chunk or b""

    def clear(self) -> None:
        """Forget the chunks."""
        self._chunks.clear()
