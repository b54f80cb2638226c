r"""The names under which Windows knew the volumes of a backup point: drive letters and volume GUIDs.

Two sources: what the image records of the system that made it, and the MountedDevices of a Windows
installation on one of the volumes (values of \DosDevices\C: and \??\Volume{…}: the disk's signature and
the partition's offset, or "DMIO:ID:" and the GUID of the partition; https://docs.rs/peripheral-core). An
installation is believed before the record: that may be of a rescue system, which gives letters of its own.
"""

import logging
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence

from formats.container import Disk, Partition
from formats.errors import FormatError
from formats.partition_table import read_table
from imagefs.filesystems import open_file_system
from imagefs.filesystems.detect import recognise
from imagefs.filesystems.registry import read_values

log = logging.getLogger(__name__)

_HIVE = ("Windows", "System32", "config", "SYSTEM")
_PREFIXES = ("\\DOSDEVICES\\", "\\??\\", "\\\\?\\")

Names = frozenset[str]  # "C:", "VOLUME{…}": upper case
KnownAs = Callable[[], Names | None]  # see open_file_system


class DriveLetters:
    """The names of the volumes of one point. They are looked for when the first is asked for; thread-safe."""

    def __init__(self, disks: Sequence[Disk]) -> None:
        self._disks = disks
        self._lock = threading.Lock()
        self._names: dict[tuple[str, str], Names] | None = None
        self._has_letters = False

    def names_of(self, disk: Disk, partition: Partition) -> Names | None:
        """Return a volume's names; None where no volume of the point has a letter that is known."""
        with self._lock:
            if self._names is None:
                self._names = self._find()
                self._has_letters = any(name[1:] == ":" for names in self._names.values() for name in names)
            return self._names[disk.name, partition.name] if self._has_letters else None

    def _find(self) -> dict[tuple[str, str], Names]:
        devices = {place: names for place, names in self._mounted_devices() if names}
        found: dict[tuple[str, str], Names] = {}
        for disk in self._disks:
            identities = _identities(disk)
            for partition in disk.partitions:
                place = disk.name, partition.name
                known = devices.get(place) or next(iter(devices.values()), {})
                recorded = {name for name in _recorded(partition) if name not in known}
                identity = identities.get(partition.offset)
                mounted = {name for name, value in known.items() if value == identity}
                found[place] = frozenset(recorded | mounted)
        return found

    def _mounted_devices(self) -> Iterator[tuple[tuple[str, str], dict[str, bytes]]]:
        """Yield which devices have which names, as the installation on each volume knows them."""
        for disk in self._disks:
            for partition in disk.partitions:
                try:
                    devices = _devices_of(disk, partition)
                except (FormatError, OSError) as error:
                    log.info("%s/%s: no drive letters of Windows: %s", disk.name, partition.name, error)
                else:
                    yield (disk.name, partition.name), devices


def _devices_of(disk: Disk, partition: Partition) -> dict[str, bytes]:
    """Return the devices behind names in the registry of the Windows installation on a volume.

    Raises OSError (ENOENT) where there is none, FormatError where it can't be read.
    """
    reader = partition.reader()
    volume = open_file_system(reader, disk.sector_size) if recognise(reader) == "NTFS" else None
    if volume is None:
        return {}
    with volume:  # one of its own: what is being read of the shown one may wait for this
        inode = volume.root
        for name in _HIVE:
            inode = volume.lookup(inode, name)
        values = read_values(volume.open(inode), ["MountedDevices"])
    names = ((_name_of(key.upper()), value) for key, value in values.items())
    return {name: value for name, value in names if name is not None}


def _recorded(partition: Partition) -> Iterator[str]:
    if partition.drive_letter:
        yield f"{partition.drive_letter.upper()}:"
    name = _name_of(partition.volume_guid.upper())
    if name is not None:
        yield name


def _name_of(text: str) -> str | None:
    r"""Return the name in \??\Volume{…} or \DosDevices\C:."""
    for prefix in _PREFIXES:
        if text.startswith(prefix):
            return text.removeprefix(prefix).rstrip("\\")
    return None


def _identities(disk: Disk) -> dict[int, bytes]:
    """Return what MountedDevices calls the partitions of a disk, by their offsets."""
    try:
        table = read_table(disk.reader(), disk.sector_size)
    except FormatError:
        return {}
    if table is None:
        return {}
    if table.scheme == "gpt":
        return {item.offset: b"DMIO:ID:" + uuid.UUID(item.id).bytes_le for item in table.partitions}
    signature = int(table.disk_id, 16)
    return {item.offset: struct.pack("<IQ", signature, item.offset) for item in table.partitions}
