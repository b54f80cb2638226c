"""Opening a disk or volume of Windows to image it; and disk files, which nobody writes meanwhile."""

import sys

assert sys.platform == "win32"

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from formats.files_windows import SHARING_VIOLATION, open_unwritten
from imagefs.errors import RefusedError, SourceReadError
from imagefs.imaging.source_disk import OpenedDevice, Wanted
from imagefs.machine.windows import shadow_copies


def is_device(path: Path) -> bool:
    r"""Tell whether a name is that of a device: ``\\.\PhysicalDrive0``."""
    return str(path).startswith("\\\\.\\")


def open_device(wanted: Wanted, owned: ExitStack) -> OpenedDevice:
    """Refuse: only files are read here."""
    del owned
    raise RefusedError("disks are not imaged on Windows", path=wanted.path)


def drop_snapshots(name: str) -> None:
    """Remove the shadow copies that an unfinished backup kept."""
    shadow_copies.release(name, shadow_copies.running_system())


def hold_file(wanted: Wanted, fd: int, spans: Sequence[tuple[int, int]], owned: ExitStack) -> list[str]:
    """Open a disk file once more, so that nobody can write to it; refuse it where somebody does."""
    del fd, spans
    try:
        held = open_unwritten(wanted.path)
    except OSError as error:
        if error.winerror != SHARING_VIOLATION:
            what = error.strerror or str(error)
            raise SourceReadError(what, path=wanted.path, offset=0, length=0) from error
        if wanted.live:
            return [f"{wanted.path}: another program has it open for writing; the image may be inconsistent"]
        raise RefusedError(
            "another program has it open for writing",
            path=wanted.path,
            hint="end that program, or allow an inconsistent image with --live",
        ) from error
    owned.callback(os.close, held)
    return []
