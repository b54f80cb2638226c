"""Blocks on their way to a target: read and checked, compared where asked, written; on all cores.

Memory is bounded: 2 MiB for each thread and each use, and some 30 MB for the blocks of a window, which are
sorted by where they are stored.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np

from formats.blockreader import BlockReader, Blocks
from formats.hashing import md5_of_each
from imagefs.parallel import keep_memory
from imagefs.restore.target import Memory, Target

TASK_SIZE = 2 * 1024 * 1024  # bytes that are handled together
_WINDOW = 1 << 20  # blocks that are sorted together: 64 GiB as a rule
_NO_HASH = bytes(16)
_TOLD = 16  # differences that are kept, for messages


class Mode(Enum):
    """What is done with a block."""

    WRITE = "write"
    DELTA = "delta"  # written where the target differs
    COMPARE = "compare"  # read back, never written


@dataclass(frozen=True, slots=True)
class Piece:
    """A reader and where its bytes belong; ``skip`` bytes at its start are left out."""

    name: str  # for messages
    reader: BlockReader
    offset: int  # on the target
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """Blocks of a piece, ascending: neighbours are read and written together."""

    piece: Piece
    starts: tuple[int, ...]  # in the reader
    lengths: tuple[int, ...]
    md5: bytes  # 16 for each; zeros where it is not known


@dataclass(slots=True)
class Counts:
    """What became of blocks."""

    blocks_written: int = 0
    blocks_unchanged: int = 0
    bytes_written: int = 0
    bytes_done: int = 0  # of the source
    different: tuple[tuple[str, int], ...] = ()  # of a comparison: the piece, bytes in it

    def add(self, other: "Counts") -> None:
        """Add another task's."""
        self.blocks_written += other.blocks_written
        self.blocks_unchanged += other.blocks_unchanged
        self.bytes_written += other.bytes_written
        self.bytes_done += other.bytes_done
        self.different = (self.different + other.different)[:_TOLD]


def plan_tasks(pieces: Sequence[Piece], mode: Mode) -> Iterator[Task]:
    """Yield the tasks that cover the data of all pieces.

    What is only written goes in the order in which it is stored; what is compared in that of the target.
    """
    for piece in pieces:
        for window in _windows(piece):
            order = np.arange(window.offset.size)
            if mode is Mode.WRITE:
                order = np.lexsort((window.position, window.file))
            ends = np.cumsum(window.length[order])
            cuts = [0, *(np.flatnonzero(np.diff(ends // TASK_SIZE)) + 1).tolist(), order.size]
            for low, high in pairwise(cuts):
                rows = np.sort(order[low:high])
                if rows.size:
                    yield Task(
                        piece,
                        tuple(window.offset[rows].tolist()),
                        tuple(window.length[rows].tolist()),
                        window.md5[rows].tobytes(),
                    )


def _windows(piece: Piece) -> Iterator[Blocks]:
    """Yield the blocks of a piece, so many at a time as may be sorted."""
    kept: list[Blocks] = []
    count = 0
    for blocks in piece.reader.blocks(piece.skip, piece.reader.size - piece.skip):
        kept.append(blocks)
        count += blocks.offset.size
        if count >= _WINDOW:
            yield _joined(kept)
            kept, count = [], 0
    if kept:
        yield _joined(kept)


def _joined(parts: Sequence[Blocks]) -> Blocks:
    return Blocks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class Copier:
    """Does a task. Safe from several threads."""

    def __init__(self, target: Target, mode: Mode, before_writing: Callable[[], None]) -> None:
        self._target = target
        self._mode = mode
        self._before_writing = before_writing
        self._memory = Memory()
        keep_memory()

    def __call__(self, task: Task) -> Counts:
        """Write, or compare, a task's blocks; raises FormatError, SourceReadError, TargetWriteError."""
        counts = Counts()
        at = 0
        while at < len(task.starts):
            end = _run_end(task, at)
            if self._mode is Mode.WRITE:
                self._write(task, at, end, counts)
            else:
                self._compare(task, at, end, counts)
            at = end
        return counts

    def _write(self, task: Task, first: int, end: int, counts: Counts) -> None:
        start, length = _span(task, first, end)
        view = self._memory.get("source", length)
        task.piece.reader.read_into(start, view)
        self._before_writing()
        counts.bytes_done += length
        if not self._target.fresh:
            self._write_rows(task, first, end, view, counts)
            return
        # Zeros are in a new file already, and need no room.
        rows = [
            row
            for row in range(first, end)
            if not _is_zeros(view[task.starts[row] - start :][: task.lengths[row]])
        ]
        counts.blocks_unchanged += end - first - len(rows)
        for low, high in _neighbours(rows):
            begin, size = _span(task, low, high)
            self._write_rows(task, low, high, view[begin - start :][:size], counts)

    def _write_rows(self, task: Task, first: int, end: int, view: memoryview, counts: Counts) -> None:
        self._target.write(task.piece.offset + task.starts[first], view)
        counts.blocks_written += end - first
        counts.bytes_written += len(view)

    def _compare(self, task: Task, first: int, end: int, counts: Counts) -> None:
        """Hold a run of neighbours against the target; write those that differ."""
        start, length = _span(task, first, end)
        there = self._memory.get("target", length)
        self._target.read_into(task.piece.offset + start, there)
        pieces = [there[task.starts[row] - start :][: task.lengths[row]] for row in range(first, end)]
        known = [task.md5[16 * row : 16 * row + 16] for row in range(first, end)]
        hashes = md5_of_each(pieces) if any(md5 != _NO_HASH for md5 in known) else known
        differing = []
        for row, piece, md5, found in zip(range(first, end), pieces, known, hashes, strict=True):
            if not (md5 == found if md5 != _NO_HASH else self._same(task, row, piece)):
                differing.append(row)
        counts.bytes_done += length
        counts.blocks_unchanged += end - first - len(differing)
        if self._mode is Mode.COMPARE:
            told = tuple((task.piece.name, task.starts[row]) for row in differing)
            counts.different = (counts.different + told)[:_TOLD]
            return
        for low_row, high_row in _neighbours(differing):
            at = counts.bytes_done
            self._write(task, low_row, high_row, counts)
            counts.bytes_done = at

    def _same(self, task: Task, row: int, there: memoryview) -> bool:
        """Compare a block whose hash is not known with the source's bytes."""
        view = self._memory.get("source", len(there))
        task.piece.reader.read_into(task.starts[row], view)
        return bool(np.array_equal(np.frombuffer(view, np.uint8), np.frombuffer(there, np.uint8)))


def _is_zeros(view: memoryview) -> bool:
    return not any(view[:16]) and not np.frombuffer(view, np.uint64 if len(view) % 8 == 0 else np.uint8).any()


def _run_end(task: Task, first: int) -> int:
    """Return the row behind the neighbours that start with one."""
    row = first + 1
    while row < len(task.starts) and task.starts[row] == task.starts[row - 1] + task.lengths[row - 1]:
        row += 1
    return row


def _span(task: Task, first: int, end: int) -> tuple[int, int]:
    """Return the offset in the reader, and the length, of neighbours."""
    start = task.starts[first]
    return start, task.starts[end - 1] + task.lengths[end - 1] - start


def _neighbours(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield runs of rows that follow each other: first and end."""
    first = None
    for number, row in enumerate(rows):
        if first is None:
            first = row
        if number + 1 == len(rows) or rows[number + 1] != row + 1:
            yield first, row + 1
            first = None


class Once:
    """Something that is done before the first write, whoever writes first."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._lock = threading.Lock()
        self.done = False

    def __call__(self) -> None:
        """Do it, or wait until it is done; a failure is everybody's."""
        if not self.done:
            with self._lock:
                if not self.done:
                    self._do()
                    self.done = True
