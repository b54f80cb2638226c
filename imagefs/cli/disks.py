"""``imagefs disks``: the machine's disks, and what is on them."""

from collections.abc import Iterator, Sequence

from rich.markup import escape

from imagefs.cli.common import Json, columns, name_text, output, print_json, size_text
from imagefs.disks import Disk, Encryption, LooseVolume, document, list_disks


def disks(json: Json = False) -> None:
    """List this machine's disks, their partitions and volumes, by the names that sources have.

    With --json, one document: ``disks``, each with ``partitions``, and ``volumes``, those of Windows that are
    no partition of one disk. Keys are always there. Of a disk: number, name, path, model, vendor, revision,
    serial, size, scheme, id, sector_size, physical_sector_size, bus, removable, problem; of a partition:
    number, source, offset, size, path, type, name, id, file_system, label, mount_points, encryption (kind,
    state), problem. Sizes and offsets are bytes; what is not known is "" or 0. Root, or an administrator,
    learns more.

    Example: imagefs disks

    Exit codes: 0, also where something can't be read · 2 · 7 when the system tells of no disks.
    """
    found = list_disks()
    if json:
        print_json(document(found))
        return
    for disk in found.disks:
        for line in _lines(disk):
            output.print(line)
    if found.volumes:
        output.print("[bold]volumes that are no partition of one disk[/bold]")
        for line in columns([_loose_row(volume) for volume in found.volumes], right=(3,)):
            output.print(f"  {line}")


def _lines(disk: Disk) -> Iterator[str]:
    facts = [
        " ".join(filter(None, (disk.vendor, disk.model))),
        f"serial {disk.serial}" if disk.serial else "",
        size_text(disk.size) if disk.size else "",
        disk.scheme.upper(),
        _sectors(disk),
        disk.bus,
        "removable" if disk.removable else "",
    ]
    yield f"[bold]{disk.name}[/bold]  {escape(name_text(', '.join(filter(None, (disk.path, *facts)))))}"
    if disk.problem:
        yield f"  [red]{escape(name_text(disk.problem))}[/red]"
    if not disk.partitions:
        return
    rows = [("name", "file system", "label", "offset", "size", "mounted on", "")]
    for part in disk.partitions:
        notes = [_encryption(part.encryption), part.problem]
        rows.append(
            (
                f"{disk.name}/p{part.number}",
                name_text(part.file_system),
                name_text(part.label or part.name),
                str(part.offset),
                size_text(part.size),
                _places(part.mount_points),
                name_text(", ".join(filter(None, notes))),
            )
        )
    for line in columns(rows, right=(3, 4)):
        yield f"  {line.rstrip()}"


def _sectors(disk: Disk) -> str:
    if not disk.sector_size:
        return ""
    physical = disk.physical_sector_size
    inner = f" ({physical} physical)" if physical > disk.sector_size else ""
    return f"{disk.sector_size}-byte sectors{inner}"


def _encryption(known: Encryption) -> str:
    if not known.kind:
        return "" if known.state == "off" else "encryption not known"
    return f"{known.kind}: {known.state}"


def _places(mount_points: Sequence[str]) -> str:
    return name_text(", ".join(place.removesuffix("\\") for place in mount_points))


def _loose_row(volume: LooseVolume) -> tuple[str, ...]:
    return (
        _places(volume.mount_points) or name_text(volume.path),
        name_text(volume.file_system),
        name_text(volume.label),
        size_text(volume.size),
        ", ".join(f"disk{number}" for number in volume.disks),
        name_text(", ".join(filter(None, (_encryption(volume.encryption), volume.problem)))),
    )
