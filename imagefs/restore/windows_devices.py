"""What restoring needs to know of Windows' disks and volumes; ``this_machine`` tells of it."""

import sys

assert sys.platform == "win32"

import ctypes
import os
import tempfile
import winreg
from collections.abc import Sequence
from pathlib import Path

from imagefs.errors import RefusedError
from imagefs.machine.windows.api import load
from imagefs.restore import windows_disks, windows_guard
from imagefs.restore.described import Description, describe_file
from imagefs.restore.guarded_files import refuse_other_than_file, refuse_same_file
from imagefs.restore.target import Target
from imagefs.restore.target_device import TargetDevice
from imagefs.restore.windows_guard import Needed
from imagefs.restore.windows_target import open_target

_MEMORY = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management"


def target_path(text: str) -> Path:
    """Return what the name of a target means; raises UsageError."""
    return windows_disks.target_path(load(), text) or Path(text).absolute()


def find_device(target: Path) -> TargetDevice | None:
    """Return the disk or volume of a path, None where it is none's."""
    return windows_disks.find_device(load(), target)


def open_device(target: Path) -> Target:
    """Open a disk or volume for writing, its volumes locked; raises RefusedError."""
    return open_target(load(), target)


def same_id(target: Path, disk_id: str) -> list[str]:
    """Return a line where another disk has the id that the target is to get."""
    return windows_guard.same_id(load(), target, disk_id)


def refuse_unsafe(
    target: Path, *, protected: Sequence[Path] = (), span: tuple[int, int] | None = None
) -> None:
    """Raise RefusedError where overwriting a device or file would do harm, or can't be done."""
    del span
    if find_device(target) is not None:
        api = load()
        windows_guard.refuse_unsafe_device(api, target, protected=protected, needed=_needed())
        return
    folder = target.absolute().parent
    if not folder.is_dir():
        raise RefusedError("its folder is not there", path=target, hint=f"make {folder} first")
    windows_guard.refuse_on_source(load(), target, folder, protected)
    found = target.stat() if target.exists() else None
    refuse_other_than_file(target, found)
    refuse_same_file(target, found, protected)
    if found is not None and not os.access(target, os.W_OK):
        raise RefusedError("is read-only", path=target, hint="change its attributes, or name another file")


def describe(target: Path, sector_size: int | None = None) -> Description:
    """Look at a device or file; raises RefusedError where there is neither."""
    if find_device(target) is not None:
        return windows_disks.describe_device(load(), target, sector_size)
    if not target.is_file():
        raise RefusedError("is neither a disk nor a file", path=target)
    return describe_file(target, sector_size)


def _needed() -> list[Needed]:
    """Return what the running Windows, and this program, can't do without."""
    places = [
        Needed(_windows_folder(), "Windows runs from it"),
        Needed(sys.prefix, "this program runs from it"),
        Needed(tempfile.gettempdir(), "temporary files are on it"),
    ]
    for file in _registry(_MEMORY, "ExistingPageFiles"):
        places.append(Needed(file.removeprefix("\\??\\"), "it has a page file"))
    for device in _registry(r"SYSTEM\Setup", "SystemPartition"):
        places.append(Needed(device, "Windows starts from it"))
    return places


def _windows_folder() -> str:
    """Return where Windows is: GetSystemWindowsDirectoryW."""
    text = ctypes.create_unicode_buffer(32768)
    if not ctypes.WinDLL("kernel32").GetSystemWindowsDirectoryW(text, len(text)):
        raise RefusedError("can't tell from where Windows runs")
    return text.value


def _registry(key: str, name: str) -> list[str]:
    """Return a value of texts; [] where there is none."""
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
            value, _ = winreg.QueryValueEx(opened, name)
    except OSError:
        return []
    return [value] if isinstance(value, str) else [str(one) for one in value or ()]
