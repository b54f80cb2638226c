"""What keeps a restore or a clone from overwriting the wrong disk: whatever is in use, or would be missed.

All of it is found out by looking: nothing is written, and no device is opened for writing. What is found
is of one moment, so who writes opens the device with O_EXCL afterwards. What lies beyond a network or a pool
of ZFS can't be seen from here; the members of such a pool are held, and refused for that.
"""

import sys

assert sys.platform != "win32"

import fcntl
import os
import shlex
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagefs.errors import RefusedError, SourceReadError
from imagefs.machine import devices
from imagefs.machine.devices import BlockDevice
from imagefs.machine.mounts import Place, Spans, Use, Uses
from imagefs.restore.guarded_files import refuse_other_than_file, refuse_same_file

_SYSTEM = ("/", "/usr", "/boot", "/boot/efi", "/efi")
_LOCK = "hhqqi0q"  # struct flock of <fcntl.h> for large files: type, whence, start, length, process
_OTHER_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def refuse_unsafe(
    target: Path, *, protected: Sequence[Path] = (), span: tuple[int, int] | None = None
) -> None:
    """Raise RefusedError where overwriting a target would do harm, or can't be done.

    ``target`` is a block device, a file, or the name of a file that is to be made in an existing folder.
    ``protected`` is what must survive and is read meanwhile: the files of a set and their folder, a clone's
    source. ``span`` is the start and the end, in bytes, of what is overwritten of the target; None: all of
    it. What uses other parts of a device does not matter then.

    Refused: the source, what it lies on, and what lies on it · a disk that the running system lies on · what
    is mounted, swap, held by another program, or stacked upon, whether it is written or not · what this user,
    or nobody, can write · any other kind of thing.
    """
    found = _kind(target)
    spans = None if span is None else (span,)
    if sys.platform != "linux":
        refuse_other_than_file(target, found)
        refuse_same_file(target, found, protected)
        return
    if not (devices.SYSFS / "dev/block").is_dir():
        raise RefusedError("can't tell which devices are in use", path=target, hint="mount /sys")
    try:
        uses = Uses()
    except RefusedError as error:
        raise RefusedError(f"{error.path}: {error.what}", path=target, hint="mount /proc") from error
    if found is None:
        ground = list(uses.ground(target.absolute().parent.stat()))
    else:
        ground = list(uses.ground(found, spans))
    for path in protected:
        _refuse_source(target, ground, path, uses)
    _refuse_system(target, ground, uses)
    if found is None:
        return
    _refuse_used(target, ground, uses)
    _refuse_locked(target, ground, uses)
    if stat.S_ISBLK(found.st_mode):
        _refuse_held(target, devices.require(target), spans, uses)


# --- What it is, and whether it can be written ---


def _kind(target: Path) -> os.stat_result | None:
    """Return what a target is, None for one that is to be made; it must be writable by this user."""
    try:
        found = target.stat()
    except FileNotFoundError:
        _refuse_new(target)
        return None
    except OSError as error:
        raise RefusedError(
            error.strerror or str(error), path=target, hint="name a disk, a partition or a file"
        ) from error
    if stat.S_ISBLK(found.st_mode):
        _refuse_device(target)
        return found
    for is_kind, name in _OTHER_KINDS:
        if is_kind(found.st_mode):
            raise RefusedError(
                f"is {name}, neither a disk nor a file",
                path=target,
                hint="name a disk, a partition or a file",
            )
    if not os.access(target, os.R_OK | os.W_OK, effective_ids=_EFFECTIVE):
        _refuse_read_only(target)
        raise RefusedError(
            "can't be written by this user", path=target, hint="change its permissions, or name another file"
        )
    return found


_EFFECTIVE = os.access in os.supports_effective_ids


def _refuse_new(target: Path) -> None:
    folder = target.absolute().parent
    if target.is_symlink():
        raise RefusedError(
            "is a link to something that is not there", path=target, hint="name what it should link to"
        )
    if not folder.is_dir():
        raise RefusedError("its folder is not there", path=target, hint=f"make {folder} first")
    if Path("/dev").exists() and folder.stat().st_dev == Path("/dev").stat().st_dev:
        raise RefusedError(
            "there is no such device", path=target, hint="see /sys/block for the disks that are there"
        )
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
        _refuse_read_only(folder)
        raise RefusedError(
            f"this user can't make files in {folder}", path=target, hint="name a file in another folder"
        )


def _refuse_read_only(path: Path) -> None:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise RefusedError(
            "lies on a file system that is mounted read-only", path=path, hint="name another place"
        )


def _refuse_device(target: Path) -> None:
    device = devices.by_path(target)
    if device is None:
        raise RefusedError("the kernel has no such block device", path=target, hint="is /sys mounted?")
    if not device.size:
        raise RefusedError("there is no medium in it", path=target, hint="put one in, or name another device")
    if device.read_only:
        raise RefusedError(
            "is read-only",
            path=target,
            hint=f"look for a switch on it, or run blockdev --setrw {device.parent.node}",
        )
    if not os.access(target, os.R_OK | os.W_OK, effective_ids=_EFFECTIVE):
        raise RefusedError(
            "can't be written by this user", path=target, hint="writing to a device needs root"
        )


# --- What must survive ---


def _refuse_source(target: Path, ground: Sequence[Place], path: Path, uses: Uses) -> None:
    """Refuse a target that shares bytes with a file, folder or device that is needed, or lies on it."""
    try:
        below = list(uses.ground(path.stat()))
    except OSError as error:
        raise RefusedError(
            f"can't tell whether {path}, which is read, lies on it: {error.strerror}",
            path=target,
            hint="see that it is still there",
        ) from error
    met = [place for place in ground if any(place.meets(other) for other in below)]
    if not met:
        return
    keys = {(place.device, place.file) for place in met}
    mine, its = ((side[0].device, side[0].file) for side in (ground, below))
    if mine == its:
        raise RefusedError("is the source itself", path=target, hint="name another target")
    if mine in keys:
        raise RefusedError(
            f"the source, {path}, lies on it", path=target, hint="name another disk, or copy the source away"
        )
    if its in keys:
        raise RefusedError(f"lies on the source, {path}", path=target, hint="name a target on another disk")
    raise RefusedError(f"shares its bytes with the source, {path}", path=target, hint="name another target")


def _refuse_system(target: Path, ground: Sequence[Place], uses: Uses) -> None:
    """Refuse a disk, or a part of one, that the running system needs."""
    for path in map(Path, _SYSTEM):
        try:
            below = list(uses.ground(path.stat()))
        except OSError:
            continue
        if any(place.meets(other) for place in ground for other in below):
            raise RefusedError(
                f"the running system lies on it ({path})",
                path=target,
                hint="start this machine from another medium to overwrite it",
            )


# --- Who uses it ---


def _refuse_used(target: Path, ground: Sequence[Place], uses: Uses) -> None:
    own = {place.device for place in ground}
    found: list[Use] = []
    stacked: list[BlockDevice] = []
    for place in ground:
        if place.whole:  # all its bytes are the target's: who uses them uses the target
            for device, spans in _shown(place, uses):
                found += uses.of_device(device, spans)
                stacked += [one for one in uses.stack(device, spans) if one.number not in own]
    for file in (place.file for place in ground if place.whole and place.file is not None):
        _refuse_used_file(target, file, uses)
    if found:
        use = found[0]
        which = (
            "is"
            if use.device.node.resolve() == target.resolve()
            else f"{use.device.node}, which it holds, is"
        )
        raise RefusedError(f"{which} {use.how}", path=target, hint=_ending(found))
    for one in stacked:
        if one.partition is None:
            raise RefusedError(f"{_kind_of(one)} {one.node} is made of it", path=target, hint=_detach(one))


def _refuse_used_file(target: Path, file: tuple[int, int], uses: Uses) -> None:
    """Refuse a file that a program has mounted, or the kernel swaps to; neither needs a loop device."""
    points = [mount.mountpoint for mount in uses.mounts_of_file(file)]
    if points:
        raise RefusedError(f"is mounted on {points[-1]}", path=target, hint=_unmount(points))
    for path in uses.swaps:
        if path.exists() and (path.stat().st_dev, path.stat().st_ino) == file:
            raise RefusedError("is used as swap", path=target, hint=f"swapoff {shlex.quote(str(path))}")


def _shown(place: Place, uses: Uses) -> Iterator[tuple[BlockDevice, Spans]]:
    """Yield the devices that show the bytes of a place."""
    if place.file is not None:
        yield from uses.attached(place.file, place.spans)
    elif place.device is not None and (device := devices.by_number(place.device)) is not None:
        yield device, place.spans


def _ending(found: Sequence[Use]) -> str:
    """Return the commands that end some uses, those that came last first."""
    points = [use.mountpoint for use in found if use.mountpoint]
    swaps = [f"swapoff {use.device.node}" for use in found if not use.mountpoint]
    return " && ".join(([_unmount(points)] if points else []) + list(dict.fromkeys(swaps)))


def _unmount(points: Sequence[str]) -> str:
    return "umount " + " ".join(dict.fromkeys(shlex.quote(point) for point in reversed(points)))


def _kind_of(device: BlockDevice) -> str:
    if device.attribute("loop/backing_file"):
        return "the loop device"
    prefix = device.attribute("dm/uuid").partition("-")[0]
    names = {"LVM": "the logical volume", "CRYPT": "the encrypted volume", "mpath": "the multipath device"}
    if device.attribute("md/level"):
        return "the RAID"
    return names.get(prefix, "the device")


def _detach(device: BlockDevice) -> str:
    """Return the command that takes a device apart."""
    if device.attribute("loop/backing_file"):
        return f"losetup --detach {device.node}"
    if device.attribute("md/level"):
        return f"mdadm --stop {device.node}"
    name = shlex.quote(device.attribute("dm/name"))
    commands = {
        "LVM": f"lvchange --activate n {shlex.quote(str(device.node))}",
        "CRYPT": f"cryptsetup close {name}",
        "mpath": f"name {device.node} instead, or multipath -f {name}",
    }
    prefix = device.attribute("dm/uuid").partition("-")[0]
    return commands.get(prefix, f"dmsetup remove {name}" if name != "''" else f"end the use of {device.node}")


def _refuse_locked(target: Path, ground: Sequence[Place], uses: Uses) -> None:
    """Refuse what a program has locked: a virtual machine holds its disks in no other way."""
    nodes = [target]
    for device, spans in (shown for place in ground if place.whole for shown in _shown(place, uses)):
        for one in uses.stack(device, spans):
            found = devices.by_path(one.node)
            if found is not None and found.number == one.number:
                nodes.append(one.node)
    for node in nodes:
        if _is_locked(node):
            which = "is" if node == target else f"{node}, which shares its bytes, is"
            raise RefusedError(
                f"{which} locked by another program, as a virtual machine locks its disks",
                path=target,
                hint=f"end that program; fuser -v {shlex.quote(str(node))} shows it",
            )


def _is_locked(path: Path) -> bool:
    wanted = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
        finally:
            os.close(fd)
    except OSError:
        return False  # there are no such locks where it lies
    return bool(struct.unpack(_LOCK, found)[0] != fcntl.F_UNLCK)


def _refuse_held(target: Path, device: BlockDevice, spans: Spans, uses: Uses) -> None:
    """Refuse what something holds that we don't see: ZFS, a mount in another namespace, another program.

    Of a disk whose partitions are in use elsewhere than in ``spans``, those inside of them are asked.
    """
    parts = list(device.partitions())
    wanted = [device]
    if spans is not None:
        inside = [one for one in uses.stack(device, spans) if one.partition is not None]
        wanted = [one for one in inside if one.parent.number == device.number] or wanted
    for one in wanted:
        if not _is_held(one, target):
            continue
        if one is device and spans is not None and any(not _is_held(part, target) for part in parts):
            continue  # then it is one of its other partitions that is held
        if one is device and spans is not None and parts and all(map(uses.of_device, parts)):
            continue
        which = "is" if one is device else f"{one.node}, which it holds, is"
        raise RefusedError(
            f"{which} held by another program, or mounted where it can't be seen from here",
            path=target,
            hint="end that use; fuser, zpool status and mdadm --detail --scan may show it",
        )


def _is_held(device: BlockDevice, target: Path) -> bool:
    try:
        os.close(devices.open_device(device, target, flags=os.O_EXCL))
    except BlockingIOError:
        return True
    except SourceReadError as error:
        raise RefusedError(
            f"can't tell whether it is in use: {error.what}",
            path=target,
            hint="writing to a device needs root",
        ) from error
    return False
