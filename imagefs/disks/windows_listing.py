"""The disks of Windows: what its drivers tell everybody, and what administrators can read of them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from formats.blockreader import BlockReader, SliceReader
from formats.errors import ReportedError
from formats.partition_table import Kind, read_table
from imagefs.disks.shape import (
    NOT_KNOWN,
    OFF,
    UNKNOWN_STATE,
    Disk,
    DiskList,
    Encryption,
    LooseVolume,
    Partition,
)
from imagefs.errors import SourceReadError
from imagefs.filesystems.contents import Contents, contents_of
from imagefs.filesystems.nested.bitlocker import is_bitlocker
from imagefs.machine.windows import disks, volumes
from imagefs.machine.windows.api import Api, ApiError
from imagefs.machine.windows.disks import PhysicalDisk
from imagefs.machine.windows.layouts import LayoutEntry
from imagefs.machine.windows.reader import DeviceReader, open_volume, read_error
from imagefs.machine.windows.volumes import Volume

_BITLOCKER = "BitLocker"


@dataclass(frozen=True, slots=True)
class _Table:
    scheme: str
    id: str
    entries: tuple[LayoutEntry, ...]
    problem: str = ""


def disks_of(api: Api, states: Mapping[str, str]) -> DiskList:
    r"""Return the machine's disks; ``states`` are BitLocker's, by the volume's name in small letters.

    What can't be read is said in its place. Raises SourceReadError where Windows tells of no disk at all.
    """
    try:
        physical, there = disks.all_disks(api), volumes.all_volumes(api)
    except ApiError as error:
        raise read_error(error, disks.disk_path(0)) from error
    listing = _Listing(api, there, states)
    found = tuple(listing.disk(one) for one in physical)
    return DiskList(found, tuple(listing.left()))


class _Listing:
    def __init__(self, api: Api, there: Sequence[Volume], states: Mapping[str, str]) -> None:
        self._api = api
        self._volumes = there
        self._states = states
        self._placed: set[str] = set()

    def disk(self, known: PhysicalDisk) -> Disk:
        """Return a disk and its partitions."""
        with ExitStack() as owned:
            raw = self._raw(known, owned)
            table = _table(known, raw)
            parts = [self._partition(known, entry, raw) for entry in table.entries]
            if not table.scheme and known.size:
                whole = self._partition(known, LayoutEntry(1, 0, known.size, "", "", ""), raw)
                parts = [whole] if whole.file_system or whole.mount_points else []
        identity = known.identity
        return Disk(
            number=known.number,
            path=known.path,
            model=identity.product,
            vendor=identity.manufacturer,
            revision=identity.revision,
            serial=identity.serial,
            size=known.size,
            scheme=table.scheme,
            id=table.id,
            sector_size=known.sector_size,
            physical_sector_size=known.physical_sector_size,
            bus=known.bus,
            removable=known.removable,
            partitions=tuple(sorted(parts, key=lambda part: part.number)),
            problem=known.problem or table.problem,
        )

    def left(self) -> list[LooseVolume]:
        """Return the volumes on disks that are none of the partitions."""
        return [
            LooseVolume(
                path=volume.device,
                disks=tuple(dict.fromkeys(extent.disk for extent in volume.extents)),
                size=volume.size,
                file_system=volume.file_system,
                label=volume.label,
                mount_points=volume.mount_points,
                encryption=self._encryption(volume, None),
                problem=volume.problem,
            )
            for volume in self._volumes
            if volume.name not in self._placed and not volume.is_cd
        ]

    def _raw(self, known: PhysicalDisk, owned: ExitStack) -> DeviceReader | None:
        """Open a disk for reading; None without the rights to."""
        if not known.size:
            return None
        try:
            raw = DeviceReader(self._api, known.path, unit=known.physical_sector_size)
        except SourceReadError:
            return None
        owned.callback(raw.close)
        return raw

    def _partition(self, known: PhysicalDisk, entry: LayoutEntry, raw: DeviceReader | None) -> Partition:
        volume = next(
            (one for one in self._volumes if one.is_partition(known.number, entry.offset, entry.size)), None
        )
        if volume is not None:
            self._placed.add(volume.name)
        part: BlockReader | None = None
        contents = None
        if raw is not None and entry.offset + entry.size <= raw.size:
            part = SliceReader(raw, entry.offset, entry.size)
            contents = contents_of(part, known.sector_size)
        elif raw is not None:
            contents = Contents("", "", "ends behind the end of the disk")
        mounted = volume if volume is not None and volume.file_system else None
        if mounted is not None and (contents is None or contents.file_system in ("", _BITLOCKER)):
            contents = Contents(mounted.file_system, mounted.label, "")
        found = contents or Contents("", "", "")
        return Partition(
            entry.number,
            entry.offset,
            entry.size,
            path=volume.device if volume is not None else "",
            type=entry.type,
            name=entry.name,
            id=entry.id,
            file_system=found.file_system,
            label=found.label,
            mount_points=volume.mount_points if volume is not None else (),
            encryption=self._encryption(volume, part, unit=known.physical_sector_size),
            problem=found.problem,
        )

    def _encryption(self, volume: Volume | None, part: BlockReader | None, *, unit: int = 512) -> Encryption:
        """Tell BitLocker's state: as Windows does, else by what the disk and the volume give to read."""
        state = self._states.get(volume.name.lower()) if volume is not None else None
        if state is not None:
            return OFF if state == "off" else Encryption(_BITLOCKER, state)
        if volume is not None and volume.is_locked:
            return Encryption(_BITLOCKER, "locked")
        if part is None:
            return UNKNOWN_STATE
        try:
            if not is_bitlocker(part):
                return OFF
            if volume is None:
                return Encryption(_BITLOCKER, NOT_KNOWN)
            with open_volume(self._api, volume.device, unit=unit) as plain:
                return Encryption(_BITLOCKER, "locked" if is_bitlocker(plain) else "unlocked")
        except SourceReadError:
            return Encryption(_BITLOCKER, NOT_KNOWN)


def _table(known: PhysicalDisk, raw: DeviceReader | None) -> _Table:
    """Return a disk's table as it is on it, numbered as images are; else as Windows tells it."""
    told = known.layout
    windows = _Table("", "", ())
    if told is not None and all(entry.offset for entry in told.entries):  # else the disk itself is a volume
        windows = _Table(told.scheme, told.disk_id, told.entries)
    if raw is None:
        return windows
    try:
        table = read_table(raw, known.sector_size, disk_size=raw.size)
    except ReportedError as error:
        return replace(windows, problem=f"its partition table can't be read: {error.what}")
    if table is None:
        return _Table("", "", ())
    entries = tuple(
        LayoutEntry(entry.number, entry.offset, entry.size, entry.type, entry.id, entry.name)
        for entry in table.partitions
        if entry.kind is not Kind.EXTENDED and entry.size
    )
    return _Table(table.scheme, table.disk_id, entries)
