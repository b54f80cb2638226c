"""Who uses a block device or a disk file: mounts, swap, and what is stacked upon it; and what it lies on.

A mount counts by the state of its file system: a read-only bind mount of one that is mounted read-write
elsewhere is writable. Source: proc(5), /proc/pid/mountinfo.
"""

import sys

assert sys.platform != "win32"

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from imagefs.errors import RefusedError
from imagefs.machine import devices
from imagefs.machine.devices import BlockDevice

PROC = Path("/proc")

Number = tuple[int, int]  # major, minor
Spans = Sequence[tuple[int, int]] | None  # starts and ends on a disk, bytes; None: all of it


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo, its escapes decoded."""

    number: Number
    mountpoint: str
    file_system: str
    source: str
    writable: bool
    layers: tuple[str, ...] = ()  # the folders that an overlay shows, by the names that whoever made it used


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a block device, or of a file or folder, that something lies on."""

    device: Number | None  # of a block device
    file: tuple[int, int] | None  # st_dev, st_ino
    spans: tuple[tuple[int, int], ...] | None  # starts and ends, bytes; None: all of it
    whole: bool  # all of these bytes; False: some of them, as a file has some of its file system's

    def meets(self, other: "Place") -> bool:
        """Whether writing all of the one changes the other: two that have some bytes each share none."""
        return (
            (self.device, self.file) == (other.device, other.file)
            and (self.whole or other.whole)
            and (self.spans is None or any(_touches(*_sized(span), other.spans) for span in self.spans))
        )


@dataclass(frozen=True, slots=True)
class Use:
    """A use of a device: what for, and whether it can be written meanwhile."""

    device: BlockDevice
    how: str  # "mounted read-write on /home", "used as swap"
    writable: bool
    mountpoint: str = ""


def read_mounts(text: str) -> list[Mount]:
    """Parse the text of a mountinfo file."""
    mounts = []
    for line in text.split("\n"):
        fields, separator, rest = line.partition(" - ")
        if not separator:
            continue
        _, _, number, _, mountpoint, *_ = fields.split(" ")
        kind, source, options = [*rest.split(" "), "", ""][:3]
        major, _, minor = number.partition(":")
        writable = "ro" not in options.split(",")
        layers = _layers(options) if kind == "overlay" else ()
        place = (int(major), int(minor)), unescape(mountpoint)
        mounts.append(Mount(*place, kind, unescape(source), writable, layers))
    return mounts


def _layers(options: str) -> tuple[str, ...]:
    """Return the folders of an overlay. In their names a backslash takes its meaning from a colon."""
    found = []
    for option in options.split(","):  # a comma in a name is escaped
        name, _, value = option.partition("=")
        if name in {"lowerdir", "lowerdir+", "datadir+", "upperdir"}:
            folders = re.split(r"(?<!\\):+", unescape(value)) if name == "lowerdir" else [unescape(value)]
            found += [re.sub(r"\\(.)", r"\1", folder) for folder in folders if folder]
    return tuple(found)


def unescape(text: str) -> str:
    r"""Decode what mountinfo writes for a blank, a tab, a line end, a backslash and #: \040 and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


class Uses:
    """The machine's mounts, swaps and loop devices at one moment.

    Raises RefusedError where they can't be read: then nothing tells whether a source is in use.
    """

    def __init__(self) -> None:
        try:
            self.mounts = read_mounts(_text(PROC / "self/mountinfo"))
            lines = _text(PROC / "swaps").split("\n")[1:]
        except OSError as error:
            raise RefusedError(
                f"can't tell what is mounted: {error.strerror}",
                path=PROC / "self/mountinfo",
                hint="--live images it nonetheless",
            ) from error
        self.swaps = [Path(unescape(line.split()[0])) for line in lines if line.strip()]
        used = [devices.by_path(path) for path in self.swaps]
        self._swaps = {device.number for device in used if device is not None}

    @cached_property
    def _loops(self) -> list[tuple[BlockDevice, devices.Backing]]:
        known = [(loop, devices.backing_of(loop, path)) for loop, path in devices.loop_devices()]
        return [(loop, backing) for loop, backing in known if backing is not None]

    @cached_property
    def _btrfs(self) -> dict[Number, str]:
        """The file system that each device of a mounted btrfs belongs to.

        Its mounts have a number of their own, and name one of its devices only.
        """
        found = {}
        for link in (devices.SYSFS / "fs/btrfs").glob("*/devices/*"):
            device = devices.by_number(_number_in(link))
            if device is not None:
                found[device.number] = link.parent.parent.name
        return found

    @cached_property
    def _mounts_by_device(self) -> dict[Number | str, list[Mount]]:
        found: dict[Number | str, list[Mount]] = {}
        for mount in self.mounts:
            numbers = {mount.number}
            if mount.source.startswith("/"):
                device = devices.by_path(Path(mount.source))
                numbers |= {device.number} if device is not None else set()
            for number in numbers:
                found.setdefault(number, []).append(mount)
                if number in self._btrfs:
                    found.setdefault(self._btrfs[number], []).append(mount)
        return found

    def of_device(self, device: BlockDevice, spans: Spans = None) -> list[Use]:
        """Return the uses of a device and of all that is stacked upon it.

        ``spans`` are the ranges of a whole disk that matter: partitions outside of them don't.
        """
        return [use for one in self.stack(device, spans) for use in self.direct(one)]

    def of_file(self, file: tuple[int, int], spans: Spans = None) -> list[Use]:
        """Return the uses of a disk file (st_dev, st_ino) through loop devices."""
        return [use for loop, part in self.attached(file, spans) for use in self.of_device(loop, part)]

    def attached(self, file: tuple[int, int], spans: Spans = None) -> list[tuple[BlockDevice, Spans]]:
        """Return the loop devices that show a file (st_dev, st_ino), with the ranges as they count them."""
        backed = [item for item in self._loops if item[1].device is None and item[1].file == file]
        return _inside(backed, spans)

    def mounts_of_file(self, file: tuple[int, int]) -> list[Mount]:
        """Return the mounts that a program makes of a file, as ntfs-3g does of a volume's."""
        found = []
        for mount in self.mounts:
            if mount.file_system.startswith("fuse") and mount.source.startswith("/"):
                known = _stat(mount.source)
                if known is not None and (known.st_dev, known.st_ino) == file:
                    found.append(mount)
        return found

    def ground(self, found: os.stat_result, spans: Spans = None) -> Iterator[Place]:
        """Yield a device, a file or a folder, and all that it lies on, as far as can be told from here.

        ``spans`` are the ranges of it that matter. It ends where bytes are not on this machine's devices, or
        where only another program knows: network file systems, ZFS.
        """
        ranges = None if spans is None else tuple(spans)
        if stat.S_ISBLK(found.st_mode):
            waiting = [Place(devices.split_number(found.st_rdev), None, ranges, True)]
        else:
            is_folder = stat.S_ISDIR(found.st_mode)
            waiting = [Place(None, (found.st_dev, found.st_ino), ranges, not is_folder)]
        seen = set()
        while waiting:
            place = waiting.pop()
            if place not in seen:
                seen.add(place)
                yield place
                waiting += self._below(place)

    def _below(self, place: Place) -> Iterator[Place]:
        if place.file is not None:
            yield from self._below_file_system(place.file[0])
            return
        device = devices.by_number(place.device) if place.device is not None else None
        if device is None:
            return
        if device.partition is not None:
            yield Place(
                device.parent.number, None, _moved(place.spans, device.start, device.size), place.whole
            )
        for slave in device.slaves():
            yield Place(slave.number, None, None, False)
        for loop, backing in self._loops:
            if loop.number == device.number:
                file = None if backing.device is not None else backing.file
                spans = _moved(place.spans, backing.offset, loop.size)
                yield Place(backing.device, file, spans, place.whole)

    def _below_file_system(self, device: int) -> Iterator[Place]:
        """Yield what the file system with this st_dev lies on."""
        number = devices.split_number(device)
        numbers = {number} if devices.by_number(number) is not None else set()
        mounts = [mount for mount in self.mounts if mount.number == number]
        for mount in mounts:
            for name in (mount.source, *mount.source.split(":"), *mount.layers):  # bcachefs names several
                found = _stat(name) if name.startswith("/") else None
                if found is not None and stat.S_ISBLK(found.st_mode):
                    numbers.add(devices.split_number(found.st_rdev))
                elif found is not None:
                    yield Place(None, (found.st_dev, found.st_ino), None, False)
        shared = {self._btrfs[number] for number in numbers if number in self._btrfs}
        if not mounts and not numbers:  # a subvolume of btrfs has an st_dev of its own, which no mount shows
            shared = set(self._btrfs.values())
        numbers |= {member for member, name in self._btrfs.items() if name in shared}
        yield from (Place(number, None, None, False) for number in sorted(numbers))

    def stack(self, device: BlockDevice, spans: Spans = None) -> Iterator[BlockDevice]:
        """Yield a device, and every one that its bytes can be written through, once each."""
        seen: set[Number] = set()
        waiting: list[tuple[BlockDevice, Spans]] = [(device, spans)]
        while waiting:
            one, ranges = waiting.pop()
            if one.number in seen:
                continue
            seen.add(one.number)
            yield one
            waiting += [(part, None) for part in one.partitions() if _touches(part.start, part.size, ranges)]
            waiting += [(holder, None) for holder in one.holders()]
            waiting += _inside([item for item in self._loops if item[1].device == one.number], ranges)

    def direct(self, device: BlockDevice) -> Iterator[Use]:
        """Yield the uses of a device itself, not those of what is stacked upon it."""
        for mount in self._mounts_by_device.get(device.number, []) or self._mounts_by_device.get(
            self._btrfs.get(device.number, ""), []
        ):
            how = f"mounted {'read-write' if mount.writable else 'read-only'} on {mount.mountpoint}"
            yield Use(device, how, mount.writable, mount.mountpoint)
        if device.number in self._swaps:
            yield Use(device, "used as swap", True)


def _touches(start: int, size: int, spans: Spans) -> bool:
    return spans is None or any(start < end and begin < start + size for begin, end in spans)


def _sized(span: tuple[int, int]) -> tuple[int, int]:
    return span[0], span[1] - span[0]


def _moved(spans: Spans, start: int, size: int) -> tuple[tuple[int, int], ...]:
    """Return ranges of what lies at ``start`` as the device below counts them."""
    return tuple((start + begin, start + end) for begin, end in ([(0, size)] if spans is None else spans))


def _stat(path: str) -> os.stat_result | None:
    try:
        return Path(path).stat()
    except (OSError, ValueError):
        return None


def _inside(
    loops: Iterable[tuple[BlockDevice, devices.Backing]], spans: Spans
) -> list[tuple[BlockDevice, Spans]]:
    """Return the loop devices that show some of the ranges, with the ranges as they count them."""
    return [
        (loop, spans and [(begin - backing.offset, end - backing.offset) for begin, end in spans])
        for loop, backing in loops
        if _touches(backing.offset, loop.size, spans)
    ]


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape")


def _number_in(folder: Path) -> Number:
    try:
        major, minor = (folder / "dev").read_text().split(":")
        return int(major), int(minor)
    except (OSError, ValueError):
        return -1, -1
