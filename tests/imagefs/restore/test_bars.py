"""Layouts as bars: what a terminal shows."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from imagefs.restore.bars import Block, Layout, bars, readable

GIB = 1 << 30
MIB = 1 << 20
BEFORE = Layout(
    100 * GIB,
    (
        Block(1, MIB, 100 * MIB, "FAT32"),
        Block(2, 101 * MIB, 60 * GIB, "NTFS"),
        Block(3, 61 * GIB, GIB, "ext"),
    ),
)
AFTER = Layout(
    50 * GIB,
    (
        Block(1, MIB, 100 * MIB, "FAT32"),
        Block(2, 101 * MIB, 48 * GIB, "NTFS"),
        Block(3, 49 * GIB, GIB, "ext"),
    ),
)


def plain(lines: list[str]) -> list[str]:
    return [Text.from_markup(line).plain for line in lines]


def test_a_disk_before_and_after() -> None:
    assert plain(bars(BEFORE, AFTER, 60)) == [
        "before: 100 GiB",
        "┌────────┬────────────────────────┬────────┬───────────────┐",
        "│1 FAT32 │2 NTFS                  │3 ext   │free           │",
        "│100M    │60G                     │1G      │38G            │",
        "└────────┴────────────────────────┴────────┴───────────────┘",
        "after: 50 GiB",
        "┌────┬─────────────┬────┬────┐",
        "│1 F…│2 NTFS       │free│3 e…│",
        "│100M│48G          │923M│1G  │",
        "└────┴─────────────┴────┴────┘",
        "2 NTFS: shrinks from 60 GiB to 48 GiB",
        "3 ext: moves from 61 GiB to 49 GiB",
    ]


def test_names_are_no_markup() -> None:
    odd = Layout(GIB, (Block(1, 0, GIB, "[red]x[/red]"),))
    output = StringIO()
    Console(file=output, width=80).print("\n".join(bars(odd, odd, 60)))
    assert "1 [red]x[/red]" in output.getvalue()


sizes = st.lists(st.integers(1, 1 << 45), max_size=12)


def laid_out(numbers: list[int]) -> Layout:
    blocks, position = [], 0
    for number, size in enumerate(numbers, 1):
        blocks.append(Block(number, position, size, "NTFS"))
        position += size + size // 7
    return Layout(position, tuple(blocks))


@given(sizes, sizes, st.integers(20, 200))
def test_no_line_is_wider_than_it_may_be(before: list[int], after: list[int], width: int) -> None:
    for line in plain(bars(laid_out(before), laid_out(after), width)):
        assert cell_len(line) <= width


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.50 KiB"),
        (10 * GIB + GIB // 2, "10.5 GiB"),
    ],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert readable(size) == text
