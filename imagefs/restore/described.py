"""What a target holds now, told to whoever is asked whether it may be overwritten.

Nothing that is wrong with it hinders: what can't be read is said in its place.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from formats import FORMATS
from formats.blockreader import BlockReader, SliceReader
from formats.errors import ReportedError
from formats.files import open_file
from formats.partition_table import Kind, PartitionTable, read_table
from imagefs.filesystems.contents import contents_of
from imagefs.imaging.source_disk import detect_sector_size
from imagefs.machine.rawreader import RawReader

_FILES = (
    ("QCOW2", b"QFI\xfb"),
    ("VHDX", b"vhdxfile"),
    ("VMDK", b"KDMV"),
    ("VHD", b"conectix"),
)  # they start so
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True, slots=True)
class DescribedVolume:
    """A partition, or a volume that has a whole device or file to itself. Sizes are bytes."""

    number: int  # in the table; 1 for a volume without one
    offset: int
    size: int
    name: str  # a GPT's label of the partition
    file_system: str  # "NTFS", "FAT32", "ext4", "LUKS", "LVM", "backup image", …; "" where none is recognised
    label: str
    used_as: tuple[str, ...]  # "mounted read-only on /mnt", "used as swap"
    type: str = ""  # as the table has it: a GUID, or two hex digits
    problem: str = ""  # why more is not known


@dataclass(frozen=True, slots=True)
class Description:
    """A target as it is. Sizes are bytes; what is not known is "", 0 or ()."""

    path: str
    kind: str  # "disk", "partition" or "file"
    size: int
    model: str
    vendor: str
    serial: str
    transport: str
    removable: bool
    sector_size: int
    physical_sector_size: int
    scheme: str  # "gpt" or "mbr"
    disk_id: str
    partitions: tuple[DescribedVolume, ...]
    volume: DescribedVolume | None  # where there is no table
    problems: tuple[str, ...]


def describe_file(target: Path, sector_size: int | None = None) -> Description:
    """Look at a file; ``sector_size`` is found out where it is None. For devices see ``this_machine``."""
    found = Description(
        str(target), "file", target.stat().st_size, "", "", "", "", False, sector_size or 0, 0, "", "", (),
        None, (),
    )  # fmt: skip
    with ExitStack() as owned:
        try:
            raw = RawReader(open_file(target), target)
            owned.callback(raw.close)
            size = sector_size or detect_sector_size(raw)
            if image := _image_of(target, raw):
                volume = DescribedVolume(1, 0, raw.size, "", image, "", ())
                return replace(found, sector_size=size, volume=volume)
        except (OSError, ReportedError) as error:
            what = error.what if isinstance(error, ReportedError) else error.strerror
            return replace(found, problems=(f"can't be read: {what}",))
        return with_contents(replace(found, sector_size=size), raw, {})


def _image_of(target: Path, raw: BlockReader) -> str:
    """Return what kind of image a file is whose bytes are not those of the disk in it, "" for none."""
    if any(known.probe(target) for known in FORMATS):
        return "backup image"
    return next(
        (f"{name} image" for name, magic in _FILES if raw.size > 512 and raw.read_at(0, len(magic)) == magic),
        "",
    )


def with_contents(found: Description, raw: BlockReader, uses: dict[int, tuple[str, ...]]) -> Description:
    """Add the table and what its partitions hold; ``uses`` are by the offset of a partition."""
    table, problems = _table(raw, found.sector_size) if found.kind != "partition" else (None, ())
    if table is None:
        volume = _volume(DescribedVolume(1, 0, raw.size, "", "", "", uses.get(0, ())), raw, found.sector_size)
        return replace(found, volume=volume, problems=problems)
    parts = []
    for entry in sorted(table.partitions, key=lambda entry: (entry.offset, entry.number)):
        if entry.kind is Kind.EXTENDED:
            continue
        used = uses.get(entry.offset, ())
        place = entry.number, entry.offset, entry.size, entry.name
        part = DescribedVolume(*place, "", "", used, entry.type)
        if entry.end > raw.size:
            part = replace(part, problem="ends behind the end of the disk")
        else:
            part = _volume(part, SliceReader(raw, entry.offset, entry.size), found.sector_size)
        parts.append(part)
    return replace(
        found, scheme=table.scheme, disk_id=table.disk_id, partitions=tuple(parts), problems=problems
    )


def _table(raw: BlockReader, sector_size: int) -> tuple[PartitionTable | None, tuple[str, ...]]:
    try:
        table = read_table(raw, sector_size, disk_size=raw.size)
    except ReportedError as error:
        return None, (f"its partition table can't be read: {error.what}",)
    return table, table.problems if table is not None else ()


def _volume(part: DescribedVolume, reader: BlockReader, sector_size: int) -> DescribedVolume:
    """Add a volume's file system and label."""
    found = contents_of(reader, sector_size)
    return replace(
        part, file_system=found.file_system, label=found.label, problem=found.problem or part.problem
    )


# --- Shown ---


def lines(found: Description) -> list[str]:
    """Return a description as lines for people, control characters in them escaped."""
    told = [_headline(found), *(f"  {problem}" for problem in found.problems)]
    if found.partitions:
        told.append(f"  {found.scheme.upper()}, {len(found.partitions)} partition(s):")
        rows = [(str(part.number), _size(part.size), *_contents(part)) for part in found.partitions]
        told += [f"    {row}" for row in _columns(rows)]
    elif found.scheme:
        told.append(f"  {found.scheme.upper()}, no partitions")
    elif found.volume is not None:
        told.append(f"  {_bare(found.volume)}")
    return [_escaped(line) for line in told]


def document(found: Description) -> dict[str, Any]:
    """Return a description for JSON."""
    return asdict(found)


def _headline(found: Description) -> str:
    name = " ".join(filter(None, (found.vendor, found.model)))
    texts = [
        f"{found.kind} of {name}" if found.kind == "partition" and name else name,
        f"serial {found.serial}" if found.serial else "",
        f"{_size(found.size)} ({found.size} bytes)" if found.size >= 1024 else _size(found.size),
        found.transport,
        "removable" if found.removable else "",
        f"{found.sector_size}-byte sectors" if found.kind != "file" and found.sector_size else "",
    ]
    return f"{found.path}: {', '.join(filter(None, texts))}"


def _bare(volume: DescribedVolume) -> str:
    if volume.size == 0:
        return "empty"
    if not (volume.file_system or volume.used_as or volume.problem):
        return "nothing is recognised on it, which does not mean that it is empty"
    return ", ".join(filter(None, _contents(volume)))


def _contents(part: DescribedVolume) -> tuple[str, str, str]:
    label = part.label or part.name
    notes = [*part.used_as, part.problem]
    if part.type and not part.file_system:
        notes.append(f"of type {part.type}")
    return part.file_system or "unknown", f'"{label}"' if label else "", ", ".join(filter(None, notes))


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(w) if at < 2 else cell.ljust(w)
            for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _size(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in _UNITS:
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def _escaped(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )
