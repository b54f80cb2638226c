"""What the commands tell: reports, plans and help; and how much memory a large restore takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.disks import file_backup_disk, plain_disk
from fixtures.huge import huge_set
from fixtures.mrimgx_writer import SetWriter, file_backup_writer
from fixtures.partition_tables import MIB
from imagefs.restore.job import plan_restore, restore
from tests.conftest import run_imagefs
from tests.imagefs.imaging.attached import attached
from tests.imagefs.imaging.others import check_files
from tests.imagefs.restore.chains import Saved
from tests.imagefs.restore.commands import run_quickly
from tests.imagefs.restore.held import bytes_of, check_same
from tests.imagefs.restore.places import digest, noisy

ROOT = Path(__file__).parents[3]
KEYS = {
    "source", "target", "size", "mode", "blocks_written", "blocks_unchanged", "bytes_written",
    "records_written", "bytes_cleared", "partitions", "verified", "different", "new_ids", "references",
    "warnings", "seconds",
}  # fmt: skip


def test_the_report(gpt: Saved, tmp_path: Path) -> None:
    """One document on the output; progress and messages, a document on each line, on standard error."""
    target = tmp_path / "disk.raw"
    done = run_imagefs("restore", gpt.image, target, "--json", "--verify")
    assert done.code == 0, done.errors
    report = json.loads(done.output)
    assert report.keys() == KEYS
    assert report["source"] == str(gpt.image)
    assert report["target"] == str(target)
    assert (report["size"], report["mode"], report["verified"]) == (gpt.disk.size, "write", True)
    assert report["partitions"] == [
        {"number": part.number, "offset": part.offset, "size": part.size} for part in gpt.disk.partitions
    ]
    assert report["different"] == report["warnings"] == report["references"] == []
    assert report["new_ids"] == {}
    # A new file has no room for zeros, and a page for each head and record at least.
    assert 0 < report["bytes_written"] <= target.stat().st_blocks * 512 <= report["bytes_written"] + 3 * MIB
    events = [json.loads(line) for line in done.errors.splitlines()]
    assert {event["event"] for event in events} == {"progress"}
    assert {event["phase"] for event in events} == {"writing", "verifying"}
    last = [event for event in events if event["phase"] == "verifying"][-1]
    assert last["done"] == last["total"] > report["bytes_written"] // 2


def test_the_text(mbr: Saved, tmp_path: Path) -> None:
    done = run_imagefs("restore", mbr.image, tmp_path / "disk.raw", "--new-id")
    assert done.code == 0, done.errors
    lines = done.text.splitlines()
    assert lines[0] == str(tmp_path / "disk.raw")
    assert re.fullmatch(r"\d+ blocks written; [0-9.]+ MiB, [0-9.]+ s, [0-9.]+ .?i?B/s", lines[1])
    assert re.fullmatch(r"new id [0-9A-F]{8} \(was 1D2C3B4A\)", lines[2])
    assert done.errors == ""


def test_the_plan(gpt: Saved, mbr: Saved, tmp_path: Path) -> None:
    """With --dry-run nothing is written, made or asked."""
    target = noisy(tmp_path / "disk.raw", gpt.disk.size, table="dos")
    before = digest(target)
    done = run_imagefs("restore", gpt.image, target, "--dry-run", "--json")
    assert done.code == 0, done.errors
    plan = json.loads(done.output)
    assert plan.keys() == {"source", "target", "size", "before", "partitions", "warnings"}
    assert plan["before"]["scheme"] == "mbr"
    assert [part["size"] for part in plan["before"]["partitions"]] == [4096 * 512, 8192 * 512]
    assert digest(target) == before
    done = run_imagefs("restore", mbr.image, tmp_path / "new.raw", "--dry-run", "--json")
    assert json.loads(done.output)["before"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["disk.raw"]


@pytest.mark.parametrize("command", ["restore", "clone"])
def test_the_help(command: str) -> None:
    """Every option that the report speaks of, an example, the exit codes."""
    done = run_imagefs(command, "--help")
    assert done.code == 0
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.text).split())
    assert f"Example: imagefs {command} /" in said
    assert "Exit codes: 0" in said
    for option in (
        "--delta",
        "--fit",
        "--keep-id",
        "--keep-holes",
        "--verify",
        "--yes",
        "--dry-run",
        "--json",
    ):
        assert option in done.text


@pytest.mark.usefixtures("warm")
def test_usage(gpt: Saved, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    for arguments, says in (
        ((gpt.image, target, "--disk", "disk7"), "name one: disk0"),
        ((gpt.image, target, "--disk", "seven"), "names no disk"),
        ((gpt.image, target, "--partition", "px"), "names no partition"),
        ((gpt.image, target, "--to-partition", "1"), "a partition to restore is needed"),
        ((gpt.image, target, "-p", "p1", "--new-id"), "ids belong to a disk"),
        ((tmp_path / "none", target), "no such file"),
    ):
        done = run_quickly("restore", *arguments)
        assert done.code == 2, (arguments, done.errors)
        assert says in done.errors, arguments
    with attached(gpt.disk.path, partitions=False) as node:
        done = run_quickly("restore", node, target)
    assert (done.code, "imagefs clone copies a disk" in done.errors) == (2, True)
    assert list(tmp_path.iterdir()) == []


# --- Sources of other kinds ---


@pytest.mark.usefixtures("warm")
def test_several_disks(tmp_path: Path) -> None:
    """One is named; blocks of every length, in each kind of compression."""
    disks = [
        plain_disk(tmp_path, "one", sizes=(MIB + 4096, 70_144, 512), seed=1),
        plain_disk(tmp_path, "two", sizes=(65_536, 2 * MIB + 512), seed=2),
    ]
    for compression in ("none", "medium", "high"):
        writer = SetWriter(tmp_path / compression, disk_numbers=[2, 5], compression=compression, password="x")
        image = writer.full(disks).path
        for number, disk in zip((2, 5), disks, strict=True):
            target = tmp_path / f"{compression}-{number}"
            arguments = ("restore", image, target, "--disk", f"disk{number}")
            if compression == "none":
                assert run_quickly(*arguments, password="y").code == 5
                assert not target.exists()
            done = run_quickly(*arguments, password="x")
            assert done.code == 0, done.errors
            check_same(target, disk)


def test_a_file_backup(tmp_path: Path) -> None:
    """The virtual disk of a file and folder backup: 17 GB, of which hardly anything is stored."""
    disk = file_backup_disk(tmp_path)
    image = file_backup_writer(tmp_path / "set", disk).full([disk]).path
    target = tmp_path / "restored.raw"
    with plan_restore(image, target) as job:
        assert [placed.size for placed in job.placed] == [disk.partitions[0].size]
        job.run()
    (part,) = disk.partitions
    check_files(Path(f"{target}@@{part.offset}"), part)
    assert target.stat().st_blocks * 512 < 100 * MIB


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A sparse partition of 4 TiB has an index of 2 GB."""
    made = huge_set(tmp_path, deltas=2, delta_blocks=1000)
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom imagefs.restore.job import restore\n"
        "restore(sys.argv[1], sys.argv[2])\n"
        "print(re.findall(r'VmHWM:\\s+([0-9]+) kB', Path('/proc/self/status').read_text())[0])\n"
    )
    target = tmp_path / "restored.raw"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, made.paths[-1], target], check=True, capture_output=True, cwd=ROOT
        )
        assert int(done.stdout) * 1024 < 300 << 20
        assert target.stat().st_size == made.disk.size
        part = made.disk.partitions[0]
        with target.open("rb") as restored, made.disk.path.open("rb") as source:
            for start in (0, part.offset, part.offset + part.size // 2, made.disk.size - 33 * 512):
                restored.seek(start)
                source.seek(start)
                assert restored.read(16896) == source.read(16896), start
    finally:
        target.unlink(missing_ok=True)
        made.disk.path.unlink()


def test_a_link_to_a_disk_file(gpt: Saved, tmp_path: Path) -> None:
    """What it leads to is replaced, and the link stays."""
    (tmp_path / "folder").mkdir()
    target = noisy(tmp_path / "folder" / "disk.raw", gpt.disk.size)
    (tmp_path / "link").symlink_to("folder/disk.raw")
    restore(gpt.image, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    check_same(target, gpt.disk)
    assert bytes_of(tmp_path / "link").size == gpt.disk.size
    assert len(list(tmp_path.rglob("*"))) == 3
