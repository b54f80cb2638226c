"""Block indexes: one file's own, and the index of a backup point resolved from several files.

Arrays are views of memory maps. A resolved index keeps 10 bytes for each block that a delta changed and
nothing for the others.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from formats.errors import DamagedError
from formats.mrimgx.layout import DELTA_ELEMENT, ELEMENT

Elements = npt.NDArray[np.void]  # of ELEMENT or DELTA_ELEMENT

_CHUNK = 1 << 16  # elements looked at together: 2 MB
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


class OwnIndex(NamedTuple):
    """The arrays of one file's $INDEX: reserved sectors and blocks."""

    reserved: Elements
    blocks: Elements
    is_delta: bool


def parse_index(buffer: Any, offset: int, length: int, *, is_delta: bool, path: Path) -> OwnIndex:
    """Return the arrays of the $INDEX payload that lies at ``offset`` in ``buffer``.

    Raises DamagedError when the counts and the length disagree, or a delta's blocks don't ascend.
    """
    if length < 4:
        raise DamagedError(f"$INDEX at {offset} has {length} bytes", path=path)
    (reserved_count,) = struct.unpack_from("<I", buffer, offset)
    position = 4 + reserved_count * ELEMENT.itemsize
    kind = DELTA_ELEMENT if is_delta else ELEMENT
    if position + 4 > length:
        raise DamagedError(f"$INDEX at {offset}: {reserved_count} reserved elements don't fit", path=path)
    (count,) = struct.unpack_from("<I", buffer, offset + position)
    if position + 4 + count * kind.itemsize != length:
        raise DamagedError(f"$INDEX at {offset}: {count} elements don't make {length} bytes", path=path)
    reserved = np.frombuffer(buffer, ELEMENT, reserved_count, offset + 4)
    blocks = np.frombuffer(buffer, kind, count, offset + position + 4)
    if is_delta and count > 1 and not bool((blocks["block"][1:] > blocks["block"][:-1]).all()):
        raise DamagedError(f"$INDEX at {offset}: the delta's blocks don't ascend", path=path)
    return OwnIndex(reserved, blocks, is_delta)


def chunks(elements: Elements) -> Iterator[tuple[int, Elements]]:
    """Yield (first row, rows) of an array, in pieces that are small beside the memory of a machine."""
    for first in range(0, len(elements), _CHUNK):
        yield first, elements[first : first + _CHUNK]


def stored(elements: Elements) -> npt.NDArray[np.bool_]:
    """Return which elements are stored blocks.

    What has no length but a hash or a position is no hole but damage: it counts as stored, so that it is
    read, and found out.
    """
    result: npt.NDArray[np.bool_] = elements["length"] != 0
    result |= elements["position"] != 0
    result |= (elements["md5"] != 0).any(axis=1)
    return result


def count_stored(elements: Elements) -> int:
    """Count the elements that are stored blocks."""
    return sum(int(np.count_nonzero(stored(chunk))) for _, chunk in chunks(elements))


def file_numbers(elements: Elements) -> frozenset[int]:
    """Return the numbers of the files that hold the stored blocks of an array."""
    numbers: set[int] = set()
    for _, chunk in chunks(elements):
        numbers.update(np.unique(chunk["file_number"][stored(chunk)]).tolist())
    return frozenset(numbers)


class ResolvedIndex:
    """The index of one array of a partition at a backup point: a base, and deltas over it.

    A block beyond the base that no delta names is a hole.
    """

    def __init__(self, base: Elements, deltas: Sequence[Elements] = ()) -> None:
        self._base = base
        self._bytes = base.view(np.uint8).data
        self._deltas = [delta for delta in deltas if len(delta)]
        self._blocks = np.empty(0, "<u4")  # ascending
        self._sources = np.empty(0, "<u2")  # which delta
        self._rows = np.empty(0, "<u4")  # which row of it
        if self._deltas:
            blocks = np.concatenate([delta["block"] for delta in self._deltas])
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
        if len(self._blocks):
            at = int(np.searchsorted(self._blocks, block))
            if at < len(self._blocks) and self._blocks[at] == block:
                found = self._deltas[self._sources[at]][self._rows[at]]
                return Element.of(found)
        if block < len(self._base):
            return Element(*_ELEMENT.unpack_from(self._bytes, block * ELEMENT.itemsize))
        return HOLE

    def elements(self, first: int, count: int) -> Elements:
        """Return the elements of a run of blocks, as an array of ELEMENT."""
        result = np.zeros(count, ELEMENT)
        known = self._base[first : first + count]
        result[: len(known)] = known
        low, high = np.searchsorted(self._blocks, [first, first + count])
        for source in np.unique(self._sources[low:high]).tolist():
            mine = np.flatnonzero(self._sources[low:high] == source) + low
            rows = self._deltas[source][self._rows[mine]]
            for name in ELEMENT.names or ():
                result[name][self._blocks[mine] - first] = rows[name]
        return result

    def runs(self, first: int, end: int) -> Iterator[tuple[int, Elements]]:
        """Yield (first block, elements) of a range of blocks, piece by piece."""
        while first < end:
            count = min(_CHUNK, end - first)
            yield first, self.elements(first, count)
            first += count

    def stored_count(self) -> int:
        """Count the stored blocks."""
        return sum(int(np.count_nonzero(stored(piece))) for _, piece in self.runs(0, self.count))
