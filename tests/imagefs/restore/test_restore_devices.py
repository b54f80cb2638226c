"""Restoring onto loop devices, partitions and files that hold something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fixtures.partition_tables import MIB, create_file, gpt_disk
from fixtures.tools import run
from fixtures.volumes import ext_volume
from imagefs.errors import RefusedError
from imagefs.imaging import backup
from imagefs.restore.device_target import DeviceTarget
from imagefs.restore.job import plan_restore, restore
from imagefs.restore.options import RestoreOptions
from tests.conftest import run_imagefs
from tests.imagefs.imaging.attached import attached, partition_node
from tests.imagefs.imaging.moments import cut_out
from tests.imagefs.imaging.others import check_sound
from tests.imagefs.restore.chains import Saved
from tests.imagefs.restore.held import (
    bytes_of,
    check_same,
    check_tables,
    check_volumes,
    differing,
    free_runs,
    only_partitions,
    without_free,
)
from tests.imagefs.restore.places import digest, noisy, partitioned, signatures


def test_a_device_of_the_same_size(gpt: Saved, tmp_path: Path) -> None:
    """What was there is gone: in free space, between and behind the partitions."""
    with attached(noisy(tmp_path / "target", gpt.disk.size, table="dos"), partitions=False) as node:
        done = run_imagefs("restore", gpt.image, node, "--yes", "--verify")
        assert done.code == 0, done.errors
        assert "verified" in done.text
        assert done.errors == "" or "keeps its old partitions" not in done.errors
        check_same(node, gpt.disk)
        check_tables(node, "gpt")
        assert signatures(node) == {"gpt", "PMBR"}
    check_volumes(tmp_path / "target", gpt.disk, tmp_path)


def test_a_larger_device_with_an_old_gpt(mbr: Saved, tmp_path: Path) -> None:
    """Of the old table nothing is left, at the end of the disk neither."""
    size = mbr.disk.size + 5 * MIB + 512
    with attached(noisy(tmp_path / "target", size, table="gpt"), partitions=False) as node:
        assert "gpt" in signatures(node)
        restore(mbr.image, node)
        assert signatures(node) == {"dos"}
        was, now = without_free(mbr.disk, bytes_of(mbr.disk.path)), bytes_of(node)
        assert differing(now[: was.size], was) == []
        assert not now[was.size :].any()
        check_tables(node, "mbr")
        assert b"pttype" not in run("blkid", "--probe", "--offset", str(MIB), node, accept=(0, 2)).lower()


@pytest.mark.parametrize("on_device", [True, False])
def test_a_larger_target(on_device: bool, gpt: Saved, tmp_path: Path) -> None:
    """The backup GPT goes to the new end, and the protective MBR tells the new size."""
    size = gpt.disk.size + 7 * MIB
    if on_device:
        with attached(noisy(tmp_path / "disk.raw", size, table="gpt"), partitions=False) as node:
            restore(gpt.image, node, RestoreOptions(verify=True))
    else:
        done = run_imagefs("restore", gpt.image, tmp_path / "disk.raw", "--size", str(size))
        assert done.code == 0, done.errors
        assert not (tmp_path / "disk.raw.unfinished").exists()
    target = tmp_path / "disk.raw"
    assert target.stat().st_size == size
    check_same(target, gpt.disk, tables=False)
    check_tables(target, "gpt")
    now = bytes_of(target)
    assert now[-512:-504].tobytes() == b"EFI PART"
    assert not now[gpt.disk.size - MIB // 2 : -33 * 512].any()
    assert (
        run("sgdisk", "-p", target).decode().splitlines()[-4:]
        == (run("sgdisk", "-p", gpt.disk.path).decode().splitlines()[-4:])
    )


def test_a_smaller_target(gpt: Saved, tmp_path: Path) -> None:
    """As far as the partitions and the backup GPT reach, and no byte less."""
    last = gpt.disk.partitions[-1]
    least = last.offset + last.size + 33 * 512
    assert least < gpt.disk.size
    restore(gpt.image, tmp_path / "fits", RestoreOptions(size=least, verify=True))
    check_tables(tmp_path / "fits", "gpt")
    now = bytes_of(tmp_path / "fits")
    was = without_free(gpt.disk, bytes_of(gpt.disk.path))
    assert differing(only_partitions(gpt.disk, now), only_partitions(gpt.disk, was)) == []
    target = noisy(tmp_path / "too small", least - 512)
    before = digest(target)
    done = run_imagefs("restore", gpt.image, target, "--yes")
    assert done.code == 6
    assert "too small" in done.errors
    assert str(least) in done.errors
    assert digest(target) == before
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_smaller_target_for_an_extended_partition(mbr: Saved, tmp_path: Path) -> None:
    """The table of the smaller disk must not name what lies behind its end."""
    restore(mbr.image, tmp_path / "fits", RestoreOptions(size=mbr.disk.size - MIB))
    check_tables(tmp_path / "fits", "mbr")
    with pytest.raises(RefusedError, match="too small"):
        plan_restore(mbr.image, tmp_path / "not", RestoreOptions(size=mbr.disk.size - MIB - 512))


def test_holes_are_kept_where_asked(gpt: Saved, tmp_path: Path) -> None:
    """Whole blocks of free space keep what the target had; all else is written."""
    path = noisy(tmp_path / "target", gpt.disk.size)
    was = bytes_of(path)
    with attached(path, partitions=False) as node:
        restore(gpt.image, node, RestoreOptions(keep_holes=True, verify=True))
        check_same(node, gpt.disk, cleared=False, tables=False)
        check_tables(node, "gpt")
        now = bytes_of(node)
    kept = 0
    for part in gpt.disk.partitions:
        for start, end in free_runs(gpt.disk, part):
            same = now[start:end] == was[start:end]
            kept += int(same.sum())
            assert not now[start:end][~same].any()
    assert kept > 10 * MIB


def test_a_device_is_written_past_the_cache(gpt: Saved, tmp_path: Path) -> None:
    with (
        attached(create_file(tmp_path / "target", 4 * MIB), partitions=False) as node,
        DeviceTarget.open(node) as target,
    ):
        assert target.direct
        assert (target.size, target.sector_size) == (4 * MIB, 512)


@pytest.mark.parametrize(("sector_size", "fits"), [(4096, False), (512, True)])
def test_sectors_of_another_size(sector_size: int, fits: bool, gpt: Saved, tmp_path: Path) -> None:
    path = noisy(tmp_path / "target", gpt.disk.size)
    before = digest(path)
    with attached(path, sector_size=sector_size, partitions=False) as node:
        done = run_imagefs("restore", gpt.image, node, "--yes")
        assert done.code == (0 if fits else 6), done.errors
        if not fits:
            assert "sectors of 4096 bytes" in done.errors
            assert digest(node) == before


def test_a_disk_of_4096_byte_sectors(tmp_path: Path) -> None:
    """It comes back on a device that has them, and not on one of 512."""
    volume = ext_volume(tmp_path, size=8 * MIB, big=MIB, many=5)
    disk = gpt_disk(tmp_path / "source", [volume], "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3ED", sector_size=4096)
    image = backup(disk.path, tmp_path / "set").path
    with attached(noisy(tmp_path / "target", disk.size), sector_size=4096, partitions=False) as node:
        restore(image, node, RestoreOptions(verify=True))
        check_same(node, disk)
        said = run("blkid", "--probe", "-o", "value", "-s", "PTTYPE", node).strip()
        assert said == b"gpt"
    path = noisy(tmp_path / "other", disk.size)
    with attached(path, partitions=False) as node, pytest.raises(RefusedError, match="sectors of 512"):
        plan_restore(image, node)


# --- One partition ---


def test_one_partition_into_one_of_a_file(gpt: Saved, tmp_path: Path) -> None:
    """A larger one of another disk: nothing outside of it changes, behind the volume it is clean."""
    parts = "start=2048, size=2048\nstart=6144, size=40960\nstart=60000, size=100"
    target = partitioned(noisy(tmp_path / "disk.raw", 40 * MIB), "gpt", parts)
    was = bytes_of(target)
    done = run_imagefs(
        "restore", gpt.image, target, "--partition", "disk0/p1", "--to-partition", "2", "--yes", "--verify"
    )
    assert done.code == 0, done.errors
    now, start, size = bytes_of(target), 6144 * 512, 40960 * 512
    assert differing(now[:start], was[:start]) == []
    assert differing(now[start + size :], was[start + size :]) == []
    part = gpt.disk.partition(1)
    assert not now[start + part.size : start + size].any()
    (tmp_path / "volume").write_bytes(now[start : start + part.size].tobytes())
    check_sound(tmp_path / "volume", "NTFS")
    source = without_free(gpt.disk, bytes_of(gpt.disk.path))[part.offset : part.offset + part.size]
    # NTFS says in its first and in its last sector where on the disk it lies.
    allowed = {*range(0x1C, 0x20), *range(part.size - 512 + 0x1C, part.size - 512 + 0x20)}
    differ = np.flatnonzero(now[start : start + part.size] != source)
    assert set(differ.tolist()) <= allowed
    assert now[start + 0x1C : start + 0x20].tobytes() == (6144).to_bytes(4, "little")


@pytest.mark.parametrize("by_node", [True, False])
def test_one_partition_into_one_of_a_device(by_node: bool, gpt: Saved, tmp_path: Path) -> None:
    """By the partition's own device, or by its number."""
    parts = "start=2048, size=2048\nstart=6144, size=16384"
    path = partitioned(noisy(tmp_path / "disk.raw", 40 * MIB), "gpt", parts)
    was = bytes_of(path)
    with attached(path) as node:
        target = [partition_node(node, 2)] if by_node else [node, "--to-partition", "2"]
        done = run_imagefs("restore", gpt.image, *target, "--partition", "p2", "--yes", "--verify")
        assert done.code == 0, done.errors
        run("e2fsck", "-fn", partition_node(node, 2))
    now, part, start = bytes_of(path), gpt.disk.partition(2), 6144 * 512
    source = without_free(gpt.disk, bytes_of(gpt.disk.path))[part.offset : part.offset + part.size]
    assert differing(now[start : start + part.size], source) == []
    assert differing(now[:start], was[:start]) == []
    assert differing(now[start + 16384 * 512 :], was[start + 16384 * 512 :]) == []


def test_a_volume_as_a_file(gpt: Saved, tmp_path: Path) -> None:
    done = run_imagefs("restore", gpt.image, tmp_path / "p2.raw", "--partition", "p2")
    assert done.code == 0, done.errors
    part = gpt.disk.partition(2)
    source = without_free(gpt.disk, bytes_of(gpt.disk.path))[part.offset : part.offset + part.size]
    assert differing(bytes_of(tmp_path / "p2.raw"), source) == []
    done = run_imagefs("restore", gpt.image, tmp_path / "none", "--partition", "p9")
    assert (done.code, (tmp_path / "none").exists()) == (2, False)
    target = noisy(tmp_path / "small", part.size - 512)
    done = run_imagefs("restore", gpt.image, target, "--partition", "p2", "--yes")
    assert (done.code, target.stat().st_size) == (6, part.size - 512)


def test_a_volume_over_a_whole_disk(gpt: Saved, tmp_path: Path) -> None:
    """The old partition table is gone, its copy at the end too."""
    with attached(noisy(tmp_path / "disk.raw", 20 * MIB, table="gpt"), partitions=False) as node:
        restore(gpt.image, node, RestoreOptions(partition=2))
        assert signatures(node) == {"ext4"}
        run("e2fsck", "-fn", node)


@pytest.mark.parametrize(("number", "kind"), [(1, "NTFS"), (2, "ext4")])
@pytest.mark.parametrize("on_device", [True, False])
def test_one_partition_grows_with_its_place(
    number: int, kind: str, on_device: bool, gpt: Saved, tmp_path: Path
) -> None:
    """Its first blocks are held back while it is written; the tool that grows it needs them."""
    target = noisy(tmp_path / "volume", 24 * MIB)
    options = RestoreOptions(partition=number, fit=True, verify=True)
    if on_device:
        with attached(target, partitions=False) as node:
            report = restore(gpt.image, node, options)
    else:
        report = restore(gpt.image, target, options)
    assert report.partitions == [{"number": number, "offset": 0, "size": 24 * MIB}]
    assert report.different == []
    check_sound(target, kind)
    if kind == "ext4":
        said = run("dumpe2fs", "-h", target).decode()
        assert f"Block count:              {24 * MIB // 4096}" in said


def test_a_volume_without_a_table(gpt: Saved, tmp_path: Path) -> None:
    """An image of a volume alone comes back as one, on a larger device too."""
    volume = cut_out(gpt.disk.path, gpt.disk.partition(2), tmp_path / "volume")
    image = backup(volume, tmp_path / "set").path
    restore(image, tmp_path / "again")
    check_sound(tmp_path / "again", "ext4")
    with attached(noisy(tmp_path / "target", 12 * MIB, table="gpt"), partitions=False) as node:
        restore(image, node, RestoreOptions(verify=True))
        assert signatures(node) == {"ext4"}
        part = gpt.disk.partition(2)
        source = without_free(gpt.disk, bytes_of(gpt.disk.path))[part.offset : part.offset + part.size]
        now = bytes_of(node)
        assert differing(now[: part.size], source) == []
        assert not now[part.size :].any()
