"""Opening a disk or volume of Windows to image it; and disk files, which nobody writes meanwhile."""

import sys

assert sys.platform == "win32"

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from formats.files_windows import SHARING_VIOLATION, open_unwritten
from imagefs.errors import RefusedError, SourceReadError
from imagefs.imaging import windows_disks
from imagefs.imaging.source_disk import OpenedDevice, Wanted
from imagefs.imaging.windows_disks import Machine, is_device
from imagefs.machine.windows import disks, shadow_copies
from imagefs.machine.windows.api import ApiError, load
from imagefs.machine.windows.reader import read_error

__all__ = ["disk_paths", "drop_snapshots", "hold_file", "is_device", "open_device", "volume_path"]


def disk_paths() -> dict[int, Path]:
    r"""Return the machine's disks by their number: ``\\.\PhysicalDrive0``; raises SourceReadError."""
    try:
        return {number: Path(disks.disk_path(number)) for number in disks.disk_numbers(load())}
    except ApiError as error:
        raise read_error(error, disks.disk_path(0)) from error


def volume_path(text: str) -> Path | None:
    r"""Return the volume that ``C:`` or ``\\?\Volume{…}`` means, None for another name; raises UsageError."""
    return windows_disks.volume_path(load(), text)


def open_device(wanted: Wanted, owned: ExitStack) -> OpenedDevice:
    """Open a disk or a volume."""
    return windows_disks.open_device(wanted, owned, Machine(load(), shadow_copies.running_system))


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
