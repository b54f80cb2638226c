"""What every BlockReader must keep, held against the plain bytes that it should show."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from formats.blockreader import BlockReader


def check_reader(
    reader: BlockReader,
    expected: bytes,
    seed: int,
    *,
    edges: Sequence[int] = (),
    reads: int = 500,
    longest: int = 300_000,
) -> None:
    """Hold a reader against ``expected``: size, bounds, random reads, reads from threads, extents.

    Half of the reads lie across one of ``edges`` (offsets where the reader goes from one block or piece to
    the next), by default those of its extents and every 64 KiB.
    """
    assert reader.size == len(expected)
    check_bounds(reader)
    ranges = list(random_ranges(reader, seed, edges, reads, longest))
    for offset, length in ranges:
        data = reader.read_at(offset, length)
        assert type(data) is bytes, f"{type(data)} read at {offset}+{length}"
        assert data == expected[offset : offset + length], f"wrong bytes at {offset}+{length}"
    with ThreadPoolExecutor(4) as pool:
        for (offset, length), data in zip(
            ranges, pool.map(reader.read_at, *zip(*ranges, strict=True)), strict=True
        ):
            assert data == expected[offset : offset + length], f"threads: wrong bytes at {offset}+{length}"
    check_extents(reader, expected, 0, reader.size)
    for offset, length in ranges[: reads // 5]:
        check_extents(reader, expected, offset, length)
        reader.prefetch(offset, length)
    assert reader.read_at(0, min(reader.size, longest)) == expected[:longest]


def random_ranges(
    reader: BlockReader, seed: int, edges: Sequence[int], count: int, longest: int
) -> Iterator[tuple[int, int]]:
    """Yield (offset, length): the ends first, then one at random and one across an edge in turn."""
    size = reader.size
    yield from ((0, 0), (size, 0), (0, min(size, longest)), (max(0, size - longest), min(size, longest)))
    if not size:
        return
    chance = random.Random(seed)
    places = sorted(edges) or sorted(
        {extent.offset for extent in reader.extents()} | set(range(0, size, 65536))
    )
    for turn in range(count):
        length = min(chance.choice((1, 2, 511, 512, 4096, chance.randint(1, longest))), size)
        if turn % 2:
            edge = chance.choice(places)
            offset = edge - chance.randint(0, length)
        else:
            offset = chance.randint(0, size - length)
        offset = max(0, min(offset, size - length))
        yield offset, length


def check_bounds(reader: BlockReader) -> None:
    """Outside of 0 to size every call raises ValueError, also for a length of 0."""
    size = reader.size
    for offset, length in ((-1, 1), (-1, 0), (0, -1), (size, 1), (size + 1, 0), (0, size + 1), (1, size)):
        for call in (reader.read_at, reader.extents, reader.prefetch):
            with pytest.raises(ValueError, match=r"outside|range"):
                call(offset, length)
    with pytest.raises(ValueError, match=r"outside|range"):
        reader.extents(size + 1)
    assert reader.read_at(0, 0) == reader.read_at(size, 0) == b""
    assert list(reader.extents(size)) == list(reader.extents(0, 0)) == []


def check_extents(reader: BlockReader, expected: bytes, offset: int, length: int) -> None:
    """Extents cover the range without gaps, alternate, and are holes only where the bytes are zeros."""
    extents = list(reader.extents(offset, length))
    assert sum(extent.length for extent in extents) == length
    if not length:
        return
    assert extents[0].offset == offset
    assert extents[-1].end == offset + length
    assert all(extent.length > 0 for extent in extents)
    for before, behind in pairwise(extents):
        assert before.end == behind.offset
        assert before.is_data != behind.is_data, "neighbours of one state are not merged"
    for extent in extents:
        if not extent.is_data:
            assert not any(expected[extent.offset : extent.end]), f"data inside of {extent}"
