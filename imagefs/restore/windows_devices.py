"""What restoring needs to know of Windows' disks and volumes; ``this_machine`` tells of it."""

import sys

assert sys.platform == "win32"

import os
from collections.abc import Sequence
from pathlib import Path

from imagefs.errors import RefusedError
from imagefs.restore.described import Description, describe_file
from imagefs.restore.guarded_files import refuse_other_than_file, refuse_same_file
from imagefs.restore.target import Target
from imagefs.restore.target_device import TargetDevice


def find_device(target: Path) -> TargetDevice | None:
    """Return None: only files are written here."""
    del target
    return None


def open_device(target: Path) -> Target:
    """Refuse; see ``find_device``."""
    raise RefusedError("disks are not written on Windows", path=target)


def refuse_unsafe(
    target: Path, *, protected: Sequence[Path] = (), span: tuple[int, int] | None = None
) -> None:
    """Raise RefusedError where overwriting a file would do harm, or can't be done."""
    del span
    folder = target.absolute().parent
    if not folder.is_dir():
        raise RefusedError("its folder is not there", path=target, hint=f"make {folder} first")
    found = target.stat() if target.exists() else None
    refuse_other_than_file(target, found)
    refuse_same_file(target, found, protected)
    if found is not None and not os.access(target, os.W_OK):
        raise RefusedError("is read-only", path=target, hint="change its attributes, or name another file")


def describe(target: Path, sector_size: int | None = None) -> Description:
    """Look at a file; raises RefusedError where there is none."""
    if not target.is_file():
        raise RefusedError("is neither a disk nor a file", path=target)
    return describe_file(target, sector_size)
