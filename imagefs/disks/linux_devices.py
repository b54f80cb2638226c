"""The disks of Linux: from sysfs, mounts, and partition tables where they can be read."""

import sys

assert sys.platform != "win32"

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from formats.blockreader import BlockReader, SliceReader
from formats.errors import ReportedError
from formats.partition_table import Kind, PartitionEntry, PartitionTable, read_table
from imagefs.disks.shape import OFF, UNKNOWN_STATE, Disk, DiskList, Encryption, Partition
from imagefs.errors import RefusedError
from imagefs.filesystems.contents import Contents, contents_of
from imagefs.machine import devices
from imagefs.machine.devices import BlockDevice
from imagefs.machine.mounts import Uses
from imagefs.machine.rawreader import RawReader

_NAMES = {"vfat": "FAT", "msdos": "FAT", "ntfs": "NTFS", "ntfs3": "NTFS", "exfat": "exFAT", "xfs": "XFS"}
_NAMES |= {"btrfs": "Btrfs", "hfsplus": "HFS+", "iso9660": "ISO 9660", "fuseblk": ""}
_OPENED = {"CRYPT-LUKS": "LUKS", "CRYPT-BITLK": "BitLocker"}  # what device mapper's uuids begin with


def list_disks() -> DiskList:
    """Return the machine's disks; what can't be read is said in its place."""
    try:
        uses = Uses()
    except RefusedError:
        uses = None
    found = [_disk(number, device, uses) for number, device in enumerate(devices.whole_devices())]
    return DiskList(tuple(found))


def _disk(number: int, device: BlockDevice, uses: Uses | None) -> Disk:
    sector_size = int(device.attribute("queue/logical_block_size") or 512)
    table, problem = None, ""
    with ExitStack() as owned:
        try:
            raw: BlockReader | None = _opened(device, owned)
        except ReportedError as error:
            raw, problem = None, f"can't be read: {error.what}"
        if raw is not None:
            table, problem = _table(raw, sector_size)
        looking = _Looking(device, raw, sector_size, uses)
        if table is not None:
            parts = [looking.at_entry(entry) for entry in _entries(table)]
        else:
            parts = list(looking.without_table(is_readable=raw is not None and not problem))
    identity = devices.identity_of(device)
    made = identity.manufacturer == "Linux"  # of a file or other devices: then it is those that tell it apart
    return Disk(
        number=number,
        path=str(device.node),
        model=identity.description if made else identity.product,
        vendor="" if made else identity.manufacturer,
        revision=identity.revision,
        serial=identity.serial,
        size=device.size,
        scheme=table.scheme if table is not None else "",
        id=table.disk_id if table is not None else "",
        sector_size=sector_size,
        physical_sector_size=int(device.attribute("queue/physical_block_size") or sector_size),
        bus=devices.transport_of(device),
        removable=device.removable,
        partitions=tuple(sorted(parts, key=lambda part: part.number)),
        problem=problem,
    )


def _opened(device: BlockDevice, owned: ExitStack) -> RawReader:
    raw = RawReader(devices.open_device(device), device.node)
    owned.callback(raw.close)
    return raw


def _table(raw: BlockReader, sector_size: int) -> tuple[PartitionTable | None, str]:
    try:
        return read_table(raw, sector_size, disk_size=raw.size), ""
    except ReportedError as error:
        return None, f"its partition table can't be read: {error.what}"


def _entries(table: PartitionTable) -> list[PartitionEntry]:
    return [entry for entry in table.partitions if entry.kind is not Kind.EXTENDED and entry.size]


class _Looking:
    """What is found out of a disk's partitions. ``raw`` is the disk, None where it can't be read."""

    def __init__(
        self, disk: BlockDevice, raw: BlockReader | None, sector_size: int, uses: Uses | None
    ) -> None:
        self._disk = disk
        self._raw = raw
        self._sector_size = sector_size
        self._uses = uses
        self._known = {(part.start, part.size): part for part in disk.partitions()}

    def at_entry(self, entry: PartitionEntry) -> Partition:
        """Return a partition of the table, the kernel's device with it where it knows one."""
        device = self._known.get((entry.offset, entry.size))
        contents = self._contents(device, entry.offset, entry.size)
        place = (entry.number, entry.offset, entry.size)
        return self._partition(device, place, (entry.type, entry.name, entry.id), contents)

    def without_table(self, *, is_readable: bool) -> Iterator[Partition]:
        """Yield the partitions that the kernel alone knows; the disk itself where it is a volume."""
        for (start, size), device in self._known.items():
            if device.attribute("size") != "2":  # so the kernel shows an extended partition
                contents = self._contents(device, start, size)
                yield self._partition(device, (device.partition or 0, start, size), ("", "", ""), contents)
        if not self._known:
            contents = self._contents(self._disk, 0, self._disk.size) if is_readable else None
            part = self._partition(self._disk, (1, 0, self._disk.size), ("", "", ""), contents)
            if part.file_system or part.mount_points:
                yield part

    def _contents(self, device: BlockDevice | None, offset: int, size: int) -> Contents | None:
        """Look at a partition through its own device, whose cache is not the disk's; None: it can't be."""
        if self._raw is None:
            return None
        with ExitStack() as owned:
            try:
                if device is not None:
                    reader: BlockReader = _opened(device, owned)
                elif offset + size > self._raw.size:
                    return Contents("", "", "ends behind the end of the disk")
                else:
                    reader = SliceReader(self._raw, offset, size)
            except ReportedError as error:
                return Contents("", "", f"can't be read: {error.what}")
            return contents_of(reader, self._sector_size)

    def _partition(
        self, device: BlockDevice | None, place: tuple[int, int, int], told: tuple[str, str, str],
        contents: Contents | None,
    ) -> Partition:  # fmt: skip
        mounted = self._mounted(device)
        file_system = contents.file_system if contents is not None else self._by_mount(device)
        return Partition(
            *place,
            path=str(device.node) if device is not None else "",
            type=told[0],
            name=told[1],
            id=told[2],
            file_system=file_system,
            label=contents.label if contents is not None else "",
            mount_points=tuple(mounted),
            encryption=_encryption(device, contents, is_mounted=bool(mounted)),
            problem=contents.problem if contents is not None else "",
        )

    def _mounted(self, device: BlockDevice | None) -> Sequence[str]:
        if device is None or self._uses is None:
            return ()
        found = [use.mountpoint or "[SWAP]" for use in self._uses.direct(device)]
        return list(dict.fromkeys(found))

    def _by_mount(self, device: BlockDevice | None) -> str:
        """Return the file system that a device is mounted as."""
        if device is None or self._uses is None:
            return ""
        kinds = [mount.file_system for mount in self._uses.mounts if mount.number == device.number]
        return _NAMES.get(kinds[0], kinds[0]) if kinds else ""


def _encryption(device: BlockDevice | None, contents: Contents | None, *, is_mounted: bool) -> Encryption:
    for holder in device.holders() if device is not None else ():
        for mark, kind in _OPENED.items():
            if holder.attribute("dm/uuid").startswith(mark):
                return Encryption(kind, "unlocked")
    if contents is not None:
        if contents.file_system in _OPENED.values():
            return Encryption(contents.file_system, "locked")
        return UNKNOWN_STATE if contents.problem and not contents.file_system else OFF
    return OFF if is_mounted else UNKNOWN_STATE
