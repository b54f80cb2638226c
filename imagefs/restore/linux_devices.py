"""What restoring needs to know of block devices, where there is no Windows; ``this_machine`` tells of it."""

import sys

assert sys.platform != "win32"

import stat
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from formats.errors import ReportedError
from imagefs.errors import RefusedError, UsageError
from imagefs.imaging.names import is_disk
from imagefs.imaging.source_disk import detect_sector_size
from imagefs.machine import devices
from imagefs.machine.devices import BlockDevice
from imagefs.machine.mounts import Uses
from imagefs.machine.rawreader import RawReader
from imagefs.restore.described import Description, describe_file, with_contents
from imagefs.restore.device_target import DeviceTarget
from imagefs.restore.target import Target


@dataclass(frozen=True, slots=True)
class LinuxDevice:
    """A block device that is to be written; see ``TargetDevice``."""

    device: BlockDevice

    @property
    def address(self) -> int | None:
        """Where a partition starts on its disk, bytes; None for a whole disk."""
        return None if self.device.partition is None else self.device.start

    def partition(self, number: int) -> Path | None:
        """Return the node of a disk's partition, None where there is none."""
        parts = [part for part in self.device.partitions() if part.partition == number]
        return parts[0].node if parts and parts[0].node.exists() else None


def target_path(text: str) -> Path:
    """Return a path, absolute. Raises UsageError for what might be meant as the number of a disk."""
    if is_disk(text):
        raise UsageError(
            "is it a disk, or a file?",
            path=Path(text),
            hint=f"name the disk by its device, as imagefs disks tells it, the file as ./{text}",
        )
    return Path(text).absolute()


def same_id(target: Path, disk_id: str) -> list[str]:
    """Return nothing: here two disks can have the same id."""
    del target, disk_id
    return []


def find_device(target: Path) -> LinuxDevice | None:
    """Return the device of a node, None where the path is none's."""
    device = devices.by_path(target)
    return None if device is None else LinuxDevice(device)


def open_device(target: Path) -> Target:
    """Open a device for writing, so that nobody mounts it meanwhile; raises RefusedError."""
    return DeviceTarget.open(target)


def describe(target: Path, sector_size: int | None = None) -> Description:
    """Look at a block device or file; raises RefusedError where there is neither."""
    try:
        mode = target.stat().st_mode
    except OSError as error:
        raise RefusedError(error.strerror or str(error), path=target) from error
    if stat.S_ISBLK(mode):
        return _of_device(target, devices.require(target), sector_size)
    if stat.S_ISREG(mode):
        return describe_file(target, sector_size)
    raise RefusedError("is neither a disk nor a file", path=target)


def _of_device(target: Path, device: BlockDevice, sector_size: int | None) -> Description:
    identity = devices.identity_of(device)
    made = identity.manufacturer == "Linux"  # of a file or other devices; then it is those that tell it apart
    disk = device.parent
    logical = int(disk.attribute("queue/logical_block_size") or 0)
    found = Description(
        path=str(target),
        kind="disk" if device.partition is None else "partition",
        size=device.size,
        model=identity.description if made else identity.product,
        vendor="" if made else identity.manufacturer,
        serial=identity.serial,
        transport=devices.transport_of(device),
        removable=device.removable,
        sector_size=sector_size or logical,
        physical_sector_size=int(disk.attribute("queue/physical_block_size") or 0),
        scheme="",
        disk_id="",
        partitions=(),
        volume=None,
        problems=(),
    )
    with ExitStack() as owned:
        try:
            fd = devices.open_device(device, target)
            devices.forget_cached(fd)
            raw = RawReader(fd, target)
        except ReportedError as error:
            return replace(found, problems=(f"can't be read: {error.what}",))
        owned.callback(raw.close)
        size = sector_size or logical or detect_sector_size(raw)
        return with_contents(replace(found, size=raw.size, sector_size=size), raw, _device_uses(device))


def _device_uses(device: BlockDevice) -> dict[int, tuple[str, ...]]:
    """Return the uses of a device's partitions by their offset, and all of them by 0, where none starts."""
    try:
        uses = Uses()
    except RefusedError:
        return {}

    def of(one: BlockDevice) -> tuple[str, ...]:
        return tuple(dict.fromkeys(use.how for use in uses.of_device(one)))

    return {part.start: of(part) for part in device.partitions()} | {0: of(device)}
