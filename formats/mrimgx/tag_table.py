"""The $IFSTAGS block: the tag of each stored block, found by the block's place in its file's $INDEX.

The table has tags for the stored elements of its own run and for nothing else, so that a block's tag is
found by counting. The counts of all pages are made in the pass that authenticates the file: 4 bytes for 128
elements, 2 MB for the index of 4 TB. What is read later is a page of elements and its tags.
"""

import hmac
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from formats.mrimgx.authentication import TAG_SIZE, AuthenticationKeys
from formats.mrimgx.index import Element, Elements, ElementTable, ReadBytes

PAGE = 128  # elements
_KEPT_PAGES = 16  # of a table: readers of several places at once
_PLACE = struct.Struct("<q16xIH")  # of an element: position, length, file number
ArrayKey = tuple[int, int, bool]  # recorded numbers of the disk and the partition; whether reserved sectors


class _Page(NamedTuple):
    data: bytes  # its rows
    blocks: npt.NDArray[np.uint32] | None  # of a delta: their block numbers
    ranks: list[int]  # of each row, among the page's tags; -1 where it has none
    tags: bytes


class TagCounter:
    """Counts the elements that have tags, as the rows of one array are passed through in order.

    What is passed at a time is whole pages, but for the last.
    """

    def __init__(self, files: frozenset[int]) -> None:
        self._files = np.array(sorted(files), np.uint16)
        self._pages: list[npt.NDArray[np.uint32]] = []
        self.count = 0
        self.stored: dict[int, int] = {}  # bytes of stored blocks by file number
        self.reach: dict[int, int] = {}  # where the last of them ends
        self.is_sound = True  # whether each of them lies behind the start of its file

    def add(self, rows: Elements) -> None:
        """Go on with the next rows."""
        has_tag = tagged(rows, self._files)
        if len(rows):
            pages = np.arange(0, len(rows), PAGE)
            self._pages.append(np.add.reduceat(has_tag, pages, dtype=np.uint32))
        self.count += int(np.count_nonzero(has_tag))
        numbers = rows["file_number"][has_tag]
        starts, sizes = rows["position"][has_tag], rows["length"][has_tag].astype(np.int64)
        for number in self._files.tolist():
            mine = slice(None) if len(self._files) == 1 else numbers == number
            size, ends = sizes[mine], starts[mine] + sizes[mine]
            if len(ends):
                self.is_sound &= bool(starts[mine].min() >= 0 and ends.min() >= 0)
                self.stored[number] = self.stored.get(number, 0) + int(size.sum())
                self.reach[number] = max(self.reach.get(number, 0), int(ends.max()))

    def before(self) -> npt.NDArray[np.uint32]:
        """Return how many elements with tags stand before each page."""
        counts = np.concatenate([np.zeros(1, np.uint32), *self._pages])
        return np.cumsum(counts, dtype=np.uint32)[:-1] if len(counts) > 1 else np.empty(0, np.uint32)


def tagged(rows: Elements, files: npt.NDArray[np.uint16]) -> npt.NDArray[np.bool_]:
    """Return which elements have a tag: those that are stored in one of the files."""
    result: npt.NDArray[np.bool_] = rows["length"] != 0
    numbers = rows["file_number"]
    result &= numbers == files[0] if len(files) == 1 else np.isin(numbers, files)
    return result


class TagTable:
    """The tags of one array of an authenticated $INDEX. Safe from several threads.

    ``offset`` is where the array's first tag stands in the file, ``before`` what a TagCounter counted, and
    ``first_blocks`` of a delta are the block numbers of the first row of each page.
    """

    def __init__(
        self,
        elements: ElementTable,
        read: ReadBytes,
        offset: int,
        files: frozenset[int],
        before: npt.NDArray[np.uint32],
        first_blocks: npt.NDArray[np.uint32] | None,
    ) -> None:
        self._elements = elements
        self._read = read
        self._offset = offset
        self._files = np.array(sorted(files), np.uint16)
        self._before = before
        self._first_blocks = first_blocks
        self._page = lru_cache(maxsize=_KEPT_PAGES)(self._load)

    def find(self, block: int, element: Element) -> bytes | None:
        """Return the tag of a block that is stored where ``element`` says; None where none is.

        Raises ReadError.
        """
        if self._first_blocks is None:
            number, row = divmod(block, PAGE)
            page = self._page(number) if number < len(self._before) else None
        else:
            number = int(np.searchsorted(self._first_blocks, block, "right")) - 1
            page = self._page(number) if number >= 0 else None
            if page is not None and page.blocks is not None:
                row = int(np.searchsorted(page.blocks, block))
                if row == len(page.blocks) or page.blocks[row] != block:
                    return None
        if page is None or row >= len(page.ranks) or page.ranks[row] < 0:
            return None
        size = len(page.data) // len(page.ranks)
        if _PLACE.unpack_from(page.data, row * size) != (
            element.position,
            element.length,
            element.file_number,
        ):
            return None
        return page.tags[page.ranks[row] * TAG_SIZE :][:TAG_SIZE]

    def _load(self, number: int) -> _Page:
        rows = self._elements.rows(number * PAGE, number * PAGE + PAGE)
        has_tag = tagged(rows, self._files)
        ranks = np.where(has_tag, np.cumsum(has_tag) - 1, -1)
        count = int(np.count_nonzero(has_tag))
        tags = self._read(self._offset + int(self._before[number]) * TAG_SIZE, count * TAG_SIZE)
        blocks = rows["block"].copy() if self._elements.is_delta else None
        return _Page(rows.tobytes(), blocks, ranks.tolist(), tags)


class BlockTags:
    """What checks the stored blocks of one authenticated file. Safe from several threads.

    ``tables`` are those of the file with the index of its run; None when that file is not there.
    """

    def __init__(
        self, keys: AuthenticationKeys, tables: Mapping[ArrayKey, Sequence[TagTable]] | None
    ) -> None:
        self._keys = keys
        self._tables = tables

    def tag(self, key: ArrayKey, block: int, element: Element) -> bytes | str:
        """Return the tag that a block must have, or why it has none."""
        if self._tables is None:
            return "its tag is in the file with the index of its split, which is not there or forged"
        for table in self._tables.get(key, ()):
            tag = table.find(block, element)
            if tag is not None:
                return tag
        return "the index of its own file does not have it there"

    def fits(self, tag: bytes, stored: bytes | memoryview) -> bool:
        """Whether a block's stored bytes are those that the tag was made of."""
        return hmac.compare_digest(self._keys.block_tag(stored), tag)
