"""Read, hash, compare, compress, encrypt: what happens to blocks between the source and the image.

Tasks run on all cores; their results come back in order. Memory is bounded: ``TASK_SIZE`` (2 MiB) of plain
blocks for each thread, and as much of stored ones for each of the ``workers + 4`` tasks in flight: 16 MiB on
two cores, 136 MiB on 32, the most that are used. Reserved sectors of FAT go by 4 MiB instead.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from formats.errors import ReadError
from formats.hashing import md5_of_each
from formats.mrimgx.encoder import Bytes
from imagefs.errors import SourceReadError
from imagefs.imaging.tasks import BlockArray, Task
from imagefs.parallel import keep_memory

_NO_HASH = bytes(16)
# Plain blocks, disk, partition, numbers of the blocks -> stored bytes of each.
Encode = Callable[[Sequence[Bytes], int, int, Sequence[int]], Sequence[Bytes]]


class Encoded(NamedTuple):
    """A block that goes into the image; ``stored`` is empty for one that became free."""

    block: int
    md5: bytes
    stored: Bytes
    tag: bytes


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a task."""

    task: Task
    blocks: tuple[Encoded, ...]  # ascending, without those that are as before
    unchanged: int
    bytes_read: int
    unreadable: tuple[tuple[int, int], ...] = ()  # (offset in the partition, length), read as zeros


class _Memory(threading.local):
    """Memory that a thread reads into again and again: getting it anew each time costs more than reading."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray())

    def get(self, length: int) -> memoryview:
        """Return so many bytes, with whatever is in them."""
        if len(self._view) < length:
            self._view = memoryview(bytearray(length))
        return self._view[:length]


class Encoder:
    """Does a task. Safe from several threads."""

    def __init__(
        self,
        arrays: Sequence[BlockArray],
        encode: Encode | None,
        *,
        tag: Callable[[Bytes], bytes] = lambda _: b"",
        skip_bad: bool = False,
    ) -> None:
        self._arrays = arrays
        self._encode = encode  # None: hashes alone
        self._tag = tag
        self._skip_bad = skip_bad
        self._memory = _Memory()
        keep_memory()

    def __call__(self, task: Task) -> Result:
        """Read a task's blocks and encode those that are not as before.

        Raises SourceReadError where the source can't be read, unless bad ranges are to be skipped.
        """
        array = self._arrays[task.array]
        size, known = array.block_size, task.known
        encoded = [Encoded(block, _NO_HASH, b"", b"") for block in task.freed]
        unreadable: list[tuple[int, int]] = []
        total = unchanged = 0
        place = 0  # in ``known``
        for first, count in task.runs:
            view = self._read(array, first, count, task.gaps, unreadable)
            total += len(view)
            new, hashes, plain = [], [], []
            pieces = [view[at * size : (at + 1) * size] for at in range(count)]
            for block, (piece, md5) in enumerate(zip(pieces, md5_of_each(pieces), strict=True), first):
                if known[place : place + 16] == md5:
                    unchanged += 1
                else:
                    new.append(block)
                    hashes.append(md5)
                    plain.append(piece)
                place += 16
            encoded += self._stored(array, new, hashes, plain)
        if task.freed:
            encoded.sort(key=itemgetter(0))
        return Result(task, tuple(encoded), unchanged, total, tuple(unreadable))

    def _stored(
        self, array: BlockArray, blocks: list[int], hashes: list[bytes], plain: list[memoryview]
    ) -> Iterator[Encoded]:
        """Yield what is to be stored of blocks; nothing but their hashes where nothing is."""
        kept: Sequence[Bytes] = [b""] * len(blocks)
        if self._encode is not None and blocks:
            kept = self._encode(plain, array.disk_number, array.partition_number, blocks)
        for block, md5, data in zip(blocks, hashes, kept, strict=True):
            yield Encoded(block, md5, data, self._tag(data) if data else b"")

    def _read(
        self,
        array: BlockArray,
        first: int,
        count: int,
        gaps: Sequence[tuple[int, int]],
        unreadable: list[tuple[int, int]],
    ) -> memoryview:
        """Return the bytes of some blocks, free ones as zeros; they hold until this thread reads again."""
        offset = array.start + first * array.block_size
        length = min(count * array.block_size, array.start + array.size - offset)
        view = self._memory.get(length)
        try:
            array.reader.read_into(offset, view)
        except (ReadError, SourceReadError) as error:
            view[:] = self._read_what_can_be(array, offset, length, gaps, unreadable, error)
        for low, high in gaps:
            start, end = max(low, offset) - offset, min(high, offset + length) - offset
            if start < end:
                view[start:end] = bytes(end - start)
        return view

    def _read_what_can_be(
        self,
        array: BlockArray,
        offset: int,
        length: int,
        gaps: Sequence[tuple[int, int]],
        unreadable: list[tuple[int, int]],
        error: Exception,
    ) -> bytearray:
        """Read sector by sector what could not be read at once; what is free need not be readable."""
        data = bytearray(length)
        bad: list[tuple[int, int]] = []
        step = _SECTOR
        for at in range(offset, offset + length, step):
            size = min(step, offset + length - at)
            if any(low <= at and at + size <= high for low, high in gaps):
                continue
            try:
                data[at - offset : at - offset + size] = array.reader.read_at(at, size)
            except (ReadError, SourceReadError):
                if bad and sum(bad[-1]) == at:
                    bad[-1] = (bad[-1][0], bad[-1][1] + size)
                else:
                    bad.append((at, size))
        if bad and not self._skip_bad:
            start, end = bad[0][0], sum(bad[-1])
            raise SourceReadError(
                f"{array.name} can't be read at {start}+{end - start}: {getattr(error, 'what', error)}",
                path=getattr(error, "path", None),
                offset=start,
                length=end - start,
                hint="--skip-bad images the rest and records what is lost",
            ) from error
        unreadable += bad
        return data


_SECTOR = 512  # bytes; what is tried by itself where a longer read fails
