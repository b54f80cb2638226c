"""Disks and volumes of Windows that are to be written: found by their names, and described."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from formats.errors import ReportedError
from formats.partition_table import Kind, read_table
from imagefs.errors import RefusedError, UsageError
from imagefs.imaging.names import is_disk
from imagefs.machine.windows import disks, volumes
from imagefs.machine.windows.api import Api, ApiError
from imagefs.machine.windows.reader import DeviceReader, open_volume
from imagefs.machine.windows.volumes import Volume
from imagefs.restore.described import Description, with_contents
from imagefs.restore.windows_target import cannot_open


@dataclass(frozen=True, slots=True)
class WindowsDevice:
    """A disk or a volume that is to be written; see ``TargetDevice``."""

    api: Api
    path: Path

    @property
    def address(self) -> int | None:
        """Where a volume starts on its disk, bytes; None for a whole disk, and a volume of several places."""
        name = volumes.volume_name(str(self.path))
        if name is None:
            return None
        extents = volumes.look_at(self.api, name).extents
        return extents[0].offset if len(extents) == 1 else None

    def partition(self, number: int) -> Path | None:
        """Return the volume that a disk's partition is; raises UsageError, and RefusedError for no volume."""
        disk = disks.disk_number(str(self.path))
        if disk is None:
            return None
        try:
            known = disks.look_at(self.api, disk)
            if not known.sector_size:
                raise RefusedError(known.problem, path=self.path)
            reader = DeviceReader(self.api, known.path, unit=known.physical_sector_size)
            try:
                table = read_table(reader, known.sector_size, disk_size=reader.size)
            finally:
                reader.close()
            there = {e.number: e for e in table.partitions} if table is not None else {}
            entry = there.get(number)
            if entry is None or entry.kind is Kind.EXTENDED:
                names = ", ".join(str(n) for n, e in there.items() if e.kind is not Kind.EXTENDED) or "none"
                raise UsageError(f"has no partition {number}; there are: {names}", path=self.path)
            for volume in volumes.all_volumes(self.api):
                if volume.is_partition(disk, entry.offset, entry.size):
                    return Path(volume.device)
        except ApiError as error:
            raise cannot_open(error, self.path) from error
        raise RefusedError(
            f"Windows has no volume for partition {number}",
            path=self.path,
            hint="restore the whole disk, or give the partition a type that Windows knows",
        )


def target_path(api: Api, text: str) -> Path | None:
    r"""Return the device that ``disk1``, ``\\.\PhysicalDrive1`` or ``X:`` means, None for a file's name.

    A file that is called like a disk has to be named with a folder: ``.\disk1``. Raises UsageError where
    there is no such disk or volume, and for what might be meant as a file, or as a partition.
    """
    number = _number(text) if is_disk(text) else disks.disk_number(text)
    name, root = volumes.volume_name(text), volumes.root_of(text)
    try:
        if number is not None:
            if number not in disks.disk_numbers(api):
                raise UsageError("there is no such disk", path=Path(text), hint="imagefs disks lists them")
            return Path(disks.disk_path(number))
        if name is None and root is not None:
            name = api.volume_at(root)
    except ApiError as error:
        raise UsageError(
            f"is no volume of this machine's disks ({error.strerror})",
            path=Path(text),
            hint="imagefs disks lists them",
        ) from error
    return Path(name.removesuffix("\\")) if name is not None else None


def _number(text: str) -> int:
    """Return the number in ``disk1``, where nothing else can be meant by it."""
    digits = text[len("disk") :]
    what = "" if digits.isdecimal() else "is it a partition, or a file?"
    if not what and Path(text).exists():
        what = "is it the disk, or the file of that name here?"
    if what:
        raise UsageError(
            what,
            path=Path(text),
            hint=rf"\\.\PhysicalDriveN is a disk, with --to-partition its partition; a file is ./{text}",
        )
    return int(digits)


def find_device(api: Api, target: Path) -> WindowsDevice | None:
    """Return the device of a path, None where it is none's."""
    text = str(target)
    is_device = disks.disk_number(text) is not None or volumes.volume_name(text) is not None
    return WindowsDevice(api, target) if is_device else None


def describe_device(api: Api, target: Path, sector_size: int | None = None) -> Description:
    """Look at a disk or volume; raises RefusedError where it can't be asked."""
    try:
        number = disks.disk_number(str(target))
        there = volumes.all_volumes(api)
        name = volumes.volume_name(str(target)) or ""
        volume = next((one for one in there if one.name.lower() == name.lower()), None)
        if number is None:
            if volume is None or not volume.extents:
                raise RefusedError("is neither a disk nor a volume of one", path=target)
            number = volume.extents[0].disk
        known = disks.look_at(api, number)
    except ApiError as error:
        raise cannot_open(error, target) from error
    identity = known.identity
    found = Description(
        path=known.path if volume is None else volume.title,
        kind="disk" if volume is None else "partition",
        size=known.size if volume is None else volume.size,
        model=identity.product or identity.description,
        vendor=identity.manufacturer,
        serial=identity.serial,
        transport=known.bus,
        removable=known.removable,
        sector_size=sector_size or known.sector_size,
        physical_sector_size=known.physical_sector_size,
        scheme="",
        disk_id="",
        partitions=(),
        volume=None,
        problems=(),
    )
    if not known.sector_size:
        return replace(found, problems=(f"can't be read: {known.problem}",))
    with ExitStack() as owned:
        try:
            unit = known.physical_sector_size
            if volume is None:
                raw = DeviceReader(api, known.path, unit=unit)
            else:
                raw = open_volume(api, volume.device, unit=unit)
        except ReportedError as error:
            return replace(found, problems=(f"can't be read: {error.what}",))
        owned.callback(raw.close)
        if volume is not None:
            return with_contents(found, raw, {0: _uses(volume)})
        uses = {
            extent.offset: _uses(one)
            for one in there
            for extent in one.extents
            if extent.disk == known.number
        }
        return with_contents(replace(found, size=raw.size), raw, uses)


def _uses(volume: Volume) -> tuple[str, ...]:
    shown = tuple(f"shown as {point.removesuffix(chr(92))}" for point in volume.mount_points)
    return shown + (("locked by BitLocker",) if volume.is_locked else ())
