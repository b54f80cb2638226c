"""A source that can't be read in places, or changes while it is read."""

import dataclasses
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.disks import ext_disk
from fixtures.partition_tables import MIB, BuiltDisk
from fixtures.tools import run as run_tool
from imagefs.errors import RefusedError, SourceReadError
from imagefs.imaging import backup, resume
from imagefs.imaging.options import BackupReport, Listener, Progress
from tests.conftest import run_imagefs
from tests.imagefs.imaging.faulty_fs import faulty
from tests.imagefs.imaging.sources_of_noise import (
    NoiseDisk,
    noise_disk,
    restored,
    unfinished_in,
)
from tests.imagefs.imaging.stopping import QUICK, stopped, stopped_again

SKIP = dataclasses.replace(QUICK, skip_bad=True)
BLOCK = 65536


@pytest.fixture
def disk(tmp_path: Path) -> NoiseDisk:
    return noise_disk(tmp_path / "source", (3 * MIB + 4096, MIB))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def without(contents: list[bytes], part: int, offset: int, length: int) -> list[bytes]:
    """Return the contents of partitions with zeros where they were lost."""
    found = bytearray(contents[part])
    found[offset : offset + length] = bytes(length)
    return [*contents[:part], bytes(found), *contents[part + 1 :]]


def lost(part: int, offset: int, length: int) -> dict[str, int]:
    return {"disk": 0, "partition": part, "offset": offset, "length": length}


def contents_of(report: BackupReport, disk: NoiseDisk) -> list[bytes]:
    return restored(report.path.parent, report.image_id, report.file_number, disk)


@pytest.mark.parametrize(
    ("direct_io", "part", "offset", "length", "recorded"),
    [
        (True, 0, 512 * 77, 512, (512 * 77, 512)),
        (True, 0, 512 * 77 + 100, 500, (512 * 77, 1024)),  # both sectors are hit
        (True, 0, MIB - 1024, 2048, (MIB - 1024, 2048)),  # in two blocks, which two tasks read
        (True, 0, 3 * MIB + 3584, 512, (3 * MIB + 3584, 512)),  # the partition's last sector
        (True, 1, 0, 3 * BLOCK, (0, 3 * BLOCK)),
        (False, 0, 4096 * 50, 8192, (4096 * 50, 8192)),  # by the page, through the system's cache
    ],
)
def test_what_is_lost(
    disk: NoiseDisk, target: Path, tmp_path: Path, direct_io: bool, part: int, offset: int, length: int,
    recorded: tuple[int, int],
) -> None:  # fmt: skip
    bad = [(disk.place(part, offset), length)]
    with faulty(disk.path.parent, tmp_path / "mnt", bad=bad, direct_io=direct_io) as mounted:
        source = mounted / disk.path.name
        with pytest.raises(SourceReadError, match=r"--skip-bad") as caught:
            backup(source, target, QUICK)
        assert caught.value.exit_code == 7
        assert not list(target.glob("*.mrimgx"))
        report = backup(source, tmp_path / "other", SKIP)
    assert report.unreadable == [lost(part, *recorded)]
    assert contents_of(report, disk) == without(disk.contents(), part, *recorded)
    # Where the source can be read again, the first run goes on with all of it.
    (tmp_path / "mnt").rmdir()
    (tmp_path / "mnt").symlink_to(disk.path.parent)
    whole = resume(target) if unfinished_in(target) else backup(mounted / disk.path.name, target, QUICK)
    assert contents_of(whole, disk) == disk.contents()
    assert not whole.unreadable


def test_what_is_lost_is_told(disk: NoiseDisk, target: Path, tmp_path: Path) -> None:
    bad = [(disk.place(1, 512 * 99), 1024)]
    with faulty(disk.path.parent, tmp_path / "mnt", bad=bad, direct_io=True) as mounted:
        source = mounted / disk.path.name
        refused = run_imagefs("backup", source, target)
        assert refused.code == 7
        assert f"{512 * 99}+1024" in refused.errors and "--resume" in refused.errors
        target = tmp_path / "lossy"
        done = run_imagefs("backup", source, target, "--skip-bad", "--json")
        assert done.code == 0, done.errors
        assert json.loads(done.output)["unreadable"] == [lost(1, 512 * 99, 1024)]
        again = backup(source, target, SKIP)
        assert (again.blocks_written, again.unreadable) == (0, [lost(1, 512 * 99, 1024)])
    for command in ("info", "verify"):
        shown = run_imagefs(command, json.loads(done.output)["path"])
        assert shown.code == 0, shown.errors
        assert f"1024 bytes at {512 * 99} could not be read" in shown.text
    # The disk can be read again: what was lost is in the next image.
    third = backup(disk.path, target, QUICK)
    assert (third.role, third.blocks_written, third.unreadable) == ("inc", 1, [])
    assert contents_of(third, disk) == disk.contents()


def test_what_is_lost_is_remembered(disk: NoiseDisk, target: Path, tmp_path: Path) -> None:
    places = [512 * 3, MIB + 512, 2 * MIB + 5120]
    bad = [(disk.place(0, offset), 512) for offset in places]
    with faulty(disk.path.parent, tmp_path / "mnt", bad=bad, direct_io=True) as mounted:
        there = NoiseDisk(dataclasses.replace(disk.built, path=mounted / disk.path.name))
        left = stopped(there, target, SKIP)
        assert stopped_again(left, 1)
        report = resume(left)
    assert report.unreadable == [lost(0, offset, 512) for offset in places]
    wanted = disk.contents()
    for offset in places:
        wanted = without(wanted, 0, offset, 512)
    assert contents_of(report, disk) == wanted


def test_a_table_that_can_t_be_read(disk: NoiseDisk, target: Path, tmp_path: Path) -> None:
    there = faulty(disk.path.parent, tmp_path / "mnt", bad=[(0, 512)], direct_io=True)
    with there as mounted, pytest.raises(SourceReadError):
        backup(mounted / disk.path.name, target, SKIP)
    assert not target.exists()


def test_a_map_of_clusters_that_can_t_be_read(target: Path, tmp_path: Path) -> None:
    """Nothing tells what is free: with --skip-bad all of the volume is stored."""
    (tmp_path / "source").mkdir()
    built = ext_disk(tmp_path / "source", size=16 * MIB, big=MIB, many=20)
    disk = NoiseDisk(built)
    text = run_tool("dumpe2fs", volume_of(built, tmp_path)).decode()
    size = int(re.findall(r"Block size: *(\d+)", text)[0])
    offset, length = int(re.findall(r"Block bitmap at (\d+)", text)[0]) * size, size
    bad = [(disk.place(0, offset), length)]
    with faulty(built.path.parent, tmp_path / "mnt", bad=bad, direct_io=True) as mounted:
        with pytest.raises(SourceReadError, match="--skip-bad"):
            backup(mounted / built.path.name, target, QUICK)
        report = backup(mounted / built.path.name, target, SKIP)
    assert report.unreadable == [lost(0, offset, length)]
    assert any("all of the volume is stored" in line for line in report.warnings)
    assert contents_of(report, disk) == without(disk.contents(), 0, offset, length)


# --- Free space ---


def volume_of(built: BuiltDisk, folder: Path) -> Path:
    """Copy the first partition to a file."""
    part, volume = built.partitions[0], folder / "volume"
    with built.path.open("rb") as stream:
        stream.seek(part.offset)
        volume.write_bytes(stream.read(part.size))
    return volume


def thin_out(built: BuiltDisk, folder: Path) -> None:
    """Remove every third file, so that free clusters lie between used ones."""
    part, volume = built.partitions[0], volume_of(built, folder)
    script = "".join(f'rm "{name}"\n' for name in sorted(part.files)[::3])
    run_tool("debugfs", "-w", "-f", "-", volume, stdin=script.encode())
    with built.path.open("r+b") as stream:
        stream.seek(part.offset)
        stream.write(volume.read_bytes())


def free_blocks(built: BuiltDisk, folder: Path) -> tuple[int, list[bool]]:
    """Return the bytes of an ext volume's block, and which are free, as its own tool says."""
    part, volume = built.partitions[0], volume_of(built, folder)
    with volume.open("rb") as stream:
        stream.seek(1024 + 24)
        size = 1024 << struct.unpack("<I", stream.read(4))[0]
    count = part.size // size
    script = "".join(f"testb {block}\n" for block in range(1, count))
    text = run_tool("debugfs", "-f", "-", volume, stdin=script.encode()).decode()
    free = {int(number) for number in re.findall(r"^Block (\d+) not in use", text, re.MULTILINE)}
    used = {int(number) for number in re.findall(r"^Block (\d+) marked in use", text, re.MULTILINE)}
    assert free | used == set(range(1, count))
    return size, [block in free for block in range(count)]


def test_what_is_free_need_not_be_read(target: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    built = ext_disk(tmp_path / "source", size=32 * MIB, big=3 * MIB, many=200)
    disk = NoiseDisk(built)
    thin_out(built, tmp_path)
    size, free = free_blocks(built, tmp_path)
    each = BLOCK // size
    groups = [free[at : at + each] for at in range(0, len(free), each)]
    mixed = [number for number, group in enumerate(groups) if any(group) and not all(group)]
    assert len(mixed) > 2 and any(all(group) for group in groups)
    bad = [(disk.place(0, at * size), size) for at, is_free in enumerate(free) if is_free]
    whole = backup(built.path, tmp_path / "whole", QUICK)
    with faulty(built.path.parent, tmp_path / "mnt", bad=joined(bad), direct_io=True) as mounted:
        report = backup(mounted / built.path.name, target, QUICK)
    assert not report.unreadable
    assert contents_of(report, disk) == contents_of(whole, disk)
    # A used cluster between free ones is another matter.
    number = next(n for n in mixed if n * each > len(free) // 8)
    used = (number * each + groups[number].index(False)) * size
    with faulty(
        built.path.parent, tmp_path / "mnt", bad=joined([*bad, (disk.place(0, used), size)]), direct_io=True
    ) as mounted:
        with pytest.raises(SourceReadError, match=rf"at {used}\+{size}"):
            backup(mounted / built.path.name, tmp_path / "other", QUICK)
        lossy = backup(mounted / built.path.name, tmp_path / "lossy", SKIP)
    assert lossy.unreadable == [lost(0, used, size)]
    assert contents_of(lossy, disk) == without(contents_of(whole, disk), 0, used, size)


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges with neighbours joined."""
    found: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if found and sum(found[-1]) == offset:
            found[-1] = found[-1][0], found[-1][1] + length
        else:
            found.append((offset, length))
    return found


# --- Changes ---


def when_read(count: int, what: Callable[[], None]) -> Listener:
    """Return what does something once so many bytes are read."""
    waiting = [what]

    def progress(now: Progress) -> None:
        if now.phase == "reading" and now.done >= count and waiting:
            waiting.pop()()

    return Listener(progress)


@pytest.mark.parametrize("is_read", [True, False])
def test_a_change_while_it_is_read(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    monkeypatch.setattr("imagefs.imaging.run._REPORT_SECONDS", 0.0)
    disk = noise_disk(tmp_path / "source", (40 * MIB,))
    place = 0 if is_read else 39 * MIB
    options = dataclasses.replace(QUICK, rate_limit=0)
    with pytest.raises(RefusedError, match="was changed while it was read"):
        backup(
            disk.path, target, options, listener=when_read(MIB, lambda: disk.overwrite(0, place, 999, seed=1))
        )
    assert not list(target.glob("*.mrimgx"))
    if is_read:
        with pytest.raises(RefusedError, match="has changed since"):
            resume(target)
    else:
        assert contents_of(resume(target), disk) == disk.contents()


def test_a_source_that_becomes_shorter(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.imaging.run._REPORT_SECONDS", 0.0)
    disk = noise_disk(tmp_path / "source", (40 * MIB,))

    def cut() -> None:
        with disk.path.open("r+b") as stream:
            stream.truncate(20 * MIB)

    with pytest.raises(SourceReadError):
        backup(disk.path, target, QUICK, listener=when_read(MIB, cut))
    assert not list(target.glob("*.mrimgx"))
