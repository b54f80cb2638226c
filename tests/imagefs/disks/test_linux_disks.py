"""``imagefs disks`` on Linux, against lsblk, sfdisk and blkid."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fixtures.bitlocker import write_bitlocker
from fixtures.content import noise
from fixtures.partition_tables import GPT_TYPES, MIB, Volume, create_file, gpt_disk, write_gpt_by_hand
from fixtures.tools import find_tool, run
from fixtures.volumes import ext_volume, fat_volume
from imagefs.disks import Disk, DiskList, Encryption, Partition, list_disks
from imagefs.errors import SourceReadError
from imagefs.machine import devices, mounts
from tests.conftest import run_imagefs
from tests.imagefs.imaging.attached import (
    attached,
    logical_disk,
    mounted_on,
    need_root,
    partition_node,
    swapped_on,
    volume_of,
)
from tests.imagefs.machine.made_sysfs import Sysfs

GUID = "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AA"
OFF = Encryption("", "off")


def disk_of(node: Path, found: DiskList | None = None) -> Disk:
    return next(disk for disk in (found or list_disks()).disks if disk.path == str(node))


def lsblk(node: Path) -> dict[str, dict[str, Any]]:
    """Return what lsblk tells of a disk and its partitions, by the path of the device."""
    names = "PATH,SIZE,MOUNTPOINTS,RM,LOG-SEC,PHY-SEC"
    answer = json.loads(run("lsblk", "--json", "--bytes", "--list", "--output", names, node))
    return {one["path"]: one for one in answer["blockdevices"]}


def blkid(part: Partition) -> dict[str, str]:
    """Return what blkid finds on a partition's device, whatever it has cached."""
    lines = run("blkid", "--probe", "--output", "export", part.path, accept=(0, 2)).decode().splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def check_against_sfdisk(disk: Disk) -> None:
    table = json.loads(run("sfdisk", "--json", disk.path))["partitiontable"]
    unit = table.get("sectorsize", 512)
    assert (disk.sector_size, disk.id) == (unit, table["id"].upper().removeprefix("0X"))
    assert disk.scheme == {"gpt": "gpt", "dos": "mbr"}[table["label"]]
    told = [
        (
            int(part["node"].removeprefix(disk.path).lstrip("p")), part["start"] * unit, part["size"] * unit,
            part["type"].upper().zfill(2), part.get("name", ""), part.get("uuid", ""), part["node"],
        )
        for part in table["partitions"]
        if part["type"] not in ("f", "5")
    ]  # fmt: skip
    assert [(p.number, p.offset, p.size, p.type, p.name, p.id, p.path) for p in disk.partitions] == told


def check_against_lsblk(disk: Disk) -> None:
    known = lsblk(Path(disk.path))
    whole = known[disk.path]
    assert (disk.size, disk.removable) == (whole["size"], whole["rm"])
    assert (disk.sector_size, disk.physical_sector_size) == (whole["log-sec"], whole["phy-sec"])
    for part in disk.partitions:
        one = known[part.path]
        assert part.size == one["size"]
        assert sorted(part.mount_points) == sorted(filter(None, one["mountpoints"]))


def check_against_blkid(disk: Disk) -> None:
    for part in disk.partitions:
        told = blkid(part)
        kind = {"vfat": "FAT", "": ""}.get(told.get("TYPE", ""), told.get("TYPE", ""))
        assert part.file_system.startswith(kind), part
        assert bool(kind) == bool(part.file_system)
        assert part.label == told.get("LABEL", "")


@pytest.fixture
def volumes(tmp_path: Path) -> list[Volume]:
    return [
        fat_volume(tmp_path, "FAT16", "fat", size=16 * MIB, big=MIB, many=5, label="SYSTEM"),
        volume_of(tmp_path, "noise", MIB, 4),
        ext_volume(tmp_path, size=16 * MIB, big=MIB, many=5, label="linux"),
    ]


def test_gpt_disk(tmp_path: Path, volumes: list[Volume]) -> None:
    need_root()
    built = gpt_disk(tmp_path / "disk.raw", volumes, GUID)
    with (
        attached(built.path) as node,
        mounted_on(tmp_path / "one", "-o", "ro", partition_node(node, 3)),
        mounted_on(tmp_path / "a second", "--bind", tmp_path / "one"),
    ):
        disk = disk_of(node)
        check_against_sfdisk(disk)
        check_against_lsblk(disk)
        check_against_blkid(disk)
        assert len(disk.partitions[2].mount_points) == 2
        assert {part.encryption for part in disk.partitions} == {OFF}
        assert (disk.problem, disk.model) == ("", f"Loop device {built.path}")
        listed = json.loads(run_imagefs("disks", "--json").text)
        (told,) = (one for one in listed["disks"] if one["path"] == str(node))
        name = told.pop("name")  # others may come and go meanwhile
        assert [part.pop("source") for part in told["partitions"]] == [f"{name}/p{n}" for n in (1, 2, 3)]
        assert name == f"disk{told.pop('number')}"
        expected = json.loads(json.dumps(asdict(disk)))
        del expected["number"]
        assert told == expected
        shown = run_imagefs("disks")
        assert (shown.code, shown.errors) == (0, "")
        (line,) = (line for line in shown.text.splitlines() if str(tmp_path / "one") in line)
        assert line.split()[1:6] == ["ext4", "linux", str(built.partition(3).offset), "16.0", "MiB"]
        assert line.endswith(f"{tmp_path}/one, {tmp_path}/a second")


def test_mbr_disk(tmp_path: Path) -> None:
    need_root()
    with attached(logical_disk(tmp_path).path) as node:
        disk = disk_of(node)
        check_against_sfdisk(disk)
        check_against_lsblk(disk)


def test_large_sectors(tmp_path: Path) -> None:
    need_root()
    path = create_file(tmp_path / "disk.raw", 16 * MIB)
    write_gpt_by_hand(path, GUID, [(MIB, 4 * MIB)], [GPT_TYPES["linux"]], 4096)
    with attached(path, sector_size=4096) as node:
        disk = disk_of(node)
        check_against_sfdisk(disk)
        check_against_lsblk(disk)


def test_a_volume_without_a_table(tmp_path: Path, volumes: list[Volume]) -> None:
    need_root()
    path = volumes[2].path
    assert path is not None
    with attached(path, partitions=False) as node:
        disk = disk_of(node)
        (part,) = disk.partitions
        assert (part.number, part.offset, part.size, part.path) == (1, 0, 16 * MIB, str(node))
        assert (part.file_system, part.label, disk.scheme) == ("ext4", "linux", "")
        check_against_lsblk(disk)


def test_an_empty_disk(tmp_path: Path) -> None:
    need_root()
    with attached(create_file(tmp_path / "disk.raw", 4 * MIB), partitions=False) as node:
        disk = disk_of(node)
        assert (disk.partitions, disk.scheme, disk.problem, disk.size) == ((), "", "", 4 * MIB)


def test_swap(tmp_path: Path) -> None:
    need_root()
    with attached(create_file(tmp_path / "swap.raw", 4 * MIB), partitions=False) as node, swapped_on(node):
        (part,) = disk_of(node).partitions
        assert (part.file_system, part.mount_points) == ("swap", ("[SWAP]",))
        check_against_lsblk(disk_of(node))


def test_a_damaged_table_hides_nothing_else(tmp_path: Path, volumes: list[Volume]) -> None:
    need_root()
    built = gpt_disk(tmp_path / "disk.raw", volumes, GUID)
    with attached(built.path) as node:
        with built.path.open("r+b") as stream:
            for place in (512 + 16, built.size - 512 + 16):  # the check sums of both headers
                stream.seek(place)
                stream.write(b"\xff")
        disk = disk_of(node)
        assert "its partition table can't be read" in disk.problem
        assert [(part.number, part.offset, part.size) for part in disk.partitions] == [
            (part.number, part.offset, part.size) for part in built.partitions
        ]  # as the kernel knows them still
        assert [part.label for part in disk.partitions] == ["SYSTEM", "", "linux"]


def test_encrypted_volumes(tmp_path: Path) -> None:
    need_root()
    find_tool("cryptsetup")
    locked = create_file(tmp_path / "luks.volume", 20 * MIB)
    run("cryptsetup", "luksFormat", "--batch-mode", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
        "--key-file=-", locked, stdin=b"secret")  # fmt: skip
    windows = write_bitlocker(tmp_path / "bitlocker", noise(1, 0, MIB) + bytes(MIB), free=MIB)
    volumes = [Volume(locked, 20 * MIB, "unknown"), Volume(windows.path, 2 * MIB, "unknown")]
    built = gpt_disk(tmp_path / "disk.raw", volumes, GUID)
    with attached(built.path) as node:
        first, second = disk_of(node).partitions
        assert (first.file_system, first.encryption) == ("LUKS", Encryption("LUKS", "locked"))
        assert (second.file_system, second.encryption) == ("BitLocker", Encryption("BitLocker", "locked"))


# --- Without rights ---


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    """Make a machine whose devices can't be opened: they have numbers that no node has."""
    made = Sysfs(tmp_path / "sys")
    monkeypatch.setattr(devices, "SYSFS", made.root)
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "swaps").write_text("Filename Type Size Used Priority\n")
    (proc / "self/mountinfo").write_text(
        "29 1 250:2 / / rw,relatime - ext4 /dev/nowhere rw\n"
        "30 29 250:2 /srv /srv\\040x rw - ext4 /dev/nowhere rw\n"
    )
    monkeypatch.setattr(mounts, "PROC", proc)
    monkeypatch.setattr(devices, "open_device", refused)
    return made


def refused(*_: object, **__: object) -> int:
    raise SourceReadError("Permission denied", path=None, offset=0, length=0)


def test_what_sysfs_tells_without_root(machine: Sysfs) -> None:
    machine.add("sda", size="4000000", removable="1", queue__logical_block_size="512\n",
                queue__physical_block_size="4096\n", device__model="A Disk  ", device__vendor="ACME ",
                device__rev="1.0", serial="X1")  # fmt: skip
    machine.add("sda1", "sda", partition="1", start="2048", size="100000")
    crypt = machine.add("sda2", "sda", partition="2", start="204800", size="100000")
    machine.add("sda3", "sda", partition="3", start="404800", size="2")  # extended
    machine.stack(crypt, machine.add("dm-0", dm__uuid="CRYPT-LUKS2-0123-home", dm__name="home"))
    disk = list_disks().disks[0]
    assert (disk.number, disk.model, disk.vendor, disk.serial) == (0, "A Disk", "ACME", "X1")
    assert (disk.size, disk.sector_size, disk.physical_sector_size) == (4000000 * 512, 512, 4096)
    assert (disk.removable, disk.scheme, disk.problem) == (True, "", "can't be read: Permission denied")
    first, second = disk.partitions
    assert (first.number, first.offset, first.size) == (1, 2048 * 512, 100000 * 512)
    assert (first.file_system, first.mount_points) == ("ext4", ("/", "/srv x"))
    assert first.encryption == OFF
    assert (second.file_system, second.mount_points) == ("", ())
    assert second.encryption == Encryption("LUKS", "unlocked")


def test_nothing_is_guessed(machine: Sysfs) -> None:
    machine.add("sdb", size="4000")
    machine.add("sdb1", "sdb", partition="1", start="2048", size="1000")
    (mounted,) = list_disks().disks[0].partitions
    assert mounted.file_system == "ext4"
    machine.add("sdc", size="4000")
    machine.add("sdc1", "sdc", partition="1", start="2048", size="1000")
    (part,) = list_disks().disks[1].partitions
    assert (part.file_system, part.label) == ("", "")
    assert part.encryption == Encryption("", "not known")


def test_a_machine_that_does_not_tell_its_mounts(machine: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.add("sdb", size="4000")
    monkeypatch.setattr(mounts, "PROC", Path("/nowhere"))
    assert list_disks().disks[0].partitions == ()
