r"""The physical disks of Windows, ``\\.\PhysicalDriveN``: what they say of themselves and their partitions.

Nothing here needs an administrator: devices are opened with access to nothing but answers. Offsets and sizes
are bytes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from imagefs.machine.identity import UNKNOWN, Identity
from imagefs.machine.windows import api as calls
from imagefs.machine.windows import layouts
from imagefs.machine.windows.api import Api, ApiError
from imagefs.machine.windows.layouts import DriveLayout

POOLS = {  # types of partitions that are no volumes: their bytes belong to volumes of several disks
    "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D": "a storage pool",
    "AF9B60A0-1431-4F62-BC68-3311714A69AD": "dynamic volumes",
    "42": "dynamic volumes",
}

_NAME = re.compile(r"PhysicalDrive(\d+)", re.IGNORECASE)
_PATH = re.compile(r"\\\\[.?]\\PhysicalDrive(\d+)\\?", re.IGNORECASE)
_MOST_ENTRIES = 4096  # of a partition table; bounds what a driver can make us ask for
_NO_MEDIUM = {calls.ERROR_NOT_READY, calls.ERROR_NO_MEDIA_IN_DRIVE}
_GONE = {calls.ERROR_FILE_NOT_FOUND, calls.ERROR_PATH_NOT_FOUND, calls.ERROR_DEV_NOT_EXIST}
_TOO_SMALL = {calls.ERROR_INSUFFICIENT_BUFFER, calls.ERROR_MORE_DATA}


@dataclass(frozen=True, slots=True)
class PhysicalDisk:
    """A disk as Windows knows it; what isn't known is "", 0 or None."""

    number: int
    size: int  # 0: no medium
    sector_size: int
    physical_sector_size: int
    identity: Identity
    bus: str
    removable: bool
    layout: DriveLayout | None
    problem: str  # why more is not known

    @property
    def path(self) -> str:
        """Its name for CreateFile."""
        return disk_path(self.number)


def disk_number(text: str) -> int | None:
    r"""Return the number of a disk that is named as ``\\.\PhysicalDrive0``; None for another name."""
    found = _PATH.fullmatch(text)
    return int(found[1]) if found else None


def disk_path(number: int) -> str:
    """Return the name of a disk for CreateFile."""
    return rf"\\.\PhysicalDrive{number}"


@contextmanager
def opened(api: Api, path: str, access: int = 0, flags: int = 0) -> Iterator[int]:
    """Open a device, by default for questions alone, and close it; raises ApiError."""
    handle = api.create_file(path, access, calls.SHARE_ALL, calls.OPEN_EXISTING, flags)
    try:
        yield handle
    finally:
        api.close_handle(handle)


def disk_numbers(api: Api) -> list[int]:
    """Return the numbers of the disks, ascending; raises ApiError."""
    return sorted(int(found[1]) for name in api.query_dos_device(None) if (found := _NAME.fullmatch(name)))


def all_disks(api: Api) -> list[PhysicalDisk]:
    """Return what is known of each disk; raises ApiError where not even their names can be had.

    A disk that is taken out meanwhile is left out.
    """
    found = []
    for number in disk_numbers(api):
        try:
            found.append(look_at(api, number))
        except ApiError as error:
            if error.code not in _GONE:
                nothing = (0, 0, 0, UNKNOWN, "", False, None)
                found.append(PhysicalDisk(number, *nothing, f"can't be asked: {error.strerror}"))
    return found


def look_at(api: Api, number: int) -> PhysicalDisk:
    """Return what is known of a disk; raises ApiError where it can't be opened."""
    with opened(api, disk_path(number)) as handle:
        descriptor, identity = identify(api, handle)
        problem, layout, size, sector_size, physical = "", None, 0, 0, 0
        try:
            sector_size, size = geometry(api, handle)
            physical = max(physical_sector_size(api, handle), sector_size)
            layout = drive_layout(api, handle)
        except ApiError as error:
            problem = "no medium" if error.code in _NO_MEDIUM else f"can't be asked: {error.strerror}"
    bus, removable = (descriptor.bus, descriptor.removable) if descriptor is not None else ("", False)
    return PhysicalDisk(
        number, size, sector_size, physical, identity, bus, removable, layout, problem
    )  # fmt: skip


def identify(api: Api, handle: int) -> tuple[layouts.DeviceDescriptor | None, Identity]:
    """Return what a disk says of itself; some say nothing."""
    try:
        answer = api.device_io_control(
            handle, layouts.IOCTL_STORAGE_QUERY_PROPERTY, layouts.QUERY_DEVICE, layouts.DESCRIPTOR_SIZE
        )
        told = layouts.parse_descriptor(answer)
    except ApiError:
        return None, UNKNOWN
    description = " ".join(filter(None, (told.vendor, told.product, told.revision)))
    return told, Identity(description, told.vendor, told.product, told.revision, told.serial)


def geometry(api: Api, handle: int) -> tuple[int, int]:
    """Return the bytes of a logical sector, and of the disk."""
    return layouts.parse_geometry(
        api.device_io_control(handle, layouts.IOCTL_DISK_GET_DRIVE_GEOMETRY_EX, size=layouts.GEOMETRY_SIZE)
    )


def physical_sector_size(api: Api, handle: int) -> int:
    """Return the bytes of a physical sector, 0 where the disk doesn't tell."""
    try:
        answer = api.device_io_control(
            handle, layouts.IOCTL_STORAGE_QUERY_PROPERTY, layouts.QUERY_ALIGNMENT, layouts.ALIGNMENT_SIZE
        )
        return layouts.parse_alignment(answer)[1]
    except ApiError:
        return 0


def length_of(api: Api, handle: int) -> int:
    """Return the bytes of a disk or volume that is open for reading."""
    return layouts.parse_length(
        api.device_io_control(handle, layouts.IOCTL_DISK_GET_LENGTH_INFO, size=layouts.LENGTH_SIZE)
    )


def drive_layout(api: Api, handle: int) -> DriveLayout:
    """Return the partitions that Windows knows of."""
    entries = 16
    while True:
        size = layouts.layout_size(entries)
        try:
            return layouts.parse_layout(
                api.device_io_control(handle, layouts.IOCTL_DISK_GET_DRIVE_LAYOUT_EX, size=size)
            )
        except ApiError as error:
            if error.code not in _TOO_SMALL or entries >= _MOST_ENTRIES:
                raise
        entries *= 4
