r"""The volumes of Windows: where they are mounted, what is on them, and on which disks they lie.

A volume is named ``\\?\Volume{GUID}\``, as the functions of Windows want it; without the backslash at the end
CreateFile opens it. Offsets and sizes are bytes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imagefs.machine.windows import api as calls
from imagefs.machine.windows import layouts
from imagefs.machine.windows.api import Api, ApiError
from imagefs.machine.windows.disks import opened
from imagefs.machine.windows.layouts import DiskExtent

SNAPSHOT_FILE_SYSTEMS = frozenset({"NTFS", "REFS"})  # of which Windows makes shadow copies

_MOST_EXTENTS = 4096
_TOO_SMALL = {calls.ERROR_MORE_DATA, calls.ERROR_INSUFFICIENT_BUFFER}
_LETTER = re.compile(r"(?:\\\\[?.]\\)?([A-Za-z]):\\?")
_VOLUME = re.compile(r"\\\\[?.]\\(Volume\{[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\})\\?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Volume:
    r"""A volume as Windows knows it; what isn't known is "" or ()."""

    name: str  # \\?\Volume{…}\
    mount_points: tuple[str, ...]  # C:\, D:\folder\; letters first
    extents: tuple[DiskExtent, ...]
    file_system: str  # "NTFS", "FAT32", "exFAT", "ReFS"; "" for none, or one that can't be seen
    label: str
    is_locked: bool  # by BitLocker
    is_cd: bool
    problem: str  # why more is not known

    @property
    def device(self) -> str:
        """Its name for CreateFile."""
        return self.name.removesuffix("\\")

    @property
    def title(self) -> str:
        """What people call it: its letter, a folder, or its own name."""
        return self.mount_points[0].removesuffix("\\") if self.mount_points else self.device

    @property
    def size(self) -> int:
        """The bytes that it has on disks."""
        return sum(extent.size for extent in self.extents)

    def is_partition(self, disk: int, offset: int, size: int) -> bool:
        """Whether it is exactly this partition of a disk."""
        return self.extents == (DiskExtent(disk, offset, size),)

    def touches(self, disk: int, spans: Iterable[tuple[int, int]]) -> bool:
        """Whether some of its bytes are in these ranges (start, end) of a disk."""
        return any(
            extent.disk == disk and extent.offset < end and start < extent.offset + extent.size
            for extent in self.extents
            for start, end in spans
        )


def volume_name(text: str) -> str | None:
    r"""Return a volume's name as Windows writes it, of ``\\?\Volume{…}`` or ``\\.\Volume{…}``; else None."""
    found = _VOLUME.fullmatch(text)
    return rf"\\?\{found[1]}" + "\\" if found else None


def root_of(text: str) -> str | None:
    r"""Return the root of a letter, ``C:\``, that is written as ``C:``, ``c:\`` or ``\\.\C:``; else None."""
    found = _LETTER.fullmatch(text)
    return f"{found[1].upper()}:\\" if found else None


def all_volumes(api: Api) -> list[Volume]:
    """Return all volumes; raises ApiError where not even their names can be had."""
    return [look_at(api, name) for name in api.volumes()]


def look_at(api: Api, name: str) -> Volume:
    """Return what is known of a volume."""
    problem = ""
    extents: Sequence[DiskExtent] = ()
    file_system = label = ""
    is_locked = False
    try:
        mount_points = sorted(api.volume_path_names(name), key=lambda path: (len(path) > 3, path))
    except ApiError as error:
        mount_points, problem = [], f"can't be asked: {error.strerror}"
    is_cd = api.drive_type(name) == calls.DRIVE_CDROM
    if not is_cd:
        try:
            with opened(api, name.removesuffix("\\")) as handle:
                extents = extents_of(api, handle)
        except ApiError as error:
            problem = f"can't be asked: {error.strerror}"
        try:
            told = api.volume_information(name)
            file_system, label = told.file_system, told.label
            file_system = "" if file_system.upper() == "RAW" else file_system
        except ApiError as error:
            is_locked = error.code == calls.FVE_LOCKED_VOLUME  # else it has none that Windows knows
    return Volume(
        name, tuple(mount_points), tuple(extents), file_system, label, is_locked, is_cd, problem
    )  # fmt: skip


def extents_of(api: Api, handle: int) -> tuple[DiskExtent, ...]:
    """Return where a volume lies; one that lies on several disks has several extents. Raises ApiError."""
    count = 1
    while True:
        size = layouts.extents_size(count)
        try:
            return layouts.parse_extents(
                api.device_io_control(handle, layouts.IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS, size=size)
            )
        except ApiError as error:
            if error.code not in _TOO_SMALL or count >= _MOST_EXTENTS:
                raise
            told = layouts.extent_count(error.data) if len(error.data) >= layouts.extents_size(0) else 0
        count = min(max(told, 2 * count), _MOST_EXTENTS)
