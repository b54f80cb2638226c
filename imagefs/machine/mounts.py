"""Who uses a block device or a disk file: mounts, swap, and what is stacked upon it.

A mount counts by the state of its file system: a read-only bind mount of one that is mounted read-write
elsewhere is writable. Source: proc(5), /proc/pid/mountinfo.
"""

import re
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
        mounts.append(Mount((int(major), int(minor)), unescape(mountpoint), kind, unescape(source), writable))
    return mounts


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
        swaps = [devices.by_path(Path(unescape(line.split()[0]))) for line in lines if line.strip()]
        self._swaps = {device.number for device in swaps if device is not None}

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
        return [use for one in self.stack(device, spans) for use in self._direct(one)]

    def of_file(self, file: tuple[int, int], spans: Spans = None) -> list[Use]:
        """Return the uses of a disk file (st_dev, st_ino) through loop devices."""
        backed = [item for item in self._loops if item[1].device is None and item[1].file == file]
        return [use for loop, part in _inside(backed, spans) for use in self.of_device(loop, part)]

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

    def _direct(self, device: BlockDevice) -> Iterator[Use]:
        for mount in self._mounts_by_device.get(device.number, []) or self._mounts_by_device.get(
            self._btrfs.get(device.number, ""), []
        ):
            how = f"mounted {'read-write' if mount.writable else 'read-only'} on {mount.mountpoint}"
            yield Use(device, how, mount.writable, mount.mountpoint)
        if device.number in self._swaps:
            yield Use(device, "used as swap", True)


def _touches(start: int, size: int, spans: Spans) -> bool:
    return spans is None or any(start < end and begin < start + size for begin, end in spans)


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
