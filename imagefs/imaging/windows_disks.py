r"""Opening a disk or volume of Windows to image it, so that each of its volumes is of one moment.

A partition whose volume is mounted is read from a shadow copy where its file system can have one (NTFS,
ReFS); else it is locked while it is read, or refused. Everything else is read from the disk itself. A volume
that BitLocker has unlocked is read through the volume, which gives its plain bytes; a locked one as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from formats.blockreader import BlockReader, ConcatReader, SliceReader
from formats.partition_table import Kind, read_table
from imagefs.errors import RefusedError, SnapshotError, SourceReadError, UsageError
from imagefs.filesystems.nested.bitlocker import is_bitlocker
from imagefs.imaging.source_disk import (
    OpenedDevice,
    SourceDisk,
    SourcePartition,
    Wanted,
    make_disk,
    refuse_unknown,
)
from imagefs.machine.windows import disks, shadow_copies, volumes
from imagefs.machine.windows.api import Api, ApiError
from imagefs.machine.windows.disks import POOLS, PhysicalDisk
from imagefs.machine.windows.layouts import FSCTL_LOCK_VOLUME
from imagefs.machine.windows.reader import DeviceReader, open_volume, read_error
from imagefs.machine.windows.shadow_copies import ShadowReader, ShadowSet
from imagefs.machine.windows.volumes import SNAPSHOT_FILE_SYSTEMS, Volume
from imagefs.machine.windows.wmi import System

# Read as they are where they can't be locked: what starts Windows, and what repairs it; nobody works on them.
_SPECIAL = {
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B": "EFI system partition",
    "E3C9E316-0B5C-4DB8-817D-F92DF00215AE": "reserved partition",
    "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC": "recovery partition",
    "EF": "EFI system partition",
    "27": "recovery partition",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """The Windows that is asked: its calls, and what makes shadow copies, got where it is needed."""

    api: Api
    system: Callable[[], System]


def is_device(path: Path) -> bool:
    r"""Tell whether a name is that of a disk or a volume: ``\\.\PhysicalDrive0``, ``\\?\Volume{…}``."""
    return disks.disk_number(str(path)) is not None or volumes.volume_name(str(path)) is not None


def volume_path(api: Api, text: str) -> Path | None:
    r"""Return the name of the volume that is meant by ``C:`` or ``\\?\Volume{…}``; None for another name.

    Raises UsageError where there is no such volume.
    """
    name = volumes.volume_name(text)
    root = volumes.root_of(text)
    if name is None and root is not None:
        try:
            name = api.volume_at(root)
        except ApiError as error:
            raise UsageError(
                f"is no volume of this machine's disks ({error.strerror})",
                path=Path(root[:2]),
                hint="imagefs disks lists them",
            ) from error
    return Path(name.removesuffix("\\")) if name is not None else None


def open_device(wanted: Wanted, owned: ExitStack, machine: Machine) -> OpenedDevice:
    """Open a disk, or a volume as its disk with that partition alone.

    What has to be closed, locks and shadow copies too, goes to ``owned``. Raises as ``open_source`` does.
    """
    try:
        name = volumes.volume_name(str(wanted.path))
        if name is None:
            return _Opening(wanted, owned, machine, disks.disk_number(str(wanted.path)) or 0).disk()
        volume = volumes.look_at(machine.api, name)
        if not volume.extents:
            raise UsageError(f"is on no disk: {volume.problem or 'a CD?'}", path=wanted.path)
        return _Opening(wanted, owned, machine, volume.extents[0].disk).volume(volume)
    except ApiError as error:
        raise read_error(error, str(wanted.path)) from error


class _Opening:
    """A disk on its way to be a source."""

    def __init__(self, wanted: Wanted, owned: ExitStack, machine: Machine, number: int) -> None:
        self._wanted = wanted
        self._owned = owned
        self._machine = machine
        self._api = machine.api
        self._warnings: list[str] = []
        self._readers: dict[str, DeviceReader] = {}
        self._known = disks.look_at(self._api, number)
        if not self._known.size:
            raise RefusedError(f"can't be read: {self._known.problem or 'no medium'}", path=wanted.path)

    def disk(self) -> OpenedDevice:
        """Open the whole disk."""
        return self._with_volumes("disk", self._source_disk(self._raw()))

    def volume(self, volume: Volume) -> OpenedDevice:
        """Open the partition that a volume is, or the volume by itself where it is none."""
        if len(volume.extents) == 1:
            raw = self._raw()
            number = self._number_in_table(raw, volume)
            if number is not None:
                refuse_unknown(self._wanted, {number})
                self._wanted = replace(self._wanted, partitions=frozenset({number}))
                return self._with_volumes("partition", self._source_disk(raw))
        reader = self._volume_reader(volume)
        self._warnings.append(f"{volume.title}: is no partition of one disk; it is imaged by itself")
        return self._with_volumes("partition", self._source_disk(reader), [volume])

    # --- Readers ---

    def _raw(self) -> DeviceReader:
        known, direct = self._known, self._wanted.direct
        raw = DeviceReader(self._api, known.path, unit=known.physical_sector_size, direct=direct)
        self._owned.callback(raw.close)
        return raw

    def _volume_reader(self, volume: Volume) -> DeviceReader:
        """Return the one reader of a volume: a second one would keep it from being locked."""
        if volume.name not in self._readers:
            self._readers[volume.name] = self._opened_device(volume.device)
        return self._readers[volume.name]

    def _opened_device(self, device: str) -> DeviceReader:
        unit = self._known.physical_sector_size
        reader = open_volume(self._api, device, unit=unit, direct=self._wanted.direct)
        self._owned.callback(reader.close)
        return reader

    def _source_disk(self, reader: DeviceReader) -> SourceDisk:
        known: PhysicalDisk = self._known
        sizes = (self._wanted.sector_size or known.sector_size, known.physical_sector_size)
        return make_disk(
            self._wanted, reader.name, known.number, reader, (sizes[0], max(sizes)), known.identity,
            removable=known.removable,
        )  # fmt: skip

    def _number_in_table(self, raw: DeviceReader, volume: Volume) -> int | None:
        """Return a volume's number in its disk's table, None where it is no partition by itself."""
        table = read_table(raw, self._wanted.sector_size or self._known.sector_size, disk_size=raw.size)
        (extent,) = volume.extents
        if table is None:
            return 1 if (extent.offset, extent.size) == (0, raw.size) else None
        for entry in table.partitions:
            if (entry.offset, entry.size) == (extent.offset, extent.size) and entry.kind is not Kind.EXTENDED:
                return entry.number if entry.type not in POOLS else None
        return None

    # --- What is read of each partition ---

    def _with_volumes(
        self, kind: str, disk: SourceDisk, alone: Sequence[Volume] | None = None
    ) -> OpenedDevice:
        """Have each partition read where its bytes stand still."""
        found = {}
        if alone is not None:
            found = {part.number: alone[0] for part in disk.partitions}
        else:
            there = volumes.all_volumes(self._api)
            self._warnings += [
                f"where the volume {one.title} lies can't be told ({one.problem}): is it on {disk.name}?"
                for one in there
                if one.file_system and not one.extents and not one.is_cd
            ]
            for part in disk.partitions:
                for volume in there:
                    if volume.is_partition(disk.number, part.offset, part.size):
                        found[part.number] = volume
            self._refuse_scattered(disk, [one for one in there if one not in found.values()])
        plain: dict[int, BlockReader] = {}
        to_copy: list[tuple[SourcePartition, Volume]] = []
        encrypted = set()
        for part in disk.partitions:
            of_part = found.get(part.number)
            if of_part is None:
                continue
            if alone is None and is_bitlocker(part.reader):
                through = self._unlocked(part, of_part)
                if through is None:
                    continue
                encrypted.add(part.number)
                plain[part.number] = through
            if self._wants_copy(part, of_part):
                to_copy.append((part, of_part))
            elif of_part.file_system:
                self._hold(part, of_part)
        opened = OpenedDevice(kind, disk, self._warnings)
        plain |= self._copied(to_copy, opened)
        parts = [
            replace(part, reader=_fitted(part, plain[part.number], part.number in encrypted))
            if part.number in plain
            else part
            for part in disk.partitions
        ]
        opened.disk = replace(disk, partitions=tuple(parts))
        if alone is not None and parts[0].number in plain:
            opened.disk = replace(opened.disk, reader=parts[0].reader)
        return opened

    def _refuse_scattered(self, disk: SourceDisk, others: Sequence[Volume]) -> None:
        """Refuse a disk with parts of volumes that are not its partitions: nothing keeps these still."""
        lines = [
            f"holds bytes of the volume {volume.title}, which is not one of its partitions"
            for volume in others
            if volume.file_system and volume.touches(disk.number, disk.spans)
        ]
        for part in disk.partitions:
            kind = POOLS.get(part.entry.type) if part.entry is not None else None
            if kind is not None:
                lines.append(f"partition {part.number} belongs to {kind}")
        if lines and not self._wanted.live:
            raise RefusedError(
                lines[0],
                path=self._wanted.path,
                hint="image its volumes by their letters, or allow an inconsistent image with --live",
            )
        self._warnings += [f"{disk.name}: {line}; the image may be inconsistent" for line in lines]

    def _unlocked(self, part: SourcePartition, volume: Volume) -> BlockReader | None:
        """Return the plain bytes of a volume that BitLocker encrypted; None where it is locked."""
        try:
            reader = None if volume.is_locked else self._volume_reader(volume)
            if reader is not None and not is_bitlocker(reader):
                return reader
        except SourceReadError:
            pass  # as a locked volume answers
        self._warnings.append(
            f"{self._name(part, volume)}: is locked by BitLocker; its encrypted bytes are imaged, all of them"
        )
        return None

    def _wants_copy(self, part: SourcePartition, volume: Volume) -> bool:
        if not self._wanted.snapshot or volume.file_system.upper() not in SNAPSHOT_FILE_SYSTEMS:
            return False
        return part.entry is None or part.entry.type not in _SPECIAL

    def _hold(self, part: SourcePartition, volume: Volume) -> None:
        """Lock a mounted volume for as long as it is read, or refuse it."""
        name = self._name(part, volume)
        try:
            self._volume_reader(volume).control(FSCTL_LOCK_VOLUME)
        except ApiError as error:
            special = part.entry is not None and part.entry.type in _SPECIAL
            if not (special or self._wanted.live):
                raise RefusedError(
                    f"{name} is in use, and can't be locked ({error.strerror})",
                    path=self._wanted.path,
                    hint="close what uses it, or allow an inconsistent image with --live"
                    + ("" if self._wanted.snapshot else "; without --no-snapshot a shadow copy is read"),
                ) from error
            if not special:
                self._warnings.append(f"{name}: is in use; the image may be inconsistent")

    def _copied(
        self, to_copy: Sequence[tuple[SourcePartition, Volume]], opened: OpenedDevice
    ) -> dict[int, BlockReader]:
        """Return readers of shadow copies, made together, by the number of their partition."""
        if not to_copy:
            return {}
        try:
            copies = self._take({volume.name: volume.title for _, volume in to_copy})
        except SnapshotError as error:
            if not self._wanted.live or self._wanted.snapshots:
                raise
            self._warnings.append(f"{error}; the image may be inconsistent")
            return {}
        self._owned.callback(copies.close)
        self._warnings += copies.warnings
        opened.checks.append(copies.check)
        opened.snapshots = copies
        return {
            part.number: ShadowReader(self._opened_device(copies.of(volume.name).device), copies)
            for part, volume in to_copy
        }

    def _take(self, names: Mapping[str, str]) -> ShadowSet:
        system = self._machine.system()
        return shadow_copies.obtain(names, self._wanted.snapshots, system)

    def _name(self, part: SourcePartition, volume: Volume) -> str:
        letters = f" ({volume.title})" if volume.mount_points else ""
        return f"{self._known.path} partition {part.number}{letters}"


def _fitted(part: SourcePartition, reader: BlockReader, encrypted: bool) -> BlockReader:
    """Return a reader of a partition's size; what a volume does not reach is read from the disk."""
    if reader.size == part.size:
        return reader
    if reader.size > part.size:
        return SliceReader(reader, 0, part.size)
    if encrypted:
        raise RefusedError(
            f"partition {part.number}: only {reader.size} of its {part.size} bytes can be read decrypted"
        )
    tail = part.size - reader.size
    return ConcatReader([reader, SliceReader(part.reader, reader.size, tail)])
