r"""A Windows whose disks can be written: what stands in the way of that, and what follows from it.

Rules: Microsoft, "WriteFile function": a write to a disk fails where a mounted volume lies that was neither
locked nor dismounted. FSCTL_LOCK_VOLUME fails while another handle is open. Numbers of control codes were
printed by a program that was compiled with winioctl.h; that of IOCTL_DISK_GET_DISK_ATTRIBUTES is
CTL_CODE(7, 0x3c, 0, 0).
"""

import ctypes
import struct
from pathlib import Path
from typing import Any

from tests.imagefs.machine.windows.model import Disk, Handle, Volume, Windows, error, sfdisk

READ, WRITE = 0x80000000, 0x40000000
NO_BUFFERING = 0x20000000
CODES = {
    0x90020: "FSCTL_DISMOUNT_VOLUME",
    0x7C100: "IOCTL_DISK_DELETE_DRIVE_LAYOUT",
    0x70140: "IOCTL_DISK_UPDATE_PROPERTIES",
    0x70024: "IOCTL_DISK_IS_WRITABLE",
    0x700F0: "IOCTL_DISK_GET_DISK_ATTRIBUTES",
}


class WritableWindows(Windows):
    """``events`` tells what happened, ``faults`` fails the calls of the boundary by their number from 1.

    ``places`` are the roots that paths of this machine are under, there.
    """

    def __init__(self, disks: dict[int, Disk], volumes: "list[Target]") -> None:
        super().__init__(disks)
        self.all_volumes: list[Any] = list(volumes)
        self.events: list[str] = []
        self.dismounted: set[str] = set()
        self.attributes: dict[int, int] = {}
        self.write_protected: set[int] = set()
        self.places: dict[str, str] = {}
        self.remote: set[str] = set()
        self.refused_locks = 0  # that many are refused before one is given
        self.fail_at: int | None = None
        self.fail_with = 1167
        self.calls = 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise error(self.fail_with)

    # --- Writing ---

    def write_file(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        self._count()
        opened = self.handles[handle]
        if not opened.access & WRITE:
            raise error(5, "WriteFile")
        target = opened.target
        number, start, size = self._place(target)
        disk = self.disks[number]
        unit = disk.sector_size
        if offset % unit or len(data) % unit or not len(data) or offset + len(data) > size:
            raise error(87, "WriteFile")
        if opened.flags & NO_BUFFERING:
            assert isinstance(data, memoryview)
            if ctypes.addressof(ctypes.c_char.from_buffer(data)) % unit:
                raise error(87, "WriteFile")
        if number in self.write_protected:
            raise error(19, "WriteFile")
        for volume in self.all_volumes:
            is_free = volume.locked_by is not None or volume.name in self.dismounted
            if volume.file_system and not is_free and volume.touches(number, start + offset, len(data)):
                raise error(5, "WriteFile")
        assert disk.path is not None
        with disk.path.open("r+b") as stream:
            stream.seek(start + offset)
            stream.write(data)
        self._event(f"write {start + offset}+{len(data)}")
        return len(data)

    def _place(self, target: object) -> tuple[int, int, int]:
        """Return the disk, the offset and the size of what is written."""
        if isinstance(target, Disk):
            return next(number for number, one in self.disks.items() if one is target), 0, target.size
        assert isinstance(target, Volume)
        (extent,) = target.extents
        return extent

    def flush_file_buffers(self, handle: int) -> None:
        self._count()
        assert self.handles[handle].access & WRITE
        self._event("flush")

    def _event(self, text: str) -> None:
        if not (text.startswith("write") and self.events and self.events[-1].startswith("write")):
            self.events.append(text)

    # --- Drivers ---

    def device_io_control(self, handle: int, code: int, data: bytes = b"", size: int = 0) -> bytes:
        self._count()
        opened = self.handles[handle]
        if code == 0x90018:
            if self.refused_locks:
                self.refused_locks -= 1
                raise error(5)
            super().device_io_control(handle, code)
            self._event(f"lock {opened.target.name}")
            return b""
        if code not in CODES:
            return super().device_io_control(handle, code, data, size)
        return self._control(CODES[code], opened, handle)

    def _control(self, name: str, opened: Handle, handle: int) -> bytes:
        target = opened.target
        if name == "FSCTL_DISMOUNT_VOLUME":
            assert isinstance(target, Volume)
            assert target.locked_by == handle, "whoever has files open there would lose them"
            self.dismounted.add(target.name)
            self._event(f"dismount {target.name}")
            return b""
        assert isinstance(target, Disk)
        number = self._place(target)[0]
        if name == "IOCTL_DISK_DELETE_DRIVE_LAYOUT":
            if not opened.access & READ or not opened.access & WRITE:
                raise error(5)
            self._delete_layout(number, target)
        elif name == "IOCTL_DISK_UPDATE_PROPERTIES":
            self._event("update")
            self._read_table(number, target)
        elif name == "IOCTL_DISK_IS_WRITABLE":
            if number in self.write_protected:
                raise error(19)
        elif name == "IOCTL_DISK_GET_DISK_ATTRIBUTES":
            if target.removable:
                raise error(1)
            return struct.pack("<IIQ", 16, 0, self.attributes.get(number, 0))
        return b""

    def _delete_layout(self, number: int, disk: Disk) -> None:
        """Remove the table, both of a GPT; its volumes go, also for who has them open."""
        assert disk.path is not None
        for volume in list(self.all_volumes):
            if any(extent[0] == number for extent in volume.extents):
                self.all_volumes.remove(volume)
        with disk.path.open("r+b") as stream:
            for at, length in ((0, 2 * disk.sector_size), (disk.size - disk.sector_size, disk.sector_size)):
                stream.seek(at)
                stream.write(bytes(length))
        self._event("delete layout")

    def _read_table(self, number: int, disk: Disk) -> None:
        assert disk.path is not None
        self.all_volumes = [one for one in self.all_volumes if all(e[0] != number for e in one.extents)]
        for at, part in enumerate(sfdisk(disk.path).get("partitions", ())):
            name = f"\\\\?\\Volume{{00000000-0000-0000-0001-{at:012}}}\\"
            place = (number, part["start"] * disk.sector_size, part["size"] * disk.sector_size)
            self.all_volumes.append(Target(name, (), (place,), "NTFS"))

    def close_handle(self, handle: int) -> None:
        target = self.handles[handle].target
        was_locked = isinstance(target, Volume) and target.locked_by == handle
        super().close_handle(handle)
        if was_locked:
            self._event(f"unlock {target.name}")
            self.dismounted.discard(target.name)

    # --- Names ---

    def volume_path_name(self, path: str) -> str:
        for prefix, root in self.places.items():
            if path.startswith(prefix):
                return root
        for volume in self.all_volumes:
            for root in map(str, volume.roots):
                if path.lower().startswith(root.lower()):
                    return root
        raise error(3, "GetVolumePathNameW")

    def drive_type(self, root: str) -> int:
        return 4 if root in self.remote else super().drive_type(root)

    def query_dos_device(self, name: str | None) -> list[str]:
        if name is None:
            return super().query_dos_device(name)
        for at, volume in enumerate(self.all_volumes, 1):
            if volume.name == f"\\\\?\\{name}\\":
                return [f"\\Device\\HarddiskVolume{at}"]
        raise error(2, "QueryDosDeviceW")

    def assert_let_go(self) -> None:
        """Assert that everything is closed and unlocked."""
        assert not self.handles
        assert not [volume.name for volume in self.all_volumes if volume.locked_by is not None]


class Target(Volume):
    """A volume of which it can be told whether bytes of a disk are its."""

    def touches(self, disk: int, offset: int, length: int) -> bool:
        return any(
            number == disk and at < offset + length and offset < at + size
            for number, at, size in self.extents
        )


def name_of(number: int) -> str:
    """Return the name of a volume of the model."""
    return f"\\\\?\\Volume{{00000000-0000-0000-0000-{number:012}}}\\"


def volumes_of(disk: int, path: Path, first: int, roots: tuple[str, ...] = ()) -> list[Target]:
    """Return a volume for each partition that sfdisk finds on a disk."""
    found = []
    for at, part in enumerate(sfdisk(path).get("partitions", ())):
        root = (roots[at],) if at < len(roots) and roots[at] else ()
        place = (disk, part["start"] * 512, part["size"] * 512)
        found.append(Target(name_of(first + at), root, (place,), "NTFS", f"old {at}"))
    return found
