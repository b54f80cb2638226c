"""What people call a source: ``disk0``, ``disk0/p2``, ``C:``, a device, a file."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from imagefs.errors import UsageError
from imagefs.imaging import this_machine

_DISK = re.compile(r"disk(\d+)(?:[/\\]p(\d+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Named:
    """What a name means. ``note`` is a line to be shown, "" for none."""

    path: Path  # of a device or file; absolute where it is a device's
    partitions: tuple[int, ...]  # numbers; none: all
    note: str = ""


def is_disk(text: str) -> bool:
    """Whether a name is that of a disk or partition by numbers."""
    return _DISK.fullmatch(text) is not None


def find_source(source: str | os.PathLike[str], partitions: tuple[int, ...] = ()) -> Named:
    """Return the device or file that a name means, and which of its partitions, by default ``partitions``.

    ``disk0`` and ``disk0/p2`` are the machine's disks as ``imagefs disks`` numbers them, on Windows ``C:`` is
    a volume; a file called so has to be written with a folder, ``./disk0``. Raises UsageError where there is
    no such disk or volume.
    """
    text = os.fspath(source)
    found = _DISK.fullmatch(text)
    if found is None:
        return Named(this_machine.volume_path(text) or Path(text), partitions)
    paths = this_machine.disk_paths()
    number = int(found[1])
    if number not in paths:
        there = ", ".join(f"disk{one}" for one in paths) or "none that can be seen"
        raise UsageError(
            f"there is no disk{number}; there are: {there}",
            path=Path(text),
            hint=f"a file is named ./{text}; imagefs disks lists the disks",
        )
    if found[2] is not None:
        if partitions not in ((), (int(found[2]),)):
            raise UsageError("names a partition, and others are named beside it", path=Path(text))
        partitions = (int(found[2]),)
    note = ""
    if Path(text).exists():
        note = f"{text} means the disk {paths[number]}; the file of that name is ./{text}"
    return Named(paths[number], partitions, note)
