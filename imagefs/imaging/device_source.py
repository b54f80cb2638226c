"""Opening a block device to image it, and keeping everybody from writing to it meanwhile: on Linux.

``this_machine`` tells what its functions promise.
"""

import sys

assert sys.platform != "win32"

import contextlib
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from formats.blockreader import BlockReader
from formats.partition_table import Kind, read_table
from imagefs.errors import RefusedError, SnapshotError, SourceReadError, UsageError
from imagefs.imaging import snapshots
from imagefs.imaging.source_disk import OpenedDevice, SourceDisk, Wanted, make_disk, refuse_unknown
from imagefs.machine import devices
from imagefs.machine.devices import BlockDevice
from imagefs.machine.mounts import Use, Uses
from imagefs.machine.rawreader import RawReader


def is_device(path: Path) -> bool:
    """Tell whether a path is a block device's; OSErrors pass."""
    return stat.S_ISBLK(path.stat().st_mode)


def disk_paths() -> dict[int, Path]:
    """Return the machine's disks by their number."""
    return {number: device.node for number, device in enumerate(devices.whole_devices())}


def volume_path(text: str) -> Path | None:
    """Return None: volumes have no names but those of their devices."""
    del text
    return None


def open_device(wanted: Wanted, owned: ExitStack) -> OpenedDevice:
    """Open a whole device, or a partition's as its disk with that partition alone.

    What has to be closed, a snapshot to be removed too, goes to ``owned``. Raises as ``open_source`` does.
    """
    named = devices.require(wanted.path)
    device = named.parent
    path = wanted.path if device is named else device.node
    raw, sizes = _open_raw(wanted, device, path, owned)
    if device is not named:
        found = _number_in_table(wanted, named, raw, sizes[0])
        if found is None:  # a table that only the kernel reads: the partition is a volume by itself
            device, path = named, wanted.path
            raw, sizes = _open_raw(wanted, device, path, owned)
        else:
            refuse_unknown(wanted, {found})
            wanted = replace(wanted, partitions=frozenset({found}))

    def disk_of(reader: BlockReader) -> SourceDisk:
        return make_disk(
            wanted, str(path), devices.disk_number(device), reader, sizes, devices.identity_of(device),
            removable=device.removable,
        )  # fmt: skip

    opened = OpenedDevice("disk" if named.partition is None else "partition", disk_of(raw))
    _warn_cached(wanted, raw, opened.warnings)
    uses = _find_uses(wanted, opened.warnings)
    if uses is None:
        return opened
    found_uses = uses.of_device(device, opened.disk.spans)
    written = [use for use in found_uses if use.writable]
    taken = _take_snapshot(wanted, device, written, owned, opened.warnings)
    if taken is not None:
        raw.close()
        reader = RawReader(devices.open_device(taken.device), taken.path, unit=sizes[1], direct=wanted.direct)
        owned.callback(reader.close)
        opened.disk = disk_of(snapshots.SnapshotReader(reader, taken))
        opened.checks.append(taken.check)
    elif written:
        opened.warnings += _live_or_refused(wanted, written)
    elif not wanted.live:
        _claim(wanted.path, uses, device, opened.disk.spans, found_uses, owned)
    return opened


def _open_raw(
    wanted: Wanted, device: BlockDevice, path: Path, owned: ExitStack
) -> tuple[RawReader, tuple[int, int]]:
    """Return a device's reader and its sector sizes, logical (or as wanted) and physical."""
    fd = devices.open_device(device, path)
    try:
        logical, physical = devices.sector_sizes(fd, device)
        devices.forget_cached(fd)
        for part in device.partitions():
            with contextlib.suppress(SourceReadError):
                one = devices.open_device(part)
                devices.forget_cached(one)
                os.close(one)
        devices.forget_cached(fd)  # they may have written to the disk, behind its cache
    except BaseException:
        os.close(fd)
        raise
    raw = RawReader(fd, path, unit=physical, direct=wanted.direct)
    owned.callback(raw.close)
    if not raw.size:
        raise RefusedError("there is no medium in it", path=path)
    return raw, (wanted.sector_size or logical, max(physical, wanted.sector_size or 0))


def _number_in_table(wanted: Wanted, named: BlockDevice, raw: RawReader, sector_size: int) -> int | None:
    """Return a partition device's number in its disk's table, which may number otherwise than the kernel.

    None where the disk has no table that is read here.
    """
    table = read_table(raw, sector_size, disk_size=raw.size)
    if table is None:
        return None
    place = (named.start, named.size)
    for entry in table.partitions:
        if (entry.offset, entry.size) == place and entry.kind is not Kind.EXTENDED:
            return entry.number
        if entry.offset == named.start and entry.kind is Kind.EXTENDED:
            raise UsageError("is an extended partition: name those that it holds", path=wanted.path)
    raise RefusedError(
        f"the partition table on {raw.path} has no partition at {named.start}+{named.size}",
        path=wanted.path,
        hint="the kernel knows an older table; run partprobe",
    )


def _take_snapshot(
    wanted: Wanted, device: BlockDevice, written: Sequence[Use], owned: ExitStack, warnings: list[str]
) -> "snapshots.Snapshot | None":
    """Take a snapshot of a logical volume that is written; None where it is none, or none is wanted."""
    if not written or not wanted.snapshot or not snapshots.is_logical_volume(device):
        return None
    try:
        taken = snapshots.take(device)
    except SnapshotError as error:
        if not wanted.live:
            raise
        warnings.append(str(error))
        return None
    owned.callback(taken.remove)
    stacked = [use for use in written if use.device.number != device.number]
    if stacked:
        warnings.append(f"{wanted.path}: {stacked[0].device.name}, which lies upon it, is {stacked[0].how}:"
                        " its snapshot is like a disk after a power cut")  # fmt: skip
    return taken


def hold_file(wanted: Wanted, fd: int, spans: Sequence[tuple[int, int]], owned: ExitStack) -> list[str]:
    """Find out whether a disk file is written through a loop device; nothing more can be done."""
    del owned
    warnings: list[str] = []
    uses = _find_uses(wanted, warnings)
    status = os.fstat(fd)
    found = uses.of_file((status.st_dev, status.st_ino), spans) if uses is not None else []
    written = [use for use in found if use.writable]
    return warnings + (_live_or_refused(wanted, written) if written else [])


def drop_snapshots(name: str) -> None:
    """Do nothing: LVM's snapshots never outlive a run."""
    del name


def _find_uses(wanted: Wanted, warnings: list[str]) -> Uses | None:
    """Return what uses the machine's devices; None, and a warning, where that can't be told and may be.

    Where there is no Linux, and so no loop device, it is None without one.
    """
    if sys.platform != "linux":
        return None
    try:
        return Uses()
    except RefusedError as error:
        if not wanted.live:
            raise
        warnings.append(f"{error.path}: {error.what}; the image may be inconsistent")
        return None


def _live_or_refused(wanted: Wanted, written: Sequence[Use]) -> list[str]:
    """Return the warnings for a source that is written meanwhile, or raise RefusedError."""
    use = written[0]
    names = {str(wanted.path), str(use.device.node)}
    which = "is" if len(names) == 1 else f"{use.device.node}, which it holds, is"
    if wanted.live:
        return [f"{wanted.path}: {which} {use.how}; the image may be inconsistent"]
    mounted = f"umount {use.mountpoint}" if use.mountpoint else f"swapoff {use.device.node}"
    volume = "" if not snapshots.is_logical_volume(use.device) else f", image {use.device.node} by a snapshot"
    raise RefusedError(
        f"{which} {use.how}",
        path=wanted.path,
        hint=f"{mounted}{volume}, or allow an inconsistent image with --live"
        + ("" if volume else "; of an LVM volume a snapshot is taken"),
    )


def _claim(
    path: Path, uses: Uses, device: BlockDevice, spans: Sequence[tuple[int, int]], found: Sequence[Use],
    owned: ExitStack,
) -> None:  # fmt: skip
    """Hold the device, so that nobody can mount it while it is read.

    It is held where its bytes are used: its partitions, and what is stacked upon it. A device that can't be
    held, though nothing that we see holds it, is mounted where we don't see it, or belongs to ZFS.
    """
    used = {use.device.number for use in found}
    for one in uses.stack(device, spans):
        if one.number in used or not one.size or any(one.holders()) or any(one.partitions()):
            continue
        try:
            fd = devices.open_device(one, flags=os.O_EXCL)
        except BlockingIOError as error:
            raise RefusedError(
                f"{one.node} is held by another program, or mounted where it can't be seen from here",
                path=path,
                hint="end that use, or allow an inconsistent image with --live",
            ) from error
        except SourceReadError:
            continue  # no right to: then it stays unheld
        owned.callback(os.close, fd)


def _warn_cached(wanted: Wanted, raw: RawReader, warnings: list[str]) -> None:
    if wanted.direct and not raw.direct:
        warnings.append(f"{wanted.path}: can't be read past the cache; it is read through it")
