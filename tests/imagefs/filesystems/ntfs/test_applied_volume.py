"""A volume that wimlib applied, seen through the mount of its image: in everything as ntfs-3g shows it."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.partition_tables import MIB, Volume, gpt_disk
from fixtures.tools import fuse_mount, run
from fixtures.volumes import make_ntfs, ntfs_volume
from tests.conftest import mounted, run_imagefs

SYSTEM_ATTRIBUTES = (
    "system.ntfs_acl",
    "system.ntfs_attrib",
    "system.ntfs_attrib_be",
    "system.ntfs_crtime",
    "system.ntfs_crtime_be",
    "system.ntfs_times",
    "system.ntfs_times_be",
    "system.ntfs_object_id",
    "system.ntfs_ea",
    "system.ntfs_reparse_data",
    "system.ntfs_dos_name",
)
RECORD = (1 << 48) - 1  # the file record's part of an inode number


@pytest.fixture(scope="module")
def two_mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Yield a volume as ntfs-3g shows it, and the same volume in the mount of its image."""
    folder = tmp_path_factory.mktemp("applied")
    source = ntfs_volume(folder, "source", size=48 * MIB, big=MIB, many=50, fragments=0).path
    assert source is not None
    volume = make_ntfs(folder / "applied.volume", 48 * MIB, "applied")
    run("wimlib-imagex", "capture", source, folder / "all.wim", "--compress=none")
    run("wimlib-imagex", "apply", folder / "all.wim", "1", volume)
    taken = folder / "taken.volume"
    shutil.copy(volume, taken)  # a disk takes the files of its volumes
    whole = Volume(taken, 48 * MIB, "NTFS", "applied")
    disk = gpt_disk(folder / "disk.raw", [whole], "7C1D9A54-7C3D-4E8A-9D21-64F0A1C2E3AA")
    done = run_imagefs("backup", disk.path, folder / "set")
    assert done.code == 0, done.errors
    (image,) = (folder / "set").glob("*.mrimgx")
    reference = folder / "reference"
    options = "no_detach,ro,streams_interface=xattr"
    with (
        fuse_mount(reference, "ntfs-3g", "-o", options, volume, reference) as theirs,
        mounted(image, folder / "mnt", "--volume", "disk0/p1") as ours,
    ):
        yield theirs, ours


def paths(root: Path) -> list[str]:
    found = []
    for folder, directories, files in os.walk(root):
        found += [os.path.relpath(Path(folder, name), root) for name in directories + files]
    return sorted(found)


def node(path: Path) -> dict[str, Any]:
    """Return what stat tells of a node that both must agree upon."""
    known = path.lstat()
    told: dict[str, Any] = {
        "type": stat.S_IFMT(known.st_mode),
        "links": known.st_nlink,
        "modified": known.st_mtime_ns,
        "accessed": known.st_atime_ns,
        "changed": known.st_ctime_ns,
    }
    if stat.S_ISDIR(known.st_mode):
        told["links"] = 1 if known.st_nlink == 1 else 2  # ntfs-3g tells 1
    if stat.S_ISREG(known.st_mode):
        told["size"] = known.st_size
        told["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if stat.S_ISLNK(known.st_mode):
        told["leads to"] = path.resolve().relative_to(path.parents[1])  # all links are one folder deep
    return told


def attributes(path: Path) -> dict[str, bytes]:
    names = [*os.listxattr(path, follow_symlinks=False), *SYSTEM_ATTRIBUTES]
    found = {}
    for name in names:
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            found[name] = os.strerror(error.errno or 0).encode()
    return found


def test_every_node(two_mounts: tuple[Path, Path]) -> None:
    theirs, ours = two_mounts
    names = paths(theirs)
    assert len(names) > 100
    assert paths(ours) == names
    for name in names:
        if name == "links/junction":  # to a drive, which ntfs-3g takes for its own whatever the letter
            assert (ours / name).read_bytes() == b"C:\\names"
        else:
            assert node(ours / name) == node(theirs / name), name
        assert (ours / name).lstat().st_ino & RECORD == (theirs / name).lstat().st_ino


def test_every_extended_attribute(two_mounts: tuple[Path, Path]) -> None:
    theirs, ours = two_mounts
    for name in paths(theirs):
        assert attributes(ours / name) == attributes(theirs / name), name
