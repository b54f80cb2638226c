"""What sysfs and mountinfo say of devices, against trees and tables made by hand and real ones."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from imagefs.errors import RefusedError, SourceReadError
from imagefs.imaging.sources import open_source
from imagefs.machine import devices, mounts
from imagefs.machine.identity import Identity
from imagefs.machine.mounts import Mount, Uses, read_mounts
from tests.imagefs.imaging.attached import attached, need_root, partition_node
from tests.imagefs.machine.made_sysfs import Sysfs

MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
36 27 8:2 /sub /mnt/a\040b\134c\011d\012e ro,noatime shared:2 master:1 - xfs /dev/sda2 rw,attr2
37 27 8:3 / /mnt/ro ro - ext4 /dev/sda3 ro,errors=remount-ro
38 27 0:45 /@ /mnt/btrfs rw - btrfs /dev/disk/by\040label ro\043x rw,ssd
39 27 8:4 / /mnt/ntfs rw - fuseblk /dev/sda4 rw,user_id=0
"""


def test_mountinfo() -> None:
    assert read_mounts(MOUNTINFO.replace(r" ro\043x", r"\043x"))[1:] == [
        Mount((254, 0), "/", "ext4", "/dev/root", True),
        Mount((8, 2), "/mnt/a b\\c\td\ne", "xfs", "/dev/sda2", True),
        Mount((8, 3), "/mnt/ro", "ext4", "/dev/sda3", False),
        Mount((0, 45), "/mnt/btrfs", "btrfs", "/dev/disk/by label#x", True),
        Mount((8, 4), "/mnt/ntfs", "fuseblk", "/dev/sda4", True),
    ]


def test_the_folders_of_an_overlay() -> None:
    """As Linux 6.18 shows one that was mounted with these names."""
    options = r"rw,lowerdir=/lo\134:w:/b\040l:/c\134\054d,upperdir=/up,workdir=/work,uuid=on"
    (mount,) = read_mounts(f"47 42 0:40 / /mnt rw,relatime - overlay overlay {options}")
    assert mount.layers == ("/lo:w", "/b l", "/c,d", "/up")


def test_this_machines_mounts_are_those_of_findmnt() -> None:
    listed = run("findmnt", "--raw", "--noheadings", "--notruncate", "--output", "MAJ:MIN,FSTYPE").decode()
    found = [f"{one.number[0]}:{one.number[1]} {one.file_system}" for one in Uses().mounts]
    assert sorted(found) == sorted(listed.split("\n")[:-1])


def test_mounts_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "PROC", tmp_path)
    with pytest.raises(RefusedError, match="can't tell what is mounted"):
        Uses()
    path = create_file(tmp_path / "disk.raw", MIB)
    with pytest.raises(RefusedError, match="can't tell what is mounted"):
        open_source(path)
    with open_source(path, live=True) as source:
        assert len(source.warnings) == 1


# --- A made sysfs ---


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    made = Sysfs(tmp_path / "sys")
    monkeypatch.setattr(devices, "SYSFS", made.root)
    return made


def identity(sysfs: Sysfs, **attributes: str | bytes) -> Identity:
    folder = sysfs.add("disk", "", **attributes)
    number = (folder / "dev").read_text().strip().split(":")
    device = devices.by_number((int(number[0]), int(number[1])))
    assert device is not None
    return devices.identity_of(device)


def test_identity_of_a_scsi_disk(sysfs: Sysfs) -> None:
    """The serial number of page 0x80 comes before the name that the world knows it by."""
    found = identity(
        sysfs,
        device__vendor="ATA     \n",
        device__model="Samsung  SSD 870\n",
        device__rev="1B6Q\n",
        device__wwid="naa.5002538f\n",
        device__vpd_pg80=b"\x00\x80\x00\x0f  S5Y1NG0N1  \0",
    )
    assert found == Identity("ATA Samsung SSD 870 1B6Q", "ATA", "Samsung SSD 870", "1B6Q", "S5Y1NG0N1")


def test_identity_of_other_disks(sysfs: Sysfs) -> None:
    assert identity(
        sysfs, device__vendor="USB\n", device__model="Stick\n", device__wwid="t10.USB\n"
    ) == Identity("USB Stick", "USB", "Stick", "", "t10.USB")


def test_identity_of_an_nvme_disk(sysfs: Sysfs) -> None:
    found = identity(
        sysfs,
        wwid="eui.0025\n",
        device__model="Samsung SSD 980 PRO 1TB                 \n",
        device__serial="S5GXNF0R\n",
        device__firmware_rev="5B2QGXA7\n",
    )
    name = "Samsung SSD 980 PRO 1TB"
    assert found == Identity(f"{name} 5B2QGXA7", "", name, "5B2QGXA7", "S5GXNF0R")


def test_identity_of_a_virtio_disk(sysfs: Sysfs) -> None:
    assert identity(sysfs, device__vendor="0x1af4\n", serial="disk-1") == Identity("", "", "", "", "disk-1")


def test_identity_of_stacked_devices(sysfs: Sysfs) -> None:
    found = identity(sysfs, dm__name="vg-home\n", dm__uuid="LVM-abc\n")
    assert found == Identity("Device mapper vg-home", "Linux", "Device mapper", "", "LVM-abc")


def test_disks_in_order(sysfs: Sysfs) -> None:
    for name in ("sdaa", "sdb", "sda", "nvme10n1", "nvme2n1", "vda"):
        sysfs.add(name, device__model="x")
    for name in ("dm-10", "dm-9", "md0", "loop0", "zram0", "ram1", "sr0", "fd0"):
        sysfs.add(name)
    sysfs.add("sdc", size="0\n", device__model="an empty card reader")
    names = [device.name for device in devices.whole_devices()]
    assert names == ["sda", "sdb", "sdaa", "vda", "nvme2n1", "nvme10n1", "md0", "dm-9", "dm-10", "loop0"]


def test_stack(sysfs: Sysfs) -> None:
    """What lies on a partition: LUKS on it, a volume on that; only of the partitions that matter."""
    sysfs.add("sda")
    first = sysfs.add("sda1", "sda", partition="1\n", start="2048\n", size="2048\n")
    second = sysfs.add("sda2", "sda", partition="2\n", start="4096\n", size="2048\n")
    crypt, volume = sysfs.add("dm-0"), sysfs.add("dm-1")
    for lower, upper in ((second, crypt), (crypt, volume)):
        sysfs.stack(lower, upper)
    disk = devices.by_number((250, 1))
    assert disk is not None
    assert (disk.parent, disk.partition) == (disk, None)
    uses = Uses()
    assert {one.name for one in uses.stack(disk)} == {"sda", "sda1", "sda2", "dm-0", "dm-1"}
    assert {one.name for one in uses.stack(disk, [(2 * MIB, 3 * MIB)])} == {"sda", "sda2", "dm-0", "dm-1"}
    assert {one.name for one in uses.stack(disk, [(0, MIB), (MIB, 2 * MIB)])} == {"sda", "sda1"}
    assert {one.name for one in uses.stack(disk, [])} == {"sda"}
    assert (first / "dev").exists()
    part = devices.by_number((250, 3))
    assert part is not None
    assert (part.name, part.partition, part.parent, part.start, part.size) == ("sda2", 2, disk, 2 * MIB, MIB)


# --- Opening ---


def test_a_device_without_a_node(tmp_path: Path) -> None:
    """As in a container whose /dev was filled when it started."""
    need_root()
    path = create_file(tmp_path / "disk.raw", 8 * MIB)
    run("sfdisk", "--quiet", "--no-reread", path, stdin=b"label: dos\nstart=2048, size=4096\n")
    with attached(path) as node:
        part = partition_node(node, 1)
        device = devices.by_path(part)
        assert device is not None
        part.unlink()
        try:
            fd = devices.open_device(device)
            assert os.fstat(fd).st_rdev == os.makedev(*device.number)
            assert os.lseek(fd, 0, os.SEEK_END) == 2 * MIB
            os.close(fd)
        finally:
            os.mknod(part, stat.S_IFBLK | 0o600, os.makedev(*device.number))
        assert not list(Path("/dev").glob(".imagefs-*"))


def test_a_node_of_another_device_is_not_opened(tmp_path: Path) -> None:
    need_root()
    first, second = (create_file(tmp_path / name, size * MIB) for name, size in (("a", 1), ("b", 2)))
    with attached(first, partitions=False) as one, attached(second, partitions=False) as two:
        device = devices.by_path(one)
        assert device is not None
        fd = devices.open_device(device, two)
        assert os.lseek(fd, 0, os.SEEK_END) == MIB
        os.close(fd)


def test_a_device_that_can_not_be_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need_root()
    with attached(create_file(tmp_path / "a", MIB), partitions=False) as node:

        def refuse(*_: object) -> int:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(SourceReadError, match=f"{node}: Permission denied .*needs root"):
            open_source(node)
        monkeypatch.undo()


def test_an_empty_loop_device_has_no_medium() -> None:
    need_root()
    free = Path(run("losetup", "--find").decode().strip())
    if free.exists():
        with pytest.raises(RefusedError, match="no medium"):
            open_source(free)


def test_loop_backing_without_the_right_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_root()
    path = create_file(tmp_path / "a file", MIB)
    with attached(path, partitions=False) as node:
        found = {str(loop.node): (loop, backing) for loop, backing in devices.loop_devices()}
        loop, backing = found[str(node)]
        asked = devices.backing_of(loop, backing)
        monkeypatch.setattr(devices, "_LOOP_GET_STATUS64", 0)
        assert devices.backing_of(loop, backing) == asked
        assert asked == devices.Backing((path.stat().st_dev, path.stat().st_ino), None, 0)
