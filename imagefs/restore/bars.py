"""Disk layouts drawn as bars in a terminal, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.markup import escape

from imagefs.restore.layout import Placed

_LEAST = (8, 4)  # columns of the narrowest partition: where there is room, and where there is little
_ALIGNING = 2 << 20  # bytes between partitions that are no room to speak of
_COLOURS = ("blue", "green", "magenta", "cyan", "yellow", "red")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True, slots=True)
class Block:
    """A partition, or with number None room that is in none. Offset and size in bytes."""

    number: int | None
    offset: int
    size: int
    file_system: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A disk and what is on it, ascending by offset."""

    size: int
    blocks: tuple[Block, ...]


def layout_before(placed: Sequence[Placed], size: int) -> Layout:
    """Return the layout that volumes had on a disk of ``size`` bytes."""
    items = [(p.volume.number, p.volume.offset, p.volume.size, p.volume.file_system) for p in placed]
    return Layout(size, tuple(Block(*item) for item in sorted(items, key=lambda item: item[1])))


def layout_after(placed: Sequence[Placed], size: int) -> Layout:
    """Return the layout that volumes get on a disk of ``size`` bytes."""
    items = [(p.volume.number, p.offset, p.size, p.volume.file_system) for p in placed]
    return Layout(size, tuple(Block(*item) for item in sorted(items, key=lambda item: item[1])))


def bars(before: Layout, after: Layout, width: int) -> list[str]:
    """Draw two layouts as lines of rich markup of at most ``width`` columns.

    Each is a bar with the partitions' shares of the disk, the larger disk's being as long as there is room
    for; then a line of text for each partition that differs or is new. It reads without colour too.
    """
    largest = max(before.size, after.size, 1)
    lines = []
    for name, layout in (("before", before), ("after", after)):
        room = max(2 + _LEAST[0], round(width * layout.size / largest))
        lines.append(f"[bold]{name}[/bold]: {readable(layout.size)}")
        lines += _bar(layout, min(width, room))
    return [*lines, *_changes(before, after, width)]


def _bar(layout: Layout, width: int) -> list[str]:
    """Return the bar: an edge, numbers and file systems, sizes, an edge."""
    blocks = _with_gaps(layout)
    widths = _widths([block.size for block in blocks], width - len(blocks) - 1)
    if not widths:  # too many for a bar: the text has to do
        return []
    rows = ["┌" + "┬".join("─" * cells for cells in widths) + "┐"]
    names = [_name(block) for block in blocks]
    for texts in (names, [readable(block.size, short=True) for block in blocks]):
        cells = []
        for block, text, size in zip(blocks, texts, widths, strict=True):
            cut = escape(_cut(text, size))
            colour = "dim" if block.number is None else f"bold {_COLOURS[block.number % len(_COLOURS)]}"
            cells.append(f"[{colour}]{cut}[/]")
        rows.append("│" + "│".join(cells) + "│")
    rows.append("└" + "┴".join("─" * cells for cells in widths) + "┘")
    return rows


def _with_gaps(layout: Layout) -> list[Block]:
    """Return the blocks with those of free room between them, where it is more than what aligning takes."""
    blocks: list[Block] = []
    position = 0
    for block in (*layout.blocks, Block(None, layout.size, 0)):
        if block.offset - position > max(layout.size // 100, _ALIGNING):
            blocks.append(Block(None, position, block.offset - position))
        if block.number is not None:
            blocks.append(block)
        position = max(position, block.offset + block.size)
    return blocks


def _widths(sizes: Sequence[int], room: int) -> list[int]:
    """Share out columns in proportion to sizes, none below the least; empty where there are too few."""
    least = next((cells for cells in _LEAST if cells * len(sizes) * 3 <= room * 2), _LEAST[-1])
    if room < least * len(sizes):
        return []
    widths = [least] * len(sizes)
    spare, total = room - sum(widths), sum(sizes) or 1
    # What is wider than the least by right shares what the narrow ones leave.
    wants = [max(0.0, room * size / total - least) for size in sizes]
    wanted = sum(wants) or 1.0
    widths = [least + int(spare * want / wanted) for want in wants]
    if sizes:
        widths[max(range(len(sizes)), key=sizes.__getitem__)] += room - sum(widths)
    return widths


def _name(block: Block) -> str:
    return "free" if block.number is None else f"{block.number} {block.file_system}"


def _cut(text: str, width: int) -> str:
    """Return text in exactly so many columns; what is cut ends in an ellipsis."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "…"


def _changes(before: Layout, after: Layout, width: int) -> list[str]:
    old = {block.number: block for block in before.blocks}
    lines = []
    for block in after.blocks:
        was = old.get(block.number)
        if was is None:
            what = f"new, {readable(block.size)}"
        elif was.size != block.size:
            verb = "grows" if block.size > was.size else "shrinks"
            what = f"{verb} from {readable(was.size)} to {readable(block.size)}"
        elif was.offset != block.offset:
            what = f"moves from {readable(was.offset)} to {readable(block.offset)}"
        else:
            continue
        lines.append(escape(_cut(f"{_name(block)}: {what}", width).rstrip()))
    return lines


def readable(size: int, *, short: bool = False) -> str:
    """Return bytes in the unit that gives a number below 1024, with three digits at least."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 100 or value == int(value) else 1 if value >= 10 else 2
    name = (_UNITS[unit][0] if unit else "B") if short else f" {_UNITS[unit]}"
    return f"{value:.{digits}f}{name}"
