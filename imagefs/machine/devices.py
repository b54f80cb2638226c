"""Block devices of Linux, from sysfs and by ioctl: what they are, and how they are opened.

A device is known by its number (major, minor), never by the name of a node: nodes can be anywhere, or
nowhere. Offsets and sizes are bytes. Source of names and units: Documentation/ABI/stable/sysfs-block of
the kernel; its ``size`` and ``start`` count 512 bytes whatever the device's sectors are.
"""

import sys

assert sys.platform != "win32"

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagefs.errors import SourceReadError, UsageError
from imagefs.machine.identity import Identity

SYSFS = Path("/sys")

_BLKFLSBUF = 0x1261  # <linux/fs.h>
_BLKSSZGET = 0x1268
_BLKPBSZGET = 0x127B
_LOOP_GET_STATUS64 = 0x4C05  # <linux/loop.h>
_LOOP_STATUS_SIZE = 232  # bytes of struct loop_info64; lo_device, lo_inode, lo_rdevice, lo_offset come first
_SYSFS_SECTOR = 512
_NEVER_DISKS = re.compile(r"(ram|zram|fd|sr|nbd)\d")


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A block device as the kernel knows it."""

    name: str  # the kernel's: "sda1", "dm-3"
    number: tuple[int, int]  # major, minor
    folder: Path  # in sysfs

    @property
    def node(self) -> Path:
        """Where its node is, as a rule; the kernel writes ! for the / in a name."""
        mapped = self.attribute("dm/name")
        if mapped:
            return Path("/dev/mapper") / mapped
        return Path("/dev") / self.name.replace("!", "/")

    @property
    def partition(self) -> int | None:
        """The partition's number; None for a whole device."""
        text = self.attribute("partition")
        return int(text) if text.isdecimal() else None

    @property
    def parent(self) -> "BlockDevice":
        """The disk of a partition; a whole device is its own."""
        return self if self.partition is None else _in_folder(self.folder.parent)

    @property
    def start(self) -> int:
        """Where a partition starts on its disk."""
        return int(self.attribute("start") or 0) * _SYSFS_SECTOR

    @property
    def size(self) -> int:
        """The bytes that sysfs tells; 0 for a device without a medium."""
        return int(self.attribute("size") or 0) * _SYSFS_SECTOR

    @property
    def removable(self) -> bool:
        """Whether the medium, or the disk itself, is made to be taken out."""
        return self.parent.attribute("removable") == "1"

    @property
    def read_only(self) -> bool:
        """Whether the kernel refuses to write to it: a switch on the medium, or somebody's wish."""
        return "1" in (self.attribute("ro"), self.parent.attribute("ro"))

    def attribute(self, name: str) -> str:
        """Return the text of a sysfs attribute; "" where there is none."""
        try:
            data = (self.folder / name).read_bytes()
        except OSError:
            return ""
        return data.decode(errors="replace").strip(" \t\n\0")

    def partitions(self) -> Iterator["BlockDevice"]:
        """Yield the partitions of a disk that the kernel knows, in no order."""
        for path in self.folder.glob("*/partition"):
            yield _in_folder(path.parent)

    def holders(self) -> Iterator["BlockDevice"]:
        """Yield the devices that are made of this one: LVM, dm-crypt, md, bcache, multipath."""
        for path in (self.folder / "holders").glob("*"):
            yield _in_folder(path.resolve())

    def slaves(self) -> Iterator["BlockDevice"]:
        """Yield the devices that this one is made of."""
        for path in (self.folder / "slaves").glob("*"):
            yield _in_folder(path.resolve())


def _in_folder(folder: Path) -> BlockDevice:
    major, minor = (folder / "dev").read_text().split(":")
    return BlockDevice(folder.name, (int(major), int(minor)), folder)


def by_number(number: tuple[int, int]) -> BlockDevice | None:
    """Return the device of a (major, minor); None for one that the kernel lacks, as a btrfs's."""
    try:
        return _in_folder((SYSFS / "dev/block" / f"{number[0]}:{number[1]}").resolve(strict=True))
    except OSError:
        return None


def by_path(path: Path) -> BlockDevice | None:
    """Return the device of a node, links followed; None where the path is no block device's."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return by_number(split_number(found.st_rdev)) if stat.S_ISBLK(found.st_mode) else None


def split_number(device: int) -> tuple[int, int]:
    """Split what stat calls st_rdev or st_dev."""
    return os.major(device), os.minor(device)


def whole_devices() -> list[BlockDevice]:
    """Return the machine's disks in a fixed order: hardware first, sda before sdb before sdaa, then the rest.

    Devices without a medium, RAM disks, compressed swap, floppies and optical drives are no disks.
    """
    found = []
    for path in (SYSFS / "block").glob("*"):
        with contextlib.suppress(OSError):  # it went away meanwhile
            device = _in_folder(path.resolve(strict=True))
            if device.size and not _NEVER_DISKS.match(device.name):
                found.append(device)

    def order(device: BlockDevice) -> tuple[bool, list[tuple[int, str]]]:
        pieces = re.findall(r"^(?:sd|hd|vd|xvd)|\d+|\D+", device.name)
        return not (device.folder / "device").exists(), [(len(piece), piece) for piece in pieces]

    return sorted(found, key=order)


def loop_devices() -> Iterator[tuple[BlockDevice, str]]:
    """Yield the loop devices that are attached, each with the path of its file as it was then."""
    for path in (SYSFS / "block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            yield _in_folder(path.parent.parent.resolve()), os.fsdecode(path.read_bytes().rstrip(b"\n"))


@dataclass(frozen=True, slots=True)
class Backing:
    """What a loop device reads: a file by device and inode, or a block device by its number."""

    file: tuple[int, int]  # st_dev, st_ino
    device: tuple[int, int] | None  # major, minor
    offset: int  # bytes into it where the loop device starts


def backing_of(loop: BlockDevice, path: str) -> Backing | None:
    """Return what a loop device reads; ``path`` is asked where the device itself can't be. None: unknown."""
    try:
        fd = open_device(loop)
        try:
            status = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_STATUS_SIZE))
        finally:
            os.close(fd)
        device, inode, rdevice, offset = struct.unpack_from("=QQQQ", status)
        return Backing((device, inode), split_number(rdevice) if rdevice else None, offset)
    except (OSError, SourceReadError):
        pass  # no right to open it: its name is what is left
    try:
        found = Path(path).stat()
    except OSError:
        return None
    number = split_number(found.st_rdev) if stat.S_ISBLK(found.st_mode) else None
    return Backing((found.st_dev, found.st_ino), number, int(loop.attribute("loop/offset") or 0))


# --- Opening ---


def open_device(device: BlockDevice, path: Path | None = None, *, flags: int = 0) -> int:
    """Open a device for reading and return the file descriptor, which the caller closes.

    ``path`` is tried first, then the usual node; where neither is this device's a node is made for the
    moment, which needs root. Raises SourceReadError; with ``os.O_EXCL`` in ``flags``, BlockingIOError where
    something holds the device.
    """
    failed: OSError | None = None
    for candidate in (path, device.node):
        if candidate is None or _number_of(candidate) != device.number:
            continue
        try:
            return _open(candidate, flags)
        except OSError as error:
            failed = failed or error
    if failed is None:
        made = Path("/dev") / f".imagefs-{secrets.token_hex(8)}"  # where nodes are allowed to be opened
        try:
            os.mknod(made, stat.S_IFBLK | 0o400, os.makedev(*device.number))
            try:
                return _open(made, flags)
            finally:
                made.unlink()
        except OSError as error:
            failed = error
    if failed.errno == errno.EBUSY:
        raise BlockingIOError(errno.EBUSY, os.strerror(errno.EBUSY))
    hint = "imaging a device needs root" if failed.errno in (errno.EACCES, errno.EPERM) else ""
    raise SourceReadError(
        failed.strerror or str(failed), path=path or device.node, offset=0, length=0, hint=hint
    ) from failed


def _open(path: Path, flags: int) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)


def _number_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return split_number(found.st_rdev) if stat.S_ISBLK(found.st_mode) else None


def sector_sizes(fd: int, device: BlockDevice) -> tuple[int, int]:
    """Return the bytes of a logical and of a physical sector."""
    disk = device.parent

    def ask(request: int, attribute: str) -> int:
        try:
            (value,) = struct.unpack("=I", fcntl.ioctl(fd, request, bytes(4)))
        except OSError:  # request numbers differ on a few machines
            value = int(disk.attribute(f"queue/{attribute}") or 0)
        return int(value)

    logical = ask(_BLKSSZGET, "logical_block_size") or _SYSFS_SECTOR
    return logical, max(logical, ask(_BLKPBSZGET, "physical_block_size"))


def forget_cached(fd: int) -> None:
    """Write a device's cached pages out and drop them, as far as this user may.

    A disk and each of its partitions have caches of their own, which nothing holds together: while any
    partition is mounted the disk's pages stay, and what was written through a partition since is not in them.
    """
    try:
        fcntl.ioctl(fd, _BLKFLSBUF)
    except OSError:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


# --- What a disk says of itself ---


def identity_of(device: BlockDevice) -> Identity:
    """Return what the disk of a device says of itself."""
    disk = device.parent

    def first(*names: str) -> str:
        return next((text for name in names if (text := " ".join(disk.attribute(name).split()))), "")

    backing = disk.attribute("loop/backing_file")
    mapped = disk.attribute("dm/name")
    level = disk.attribute("md/level")
    if backing or mapped or level:
        kind = "Loop device" if backing else "Device mapper" if mapped else f"Linux {level}"
        name = backing or mapped or disk.name
        return Identity(f"{kind} {name}", "Linux", kind, "", first("dm/uuid", "md/uuid"))
    vendor = first("device/vendor")
    if re.fullmatch(r"0x[0-9a-f]+", vendor):
        vendor = ""  # a PCI or virtio number, not a name
    product = first("device/model", "device/name")
    revision = first("device/rev", "device/firmware_rev", "device/fwrev")
    serial = first("serial", "device/serial") or _vpd_serial(disk) or first("wwid", "device/wwid")
    return Identity(" ".join(filter(None, (vendor, product, revision))), vendor, product, revision, serial)


def _vpd_serial(disk: BlockDevice) -> str:
    """Return the unit serial number of a SCSI or ATA disk: vital product data page 0x80, SPC-4 7.8.14."""
    try:
        page = (disk.folder / "device/vpd_pg80").read_bytes()
    except OSError:
        return ""
    return page[4:].decode("ascii", "replace").strip(" \0")


_TRANSPORTS = (  # what the path of a disk's folder in sysfs shows, the nearest to the disk first
    ("usb", r"/usb\d"),
    ("iscsi", r"/session\d"),
    ("fc", r"/rport-"),
    ("sas", r"/end_device-"),
    ("ata", r"/ata\d"),
    ("mmc", r"/mmc_host/"),
    ("virtio", r"/virtio\d"),
    ("firewire", r"/fw\d"),
)


def transport_of(device: BlockDevice) -> str:
    """Return what the disk of a device is connected by: "usb", "ata", "nvme", …; "" where it is not known."""
    disk = device.parent
    if disk.name.startswith("nvme"):
        return "nvme"
    return next((name for name, mark in _TRANSPORTS if re.search(mark, str(disk.folder))), "")


def disk_number(device: BlockDevice) -> int:
    """Return a disk's place among the machine's disks, from 0."""
    names = [disk.name for disk in whole_devices()]
    return names.index(device.parent.name) if device.parent.name in names else len(names)


def require(path: Path) -> BlockDevice:
    """Return the device of a node; raises UsageError where the kernel doesn't know it."""
    device = by_path(path)
    if device is None:
        raise UsageError("the kernel has no such block device", path=path, hint="is /sys mounted?")
    return device
