"""The commands on the real samples, as a user runs them."""

import hashlib
import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fixtures.tools import find_tool, fuse_mount, run
from fixtures.volumes import loop_device
from tests.conftest import missing, mounted, run_afresh

README = b"This is a demonstration of a Macrium X image file restored using img_to_vhdx.exe"


def test_info(full_sample: Path) -> None:
    done = run_afresh("info", "--json", full_sample)
    assert done.code == 0
    document = json.loads(done.output)
    assert document["image_id"] == "2394E9AA621DDC3A"
    assert document["complete"] is True
    assert document["missing_files"] == []
    (disk,) = document["disks"]
    assert (disk["name"], disk["size"]) == ("disk4", 128849018880)
    (part,) = disk["partitions"]
    wanted = {"name": "p1", "file_system": "NTFS", "label": "Demo", "offset": 16777216}
    assert {key: part[key] for key in wanted} == wanted
    assert (part["stored_blocks"], part["block_count"], part["block_size"]) == (1608, 1965792, 65536)
    assert "2394E9AA621DDC3A" in run_afresh("info", full_sample).text


def test_cat_and_ls_and_cp(full_sample: Path, tmp_path: Path) -> None:
    assert run_afresh("cat", full_sample, "disk4/p1/readme.txt").output == README
    listed = json.loads(run_afresh("ls", "--json", full_sample, "disk4/p1").output)["entries"]
    readme = next(entry for entry in listed if entry["name"] == "readme.txt")
    assert (readme["type"], readme["size"]) == ("file", 80)
    assert run_afresh("cp", full_sample, "disk4/p1/readme.txt", tmp_path).code == 0
    copy = tmp_path / "readme.txt"
    assert copy.read_bytes() == README
    # That the time is right is compared with ntfs-3g below; here, that it is kept whole.
    seconds, nanoseconds = divmod(copy.stat().st_mtime_ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    assert readme["modified"] == f"{text}.{nanoseconds // 100:07}Z"
    again = run_afresh("cp", full_sample, "disk4/p1/readme.txt", tmp_path)
    assert again.code == 7
    assert "readme.txt" in again.errors


def test_verify(full_sample: Path) -> None:
    document = json.loads(run_afresh("verify", "--json", full_sample).output)
    assert (document["ok"], document["blocks_checked"], document["bad"]) == (True, 1608, [])


def test_a_missing_base(delta_sample: Path, tmp_path: Path) -> None:
    info = run_afresh("info", "--json", delta_sample)
    assert info.code == 0
    document = json.loads(info.output)
    assert (document["complete"], document["missing_files"]) == (False, [0])
    assert document["disks"][0]["partitions"][0]["label"] == "New Volume"
    for command in (["ls"], ["verify"], ["cat"], ["mount"]):
        rest = {"cat": ["disk3.raw"], "mount": [str(tmp_path)]}.get(command[0], [])
        done = run_afresh(*command, delta_sample, *rest)
        assert done.code == 4, command
        assert "file number 0" in done.errors
        assert str(delta_sample.parent) in done.errors
        assert done.errors.count("\n") == 1


def test_mount_shows_the_tree_and_a_whole_disk(full_sample: Path, tmp_path: Path) -> None:
    with mounted(full_sample, tmp_path / "mnt") as root:
        assert (root / "disk4/p1/readme.txt").read_bytes() == README
        assert (root / "disk4.raw").stat().st_size == 128849018880
        assert (root / "disk4/p1.raw").stat().st_size == 128830144512
        if os.geteuid():
            missing("loop devices need root")
        with loop_device(root / "disk4.raw") as device:
            verified = run("sfdisk", "--verify", device)
            assert b"No errors detected" in verified
            checked = run("sgdisk", "-v", device)
            assert b"No problems found" in checked
        with loop_device(root / "disk4/p1.raw") as device:
            options = ("-o", "ro,no_detach", device, tmp_path / "ntfs")
            with fuse_mount(tmp_path / "ntfs", "ntfs-3g", *options) as other:
                assert tree_of(other) == tree_of(root / "disk4/p1")


def tree_of(root: Path) -> dict[str, tuple[int, int, str]]:
    """Return size, time and hash of every file below a directory."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            status = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(root))] = (status.st_size, status.st_mtime_ns, digest)
    return found


@pytest.mark.parametrize("mechanism", ["devfuse", "mfusepy"])
def test_every_mechanism_mounts_the_folder(full_sample: Path, tmp_path: Path, mechanism: str) -> None:
    with mounted(full_sample.parent, tmp_path / "mnt", "--mechanism", mechanism) as root:
        path = root / "2394E9AA621DDC3A/00-2024-07-10T10.42.16Z-full/disk4/p1/readme.txt"
        assert path.read_bytes() == README
    volume = "2394E9AA621DDC3A/00-2024-07-10T10.42.16Z-full/disk4/p1"
    with mounted(full_sample.parent, tmp_path / "mnt", "--volume", volume) as root:
        assert (root / "readme.txt").read_bytes() == README


def test_gdisk_reads_the_backup_table(full_sample: Path, tmp_path: Path) -> None:
    """Without its primary GPT the disk is still found whole by the backup."""
    find_tool("sgdisk")
    with mounted(full_sample, tmp_path / "mnt") as root:
        disk = tmp_path / "disk.raw"
        with (root / "disk4.raw").open("rb") as source, disk.open("wb") as target:
            target.truncate(128849018880)
            source.seek(128849018880 - 33 * 512)
            target.seek(128849018880 - 33 * 512)
            target.write(source.read())
        done = subprocess.run([find_tool("sgdisk"), "-p", disk], capture_output=True, check=False)
        assert b"Backup header: OK" in done.stderr
        assert b"Backup partition table: OK" in done.stderr
