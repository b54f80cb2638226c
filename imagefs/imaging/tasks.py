"""Which blocks are read, cut into tasks that are independent of each other."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from formats.blockreader import BlockReader
from formats.mrimgx.index import ResolvedIndex, stored

TASK_SIZE = 2 * 1024 * 1024  # bytes of blocks that are read together; one block where that is larger
_WINDOW = 1024  # blocks whose state is looked at together: 64 MiB as a rule
Runs = npt.NDArray[np.int64]  # (n, 2): start and end of each


@dataclass(frozen=True, slots=True)
class BlockArray:
    """One array of blocks to be imaged: a partition's reserved sectors, or what follows them."""

    name: str  # "disk0/p1", for messages
    place: tuple[int, int]  # disk and partition, by their positions in the image
    is_reserved: bool
    disk_number: int
    partition_number: int
    reader: BlockReader  # the partition's bytes
    start: int  # of block 0 in the reader
    size: int  # bytes that the blocks cover; the last one may be short
    block_size: int
    used: Callable[[int, int], Runs] | None = None  # which bytes of a range of the reader hold anything
    parent: ResolvedIndex | None = None  # what the blocks were before; reserved sectors have none

    @property
    def count(self) -> int:
        """The number of blocks."""
        return -(-self.size // self.block_size)


@dataclass(frozen=True, slots=True)
class Task:
    """Blocks to be read together, and what is known of them. ``end`` is where the next task begins."""

    array: int
    end: int
    runs: tuple[tuple[int, int], ...]  # (first block, number of blocks), ascending
    gaps: tuple[tuple[int, int], ...]  # free bytes of the reader: inside the blocks they become zeros
    known: bytes  # the MD5s that the blocks of the runs had before, 16 bytes each; zeros for a new one
    freed: tuple[int, ...]  # blocks that were stored before and hold nothing now


def used_blocks(array: BlockArray, first: int, end: int) -> tuple[npt.NDArray[np.bool_], Runs]:
    """Return which blocks of a range hold anything, and the used runs in them (bytes of the reader)."""
    low = array.start + first * array.block_size
    high = min(array.start + end * array.block_size, array.start + array.size)
    if array.used is None:
        return np.ones(end - first, np.bool_), np.array([[low, high]], np.int64)
    runs = array.used(low, high - low)
    steps = np.zeros(end - first + 1, np.int64)
    np.add.at(steps, (runs[:, 0] - low) // array.block_size, 1)
    np.add.at(steps, -((low - runs[:, 1]) // array.block_size), -1)
    return np.cumsum(steps)[:-1] > 0, runs


def count_used(arrays: Sequence[BlockArray]) -> list[int]:
    """Return how many blocks of each array hold anything."""
    counts = []
    for array in arrays:
        windows = ((at, min(at + _WINDOW, array.count)) for at in range(0, array.count, _WINDOW))
        counts.append(sum(int(np.count_nonzero(used_blocks(array, *window)[0])) for window in windows))
    return counts


def plan_tasks(
    arrays: Sequence[BlockArray], start: tuple[int, int] = (0, 0), stop: tuple[int, int] | None = None
) -> Iterator[Task]:
    """Yield the tasks from a place on, and up to another one: (array, block)."""
    for number in range(start[0], len(arrays)):
        array = arrays[number]
        first, end = start[1] if number == start[0] else 0, array.count
        if stop is not None and number >= stop[0]:
            end = min(end, stop[1]) if number == stop[0] else 0
        for at in range(first, end, _WINDOW):
            yield from _plan_window(array, number, at, min(at + _WINDOW, end))


def _plan_window(array: BlockArray, number: int, first: int, end: int) -> Iterator[Task]:
    states, runs = used_blocks(array, first, end)
    rows = np.flatnonzero(states).tolist()
    hashes, freed = b"", []
    if array.parent is not None:
        elements = array.parent.elements(first, end).copy()
        before = stored(elements)
        elements["md5"][~before] = 0
        hashes = elements["md5"].tobytes()
        freed = (np.flatnonzero(before & ~states) + first).tolist()
    if not rows:
        if freed:
            yield Task(number, end, (), (), b"", tuple(freed))
        return
    gaps = _gaps(array, runs, first, end)
    low = first
    step = max(1, TASK_SIZE // array.block_size)
    for at in range(0, len(rows), step):
        mine = rows[at : at + step]
        stop = first + rows[at + step] if at + step < len(rows) else end
        runs_of_blocks = _contiguous(mine)
        yield Task(
            array=number,
            end=stop,
            runs=tuple((first + row, count) for row, count in runs_of_blocks),
            gaps=_inside(gaps, array.start + low * array.block_size, array.start + stop * array.block_size),
            known=b"".join(hashes[16 * row : 16 * (row + count)] for row, count in runs_of_blocks),
            freed=tuple(freed[bisect_left(freed, low) : bisect_left(freed, stop)]) if freed else (),
        )
        low = stop


def _contiguous(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Return the runs of ascending numbers: (first, how many)."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return [(rows[0], len(rows))]
    edges = [0, *(at for at in range(1, len(rows)) if rows[at] != rows[at - 1] + 1), len(rows)]
    return [(rows[at], stop - at) for at, stop in pairwise(edges)]


def _gaps(array: BlockArray, runs: Runs, first: int, end: int) -> list[tuple[int, int]]:
    """Return the free runs of bytes among some blocks."""
    low = array.start + first * array.block_size
    high = min(array.start + end * array.block_size, array.start + array.size)
    edges = [low, *runs.ravel().tolist(), high]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def _inside(gaps: Sequence[tuple[int, int]], low: int, high: int) -> tuple[tuple[int, int], ...]:
    """Return the gaps, which are in order, that have bytes from ``low`` up to ``high``."""
    start = bisect_right(gaps, low, key=itemgetter(1))
    return tuple(gaps[start : bisect_left(gaps, high, start, key=itemgetter(0))])
