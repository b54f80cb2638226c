"""Every file of every built disk, through the library, ``cp`` and the mount: as it was written."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import imagefs
from fixtures.content import sha256_file
from fixtures.mrimgx_writer import WrittenFile
from tests.conftest import mounted, run_imagefs
from tests.imagefs.built import (
    FULL,
    INCREMENTAL,
    RECIPES,
    BuiltSet,
    check_directory,
    check_tree,
    too_long,
    with_files,
)


@pytest.mark.parametrize("name", RECIPES)
def test_library(built_set: Callable[[str], BuiltSet], name: str) -> None:
    for _, written in built_set(name).points:
        with imagefs.open(written.path) as source:
            tree = source.tree()
            (disk,) = written.disks
            assert {entry.name for entry in tree.entries(tree.root)} == {"disk1", "disk1.raw"}
            volumes = {f"p{part.number}" for part in with_files(written)}
            raws = {f"p{part.number}.raw" for part in disk.partitions}
            assert {entry.name for entry in tree.entries(tree.resolve("disk1"))} == volumes | raws
            for part in with_files(written):
                check_tree(tree, f"disk1/p{part.number}", part)


@pytest.mark.parametrize("name", RECIPES)
def test_cp(built_set: Callable[[str], BuiltSet], name: str, tmp_path: Path) -> None:
    written = built_set(name).incremental
    done = run_imagefs("cp", written.path, "disk1", "disk1.raw", tmp_path)
    refused = {f"disk1/p{part.number}/{name}" for part in with_files(written) for name in too_long(part)}
    assert done.code == (7 if refused else 0)
    assert done.output == b""
    assert set(done.errors.splitlines()) == {f"imagefs: {path}: File name too long" for path in refused}
    assert {path.name for path in tmp_path.iterdir()} == {"disk1", "disk1.raw"}
    for part in with_files(written):
        check_directory(tmp_path / f"disk1/p{part.number}", part, is_copy=True)
    check_raw(tmp_path, written)


def check_raw(root: Path, written: WrittenFile) -> None:
    """Check that the copies of disk and partitions are their sources, and as sparse as what was stored."""
    (disk,) = written.disks
    assert sha256_file(root / "disk1.raw") == sha256_file(disk.path)
    allocated = 0
    for at, part in enumerate(disk.partitions):
        copy = root / f"disk1/p{part.number}.raw"
        with disk.path.open("rb") as source:
            source.seek(part.offset)
            digest, left = hashlib.sha256(), part.size
            while left:
                data = source.read(min(left, 1 << 20))
                digest.update(data)
                left -= len(data)
        assert sha256_file(copy) == digest.hexdigest()
        index = written.index[0, at]
        stored = sum(1 for block in index.blocks if block.length) * 65536 + len(index.reserved) * (4 << 20)
        assert copy.stat().st_blocks * 512 <= stored + 65536
        allocated += stored
    assert (root / "disk1.raw").stat().st_blocks * 512 <= allocated + (4 << 20)
    assert allocated < disk.size * 3 / 4


@pytest.mark.parametrize("mechanism", ["devfuse", "mfusepy"])
def test_mount(every_set: list[BuiltSet], sets_folder: Path, tmp_path: Path, mechanism: str) -> None:
    with mounted(sets_folder, tmp_path / "mnt", "--mechanism", mechanism) as root:
        assert set(os.listdir(root)) == {built.image_id for built in every_set}  # noqa: PTH208
        for built in every_set:
            points = root / built.image_id
            assert set(os.listdir(points)) == {FULL, INCREMENTAL}  # noqa: PTH208
            # Every point by the first mechanism; the other shows the same tree, the later points are enough.
            for point, written in built.points if mechanism == "devfuse" else built.points[1:]:
                for part in with_files(written):
                    check_directory(points / point / f"disk1/p{part.number}", part)


def test_volume_as_root_and_inode_numbers_that_stay(
    built_set: Callable[[str], BuiltSet], tmp_path: Path
) -> None:
    written = built_set("fourk").full
    (part,) = with_files(written)
    with mounted(written.path, tmp_path / "mnt", "--volume", "disk1/p1") as root:
        check_directory(root, part)
        before = {name: (root / name).lstat().st_ino for name in part.files}
        Path("/proc/sys/vm/drop_caches").write_text("2")  # the kernel asks again
        assert {name: (root / name).lstat().st_ino for name in part.files} == before


def test_many_names_are_listed_once_and_quickly(built_set: Callable[[str], BuiltSet], tmp_path: Path) -> None:
    written = built_set("ntfs").full
    (part,) = with_files(written)
    with mounted(written.path, tmp_path / "mnt") as root:
        names = os.listdir(root / "disk1/p1/many")  # noqa: PTH208
        assert len(names) == len(set(names)) == 2000
        assert set(names) == {Path(name).name for name in part.files if name.startswith("many/")}
