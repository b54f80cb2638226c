"""What is restored or cloned: a disk of an image or of the machine, as volumes that know their holes."""

import os
from contextlib import ExitStack
from dataclasses import dataclass

from formats.blockreader import BlockReader
from imagefs.errors import UsageError
from imagefs.imaging.names import find_source
from imagefs.imaging.sources import Source, SourceDisk, SourcePartition, open_source
from imagefs.imaging.used_space import used_space
from imagefs.restore.layout import Volume
from imagefs.restore.options import RestoreOptions
from imagefs.restore.used import SolidReader, UsedReader


@dataclass(frozen=True, slots=True)
class Original:
    """An opened disk to be written to a target."""

    source: Source
    disk: SourceDisk
    volumes: tuple[Volume, ...]  # ascending by offset
    warnings: tuple[str, ...]

    def name(self, volume: Volume) -> str:
        """Return what a volume is called in messages, as in the tree."""
        return f"disk{self.disk.number}/p{volume.number}"


def open_original(
    name: str | os.PathLike[str], options: RestoreOptions, password: str | None, owned: ExitStack
) -> Original:
    """Open the image, device or disk file to restore from, and choose its disk; closed with ``owned``.

    ``name`` is a path, or what ``find_source`` knows: "disk0", "C:". Raises what ``open_source`` does, and
    UsageError where there are several disks and none is named.
    """
    named = find_source(name)
    path = named.path
    source = open_source(
        path,
        password=password,
        live=options.live,
        snapshot=options.snapshot,
        partitions=named.partitions,
    )
    owned.enter_context(source)
    disks = [disk for disk in source.disks if options.disk is None or disk.number == options.disk]
    if len(disks) != 1:
        names = ", ".join(f"disk{disk.number}" for disk in source.disks)
        what = "holds several disks" if disks else f"has no disk{options.disk}"
        raise UsageError(what, path=path, hint=f"name one: {names}")
    (disk,) = disks
    warnings = [named.note, *source.warnings] if named.note else list(source.warnings)
    parts = [part for part in disk.partitions if options.partition in (None, part.number)]
    if not parts:
        numbers = ", ".join(f"p{part.number}" for part in disk.partitions) or "none"
        what = "no partition" if options.partition is None else f"no partition {options.partition}"
        raise UsageError(f"disk{disk.number} has {what}; there are: {numbers}", path=path)
    volumes = tuple(_volume(disk, part, source.kind == "image", warnings) for part in parts)
    return Original(source, disk, volumes, tuple(warnings))


def _volume(disk: SourceDisk, part: SourcePartition, is_image: bool, warnings: list[str]) -> Volume:
    """Return a partition as a volume; of what is no image its file system tells what is free."""
    if is_image:
        kind, label = part.file_system, part.label
        reader: BlockReader = part.reader
    else:
        used = used_space(part.reader, disk.sector_size)
        warnings += [f"{disk.name} partition {part.number}: {line}" for line in used.warnings]
        kind, label = used.file_system, used.label
        unit = max(disk.sector_size, used.sector_size)
        reader = UsedReader(SolidReader(part.reader), used, unit)
    return Volume(part.number, part.offset, part.size, kind, label, part.entry, reader)
