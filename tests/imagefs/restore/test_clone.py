"""Cloning disks: files and loop devices, with new ids, to other sizes, and again after changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures import partition_tables
from fixtures.content import noise
from fixtures.partition_tables import MIB, BuiltDisk, BuiltPartition, Volume, create_file
from fixtures.tools import run
from fixtures.volumes import ext_volume, ntfs_volume
from imagefs.restore.job import clone
from imagefs.restore.options import RestoreOptions
from tests.conftest import Ran
from tests.imagefs.imaging.attached import attached, mounted_on, partition_node
from tests.imagefs.imaging.moments import later
from tests.imagefs.imaging.others import check_files, check_sound
from tests.imagefs.restore.chains import Saved
from tests.imagefs.restore.commands import run_quickly
from tests.imagefs.restore.held import check_same, check_tables, check_volumes
from tests.imagefs.restore.places import digest, noisy, signatures

pytestmark = pytest.mark.usefixtures("warm")

KEEP = RestoreOptions()


@dataclass(frozen=True)
class Listed:
    """A partition table as sfdisk lists it."""

    id: str
    partitions: list[dict[str, Any]]

    @property
    def places(self) -> list[tuple[int, int, str, str]]:
        return [(p["start"], p["size"], p["type"], p.get("name", "")) for p in self.partitions]

    @property
    def ids(self) -> set[str]:
        return {self.id, *(p["uuid"] for p in self.partitions if "uuid" in p)}


def listed(target: Path) -> Listed:
    table = json.loads(run("sfdisk", "--json", target))["partitiontable"]
    return Listed(table["id"], table["partitions"])


def cloned(source: Path, target: Path, *arguments: str) -> Ran:
    done = run_quickly("clone", source, target, *arguments)
    assert done.code == 0, done.errors
    return done


@pytest.mark.parametrize("scheme", ["gpt", "mbr"])
def test_a_file_to_a_file(scheme: str, gpt: Saved, mbr: Saved, tmp_path: Path) -> None:
    """All that is in use, every file; what is free is not read, and new ids are told."""
    disk = {"gpt": gpt, "mbr": mbr}[scheme].disk
    target = tmp_path / "clone.raw"
    done = cloned(disk.path, target, "--verify")
    assert "verified" in done.text
    check_same(target, disk, tables=False)
    check_tables(target, scheme)
    check_volumes(target, disk, tmp_path, files=True)
    was, now = listed(disk.path), listed(target)
    assert now.places == was.places
    assert not now.ids & was.ids
    assert len(now.ids) == len(was.ids)
    for one in was.ids if scheme == "gpt" else {was.id.removeprefix("0x").upper()}:
        assert f"(was {one})" in done.text
    again = clone(disk.path, tmp_path / "other.raw")
    assert not listed(tmp_path / "other.raw").ids & (now.ids | was.ids)
    assert set(again.new_ids) == {one.removeprefix("0x").upper() for one in was.ids} or scheme == "mbr"


def test_ids_are_kept_where_asked(gpt: Saved, tmp_path: Path) -> None:
    """Then all of the disk is the same, byte for byte, but for what is free."""
    done = cloned(gpt.disk.path, tmp_path / "clone.raw", "--keep-id")
    assert "new id" not in done.text
    check_same(tmp_path / "clone.raw", gpt.disk)


def test_a_file_to_a_device(gpt: Saved, tmp_path: Path) -> None:
    """Free space of the target is cleared, wherever it is."""
    with attached(noisy(tmp_path / "target", gpt.disk.size, table="dos"), partitions=False) as node:
        report = clone(gpt.disk.path, node, RestoreOptions(verify=True))
        assert report.bytes_cleared > 10 * MIB
        check_same(node, gpt.disk)
        assert signatures(node) == {"gpt", "PMBR"}


def test_a_device_to_a_file(mbr: Saved, tmp_path: Path) -> None:
    with attached(mbr.disk.path) as node:
        cloned(node, tmp_path / "clone.raw", "--keep-id")
    check_same(tmp_path / "clone.raw", mbr.disk)
    assert (tmp_path / "clone.raw").stat().st_blocks * 512 < mbr.disk.size * 3 // 4


def test_a_device_to_a_device(gpt: Saved, tmp_path: Path) -> None:
    size = gpt.disk.size + 3 * MIB
    with (
        attached(gpt.disk.path) as source,
        attached(noisy(tmp_path / "target", size), partitions=False) as target,
    ):
        before = digest(gpt.disk.path)
        cloned(source, target, "--yes", "--verify")
        check_same(target, gpt.disk, tables=False)
        check_tables(target, "gpt")
    assert digest(gpt.disk.path) == before


def test_an_image_to_a_file(gpt: Saved, tmp_path: Path) -> None:
    cloned(gpt.image, tmp_path / "clone.raw")
    check_same(tmp_path / "clone.raw", gpt.disk, tables=False)
    assert not listed(tmp_path / "clone.raw").ids & listed(gpt.disk.path).ids


def test_a_delta_clone(gpt: Saved, tmp_path: Path) -> None:
    """After a change only what differs is written; the same again writes nothing but new ids."""
    target = tmp_path / "clone.raw"
    first = clone(gpt.disk.path, target, KEEP)
    changed = later(gpt.disk, tmp_path / "changed.raw", 1, (1, 2))
    report = clone(changed.path, target, RestoreOptions(delta=True, verify=True))
    assert report.verified
    assert 0 < report.blocks_written < first.blocks_written // 4
    check_same(target, changed)
    again = clone(changed.path, target, RestoreOptions(delta=True))
    assert (again.blocks_written, again.records_written) == (0, 0)
    renewed = clone(changed.path, target, RestoreOptions(delta=True, new_ids=True))
    assert renewed.blocks_written == 0
    assert renewed.records_written > 0
    check_tables(target, "gpt")
    check_same(target, changed, tables=False)


def test_a_source_that_is_written(tmp_path: Path) -> None:
    """What is mounted read-write is refused, unless --live is asked for; read-only it is cloned."""
    disk = _two(tmp_path, 0)
    with attached(disk.path) as node:
        with mounted_on(tmp_path / "mnt", partition_node(node, 2)):
            done = run_quickly("clone", node, tmp_path / "clone.raw")
            assert done.code == 6
            assert "mounted" in done.errors
            assert not list(tmp_path.glob("clone.raw*"))
            cloned(node, tmp_path / "live.raw", "--live")
        with mounted_on(tmp_path / "mnt", "-o", "ro,noload", partition_node(node, 2)):
            cloned(node, tmp_path / "clone.raw")
    check_volumes(tmp_path / "clone.raw", disk, tmp_path)


def test_onto_itself(gpt: Saved, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    partition_tables.copy_sparse(gpt.disk.path, create_file(disk, gpt.disk.size))
    before = digest(disk)
    with attached(disk, partitions=False) as node:
        for source, target in ((disk, disk), (disk, node), (node, disk), (node, node)):
            done = run_quickly("clone", source, target, "--yes")
            assert done.code == 6, done.errors
    assert digest(disk) == before


def test_references_to_old_ids(tmp_path: Path) -> None:
    """A root file system that names its own partition by PARTUUID is told of, with the new id."""
    volume = ext_volume(tmp_path, size=8 * MIB, big=MIB, many=5)
    assert volume.path is not None
    disk = partition_tables.gpt_disk(tmp_path / "source", [volume], "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E4AA")
    (old,) = [part["uuid"] for part in listed(disk.path).partitions]
    table = tmp_path / "fstab"
    table.write_text(f"PARTUUID={old.lower()} / ext4 defaults 0 1\n")
    with attached(disk.path) as node:
        script = f"mkdir etc\nwrite {table} etc/fstab\n"
        run("debugfs", "-w", "-f", "-", partition_node(node, 1), stdin=script.encode())
    done = cloned(disk.path, tmp_path / "clone.raw")
    (new,) = [part["uuid"] for part in listed(tmp_path / "clone.raw").partitions]
    (line,) = [line for line in done.text.splitlines() if "refers to an old id" in line]
    assert "etc/fstab" in line
    assert old.lower() in line.lower()
    assert new.lower() in line.lower()
    done = cloned(disk.path, tmp_path / "kept.raw", "--keep-id")
    assert "refers to" not in done.text


# --- To other sizes ---


def _two(folder: Path, seed: int) -> BuiltDisk:
    """Make a disk of NTFS (1) and ext4 (2) with a lot of free space."""
    volumes = [
        ntfs_volume(folder, size=40 * MIB, big=MIB, many=20, fragments=0, seed=seed + 1),
        ext_volume(folder, size=32 * MIB, big=MIB, many=20, seed=seed + 2),
    ]
    return partition_tables.gpt_disk(folder / "two.raw", volumes, "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E4BB")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> BuiltDisk:
    return _two(tmp_path_factory.mktemp("two"), 5)


def _check_fitted(target: Path, disk: BuiltDisk, folder: Path) -> dict[int, int]:
    """Check the volumes where the table says they are, and return their sizes."""
    check_tables(target, "gpt")
    sizes = {}
    for number, part in enumerate(listed(target).partitions, 1):
        sizes[number] = part["size"] * 512
        was = disk.partition(number)
        volume = folder / f"{number}.volume"
        with target.open("rb") as stream:
            stream.seek(part["start"] * 512)
            volume.write_bytes(stream.read(sizes[number]))
        check_sound(volume, was.kind)
        check_files(volume, BuiltPartition(number, 0, sizes[number], was.kind, files=was.files))
    return sizes


@pytest.mark.parametrize("on_device", [False, True])
def test_fitted_to_a_larger_target(on_device: bool, two: BuiltDisk, tmp_path: Path) -> None:
    size = two.size + 60 * MIB
    target = tmp_path / "target"
    if on_device:
        with attached(noisy(target, size, table="dos"), partitions=False) as node:
            cloned(two.path, node, "--fit", "--yes", "--verify")
    else:
        cloned(two.path, target, "--fit", "--size", str(size), "--yes")
    sizes = _check_fitted(target, two, tmp_path)
    assert sum(sizes.values()) > 125 * MIB
    assert all(sizes[part.number] > part.size for part in two.partitions)


@pytest.mark.parametrize("on_device", [False, True])
def test_fitted_to_a_smaller_target(on_device: bool, two: BuiltDisk, tmp_path: Path) -> None:
    """Over noise: nothing of it shows in what is in use."""
    size = 56 * MIB
    target = noisy(tmp_path / "target", size)
    done = run_quickly("clone", two.path, target, "--yes")
    assert done.code == 6
    assert "--fit shrinks what can be shrunk" in done.errors
    if on_device:
        with attached(target, partitions=False) as node:
            cloned(two.path, node, "--fit", "--yes", "--verify", "--keep-holes")
    else:
        cloned(two.path, target, "--fit", "--yes", "--verify")
    sizes = _check_fitted(target, two, tmp_path)
    assert all(sizes[part.number] <= part.size for part in two.partitions)
    assert sum(sizes.values()) < size


def test_a_fitted_delta(two: BuiltDisk, tmp_path: Path) -> None:
    """The same again over what was fitted, which was used meanwhile."""
    size = two.size + 40 * MIB
    target = tmp_path / "target"
    clone(two.path, target, RestoreOptions(fit=True, size=size))
    with attached(target) as node, mounted_on(tmp_path / "mnt", partition_node(node, 2)) as root:
        (root / "mine").write_bytes(noise(1, 0, 3 * MIB))
    report = clone(two.path, target, RestoreOptions(fit=True, delta=True, verify=True))
    assert report.verified
    assert report.blocks_unchanged > 10
    _check_fitted(target, two, tmp_path)


def test_no_room_at_all(two: BuiltDisk, tmp_path: Path) -> None:
    target = noisy(tmp_path / "target", 8 * MIB)
    before = digest(target)
    done = run_quickly("clone", two.path, target, "--fit", "--yes")
    assert done.code == 6, done.errors
    assert "at least" in done.errors or "too small" in done.errors
    assert digest(target) == before


def test_a_volume_without_a_table(tmp_path: Path) -> None:
    """A disk file that is a volume alone has no ids; it is copied and can be fitted."""
    volume: Volume = ext_volume(tmp_path, size=16 * MIB, big=MIB, many=5)
    assert volume.path is not None
    assert volume.contents is not None
    target = noisy(tmp_path / "clone.raw", 32 * MIB)
    done = cloned(volume.path, target, "--fit", "--yes")
    assert "new id" not in done.text
    check_sound(target, "ext4")
    said = run("dumpe2fs", "-h", target).decode()
    assert f"Block count:              {32 * MIB // 4096}" in said


def test_loaders_before_the_first_partition_are_kept(tmp_path: Path) -> None:
    """Boards keep theirs at 8 KiB, 32 KiB, 8 MiB: in front of a first partition that starts behind them."""
    source = create_file(tmp_path / "board.raw", 64 * MIB)
    run("sgdisk", "--clear", "--new", "1:32768:65535", source)
    with source.open("r+b") as stream:
        for offset in (32768, 8 * MIB, 15 * MIB + 4096):
            stream.seek(offset)
            stream.write(noise(5, offset, 100_000))
    cloned(source, tmp_path / "copy.raw", "--keep-id", "--verify")
    run("cmp", source, tmp_path / "copy.raw")
