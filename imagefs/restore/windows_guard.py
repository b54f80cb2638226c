"""What keeps a restore or a clone from overwriting the wrong disk or volume of Windows.

All of it is found out by looking: nothing is opened for writing, nothing is locked. Whether something is in
use shows when the target is opened, which locks its volumes. What can't be found out counts as in use.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagefs.errors import RefusedError
from imagefs.machine.windows import api as calls
from imagefs.machine.windows import disks, volumes
from imagefs.machine.windows.api import Api, ApiError
from imagefs.machine.windows.disks import POOLS, PhysicalDisk
from imagefs.machine.windows.layouts import DiskExtent
from imagefs.machine.windows.volumes import Volume
from imagefs.restore.windows_target import cannot_open

IOCTL_DISK_IS_WRITABLE = 0x70024
IOCTL_DISK_GET_DISK_ATTRIBUTES = 0x700F0  # GET_DISK_ATTRIBUTES: Version, Reserved1, Attributes (8 bytes)

_THERE = "see that it is still there"
_READ_ONLY = 2  # DISK_ATTRIBUTE_READ_ONLY


@dataclass(frozen=True, slots=True)
class Needed:
    r"""What the running system can't do without: a file or folder, or a volume by its \Device\ name."""

    place: str
    why: str  # "Windows runs from it"


def refuse_unsafe_device(
    api: Api, target: Path, *, protected: Sequence[Path], needed: Sequence[Needed]
) -> None:
    """Raise RefusedError where overwriting a disk or volume would do harm, or can't be done.

    ``protected`` is what is read meanwhile: the files of a set, a clone's source. Refused: the source, what
    it lies on, what lies on it · what the running Windows needs, and the disk that holds it · what is
    read-only · disks of pools, volumes of several disks · everything, for who is no administrator.
    """
    if not api.is_administrator():
        raise RefusedError(
            "can't be written by this user", path=target, hint="start the command line as an administrator"
        )
    try:
        _Guard(api, target).refuse(protected, needed)
    except ApiError as error:
        raise cannot_open(error, target) from error


class _Guard:
    """What is known of a target, held against what must survive."""

    def __init__(self, api: Api, target: Path) -> None:
        self._api = api
        self._target = target
        self._there = volumes.all_volumes(api)
        number = disks.disk_number(str(target))
        name = volumes.volume_name(str(target))
        self._volume: Volume | None = None
        if number is None:
            self._volume = self._known(name or "")
            self._target = Path(self._volume.title)  # for messages: its letter
            if not self._volume.extents:
                what = self._volume.problem or "a CD?"
                raise RefusedError(f"lies on no disk: {what}", path=target, hint="name another target")
        self._disks = [number] if number is not None else sorted({e.disk for e in self._volume_extents()})

    def _known(self, name: str) -> Volume:
        for volume in self._there:
            if volume.name.lower() == name.lower():
                return volume
        raise RefusedError("there is no such volume", path=self._target, hint="imagefs disks lists them")

    def _volume_extents(self) -> tuple[DiskExtent, ...]:
        return self._volume.extents if self._volume is not None else ()

    def refuse(self, protected: Sequence[Path], needed: Sequence[Needed]) -> None:
        """Raise RefusedError for the first thing that is in the way."""
        for path in protected:
            self._refuse_source(path)
        for one in needed:
            self._refuse_needed(one)
        for number in self._disks:
            self._refuse_unwritable(disks.look_at(self._api, number))
        if self._volume is None:
            self._refuse_shared()
        elif self._volume.is_locked:
            raise RefusedError(
                "is locked by BitLocker", path=self._target, hint="unlock it, or overwrite its whole disk"
            )

    # --- What must survive ---

    def _refuse_source(self, path: Path) -> None:
        number = disks.disk_number(str(path))
        if number is not None:
            if self._volume is None and number in self._disks:
                raise RefusedError("is the source itself", path=self._target, hint="name another target")
            if number in self._disks:
                raise RefusedError(
                    f"lies on the source, {path}", path=self._target, hint="name another target"
                )
            return
        is_volume = volumes.volume_name(str(path)) is not None
        for volume in self._volumes_of(str(path), "can't tell where the source lies"):
            if is_volume and self._volume is not None and volume.name == self._volume.name:
                raise RefusedError("is the source itself", path=self._target, hint="name another target")
            if self._meets(volume):
                raise RefusedError(
                    f"the source, {path}, lies on it",
                    path=self._target,
                    hint="name another disk, or copy the source away",
                )

    def _refuse_needed(self, one: Needed) -> None:
        for volume in self._volumes_of(one.place, "can't tell what Windows needs"):
            if self._meets(volume):
                raise RefusedError(
                    f"{one.why} ({volume.title})",
                    path=self._target,
                    hint="start this machine from another medium to overwrite it",
                )

    def _volumes_of(self, place: str, unknown: str) -> Iterator[Volume]:
        """Yield the volume that a path, or a device, is on; none for a path that is on no disk of ours."""
        if place.startswith("\\Device\\"):
            for volume in self._there:
                if place in self._api.query_dos_device(volume.device.removeprefix("\\\\?\\")):
                    yield volume
            return
        name = volumes.volume_name(place)
        if name is None:
            try:
                root = self._api.volume_path_name(place)
                name = self._api.volume_at(root)
            except ApiError as error:
                if self._is_remote(place):
                    return
                raise RefusedError(
                    f"{unknown}: {place}: {error.strerror}", path=self._target, hint=_THERE
                ) from error
        found = [volume for volume in self._there if volume.name.lower() == name.lower()]
        if not found:
            raise RefusedError(f"{unknown}: {place} is on no known volume", path=self._target, hint=_THERE)
        yield from found

    def _is_remote(self, place: str) -> bool:
        if place.upper().startswith("\\\\?\\UNC\\"):
            return True
        place = place.removeprefix("\\\\?\\")
        return place.startswith("\\\\") or self._api.drive_type(place[:2] + "\\") == calls.DRIVE_REMOTE

    def _meets(self, volume: Volume) -> bool:
        """Whether writing the target changes a volume, or what it lies on can't be told."""
        if self._volume is not None:
            mine = self._volume.extents
            return volume.name == self._volume.name or any(
                one.disk == other.disk
                and one.offset < other.offset + other.size
                and other.offset < one.offset + one.size
                for one in mine
                for other in volume.extents
            )
        if not volume.extents:
            return not volume.is_cd
        return any(extent.disk in self._disks for extent in volume.extents)

    # --- What can't be written ---

    def _refuse_unwritable(self, disk: PhysicalDisk) -> None:
        if not disk.size:
            raise RefusedError(
                f"can't be written: {disk.problem or 'no medium'}",
                path=self._target,
                hint="put a medium in, or name another disk",
            )
        with disks.opened(self._api, disk.path, calls.GENERIC_READ) as handle:
            try:
                told = self._api.device_io_control(handle, IOCTL_DISK_GET_DISK_ATTRIBUTES, size=16)
            except ApiError:
                told = b""  # removable disks have none
            if len(told) >= 16 and int.from_bytes(told[8:16], "little") & _READ_ONLY:
                raise RefusedError(
                    "is set read-only", path=self._target, hint="diskpart: attributes disk clear readonly"
                )
            try:
                self._api.device_io_control(handle, IOCTL_DISK_IS_WRITABLE)
            except ApiError as error:
                if error.code == calls.ERROR_WRITE_PROTECT:
                    raise RefusedError(
                        "is write-protected", path=self._target, hint="look for a switch on it"
                    ) from error

    def _refuse_shared(self) -> None:
        """Refuse a disk of which others have a part."""
        (number,) = self._disks
        layout = disks.look_at(self._api, number).layout
        for entry in layout.entries if layout is not None else ():
            if entry.type.upper() in POOLS:
                raise RefusedError(
                    f"its partition {entry.number} belongs to {POOLS[entry.type.upper()]}",
                    path=self._target,
                    hint="take it out of there first, in Windows' disk management",
                )
        for volume in self._there:
            on = {extent.disk for extent in volume.extents}
            if number in on and len(on) > 1:
                raise RefusedError(
                    f"{volume.title} lies on it, and on other disks as well",
                    path=self._target,
                    hint="remove that volume first",
                )


def refuse_on_source(api: Api, target: Path, folder: Path, protected: Sequence[Path]) -> None:
    """Raise RefusedError for a file that lies on the disk or volume that is read."""
    for path in protected:
        number, name = disks.disk_number(str(path)), volumes.volume_name(str(path))
        if number is None and name is None:
            continue
        try:
            mine = volumes.look_at(api, api.volume_at(api.volume_path_name(str(folder))))
        except ApiError:
            continue  # on no disk of this machine
        if mine.name.lower() == (name or "").lower() or any(extent.disk == number for extent in mine.extents):
            raise RefusedError(
                f"lies on the source, {path}", path=target, hint="name a target on another disk"
            )


def same_id(api: Api, target: Path, disk_id: str) -> list[str]:
    """Return a line where another disk has the id that a target is to get: Windows then takes one offline."""
    number = disks.disk_number(str(target))
    if number is None or not disk_id.strip("0-"):
        return []
    try:
        there = disks.all_disks(api)
    except ApiError:
        return []
    return [
        f"{target}: will have the same id as {disk.path} ({disk_id}): Windows takes one of them offline;"
        " give it a new one, or take the other out"
        for disk in there
        if disk.number != number
        and disk.layout is not None
        and disk.layout.disk_id.upper() == disk_id.upper()
    ]
