r"""A Windows with disks and volumes, at the boundary of CreateFile, DeviceIoControl and ReadFile.

Disks are files. What drivers answer is packed here from the structures as Microsoft documents them
("winioctl.h header"); partitions are those that sfdisk reads. Rules that a real Windows keeps are kept: the
rights that control codes need, too small buffers, whole aligned sectors, locks that other handles hinder.
"""

import ctypes
import itertools
import json
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from fixtures.tools import run
from imagefs.machine.windows.api import ApiError, VolumeInformation

READ, WRITE_RIGHTS = 0x80000000, 0x40000000 | 0x10000000 | 0x2 | 0x4 | 0x10000 | 0x40000 | 0x80000
ALL_CODES = {  # by the names of winioctl.h; the numbers were printed by a program that was compiled with it
    0x2D1400: "IOCTL_STORAGE_QUERY_PROPERTY",
    0x700A0: "IOCTL_DISK_GET_DRIVE_GEOMETRY_EX",
    0x7405C: "IOCTL_DISK_GET_LENGTH_INFO",
    0x70050: "IOCTL_DISK_GET_DRIVE_LAYOUT_EX",
    0x560000: "IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS",
    0x90083: "FSCTL_ALLOW_EXTENDED_DASD_IO",
    0x90018: "FSCTL_LOCK_VOLUME",
}
NO_BUFFERING = 0x20000000


def error(code: int, call: str = "DeviceIoControl", data: bytes = b"") -> ApiError:
    return ApiError(code, call, f"error {code} of the model", data)


@dataclass
class Disk:
    """A disk as it is plugged in. ``problems`` are errors by the name of what is called."""

    path: Path | None  # None: no medium
    sector_size: int = 512
    physical_sector_size: int = 512
    vendor: bytes = b"ATA     "
    product: bytes = b"Model Disk 1000 "
    revision: bytes = b"1.0a"
    serial: bytes = b"    MODEL-SERIAL-7"
    bus: int = 11  # BusTypeSata
    removable: bool = False
    has_alignment: bool = True
    has_table: bool = True  # else it is a volume, which Windows shows as its one partition
    bad: set[int] = field(default_factory=set)  # logical sectors that can't be read
    gone_after: int | None = None  # reads that are answered before it is pulled out
    problems: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path is not None else 0


@dataclass
class Volume:
    """A volume. ``plain`` is what its device gives where that isn't what is on the disk."""

    name: str
    roots: tuple[str, ...]
    extents: tuple[tuple[int, int, int], ...]  # disk, offset, size
    file_system: str
    label: str = ""
    plain: Path | None = None
    in_use: bool = False  # by another program: it can't be locked
    problems: dict[str, int] = field(default_factory=dict)
    locked_by: int | None = None
    file_system_end: int | None = None  # bytes that can be read unless reading behind it was allowed


@dataclass
class Handle:
    path: str
    access: int
    share: int
    flags: int
    target: Any
    dasd: bool = False


class Windows:
    """See ``api.Api``. ``opened`` lists all handles ever given, ``handles`` those that are open."""

    def __init__(self, disks: dict[int, Disk], volumes: Iterable[Volume] = ()) -> None:
        self.disks = disks
        self.all_volumes = list(volumes)
        self.is_admin = True
        self.shadows: Callable[[str], Path] | None = None  # the file of a shadow copy's device
        self.handles: dict[int, Handle] = {}
        self.opened: list[Handle] = []
        self.reads: list[tuple[str, int, int]] = []  # path, offset, length
        self.cd_roots: tuple[str, ...] = ()
        self.names: list[str] = ["C:", "NUL", "PhysicalDriveX", "HarddiskVolume1"]
        self._numbers = itertools.count(4, 4)
        self._lock = threading.Lock()

    # --- Files and devices ---

    def create_file(self, path: str, access: int, share: int, disposition: int, flags: int) -> int:
        assert share == 7, "a device in use is opened only where everything is shared"
        assert disposition == 3
        target = self._target(path)
        if access and not self.is_admin:
            raise error(5, "CreateFileW")
        if isinstance(target, (Disk, Volume)) and "open" in target.problems:
            raise error(target.problems["open"], "CreateFileW")
        handle = Handle(path, access, share, flags, target)
        with self._lock:
            number = next(self._numbers)
            self.handles[number] = handle
            self.opened.append(handle)
        return number

    def _target(self, path: str) -> Disk | Volume | Path:
        prefix = "\\\\.\\PhysicalDrive"
        if path.startswith(prefix) and path[len(prefix) :].isdecimal():
            disk = self.disks.get(int(path[len(prefix) :]))
            if disk is not None:
                return disk
        for volume in self.all_volumes:
            if path in (volume.name[:-1], *(f"\\\\.\\{root[:2]}" for root in volume.roots)):
                return volume
        if path.startswith("\\\\?\\GLOBALROOT\\") and self.shadows is not None:
            try:
                return self.shadows(path)
            except FileNotFoundError:
                pass
        raise error(2, "CreateFileW")

    def close_handle(self, handle: int) -> None:
        with self._lock:
            closed = self.handles.pop(handle)
        if isinstance(closed.target, Volume) and closed.target.locked_by == handle:
            closed.target.locked_by = None

    def read_file(self, handle: int, offset: int, buffer: memoryview) -> int:
        opened = self.handles[handle]
        if not opened.access & READ:
            raise error(5, "ReadFile")
        target = opened.target
        self.reads.append((opened.path, offset, len(buffer)))
        disk = self._disk_of(target)
        unit = disk.sector_size
        if offset % unit or len(buffer) % unit or not len(buffer):
            raise error(87, "ReadFile")
        if opened.flags & NO_BUFFERING and _address(buffer) % unit:
            raise error(87, "ReadFile")
        if isinstance(target, Disk):
            if offset + len(buffer) > target.size:
                raise error(27, "ReadFile")
            _judge(target, offset, len(buffer))
            buffer[:] = _bytes(target.path, offset, len(buffer))
            return len(buffer)
        if isinstance(target, Volume):
            return self._read_volume(opened, target, offset, buffer)
        buffer[:] = _bytes(target, offset, len(buffer))
        return len(buffer)

    def _read_volume(self, opened: Handle, volume: Volume, offset: int, buffer: memoryview) -> int:
        if "read" in volume.problems:
            raise error(volume.problems["read"], "ReadFile")
        size = sum(extent[2] for extent in volume.extents)
        limit = size
        if volume.file_system and not opened.dasd and volume.file_system_end is not None:
            limit = volume.file_system_end
        if offset + len(buffer) > size:
            raise error(27, "ReadFile")
        length = max(0, min(len(buffer), limit - offset))
        if volume.plain is not None:
            buffer[:length] = _bytes(volume.plain, offset, length)
            return length
        done = 0
        start = 0
        for number, at, span in volume.extents:
            inside = max(0, offset + done - start)
            if inside < span and done < length:
                step = min(length - done, span - inside)
                disk = self.disks[number]
                _judge(disk, at + inside, step)
                buffer[done : done + step] = _bytes(disk.path, at + inside, step)
                done += step
            start += span
        return length

    def _disk_of(self, target: Disk | Volume | Path) -> Disk:
        if isinstance(target, Disk):
            return target
        return self.disks[target.extents[0][0]] if isinstance(target, Volume) else Disk(None)

    def write_file(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        raise AssertionError("nothing is written to a source")

    def flush_file_buffers(self, handle: int) -> None:
        raise AssertionError("nothing is written to a source")

    # --- Drivers ---

    def device_io_control(self, handle: int, code: int, data: bytes = b"", size: int = 0) -> bytes:
        opened = self.handles[handle]
        name = ALL_CODES[code]
        if code >> 14 & 1 and not opened.access & READ:  # FILE_READ_ACCESS
            raise error(5)
        if isinstance(opened.target, Path):
            return self._of_shadow(opened, name)
        if name in opened.target.problems:
            raise error(opened.target.problems[name])
        if isinstance(opened.target, Disk):
            return self._of_disk(opened.target, name, data, size)
        return self._of_volume(handle, opened, name, size)

    def _of_shadow(self, opened: Handle, name: str) -> bytes:
        if name == "IOCTL_DISK_GET_LENGTH_INFO":
            return struct.pack("<q", opened.target.stat().st_size)
        assert name == "FSCTL_ALLOW_EXTENDED_DASD_IO", name
        return b""

    def _of_disk(self, disk: Disk, name: str, data: bytes, size: int) -> bytes:
        if name == "IOCTL_STORAGE_QUERY_PROPERTY":
            (wanted, query, _) = struct.unpack("<III", data)
            assert query == 0
            if wanted == 0:
                return self._cut(_descriptor(disk), size)
            if wanted == 6 and disk.has_alignment:
                return self._cut(
                    struct.pack("<7I", 28, 28, 0, 0, disk.sector_size, disk.physical_sector_size, 0),
                    size,
                )
            raise error(1)
        if disk.path is None:
            raise error(21)
        if name == "IOCTL_DISK_GET_LENGTH_INFO":
            return struct.pack("<q", disk.size)
        if name == "IOCTL_DISK_GET_DRIVE_GEOMETRY_EX":
            cylinders = disk.size // (255 * 63 * disk.sector_size)
            media = 11 if disk.removable else 12  # RemovableMedia, FixedMedia
            whole = struct.pack("<qIIIIq", cylinders, media, 255, 63, disk.sector_size, disk.size) + bytes(72)
            if size < 32:
                raise error(122)
            return whole[:size]
        if name == "IOCTL_DISK_GET_DRIVE_LAYOUT_EX":
            answer = drive_layout(disk)
            if len(answer) > size:
                raise error(122)
            return answer
        raise error(1)

    def _of_volume(self, handle: int, opened: Handle, name: str, size: int) -> bytes:
        volume: Volume = opened.target
        if name == "IOCTL_DISK_GET_LENGTH_INFO":
            return struct.pack("<q", sum(extent[2] for extent in volume.extents))
        if name == "IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS":
            answer = struct.pack("<I4x", len(volume.extents)) + b"".join(
                struct.pack("<I4xqq", *extent) for extent in volume.extents
            )
            if size < 32:
                raise error(122)
            if len(answer) > size:
                fitting = 8 + (size - 8) // 24 * 24
                raise error(234, data=answer[:fitting])
            return answer
        if name == "FSCTL_ALLOW_EXTENDED_DASD_IO":
            opened.dasd = True
            return b""
        if name == "FSCTL_LOCK_VOLUME":
            others = [one for key, one in self.handles.items() if one.target is volume and key != handle]
            if volume.in_use or any(one.access for one in others):
                raise error(5)
            volume.locked_by = handle
            return b""
        raise error(1)

    @staticmethod
    def _cut(answer: bytes, size: int) -> bytes:
        return answer[:size]  # a query of a property gives as much as there is room for

    # --- Volumes ---

    def volumes(self) -> list[str]:
        return [volume.name for volume in self.all_volumes]

    def _volume(self, name: str, call: str) -> Volume:
        assert name.endswith("\\"), "names of volumes end with a backslash here"
        for volume in self.all_volumes:
            if name == volume.name or name in volume.roots:
                if call in volume.problems:
                    raise error(volume.problems[call], call)
                return volume
        raise error(2, call)

    def volume_path_names(self, volume: str) -> list[str]:
        return list(self._volume(volume, "GetVolumePathNamesForVolumeNameW").roots)

    def volume_at(self, root: str) -> str:
        return self._volume(root, "GetVolumeNameForVolumeMountPointW").name

    def volume_path_name(self, path: str) -> str:
        raise NotImplementedError

    def volume_information(self, root: str) -> VolumeInformation:
        volume = self._volume(root, "GetVolumeInformationW")
        if not volume.file_system:
            raise error(1005, "GetVolumeInformationW")
        return VolumeInformation(volume.label, 0x1234ABCD, 0, volume.file_system)

    def query_dos_device(self, name: str | None) -> list[str]:
        assert name is None
        return self.names + [f"PhysicalDrive{number}" for number in self.disks]

    def drive_type(self, root: str) -> int:
        return 5 if root in self.cd_roots else 3

    def enable_privilege(self, name: str) -> bool:
        return self.is_admin

    def is_administrator(self) -> bool:
        return self.is_admin

    # --- What tests ask ---

    def assert_untouched(self) -> None:
        """Assert that nothing was opened for writing, and that everything was closed."""
        assert not [handle.path for handle in self.opened if handle.access & WRITE_RIGHTS]
        assert not self.handles
        assert not [volume.name for volume in self.all_volumes if volume.locked_by is not None]


def _judge(disk: Disk, offset: int, length: int) -> None:
    if disk.gone_after is not None:
        disk.gone_after -= 1
        if disk.gone_after < 0:
            raise error(1167, "ReadFile")
    sectors = range(offset // disk.sector_size, (offset + length) // disk.sector_size)
    if any(sector in sectors for sector in disk.bad):
        raise error(23, "ReadFile")


def _bytes(path: Path | None, offset: int, length: int) -> bytes:
    assert path is not None
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(length)
    assert len(data) == length
    return data


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _descriptor(disk: Disk) -> bytes:
    """STORAGE_DEVICE_DESCRIPTOR with its texts, which end with zeros; one that is missing has offset 0."""
    texts, places = b"", []
    for text in (disk.vendor, disk.product, disk.revision, disk.serial):
        places.append(36 + len(texts) if text else 0)
        texts += text + b"\0" if text else b""
    return struct.pack(
        "<IIBB??6I", 40, 36 + len(texts), 0, 0, disk.removable, True, *places, disk.bus, 0
    ) + texts  # fmt: skip


def sfdisk(path: Path) -> dict[str, Any]:
    """Return what sfdisk reads of a disk's table; {} where it finds none."""
    answer = run("sfdisk", "--json", path, accept=(0, 1))
    table: dict[str, Any] = json.loads(answer)["partitiontable"] if answer.strip() else {}
    return table


def drive_layout(disk: Disk) -> bytes:
    """DRIVE_LAYOUT_INFORMATION_EX of what sfdisk reads."""
    assert disk.path is not None
    if not disk.has_table:
        entry = struct.pack(
            "<I4xqqI??2xB??xI16s88x", 0, 0, disk.size, 1, False, False, 6, False, True, 0, b""
        )
        return struct.pack("<III36x", 0, 1, 1) + entry
    table = sfdisk(disk.path)
    if not table:
        return struct.pack("<II40x", 2, 0) + bytes(144)  # PARTITION_STYLE_RAW
    unit = int(table.get("sectorsize", 512))
    entries = []
    if table["label"] == "gpt":
        for number, part in enumerate(table.get("partitions", ()), 1):
            entries.append(
                struct.pack("<I4xqqI??2x", 1, part["start"] * unit, part["size"] * unit, number, False, False)
                + UUID(part["type"]).bytes_le
                + UUID(part["uuid"]).bytes_le
                + struct.pack("<Q72s", 0, part.get("name", "").encode("utf-16-le"))
            )
        head = struct.pack(
            "<II16sqqI4x", 1, len(entries), UUID(table["id"]).bytes_le, 34 * unit, disk.size - 67 * unit, 128
        )
        return head + b"".join(entries)
    slots: dict[int, bytes] = {}
    given = itertools.count(1)
    parts = {int(part["node"].removeprefix(str(disk.path))): part for part in table.get("partitions", ())}
    for number, part in sorted(parts.items()):
        kind = int(part["type"], 16)
        is_extended = kind in (5, 0xF, 0x85)
        entry = struct.pack(
            "<I4xqqI??2xB??xI16s88x", 0, part["start"] * unit, part["size"] * unit,
            0 if is_extended else next(given), False, False, kind, bool(part.get("bootable")),
            not is_extended, 0, b"",
        )  # fmt: skip
        at = number - 1 if number <= 4 else 4 * (number - 4)
        slots[at] = entry
        if number > 5:  # the link in the extended boot record before
            slots[at - 3] = struct.pack(
                "<I4xqqI??2xB??xI16s88x", 0, part["start"] * unit, part["size"] * unit, 0, False, False, 5,
                False, False, 0, b"",
            )  # fmt: skip
    count = -(-(max(slots, default=0) + 1) // 4) * 4
    unused = struct.pack("<I4xqqI??2x112x", 0, 0, 0, 0, False, False)
    head = struct.pack("<III36x", 0, count, int(table["id"], 16))
    return head + b"".join(slots.get(at, unused) for at in range(count))
