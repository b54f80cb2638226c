"""Disks of a real Debian: imaged, put back, resized, cloned, and started in a machine each time."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures.content import sha256_file
from fixtures.partition_tables import MIB, BuiltDisk, BuiltPartition
from fixtures.system_disks import CACHE, Firmware, debian_disk
from fixtures.tools import PACKAGES, run
from tests.conftest import Ran, run_imagefs
from tests.vm.console import Console, machine

PACKAGES.update({"e2image": "e2fsprogs", "sgdisk": "gdisk"})

GIB = 1 << 30
COMMAND_SECONDS = 600.0
LATER = "".join(f"{number}\n" for number in range(1, 200_001)).encode()
LATER_SHA256 = hashlib.sha256(LATER).hexdigest()
WRITE_LATER = "seq 1 200000 >/root/later && sync"


@dataclass(frozen=True)
class Imaged:
    """A system's disk, and a set with two points of it: as it was made, and after it ran once."""

    firmware: Firmware
    disk: BuiltDisk  # as at the second point
    folder: Path
    set: Path
    point: Path  # the second one's file


def imagefs(*arguments: str | Path) -> Ran:
    done = run_imagefs(*arguments, timeout=COMMAND_SECONDS)
    if done.code != 0:
        pytest.fail(f"imagefs {' '.join(map(str, arguments))}: exit code {done.code}: {done.errors}")
    return done


def backup(disk: Path, folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(imagefs("backup", disk, folder, "--json").output)
    return report


@pytest.fixture(scope="module", params=["bios", "uefi"])
def imaged(request: pytest.FixtureRequest) -> Iterator[Imaged]:
    firmware: Firmware = request.param
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        disk = debian_disk(folder, firmware)
        kept = folder / "set"
        kept.mkdir()
        assert backup(disk.path, kept)["role"] == "full"
        with machine(disk.path, firmware) as console:
            console.run(WRITE_LATER)
            assert console.power_off() == 0
        second = backup(disk.path, kept)
        assert second["role"] == "inc"
        assert 0 < second["blocks_written"] < second["blocks_unchanged"]
        yield Imaged(firmware, disk, folder, kept, Path(second["path"]))


@pytest.fixture
def target(imaged: Imaged) -> Iterator[Path]:
    path = imaged.folder / "target.raw"
    yield path
    path.unlink(missing_ok=True)


# --- What other tools say of a disk ---


def table_of(disk: Path) -> dict[str, Any]:
    """Return a disk's partition table as sfdisk tells it, and see that nothing is wrong with it."""
    assert b"No errors detected" in run("sfdisk", "--verify", disk)
    table: dict[str, Any] = json.loads(run("sfdisk", "--json", disk))["partitiontable"]
    if table["label"] == "gpt":
        assert b"No problems found" in run("sgdisk", "--verify", disk)
    return table


def places_of(disk: Path) -> list[tuple[int, int]]:
    """Return the offset and the size of each partition, in bytes."""
    return [(entry["start"] * 512, entry["size"] * 512) for entry in table_of(disk)["partitions"]]


def names_of(disk: Path) -> list[Any]:
    """Return the ids, types and flags of a disk and its partitions."""
    table = table_of(disk)
    places = {"node", "start", "size"}
    entries = [{key: entry[key] for key in entry.keys() - places} for entry in table["partitions"]]
    return [table["label"], table["id"], entries]


def cut(disk: Path, offset: int, size: int) -> bytes:
    with disk.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def check_volumes(disk: Path, layout: BuiltDisk) -> None:
    """Have each file system's own tool check it, and see that the swap is there."""
    for partition, (offset, size) in zip(layout.partitions, places_of(disk), strict=True):
        if partition.kind == "ext4":
            run("e2fsck", "-f", "-n", f"{disk}?offset={offset}")
            blocks = re.search(rb"Block count: +([0-9]+)", run("dumpe2fs", "-h", f"{disk}?offset={offset}"))
            assert blocks is not None
            assert 0 <= size - int(blocks[1]) * 4096 < MIB  # it fills its partition
        elif partition.kind == "FAT32":
            volume = disk.with_name("esp")
            volume.write_bytes(cut(disk, offset, size))
            run("fsck.vfat", "-n", volume)
            volume.unlink()
        else:
            assert cut(disk, offset + 4086, 10) == b"SWAPSPACE2"


def used_of(disk: Path, partition: BuiltPartition) -> str:
    """Return a hash of what is in use of a partition: of ext4 as e2image tells, else all of it."""
    if partition.kind != "ext4":
        return hashlib.sha256(cut(disk, partition.offset, partition.size)).hexdigest()
    image = disk.with_name("used")
    run("e2image", "-r", "-a", "-o", str(partition.offset), disk, image)
    with image.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    image.unlink()
    return found


def check_running(console: Console) -> None:
    """See that all services came up, and that what was written before the second point is there."""
    assert console.run("systemctl is-system-running --wait").strip() == "running"
    assert console.run("sha256sum </root/later").split()[0] == LATER_SHA256
    assert re.search(r"/dev/\S+ partition +64M\n", console.run("swapon --noheadings --show=NAME,TYPE,SIZE"))


def root_size(console: Console) -> int:
    """Return the size of the root's file system in bytes, as the system sees it."""
    return int(console.run("df --block-size=1 --output=size / | tail -1"))


# --- The tests ---


def test_restored_to_a_larger_disk(imaged: Imaged, target: Path) -> None:
    """The root grows, so that the swap behind it moves; the machine has another kind of disk than before."""
    imagefs("restore", imaged.point, target, "--size", "4G", "--fit", "--yes")
    assert target.stat().st_size == 4 * GIB
    assert names_of(target) == names_of(imaged.disk.path)
    places = places_of(target)
    for partition, (offset, size) in zip(imaged.disk.partitions, places, strict=True):
        if partition.kind == "ext4":
            assert (offset, size > 3 * GIB) == (partition.offset, True)
        else:
            assert size == partition.size
    assert places[-1][0] >= imaged.disk.partitions[-1].offset + 2 * GIB
    check_volumes(target, imaged.disk)
    with machine(target, imaged.firmware, "virtio") as console:
        check_running(console)
        assert root_size(console) > 3.2 * GIB
        assert console.power_off() == 0
    check_volumes(target, imaged.disk)


@pytest.mark.parametrize("imaged", ["bios"], indirect=True)
def test_delta_takes_back_what_a_run_changed(imaged: Imaged, target: Path) -> None:
    imagefs("restore", imaged.point, target)
    used = [used_of(imaged.disk.path, partition) for partition in imaged.disk.partitions]
    assert [used_of(target, partition) for partition in imaged.disk.partitions] == used
    with machine(target, imaged.firmware) as console:
        check_running(console)
        console.run("rm /root/later /usr/bin/seq && head -c 3000000 /dev/urandom >/etc/new && sync")
        assert console.power_off() == 0
    assert [used_of(target, partition) for partition in imaged.disk.partitions] != used
    report = json.loads(imagefs("restore", imaged.point, target, "--delta", "--yes", "--json").output)
    assert 0 < report["blocks_written"] < report["blocks_unchanged"]
    check_volumes(target, imaged.disk)
    assert [used_of(target, partition) for partition in imaged.disk.partitions] == used


@pytest.mark.parametrize("imaged", ["uefi"], indirect=True)
def test_clone_to_a_smaller_disk_with_new_ids(imaged: Imaged, target: Path) -> None:
    command = ("clone", imaged.disk.path, target, "--size", "1G", "--fit", "--yes", "--json")
    report = json.loads(imagefs(*command).output)
    assert report["references"] == []  # nothing in this system names an id of a partition table
    check_volumes(target, imaged.disk)
    old, new = table_of(imaged.disk.path), table_of(target)
    ids = [{table["id"], *(entry["uuid"] for entry in table["partitions"])} for table in (old, new)]
    assert [len(of_one) for of_one in ids] == [4, 4]
    assert not ids[0] & ids[1]
    with machine(target, imaged.firmware) as console:
        check_running(console)
        assert 0.7 * GIB < root_size(console) < GIB
        assert console.power_off() == 0
    check_volumes(target, imaged.disk)


def boot_command(point: Path, *options: str | Path) -> list[str]:
    return [
        sys.executable, "-m", "imagefs", "boot", str(point), "--serial", "--accel", "tcg", "--memory", "1G",
        *map(str, options),
    ]  # fmt: skip


def hashes_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


@pytest.mark.parametrize("imaged", ["uefi"], indirect=True)
def test_started_from_the_image(imaged: Imaged) -> None:
    """What the machine writes is gone at its end."""
    before = hashes_of(imaged.set)
    with Console(boot_command(imaged.point)) as console:
        console.log_in()
        check_running(console)
        console.run("rm /root/later && seq 3 200002 >/root/new && sync")
        assert console.power_off() == 0
    assert hashes_of(imaged.set) == before


@pytest.mark.parametrize("imaged", ["bios"], indirect=True)
def test_an_overlay_keeps_what_was_written(imaged: Imaged) -> None:
    before = hashes_of(imaged.set)
    overlay = imaged.folder / "overlay"
    with Console(boot_command(imaged.point, "--keep-overlay", overlay)) as console:
        console.log_in()
        check_running(console)
        console.run("rm /root/later && seq 3 200002 >/root/new && sync")
        assert console.power_off() == 0
    assert hashes_of(imaged.set) == before
    new = "".join(f"{number}\n" for number in range(3, 200_003)).encode()
    with Console(boot_command(imaged.point, "--keep-overlay", overlay)) as console:
        console.log_in()
        assert console.run("systemctl is-system-running --wait").strip() == "running"
        assert console.run("sha256sum </root/new").split()[0] == hashlib.sha256(new).hexdigest()
        assert console.run("ls /root").split() == ["new"]
        assert console.power_off() == 0
    assert hashes_of(imaged.set) == before
