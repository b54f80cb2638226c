"""The BlockReader contract, and slices, concatenations and caches of it.

Everything that has bytes is a BlockReader: a partition at a point, a whole disk, a file's data, a raw
device. Offsets and lengths are in bytes.
"""

import os
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from formats.errors import DamagedError, ReadError
from formats.files import open_stream, read_at, read_into

_BLOCK = 65536  # bytes of the blocks that a reader without blocks of its own is cut into
_CHUNK = 1 << 16  # blocks that are told together


class Extent(NamedTuple):
    """A run of bytes with one state: data, or a hole that reads as zeros."""

    offset: int
    length: int
    is_data: bool

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + self.length


class Blocks(NamedTuple):
    """Blocks that hold data, ascending by offset: arrays of one length.

    What is read and hashed by itself is a block; ``file`` and ``position`` tell in which order reading them
    goes straight through what stores them.
    """

    offset: NDArray[np.int64]  # bytes
    length: NDArray[np.int64]  # bytes, above 0
    md5: NDArray[np.void]  # 16 bytes; zeros where it is not known
    file: NDArray[np.int64]
    position: NDArray[np.int64]

    def shifted(self, distance: int) -> "Blocks":
        """Return the blocks at other offsets."""
        return self._replace(offset=self.offset + distance)


class BlockReader(ABC):
    """Bytes that can be read at any offset, by several threads at once.

    A subclass implements ``_read`` and, where it knows holes, ``_extents``; both are called with
    offsets and lengths that lie inside the reader and a length above 0.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"a reader can't have {size} bytes")
        self._size = size

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``.

        Raises ValueError outside ``0 … size`` and FormatError when the bytes can't be had; it never
        returns fewer bytes, and never zeros in place of data.
        """
        self._check(offset, length)
        return self._read(offset, length) if length else b""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``, which is writable bytes, from ``offset`` on; else as ``read_at``.

        Where memory is used again for each of many long reads, this is what spares getting it anew.
        """
        self._check(offset, len(buffer))
        if buffer:
            self._read_into(offset, buffer)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Yield the data and hole runs of a range, in order, without gaps, neighbours merged.

        ``length`` None means up to the end. Raises ValueError outside ``0 … size``.
        """
        if length is None:
            length = self._size - offset
        self._check(offset, length)
        return merge_extents(self._extents(offset, length)) if length else iter(())

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[Blocks]:
        """Yield the blocks that hold the data of a range, clipped to it, some ten thousand at a time.

        What lies in none is a hole. Raises as ``extents`` does.
        """
        if length is None:
            length = self._size - offset
        self._check(offset, length)
        return self._blocks(offset, length) if length else iter(())

    def prefetch(self, offset: int, length: int) -> None:
        """Bring a range into this reader's cache, where it has one; raises as ``read_at`` does."""
        self._check(offset, length)
        if length:
            self._prefetch(offset, length)

    def close(self) -> None:  # noqa: B027  (most readers own nothing)
        """Release what this reader itself opened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"range {offset}+{length} is outside a reader of {self._size} bytes")

    @abstractmethod
    def _read(self, offset: int, length: int) -> bytes: ...

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._read(offset, len(buffer))

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, True)

    def _blocks(self, offset: int, length: int) -> Iterator[Blocks]:
        for extent in self.extents(offset, length):
            if extent.is_data:
                first, end = extent.offset // _BLOCK, -(-extent.end // _BLOCK)
                for at in range(first, end, _CHUNK):
                    yield _cut_blocks(extent, at, min(at + _CHUNK, end))

    def _prefetch(self, offset: int, length: int) -> None:  # noqa: B027
        """Do nothing where there is no cache."""


def _cut_blocks(extent: Extent, first: int, end: int) -> Blocks:
    """Return an extent's share of some blocks of 64 KiB, which are not hashed and stored as they lie."""
    edges = np.clip(np.arange(first, end + 1, dtype=np.int64) * _BLOCK, extent.offset, extent.end)
    starts = edges[:-1]
    return Blocks(starts, np.diff(edges), np.zeros(starts.size, "V16"), np.zeros_like(starts), starts)


def merge_extents(extents: Iterator[Extent]) -> Iterator[Extent]:
    """Join neighbouring extents of one state."""
    current: Extent | None = None
    for extent in extents:
        if current is None:
            current = extent
        elif current.is_data == extent.is_data and current.end == extent.offset:
            current = Extent(current.offset, current.length + extent.length, current.is_data)
        else:
            yield current
            current = extent
    if current is not None:
        yield current


class BytesReader(BlockReader):
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data))
        self._data = data

    def _read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class ZeroReader(BlockReader):
    """A hole: ``size`` zeros that are stored nowhere."""

    def _read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, False)


class FileReader(BlockReader):
    """A file or block device, opened here and closed by ``close``.

    Raises ReadError when the operating system does, and DamagedError when the file became shorter.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO
        try:
            self._file = open_stream(path, buffering=0)
            size = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise ReadError(error.strerror or str(error), path=path) from error
        super().__init__(size)

    def fileno(self) -> int:
        """Return the file descriptor; raises ReadError once the file is closed."""
        try:
            return self._file.fileno()
        except ValueError as error:
            raise ReadError("the file is closed", path=self.path) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, offset: int, length: int) -> bytes:
        try:
            data = read_at(self.fileno(), length, offset)
            while len(data) < length:
                more = read_at(self.fileno(), length - len(data), offset + len(data))
                if not more:
                    raise DamagedError(
                        f"ends at {offset + len(data)}, {length} bytes were expected at {offset}",
                        path=self.path,
                    )
                data += more
        except OSError as error:
            raise ReadError(f"{error.strerror or error} at {offset}+{length}", path=self.path) from error
        return data

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        try:
            done = read_into(self.fileno(), buffer, offset)
        except OSError:
            done = 0  # what fails is told by reading again
        if done < len(buffer):
            buffer[done:] = self._read(offset + done, len(buffer) - done)


class SliceReader(BlockReader):
    """A range of another reader."""

    def __init__(self, lower: BlockReader, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > lower.size:
            raise ValueError(f"slice {offset}+{size} is outside a reader of {lower.size} bytes")
        super().__init__(size)
        self._lower = lower
        self._offset = offset

    def _read(self, offset: int, length: int) -> bytes:
        return self._lower.read_at(self._offset + offset, length)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        self._lower.read_into(self._offset + offset, buffer)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for extent in self._lower.extents(self._offset + offset, length):
            yield extent._replace(offset=extent.offset - self._offset)

    def _blocks(self, offset: int, length: int) -> Iterator[Blocks]:
        return (piece.shifted(-self._offset) for piece in self._lower.blocks(self._offset + offset, length))

    def _prefetch(self, offset: int, length: int) -> None:
        self._lower.prefetch(self._offset + offset, length)


class ConcatReader(BlockReader):
    """Readers one behind the other."""

    def __init__(self, pieces: Sequence[BlockReader]) -> None:
        self._pieces = [piece for piece in pieces if piece.size]
        self._starts: list[int] = []
        size = 0
        for piece in self._pieces:
            self._starts.append(size)
            size += piece.size
        super().__init__(size)

    @classmethod
    def from_placed(cls, size: int, placed: Sequence[tuple[int, BlockReader]]) -> Self:
        """Place readers at their offsets in ``size`` bytes; what lies between them is a hole.

        Raises ValueError when two overlap or one reaches beyond ``size``.
        """
        pieces: list[BlockReader] = []
        position = 0
        for offset, reader in sorted(placed, key=lambda item: item[0]):
            if offset < position or offset + reader.size > size:
                raise ValueError(f"piece {offset}+{reader.size} overlaps or is outside {size} bytes")
            pieces += [ZeroReader(offset - position), reader]
            position = offset + reader.size
        return cls([*pieces, ZeroReader(size - position)])

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, BlockReader, int, int]]:
        """Yield (start of the piece, piece, offset in the piece, length) of a range."""
        number = bisect_right(self._starts, offset) - 1
        while length:
            start, piece = self._starts[number], self._pieces[number]
            inside = offset - start
            step = min(length, piece.size - inside)
            yield start, piece, inside, step
            offset, length, number = offset + step, length - step, number + 1

    def _read(self, offset: int, length: int) -> bytes:
        parts = [piece.read_at(at, step) for _, piece, at, step in self._parts(offset, length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        for _, piece, at, step in self._parts(offset, len(buffer)):
            piece.read_into(at, buffer[done : done + step])
            done += step

    def _blocks(self, offset: int, length: int) -> Iterator[Blocks]:
        for start, piece, at, step in self._parts(offset, length):
            for blocks in piece.blocks(at, step):
                yield blocks.shifted(start)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for start, piece, at, step in self._parts(offset, length):
            for extent in piece.extents(at, step):
                yield extent._replace(offset=extent.offset + start)

    def _prefetch(self, offset: int, length: int) -> None:
        for _, piece, at, step in self._parts(offset, length):
            piece.prefetch(at, step)


class BlockCache:
    """Decoded blocks, shared by all readers of a set; bounded in bytes, safe from threads.

    Two threads that want the same block at once decode it once: the second waits for the first. A
    failed decode is not kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: OrderedDict[Hashable, bytes] = OrderedDict()
        self._bytes = 0
        self._pending: dict[Hashable, Future[bytes] | None] = {}  # None: nobody waits yet
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> bytes | None:
        """Return a block that is here now, else None."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def get_or_decode(self, key: Hashable, decode: Callable[[], bytes]) -> bytes:
        """Return the block, calling ``decode`` where it is not here; what ``decode`` raises passes."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
                return block
            mine = key not in self._pending
            waiting = None
            if mine:
                self._pending[key] = None
            else:
                waiting = self._pending[key] = self._pending[key] or Future()
        if waiting is not None:
            return waiting.result()
        try:
            block = decode()
        except BaseException as error:
            with self._lock:
                waiting = self._pending.pop(key)
            if waiting is not None:
                waiting.set_exception(error)
            raise
        with self._lock:
            waiting = self._pending.pop(key)
            self._blocks[key] = block
            self._bytes += len(block)
            while self._bytes > self.capacity:
                _, old = self._blocks.popitem(last=False)
                self._bytes -= len(old)
        if waiting is not None:
            waiting.set_result(block)
        return block

    @property
    def used(self) -> int:
        """The bytes held now."""
        with self._lock:
            return self._bytes
