"""What is said of a target: held against sfdisk, blkid and lsblk, and of targets that are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.disks import four_k_disk, gpt_multi_disk, mbr_logical_disk
from fixtures.partition_tables import MIB, BuiltDisk, create_file
from fixtures.tools import run
from imagefs.errors import RefusedError
from imagefs.machine import devices
from imagefs.restore.described import DescribedVolume, Description, document, lines
from imagefs.restore.this_machine import describe
from tests.imagefs.built import BuiltSet
from tests.imagefs.imaging.attached import attached, make_file_system, mounted_on, need_root, partition_node
from tests.imagefs.machine.made_sysfs import Sysfs

LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"  # what sfdisk gives where no type is named


def volumes(found: Description) -> list[tuple[int, int, int, str, str]]:
    assert not any(part.problem or part.used_as for part in found.partitions)
    return [(part.number, part.offset, part.size, part.file_system, part.label) for part in found.partitions]


def expected(disk: BuiltDisk) -> list[tuple[int, int, int, str, str]]:
    return [
        (part.number, part.offset, part.size, part.kind.replace("unknown", ""), part.label)
        for part in disk.partitions
    ]


@pytest.mark.parametrize("recipe", [gpt_multi_disk, mbr_logical_disk, four_k_disk])
def test_disks_with_every_file_system(recipe: Callable[[Path], BuiltDisk], tmp_path: Path) -> None:
    disk = recipe(tmp_path)
    found = describe(disk.path)
    assert (found.kind, found.size, found.sector_size) == ("file", disk.size, disk.sector_size)
    assert (found.scheme, found.disk_id, found.problems) == (disk.scheme, disk.signature, ())
    assert volumes(found) == expected(disk)
    text = "\n".join(lines(found))
    for part in disk.partitions:
        assert part.label in text
        assert part.kind.replace("unknown", "") in text
    assert json.loads(json.dumps(document(found)))["partitions"][0]["size"] == disk.partitions[0].size


def test_the_names_of_partitions(tmp_path: Path) -> None:
    path = create_file(tmp_path / "disk", 8 * MIB)
    script = b'label: gpt\nstart=2048, size=2048, name="a name"\n'
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, stdin=script)
    found = describe(path)
    assert [(part.name, part.file_system) for part in found.partitions] == [("a name", "")]
    assert lines(found) == [
        f"{path}: 8.0 MiB (8388608 bytes)",
        "  GPT, 1 partition(s):",
        f'    1  1.0 MiB  unknown  "a name"  of type {LINUX}',
    ]


@pytest.mark.parametrize("size", [0, 100, 512, 5000, MIB])
def test_blank_files(tmp_path: Path, size: int) -> None:
    found = describe(create_file(tmp_path / "blank", size))
    assert found.size == size
    (line,) = lines(found)[1:]
    said = "nothing is recognised on it, which does not mean that it is empty" if size else "empty"
    assert line == f"  {said}"


def test_volumes_without_a_table(tmp_path: Path) -> None:
    path = create_file(tmp_path / "volume", 8 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-L", "a label", path)
    found = describe(path)
    assert found.volume == DescribedVolume(1, 0, 8 * MIB, "", "ext4", "a label", ())
    assert (found.scheme, found.partitions) == ("", ())
    assert lines(found)[1:] == ['  ext4, "a label"']
    run("mkswap", path)
    assert lines(describe(path))[1:] == ["  swap"]


def test_an_empty_table(tmp_path: Path) -> None:
    path = create_file(tmp_path / "disk", 8 * MIB)
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, stdin=b"label: gpt\n")
    assert lines(describe(path))[1:] == ["  GPT, no partitions"]


def test_what_is_recognised_and_not_read(tmp_path: Path) -> None:
    path = create_file(tmp_path / "luks", MIB)
    with path.open("r+b") as stream:
        stream.write(b"LUKS\xba\xbe\0\2")
    assert describe(path).volume == DescribedVolume(1, 0, MIB, "", "LUKS", "", ())
    path = create_file(tmp_path / "lvm", MIB)
    with path.open("r+b") as stream:
        stream.seek(512)
        stream.write(b"LABELONE")
    assert describe(path).volume == DescribedVolume(1, 0, MIB, "", "LVM", "", ())


@pytest.mark.parametrize("kind", ["qcow2", "vhdx", "vmdk", "vpc"])
def test_files_of_other_kinds(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", kind, path, "8M")
    assert lines(describe(path))[1:] == [f"  {kind.upper().replace('VPC', 'VHD')} image"]


def test_a_backup_image(built_set: Callable[[str], BuiltSet]) -> None:
    """The last thing to be overwritten unasked."""
    path = built_set("fat16").full.path
    assert lines(describe(path))[1:] == ["  backup image"]


def test_a_damaged_table(tmp_path: Path) -> None:
    """Both copies of a GPT: what was there can't be told, that there was something can."""
    disk = gpt_multi_disk(tmp_path)
    with disk.path.open("r+b") as stream:
        stream.seek(600)
        stream.write(b"x")
        stream.seek(disk.size - 500)
    (before,) = describe(disk.path).problems[:1]
    assert "read from the backup GPT" in before
    assert len(describe(disk.path).partitions) == 4
    with disk.path.open("r+b") as stream:
        stream.seek(disk.size - 424)
        stream.write(b"x")
    found = describe(disk.path)
    assert "its partition table can't be read" in found.problems[0]
    assert found.problems[0] in "\n".join(lines(found))


def test_a_damaged_file_system(tmp_path: Path) -> None:
    disk = mbr_logical_disk(tmp_path)
    ntfs = disk.partition(1)
    with disk.path.open("r+b") as stream:
        stream.seek(ntfs.offset + 48)
        stream.write(b"\xff" * 8)  # where the MFT is
    found = describe(disk.path)
    assert (found.partitions[0].file_system, found.partitions[0].label) == ("NTFS", "")
    assert found.partitions[0].problem
    assert found.partitions[0].problem in "\n".join(lines(found))
    assert [(part.number, part.label) for part in found.partitions[1:]] == [
        (part.number, part.label) for part in disk.partitions[1:]
    ]


def test_a_partition_behind_the_end(tmp_path: Path) -> None:
    disk = mbr_logical_disk(tmp_path)
    with disk.path.open("r+b") as stream:
        stream.truncate(disk.partition(1).offset + MIB)
    found = describe(disk.path)
    assert found.problems
    with_end = [part.problem for part in found.partitions if part.number == 1]
    assert with_end in ([], ["ends behind the end of the disk"])


def test_labels_that_would_lie(tmp_path: Path) -> None:
    """A label can hold what moves a terminal's cursor."""
    path = create_file(tmp_path / "volume", 8 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-L", "a\x1b[2K\nb", path)
    told = lines(describe(path))
    assert told[1] == '  ext4, "a\\x1b[2K\\nb"'
    assert all(line.isprintable() for line in told)


def test_what_can_not_be_described(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", Path("/dev/null")):
        with pytest.raises(RefusedError):
            describe(path)


# --- Devices ---


def test_a_device_that_is_mounted(tmp_path: Path) -> None:
    path = create_file(tmp_path / "disk", 40 * MIB)
    script = b"label: gpt\nstart=2048, size=32768\nstart=34816, size=32768\n"
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, stdin=script)
    with attached(path) as node:
        first, second = (partition_node(node, number) for number in (1, 2))
        make_file_system("ext4", first, "-L", "one")
        run("mkswap", second)
        with mounted_on(tmp_path / "mnt", "-o", "ro", first):
            found, part = describe(node), describe(first)
    assert (found.kind, found.size, found.sector_size) == ("disk", 40 * MIB, 512)
    assert (found.vendor, found.model) == ("", f"Loop device {path}")
    assert lines(found)[0] == f"{node}: Loop device {path}, 40.0 MiB (41943040 bytes), 512-byte sectors"
    mounted = (f"mounted read-only on {tmp_path / 'mnt'}",)
    assert found.partitions == (
        DescribedVolume(1, MIB, 16 * MIB, "", "ext4", "one", mounted, LINUX),
        DescribedVolume(2, 17 * MIB, 16 * MIB, "", "swap", "", (), LINUX),
    )
    assert lines(found)[2].split() == ["1", "16.0", "MiB", "ext4", '"one"', "mounted", "read-only", "on",
                                       str(tmp_path / "mnt")]  # fmt: skip
    assert (part.kind, part.scheme, part.partitions) == ("partition", "", ())
    assert part.volume == DescribedVolume(1, 0, 16 * MIB, "", "ext4", "one", mounted)
    assert lines(part)[1] == f'  ext4, "one", {mounted[0]}'


def test_a_device_of_large_sectors(tmp_path: Path) -> None:
    disk = four_k_disk(tmp_path)
    with attached(disk.path, sector_size=4096) as node:
        found = describe(node)
        sizes = json.loads(run("lsblk", "--json", "--nodeps", "--output", "LOG-SEC,PHY-SEC", node))
    (listed,) = sizes["blockdevices"]
    assert (found.sector_size, found.physical_sector_size) == (listed["log-sec"], listed["phy-sec"])
    assert volumes(found) == expected(disk)


@pytest.mark.parametrize(
    ("place", "transport"),
    [
        ("pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block", "usb"),
        ("pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block", "ata"),
        ("platform/host4/session1/target4:0:0/4:0:0:1/block", "iscsi"),
        ("pci0000:00/0000:03:00.0/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0/block", "sas"),
        ("pci0000:00/0000:00:1a.0/mmc_host/mmc0/mmc0:aaaa/block", "mmc"),
        ("pci0000:00/0000:00:05.0/virtio2/block", "virtio"),
        ("virtual/block", ""),
    ],
)
def test_transports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, transport: str) -> None:
    sysfs = Sysfs(tmp_path / "sys")
    monkeypatch.setattr(devices, "SYSFS", sysfs.root)
    folder = sysfs.add("sda", place)
    part = sysfs.add("sda1", f"{place}/sda", partition="1\n")
    for one in (folder, part):
        major, minor = (one / "dev").read_text().split(":")
        device = devices.by_number((int(major), int(minor)))
        assert device is not None
        assert devices.transport_of(device) == transport


def test_a_disk_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel tells of it is told nonetheless."""
    need_root()
    path = tmp_path / "disk"
    path.write_bytes(noise(1, 0, MIB))
    with attached(path, partitions=False) as node:

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("os.open", refuse)
        found = describe(node)
        monkeypatch.undo()
    assert (found.size, found.problems) == (MIB, ("can't be read: Permission denied",))
