"""The disks below a system or a source that lies on LVM, RAID, dm-crypt, btrfs or an overlay."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures.partition_tables import MIB, create_file
from fixtures.tools import MissingToolError, find_tool, run
from imagefs.errors import RefusedError
from imagefs.machine import devices, mounts
from imagefs.restore import guard
from imagefs.restore.guard import refuse_unsafe
from tests.imagefs.imaging.attached import attached, mounted_on, need_root
from tests.imagefs.machine.made_sysfs import Sysfs


class Machine:
    """Devices that the kernel does not have, with nodes that nobody opens, and its mounts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sysfs = Sysfs(folder / "sys")
        self.proc = folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "swaps").write_text("Filename Type Size Used Priority\n")
        self.mounted: list[str] = []
        self.mount()

    def add(self, name: str, parent: str = "", **attributes: str) -> Path:
        folder = self.sysfs.add(name, parent, **attributes)
        major, minor = (folder / "dev").read_text().split(":")
        os.mknod(self.folder / name, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
        return folder

    def disk(self, name: str, parts: int = 2) -> list[Path]:
        """Add a disk of partitions of a MiB each; return the folders of the disk and of those."""
        made = [self.add(name, size="8192\n")]
        for number in range(1, parts + 1):
            made.append(
                self.add(f"{name}{number}", name, partition=f"{number}\n", start=f"{2048 * number}\n")
            )
        return made

    def mount(self, *lines: str) -> None:
        self.mounted += lines
        text = "".join(f"{30 + at} 1 {line}\n" for at, line in enumerate(self.mounted))
        (self.proc / "self/mountinfo").write_text(text)

    def mount_of(self, path: Path, kind: str, source: str, options: str = "rw") -> None:
        """Claim that the file system that really holds a path is another one."""
        device = path.stat().st_dev
        self.mount(f"{os.major(device)}:{os.minor(device)} / {path} rw - {kind} {source} {options}")

    def refused(self, name: str, *protected: Path, span: tuple[int, int] | None = None) -> str:
        with pytest.raises(RefusedError) as caught:
            refuse_unsafe(self.folder / name, protected=protected, span=span)
        return str(caught.value)

    def allowed(self, name: str, *protected: Path, span: tuple[int, int] | None = None) -> None:
        refuse_unsafe(self.folder / name, protected=protected, span=span)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    need_root()
    made = Machine(tmp_path)
    monkeypatch.setattr(devices, "SYSFS", made.sysfs.root)
    monkeypatch.setattr(mounts, "PROC", made.proc)
    monkeypatch.setattr(guard, "_SYSTEM", ())
    monkeypatch.setattr(guard, "_is_held", lambda *_: False)  # there is nothing that could be opened
    return made


def test_a_system_on_lvm(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of volumes on two disks both disks are needed; other partitions and volumes of them are not."""
    first, second = machine.disk("sda"), machine.disk("sdb")
    machine.disk("sdc")
    root, other = (machine.add(f"dm-{n}", dm__name=f"vg-{n}\n", dm__uuid="LVM-x\n") for n in (0, 1))
    for lower in (first[2], second[1]):
        machine.sysfs.stack(lower, root)
    machine.sysfs.stack(first[2], other)
    machine.mount_of(machine.folder, "ext4", str(machine.folder / "dm-0"))
    monkeypatch.setattr(guard, "_SYSTEM", (str(machine.folder),))
    for name in ("sda", "sdb", "sda2", "sdb1", "dm-0"):
        assert "the running system lies on it" in machine.refused(name)
    for name in ("sdc", "sda1", "sdb2", "dm-1"):
        machine.allowed(name)
    machine.allowed("sda", span=(MIB, 2 * MIB))
    assert "the running system" in machine.refused("sda", span=(2 * MIB, 3 * MIB))


def test_a_system_that_starts_from_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overlay over a folder of a file system on a disk, as of a live medium."""
    machine.disk("sda")
    machine.disk("sdb")
    with mounted_on(machine.folder / "medium", "-t", "tmpfs", "none"):
        (machine.folder / "medium/root").mkdir()
        machine.mount_of(machine.folder / "medium", "iso9660", str(machine.folder / "sdb1"))
        options = f"rw,lowerdir={machine.folder / 'medium/root'}"
        machine.mount_of(machine.folder, "overlay", "overlay", options)
        monkeypatch.setattr(guard, "_SYSTEM", (str(machine.folder),))
        assert "the running system lies on it" in machine.refused("sdb")
        machine.allowed("sda")


def test_a_source_on_encrypted_lvm_on_raid(machine: Machine) -> None:
    first, second = machine.disk("sda"), machine.disk("sdb")
    raid = machine.add("md0", md__level="raid1\n")
    crypt = machine.add("dm-0", dm__name="crypt\n", dm__uuid="CRYPT-LUKS2-x\n")
    volume, other = (machine.add(f"dm-{n}", dm__name=f"vg-{n}\n", dm__uuid="LVM-x\n") for n in (1, 2))
    for lower, upper in (
        (first[1], raid), (second[1], raid), (raid, crypt), (crypt, volume), (crypt, other),
    ):  # fmt: skip
        machine.sysfs.stack(lower, upper)
    image = machine.folder / "image.mrimgx"
    image.touch()
    machine.mount_of(machine.folder, "ext4", str(machine.folder / "dm-1"))
    for name in ("sda", "sdb", "sda1", "sdb1", "md0", "dm-0", "dm-1"):
        assert f"the source, {image}, lies on it" in machine.refused(name, image)
    for name in ("sda2", "sdb2", "dm-2"):
        machine.allowed(name, image)
    node = machine.folder / "sda1"  # cloned while its twin, or what they make, is written
    assert f"lies on the source, {node}" in machine.refused("dm-2", node)
    assert "is the source itself" in machine.refused("sda1", node)


@pytest.mark.parametrize(
    ("attributes", "hint"),
    [
        ({"dm__name": "vg-a\n", "dm__uuid": "LVM-x\n"}, "the logical volume /dev/mapper/vg-a is made of it"),
        ({"dm__name": "a\n", "dm__uuid": "LVM-x\n"}, "(lvchange --activate n /dev/mapper/a)"),
        ({"dm__name": "a\n", "dm__uuid": "CRYPT-x\n"}, "(cryptsetup close a)"),
        ({"dm__name": "a\n", "dm__uuid": "mpath-x\n"}, "(name /dev/mapper/a instead, or multipath -f a)"),
        ({"dm__name": "a b\n", "dm__uuid": "part1-x\n"}, "(dmsetup remove 'a b')"),
        ({"md__level": "raid1\n"}, "the RAID /dev/upper is made of it (mdadm --stop /dev/upper)"),
        ({}, "(end the use of /dev/upper)"),
    ],
)
def test_stacked_upon(machine: Machine, attributes: dict[str, str], hint: str) -> None:
    """Not mounted, and still not free."""
    disk = machine.disk("sda")
    machine.sysfs.stack(disk[1], machine.add("upper", **attributes))
    for name in ("sda", "sda1"):
        assert hint in machine.refused(name)
    machine.allowed("sda2")
    machine.allowed("sda", span=(2 * MIB, 3 * MIB))


def test_a_disk_that_is_held_as_a_whole(machine: Machine) -> None:
    """Of multipath the disks are not written, nor their partitions."""
    disk = machine.disk("sda")
    machine.sysfs.stack(disk[0], machine.add("dm-0", dm__name="mpatha\n", dm__uuid="mpath-x\n"))
    for name in ("sda", "sda1", "sda2"):
        assert "the multipath device /dev/mapper/mpatha is made of it" in machine.refused(name)


def test_mounted_above(machine: Machine) -> None:
    disk = machine.disk("sda")
    volume = machine.add("dm-0", dm__name="vg-a\n", dm__uuid="LVM-x\n")
    machine.sysfs.stack(disk[1], volume)
    number = (volume / "dev").read_text().strip()
    machine.mount(rf"{number} / /mnt/a\040b rw - ext4 /dev/mapper/vg-a rw")
    line = "/dev/mapper/vg-a, which it holds, is mounted read-write on /mnt/a b (umount '/mnt/a b')"
    for name in ("sda", "sda1"):
        assert machine.refused(name).endswith(line)


def test_members_of_btrfs(machine: Machine) -> None:
    """A subvolume's files have a device number that no mount and no device has."""
    members = machine.disk("sda"), machine.disk("sdb")
    machine.disk("sdc")
    listed = machine.sysfs.root / "fs/btrfs/8f1c/devices"
    listed.mkdir(parents=True)
    for disk in members:
        (listed / disk[1].name).symlink_to(disk[1])
    image = machine.folder / "image.mrimgx"
    image.touch()
    for name in ("sda", "sdb1"):
        assert f"the source, {image}, lies on it" in machine.refused(name, image)
    for name in ("sdc", "sda2"):
        machine.allowed(name, image)


def test_without_proc_or_sys(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.disk("sda")
    monkeypatch.setattr(mounts, "PROC", machine.folder / "nothing")
    assert "can't tell what is mounted" in machine.refused("new")
    monkeypatch.setattr(devices, "SYSFS", machine.folder / "nothing")
    assert "can't tell which devices are in use" in machine.refused("new")


def test_a_real_btrfs_on_two_disks(tmp_path: Path) -> None:
    need_root()
    find_tool("mkfs.btrfs")
    if "btrfs" not in Path("/proc/filesystems").read_text():
        raise MissingToolError("btrfs", "a kernel with btrfs")
    with ExitStack() as stack:
        files = [create_file(tmp_path / str(number), 128 * MIB) for number in range(3)]
        nodes = [stack.enter_context(attached(path, partitions=False)) for path in files]
        run("mkfs.btrfs", "-q", "-f", *nodes[:2])
        point = stack.enter_context(mounted_on(tmp_path / "mnt", nodes[0]))
        run("btrfs", "subvolume", "create", point / "sub")
        image = point / "sub/image.mrimgx"
        image.touch()
        for target in (*nodes[:2], *files[:2]):
            with pytest.raises(RefusedError, match=f"the source, {image}, lies on it"):
                refuse_unsafe(target, protected=[image])
            with pytest.raises(RefusedError, match=f"is mounted read-write on {point}"):
                refuse_unsafe(target)
        refuse_unsafe(nodes[2], protected=[image, image.parent])
