"""File systems of other sizes: a volume as it is with another size, and volumes grown where they lie.

The tools that own the formats do it. A file system with errors is refused, never repaired on the way.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from formats.blockreader import FileReader, SliceReader
from formats.files import open_file, sync, truncate
from imagefs.errors import ImagingError, RefusedError, TargetWriteError
from imagefs.imaging.used_space import used_space
from imagefs.machine.rawreader import RawReader
from imagefs.restore.exposed import copied, exposed
from imagefs.restore.layout import Volume
from imagefs.restore.resizers import Resizer, resizer_by_name, resizer_of, run_tool
from imagefs.restore.used import SolidReader, UsedReader

_GROWTH = 50  # the part of new space that a file system takes for its own structures, at most
_MARGIN = 16 << 20  # bytes
_LARGEST_SECTOR = 4096  # bytes; what is written of a resized volume are whole sectors of any target
_UNIT = 512  # bytes: what a loop device's offset and size are multiples of


def smallest_size(volume: Volume, scratch: Path | None = None) -> int:
    """Return the least bytes that a volume can be shrunk to, as its own tool finds; it is only read.

    The tool sees the volume through a mount of ours, or where nothing can be mounted through a copy in
    ``scratch`` (a folder; the system's for temporary files by default). Raises RefusedError for a volume
    that can't be resized, a tool that is missing, and a copy that has no room.
    """
    resizer = _resizer(volume)
    with exposed(volume.reader, scratch or Path(tempfile.gettempdir())) as path:
        resizer.inspect(path)
        return min(volume.size, resizer.smallest(path))


def check_resizable(volume: Volume, scratch: Path | None = None) -> None:
    """Raise RefusedError where a volume can't be resized: its tool is asked, as by ``smallest_size``.

    What was not shut down cleanly is found only in a copy, unless its structures say so at first sight.
    """
    resizer = _resizer(volume)
    with exposed(volume.reader, scratch or Path(tempfile.gettempdir())) as path:
        resizer.inspect(path)


@contextmanager
def resized(volume: Volume, new_size: int, scratch: Path) -> Iterator[Volume]:
    """Give a volume another size, in a copy in the folder ``scratch`` that is removed at the end.

    What is yielded has ``new_size`` bytes and the same contents; its holes are what is free in it. Raises
    RefusedError where the file system has errors, can't have this size, or the copy has no room.
    """
    resizer = _resizer(volume)
    with copied(volume.reader, scratch, _extra(volume, new_size)) as path:
        resizer.prepare(path)
        if new_size > volume.size:
            _set_size(path, new_size)
        if new_size != volume.size:
            resizer.resize(path, new_size)
        if new_size < volume.size:
            _set_size(path, new_size)
        resizer.check(path)
        with RawReader(open_file(path), path) as reader:
            # The tools know nothing of shadow copies, which do not outlive that a volume is made smaller.
            space = used_space(reader, shadows=new_size >= volume.size)
            used = UsedReader(SolidReader(reader), space, _LARGEST_SECTOR)
            yield replace(volume, size=new_size, reader=used)


def can_grow_in_place(file_system: str) -> bool:
    """Tell whether a volume can be grown here where it lies: by root, on a loop device, with its tools."""
    resizer = resizer_by_name(file_system)
    if sys.platform == "win32":
        return False
    if resizer is None or os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return False
    try:
        resizer.require()
        # In a container there may be a /dev/loop-control, and no device that may be used.
        with tempfile.NamedTemporaryFile(prefix="imagefs-") as file:
            file.truncate(_UNIT * 8)
            with _loop_device(Path(file.name), _UNIT, _UNIT) as device:
                device.open("rb").close()
    except (ImagingError, OSError):
        return False
    return True


def grow_in_place(target: Path, offset: int, size: int, old_size: int, file_system: str) -> None:
    """Grow a volume of ``old_size`` bytes at ``offset`` of a file or device to ``size`` bytes.

    Only bytes inside ``size`` are written. Raises RefusedError where it has errors, or is no ``file_system``;
    then it is as it was, or as its tool left it.
    """
    if size < old_size or offset % _UNIT:
        raise ValueError(f"a volume of {old_size} bytes at {offset} can't grow to {size}")
    with FileReader(target) as reader:
        found = resizer_of(SliceReader(reader, offset, old_size))
    wanted = resizer_by_name(file_system)
    if found is None or found is not wanted:
        raise RefusedError(f"there is no {file_system} that can be grown at {offset}", path=target)
    with _loop_device(target, offset, size // _UNIT * _UNIT) as device:
        found.prepare(device)
        found.resize(device, size // _UNIT * _UNIT)
        found.check(device)
        _sync(device)
    _sync(target)


def _resizer(volume: Volume) -> Resizer:
    """Return what resizes a volume, its tools being here and nothing being in the way."""
    resizer = resizer_of(volume.reader)
    if resizer is None:
        raise RefusedError(f"volume {volume.number} ({volume.file_system}) can't be resized")
    if sys.platform == "win32":
        raise RefusedError(
            f"volume {volume.number} ({volume.file_system}) can't be resized: its tools are not on Windows",
            hint="restore it with its own size, or on Linux",
        )
    resizer.require()
    reason = resizer.obstacle(volume.reader)
    if reason:
        raise RefusedError(
            f"volume {volume.number} ({volume.file_system}) can't be resized: {reason}",
            hint="restore it with its own size",
        )
    return resizer


def _extra(volume: Volume, new_size: int) -> int:
    """Return the room that a resizing takes beyond the volume's data, at most."""
    if new_size >= volume.size:
        return (new_size - volume.size) // _GROWTH + _MARGIN
    behind = volume.reader.extents(new_size, volume.size - new_size)
    return sum(extent.length for extent in behind if extent.is_data) + _MARGIN


@contextmanager
def _loop_device(target: Path, offset: int, size: int) -> Iterator[Path]:
    """Attach a range of a file or device to a loop device; detached at the end."""
    code, said = run_tool(
        "losetup", "mount", "--find", "--show", "--offset", str(offset), "--sizelimit", str(size), target
    )
    device = Path(said.strip())
    if code or not device.is_absolute():
        raise RefusedError(f"no loop device for it: {said.strip()}", path=target)
    try:
        yield device
    finally:
        code, said = run_tool("losetup", "mount", "--detach", device)
    if code:
        raise ImagingError(f"can't be detached: {said.strip()}", path=device)


def _set_size(path: Path, size: int) -> None:
    fd = open_file(path, os.O_RDWR)
    try:
        truncate(fd, size)
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    """Bring what was written to the medium."""
    try:
        fd = open_file(path, os.O_RDWR)
        try:
            sync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise TargetWriteError(error.strerror or str(error), path=path) from error
