"""Snapshots of real logical volumes that are written meanwhile: classic and thin."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.tools import run
from imagefs.errors import RefusedError, SnapshotError
from imagefs.imaging import snapshots
from imagefs.imaging.sources import Source, open_source
from imagefs.machine import devices

MIB = 1 << 20
DISK = Path("/dev/vda")
GROUP = "my-group"  # device mapper doubles the hyphen
FILES = {f"file{number}": noise(number, 0, 300_000 + number) for number in range(12)}


def listed() -> dict[str, str]:
    """Return the group's volumes with their tags, as LVM tells them."""
    report = json.loads(run("lvs", "--reportformat", "json", "-o", "lv_name,lv_tags", GROUP))
    return {row["lv_name"]: row["lv_tags"] for row in report["report"][0]["lv"]}


def leftovers() -> list[str]:
    return [name for name in listed() if name.startswith("imagefs")]


@pytest.fixture
def group() -> Iterator[None]:
    """Make a volume group on a whole disk, and take it away again with all that is in it."""
    run("vgcreate", "--yes", GROUP, DISK)
    try:
        yield
    finally:
        run("vgremove", "--yes", "--force", GROUP)
        run("pvremove", "--yes", DISK)


@pytest.fixture(params=["classic", "thin"])
def volume(request: pytest.FixtureRequest, group: None) -> Path:
    """Make a logical volume of 96 MiB with an ext4 file system."""
    if request.param == "thin":
        run("lvcreate", "--yes", "--type", "thin-pool", "--size", "200M", "--name", "pool", GROUP)
        run("lvcreate", "--yes", "--thin", "--virtualsize", "96M", "--name", "my-data", f"{GROUP}/pool")
    else:
        run("lvcreate", "--yes", "--size", "96M", "--name", "my-data", GROUP)
    path = Path(f"/dev/{GROUP}/my-data")
    run("mke2fs", "-q", "-t", "ext4", path)
    return path


@contextmanager
def mounted(volume: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    run("mount", volume, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


@contextmanager
def being_written(folder: Path) -> Iterator[None]:
    """Write and delete files in a folder all the time."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            path = folder / f"noise{number % 7}"
            path.write_bytes(noise(number, 0, 200_000))
            (folder / f"noise{(number + 3) % 7}").unlink(missing_ok=True)
            number += 1
            time.sleep(0.01)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def copy_of(source: Source, target: Path) -> Path:
    (disk,) = source.disks
    (part,) = disk.partitions
    assert (part.number, part.offset, part.size) == (1, 0, disk.size)
    with target.open("wb") as stream:
        stream.truncate(part.size)
        for offset in range(0, part.size, MIB):
            data = part.reader.read_at(offset, min(MIB, part.size - offset))
            if data.strip(b"\0"):  # else it stays a hole: copies lie in the guest's memory
                stream.seek(offset)
                stream.write(data)
    return target


def check_copy(copy: Path, folder: Path) -> None:
    """Hold a copied volume against e2fsck, after its journal is replayed, and against what was in it."""
    run("e2fsck", "-p", "-E", "journal_only", copy, accept=(0, 1))
    run("e2fsck", "-f", "-n", copy)
    folder.mkdir()
    run("mount", "-o", "loop,ro", copy, folder)
    try:
        for name, data in FILES.items():
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            assert found == hashlib.sha256(data).hexdigest(), name
    finally:
        run("umount", folder)


def fill(folder: Path) -> None:
    for name, data in FILES.items():
        (folder / name).write_bytes(data)


def test_mounted_and_being_written(volume: Path, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "m") as folder:
        fill(folder)
        with being_written(folder), open_source(volume) as source:
            assert (source.kind, source.warnings) == ("disk", ())
            assert source.disks[0].name == str(volume)
            (name,) = leftovers()
            assert re.fullmatch(r"imagefs-[0-9a-f]{8}", name)
            assert "imagefs" in listed()[name].split(",")
            for path in FILES:  # after the snapshot: not in it
                (folder / path).unlink()
            copy = copy_of(source, tmp_path / "copy.raw")
            source.check()
        assert leftovers() == []
        with pytest.raises(RefusedError, match="mounted read-write"):
            open_source(volume, snapshot=False)
        with open_source(volume, snapshot=False, live=True) as source:
            assert len(source.warnings) == 1
            assert leftovers() == []
    check_copy(copy, tmp_path / "c")


@pytest.mark.parametrize("direct", [False, True])
def test_two_readings_are_the_same(volume: Path, tmp_path: Path, direct: bool) -> None:
    with mounted(volume, tmp_path / "m") as folder:
        fill(folder)
        with open_source(volume, direct=direct) as source:
            assert source.warnings == ()
            first = copy_of(source, tmp_path / "1").read_bytes()
            with being_written(folder):
                time.sleep(1)
            os.sync()
            assert copy_of(source, tmp_path / "2").read_bytes() == first
            source.check()


def test_what_is_not_mounted_needs_no_snapshot(volume: Path, tmp_path: Path) -> None:
    with open_source(volume) as source:
        assert (leftovers(), source.warnings) == ([], ())
        assert copy_of(source, tmp_path / "1").read_bytes() == volume.read_bytes()
        run("mount", volume, tmp_path, accept=(32,))  # it is held
    with mounted(volume, tmp_path / "m"):
        run("mount", "-o", "remount,ro", tmp_path / "m")
        with open_source(volume) as source:
            assert (leftovers(), source.warnings) == ([], ())


def test_the_disk_below_is_refused(volume: Path, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "m"), pytest.raises(RefusedError) as refused:
        open_source(DISK)
    assert "/dev/mapper/my--group-my--data, which it holds, is mounted read-write" in str(refused.value)
    assert "image /dev/mapper/my--group-my--data by a snapshot" in str(refused.value)


def test_an_error_removes_the_snapshot(volume: Path, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "m"):
        with pytest.raises(ZeroDivisionError), open_source(volume):
            assert len(leftovers()) == 1
            _ = 1 // 0
        assert leftovers() == []


READ_SLOWLY = """
import sys, time
from pathlib import Path
from imagefs.imaging.sources import open_source
with open_source(Path(sys.argv[1])) as source:
    print("open", flush=True)
    while True:
        source.disks[0].reader.read_at(0, 4096)
        time.sleep(0.05)
"""


def reading(volume: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", READ_SLOWLY, str(volume)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_removes_the_snapshot(volume: Path, tmp_path: Path, number: int) -> None:
    with mounted(volume, tmp_path / "m"), reading(volume) as process:
        assert len(leftovers()) == 1
        process.send_signal(number)
        code = process.wait(30)
        assert leftovers() == []
    assert code == (-signal.SIGINT if number == signal.SIGINT else 128 + number)


def test_a_killed_run_leaves_one_that_the_next_removes(volume: Path, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "m"), reading(volume) as alive, reading(volume) as process:
        both = leftovers()
        assert len(both) == 2
        process.kill()
        process.wait()
        assert sorted(leftovers()) == sorted(both)
        run("lvcreate", "--yes", "--size", "4M", "--addtag", "imagefs", "--name", "imagefs-is-mine", GROUP)
        with open_source(volume):
            now = leftovers()
            assert len(now) == 3  # that of the run that is alive, its own, and what is somebody's own volume
            assert len(set(both) & set(now)) == 1
        alive.kill()
        alive.wait()
        snapshots.remove_leftovers()
        assert leftovers() == ["imagefs-is-mine"]


# --- Overflow ---


@pytest.fixture
def full_group(group: None) -> Path:
    """Make a volume of 96 MiB in a group that has 8 MiB left."""
    run("lvcreate", "--yes", "--size", "96M", "--name", "my-data", GROUP)
    free = run("vgs", "--noheadings", "--units", "m", "--nosuffix", "-o", "vg_free", GROUP).decode()
    run("lvcreate", "--yes", "--size", f"{int(float(free)) - 8}M", "--name", "rest", GROUP)
    path = Path(f"/dev/{GROUP}/my-data")
    run("mke2fs", "-q", "-t", "ext4", path)
    return path


def test_overflow_while_reading(full_group: Path, tmp_path: Path) -> None:
    """What was read before stays right; reading on, and completing, fail."""
    with mounted(full_group, tmp_path / "m") as folder:
        fill(folder)
        with open_source(full_group) as source:
            source.check()
            before = source.disks[0].reader.read_at(0, MIB)
            assert len(before) == MIB
            (folder / "big").write_bytes(noise(1, 0, 30 * MIB))
            os.sync()
            with pytest.raises(SnapshotError, match="the snapshot is full") as full:
                source.check()
            assert full.value.exit_code == 7
            assert GROUP in str(full.value)
            with pytest.raises(SnapshotError, match="the snapshot is full"):
                copy_of(source, tmp_path / "copy.raw")
        assert leftovers() == []


def test_no_room_for_a_snapshot(full_group: Path, tmp_path: Path) -> None:
    run("lvcreate", "--yes", "--extents", "100%FREE", "--name", "last", GROUP)
    with mounted(full_group, tmp_path / "m"):
        with pytest.raises(SnapshotError, match="no free space for a snapshot"):
            open_source(full_group)
        with open_source(full_group, live=True) as source:
            assert len(source.warnings) == 2
        assert leftovers() == []


def test_a_snapshot_that_somebody_removes(full_group: Path, tmp_path: Path) -> None:
    with mounted(full_group, tmp_path / "m"):
        device = devices.require(full_group)
        taken = snapshots.take(device, size=4 * MIB)
        taken.check()
        run("lvremove", "--yes", f"{GROUP}/{taken.name}")
        with pytest.raises(SnapshotError, match="the snapshot is gone"):
            taken.check()
        with pytest.raises(SnapshotError, match="lvremove: "):
            taken.remove()


def test_without_lvms_commands(full_group: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shutil.which("lvs", path="/usr/sbin:/sbin")
    assert found is not None
    with mounted(full_group, tmp_path / "m"):
        hidden = Path(found).resolve()
        moved = hidden.rename(hidden.with_name("lvm.hidden"))
        try:
            with pytest.raises(SnapshotError, match=r"lvs: No such file.*lvm2"):
                open_source(full_group)
        finally:
            moved.rename(hidden)
