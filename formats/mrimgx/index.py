"""Block indexes: one file's own, and the index of a backup point resolved from several files.

The elements stay in their files and are read when they are asked for. A resolved index keeps 10 bytes for
each block that a delta changed and nothing for the others.
"""

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from formats.errors import DamagedError
from formats.mrimgx.layout import DELTA_ELEMENT, ELEMENT

Elements = npt.NDArray[np.void]  # of ELEMENT or DELTA_ELEMENT
ReadBytes = Callable[[int, int], bytes]  # (offset in the file, length) -> exactly so many bytes

_CHUNK = 1 << 16  # elements looked at together: 2 MB
_FEW = 16  # elements that are looked up one by one: quicker than as an array
_PAGE = 128  # elements read at a time when they are wanted one by one: 4 KB
_ELEMENT = struct.Struct("<q16sIH")


class Element(NamedTuple):
    """Where one block is stored. A hole is all zeros, but for its file number, which means nothing."""

    position: int  # bytes from the start of its file
    md5: bytes
    length: int  # stored bytes
    file_number: int

    @classmethod
    def of(cls, row: np.void) -> "Element":
        """Return a row of an array, of ELEMENT or DELTA_ELEMENT."""
        return cls(*_ELEMENT.unpack_from(row.tobytes()))

    @property
    def is_hole(self) -> bool:
        """Whether no bytes are stored: the block reads as zeros."""
        return not self.length and not self.position and self.md5 == _NO_HASH


_NO_HASH = bytes(16)
HOLE = Element(0, _NO_HASH, 0, 0)


class Proof:
    """The comparison of an $INDEX with its hash: made once, when it is needed. Safe from several threads."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._error: DamagedError | None = None
        self.is_made = False

    def make(self) -> None:
        """Compare; raises DamagedError when the index is not what its hash says."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if not self.is_made:
                try:
                    self._check()
                except DamagedError as error:
                    self._error = error
                    raise
                self.is_made = True


class ElementTable:
    """The elements of one array of an $INDEX, read from their file. Safe from several threads."""

    def __init__(
        self, read: ReadBytes, offset: int, count: int, kind: np.dtype[np.void], proof: Proof
    ) -> None:
        self._read = read
        self._offset = offset
        self._count = count
        self._kind = kind
        self.is_delta = kind == DELTA_ELEMENT
        self.proof = proof  # of the whole $INDEX
        self._page = (-1, b"")  # the rows read last, by their number: a reader goes on with their neighbours

    def __len__(self) -> int:
        return self._count

    @property
    def offset(self) -> int:
        """Where the first row stands in the file."""
        return self._offset

    def rows(self, first: int, end: int) -> Elements:
        """Return the rows from ``first`` up to ``end``, fewer where the table ends before."""
        count = min(end, self._count) - first
        if count <= 0:
            return np.empty(0, self._kind)
        size = self._kind.itemsize
        return np.frombuffer(self._read(self._offset + first * size, count * size), self._kind)

    def element(self, row: int) -> Element:
        """Return one row."""
        size = self._kind.itemsize
        number, inside = divmod(row, _PAGE)
        page = self._page
        if page[0] != number:
            first = number * _PAGE
            count = min(_PAGE, self._count - first)
            page = self._page = number, self._read(self._offset + first * size, count * size)
        return Element(*_ELEMENT.unpack_from(page[1], inside * size))

    def chunks(self) -> Iterator[tuple[int, Elements]]:
        """Yield (first row, rows), in pieces that are small beside the memory of a machine."""
        for first in range(0, self._count, _CHUNK):
            yield first, self.rows(first, first + _CHUNK)

    def stored_count(self) -> int:
        """Count the stored blocks."""
        return sum(int(np.count_nonzero(stored(chunk))) for _, chunk in self.chunks())

    def file_numbers(self) -> frozenset[int]:
        """Return the numbers of the files that hold the stored blocks."""
        numbers: set[int] = set()
        for _, chunk in self.chunks():
            numbers.update(np.unique(chunk["file_number"][stored(chunk)]).tolist())
        return frozenset(numbers)


class OwnIndex(NamedTuple):
    """The arrays of one file's $INDEX: reserved sectors and blocks."""

    reserved: ElementTable
    blocks: ElementTable


def parse_index(
    read: ReadBytes, offset: int, length: int, proof: Proof, *, is_delta: bool, path: Path
) -> OwnIndex:
    """Return the arrays of the $INDEX payload that lies at ``offset`` in a file.

    Raises DamagedError when the counts and the length disagree.
    """
    if length < 4:
        raise DamagedError(f"$INDEX at {offset} has {length} bytes", path=path)
    reserved_count = int.from_bytes(read(offset, 4), "little")
    position = 4 + reserved_count * ELEMENT.itemsize
    kind = DELTA_ELEMENT if is_delta else ELEMENT
    if position + 4 > length:
        raise DamagedError(f"$INDEX at {offset}: {reserved_count} reserved elements don't fit", path=path)
    count = int.from_bytes(read(offset + position, 4), "little")
    if position + 4 + count * kind.itemsize != length:
        raise DamagedError(f"$INDEX at {offset}: {count} elements don't make {length} bytes", path=path)
    reserved = ElementTable(read, offset + 4, reserved_count, ELEMENT, proof)
    return OwnIndex(reserved, ElementTable(read, offset + position + 4, count, kind, proof))


def stored(elements: Elements) -> npt.NDArray[np.bool_]:
    """Return which elements are stored blocks.

    What has no length but a hash or a position is no hole but damage: it counts as stored, so that it is
    read, and found out.
    """
    md5 = elements["md5"]
    found = elements["position"].view(np.uint64) | elements["length"] | md5[:, 0] | md5[:, 1]
    result: npt.NDArray[np.bool_] = found != 0
    return result


def check_delta(delta: ElementTable, end: int, where: str, path: Path) -> None:
    """Check that a delta's blocks ascend and lie before ``end``; raises DamagedError."""
    last = -1
    for _, chunk in delta.chunks():
        blocks = chunk["block"].astype(np.int64)
        if blocks[0] <= last or not bool((blocks[1:] > blocks[:-1]).all()):
            raise DamagedError(f"{where}: the delta's blocks don't ascend", path=path)
        last = int(blocks[-1])
    if last >= end:
        raise DamagedError(f"{where}: the delta names block {last}, there are {end}", path=path)


class ResolvedIndex:
    """The index of one array of a partition at a backup point: a base, and deltas over it.

    A block beyond the base that no delta names is a hole. A stored block has a hash of its own, a hole has
    not: it is believed only of an index that is what its own hash says.
    """

    def __init__(self, base: ElementTable, deltas: Sequence[ElementTable] = ()) -> None:
        self._base = base
        self._deltas = [delta for delta in deltas if len(delta)]
        self._blocks = np.empty(0, "<u4")  # ascending
        self._sources = np.empty(0, "<u2")  # which delta
        self._rows = np.empty(0, "<u4")  # which row of it
        if self._deltas:
            blocks = np.concatenate([piece["block"] for delta in self._deltas for _, piece in delta.chunks()])
            sources = np.repeat(np.arange(len(self._deltas), dtype="<u2"), [len(d) for d in self._deltas])
            rows = np.concatenate([np.arange(len(d), dtype="<u4") for d in self._deltas])
            order = np.argsort(blocks, kind="stable")  # equal blocks stay in the order of their deltas
            blocks = blocks[order]
            newest = np.append(blocks[1:] != blocks[:-1], True)
            self._blocks, order = blocks[newest], order[newest]
            self._sources, self._rows = sources[order], rows[order]
        last = int(self._blocks[-1]) + 1 if len(self._blocks) else 0
        self.count = max(len(base), last)

    def element(self, block: int) -> Element:
        """Return one block's element."""
        element = self._find(block)
        if element.is_hole:
            self._base.proof.make()
        return element

    def _find(self, block: int) -> Element:
        if len(self._blocks):
            at = int(np.searchsorted(self._blocks, block))
            if at < len(self._blocks) and self._blocks[at] == block:
                return self._deltas[int(self._sources[at])].element(int(self._rows[at]))
        return self._base.element(block) if block < len(self._base) else HOLE

    def elements(self, first: int, end: int) -> Elements:
        """Return the elements of a run of blocks, as an array of ELEMENT."""
        known = self._base.rows(first, end)
        if not len(self._blocks) and len(known) == end - first:
            return known
        result = np.zeros(end - first, ELEMENT)
        result[: len(known)] = known
        low, high = np.searchsorted(self._blocks, [first, end])
        for source in np.unique(self._sources[low:high]).tolist():
            mine = np.flatnonzero(self._sources[low:high] == source) + low
            top = int(self._rows[mine[0]])  # the rows of one delta ascend with its blocks
            rows = self._deltas[source].rows(top, int(self._rows[mine[-1]]) + 1)[self._rows[mine] - top]
            for name in ELEMENT.names or ():
                result[name][self._blocks[mine] - first] = rows[name]
        return result

    def listed(self, first: int, end: int) -> list[Element]:
        """Return the elements of a run of blocks one by one; holes among them are proven."""
        if end - first <= _FEW:
            return [self.element(block) for block in range(first, end)]
        data = self.elements(first, end).tobytes()
        found = [Element(*_ELEMENT.unpack_from(data, at)) for at in range(0, len(data), ELEMENT.itemsize)]
        if any(element.is_hole for element in found):
            self.prove_holes()
        return found

    def runs(self, first: int, end: int) -> Iterator[tuple[int, Elements]]:
        """Yield (first block, elements) of a range of blocks, piece by piece; what is left out are holes."""
        while first < end:
            if first >= len(self._base):  # a damaged block_count may be far away
                at = int(np.searchsorted(self._blocks, first))
                first = int(self._blocks[at]) if at < len(self._blocks) else end
            stop = min(first + _CHUNK, end)
            if first < stop:
                yield first, self.elements(first, stop)
            first = stop

    def prove_holes(self) -> None:
        """Make sure that what is said of holes is so; raises DamagedError."""
        self._base.proof.make()

    def stored_count(self) -> int:
        """Count the stored blocks."""
        return sum(int(np.count_nonzero(stored(piece))) for _, piece in self.runs(0, self.count))
