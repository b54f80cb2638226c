"""Disks as sources: loop devices with partitions, and mounts of them, each undone by its own handle."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixtures.content import noise
from fixtures.partition_tables import MIB, BuiltDisk, Volume, gpt_disk, mbr_disk
from fixtures.tools import MissingToolError, ToolError, run
from fixtures.volumes import loop_device
from imagefs.imaging.sources import SourceDisk, open_source
from tests.conftest import missing


def need_root() -> None:
    """Skip, or fail in CI, where devices can't be made."""
    if sys.platform == "win32" or os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        missing("loop devices need root, and a kernel that has them")


@contextmanager
def attached(path: Path, *, sector_size: int = 512, partitions: bool = True) -> Iterator[Path]:
    """Attach a disk file to a loop device whose partitions the kernel knows; yield its node."""
    need_root()
    with loop_device(path, sector_size) as device:
        if not partitions:
            yield device
            return
        run("partx", "--add", device, accept=(0, 1))  # 1: the kernel found some by itself
        try:
            yield device
        finally:
            run("partx", "--delete", device)


def partition_node(device: Path, number: int) -> Path:
    return device.with_name(f"{device.name}p{number}")


@contextmanager
def mounted_on(mountpoint: Path, *arguments: str | Path) -> Iterator[Path]:
    """Mount with mount(8), and unmount by the mount point."""
    mountpoint.mkdir(exist_ok=True)
    run("mount", *arguments, mountpoint)
    try:
        yield mountpoint
    finally:
        unmount(mountpoint)


def unmount(mountpoint: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            run("umount", mountpoint)
            return
        except ToolError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def make_file_system(kind: str, device: Path, *options: str) -> None:
    tools = {"ext4": ("mke2fs", "-q", "-F", "-t", "ext4"), "btrfs": ("mkfs.btrfs", "-q", "-f")}
    tool, *arguments = tools[kind]
    run(tool, *arguments, *options, device)


@contextmanager
def swapped_on(device: Path) -> Iterator[None]:
    run("mkswap", device)
    try:
        run("swapon", device)
    except ToolError as error:
        raise MissingToolError("swap", "a kernel that swaps") from error
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            run("swapoff", device)


# --- Disks ---


def only_disk(path: Path, **options: object) -> SourceDisk:
    """Open a source that gives no warnings, and return its only disk, closed."""
    with open_source(path, **options) as source:  # type: ignore[arg-type]
        source.check()
        assert source.warnings == ()
        (disk,) = source.disks
    return disk


def layout(disk: SourceDisk) -> list[tuple[int, int, int]]:
    return [(part.number, part.offset, part.size) for part in disk.partitions]


def volume_of(folder: Path, name: str, size: int, seed: int) -> Volume:
    path = folder / f"{name}.volume"
    path.write_bytes(noise(seed, 0, size))
    return Volume(path, size, "unknown")


def logical_disk(folder: Path) -> BuiltDisk:
    """Make an MBR disk with a primary partition and three logical ones."""
    volumes = [volume_of(folder, str(number), (number + 2) * MIB, number) for number in range(4)]
    return mbr_disk(folder / "logical.raw", volumes[:1], volumes[1:])


def two_partitions(folder: Path) -> BuiltDisk:
    """Make a GPT disk with two partitions of noise."""
    volumes = [volume_of(folder, str(number), 10 * MIB, number) for number in range(2)]
    return gpt_disk(folder / "two.raw", volumes, "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AA")
