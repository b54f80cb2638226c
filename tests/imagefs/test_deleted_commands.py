"""``$Deleted`` of an image: listed, copied, read and mounted, of all sectors and of used ones only."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import imagefs
from fixtures.deleted_ntfs import COVER, SIZE, DeletedVolume, deleted_ntfs
from fixtures.partition_tables import MIB, BuiltPartition, Volume, gpt_disk
from imagefs.filesystems import VolumeOptions
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions
from imagefs.tree import ImageTree
from mounters.tree import Entry
from tests.conftest import mounted, run_imagefs

GUID = "3C7D5A51-5E0B-4C0F-8C57-6E0D0F3B7A11"


class Images(NamedTuple):
    built: DeletedVolume
    exact: Path
    used: Path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("deleted")
    built = deleted_ntfs(folder)
    contents = BuiltPartition(1, MIB, SIZE, "NTFS")
    disk = gpt_disk(folder / "disk.raw", [Volume(built.reused, SIZE, "NTFS", contents=contents)], GUID)
    paths = [
        backup(disk.path, folder / name, BackupOptions(exact=name == "exact")).path
        for name in ("exact", "used")
    ]
    return Images(built, *paths)


def volume_of(image: Path) -> str:
    with imagefs.open(image) as container:
        assert container.point is not None
        return f"{container.point.disks[0].name}/p1"


def partly_name(built: DeletedVolume) -> str:
    """Return what the fragmented file is called, whose name ntfs-3g wiped."""
    (number,) = (number for number, path in built.paths.items() if path == "docs/fragmented.bin")
    return f"OrphanFile-{number}"


def listed(image: Path, path: str, *options: str) -> dict[str, dict[str, object]]:
    done = run_imagefs("ls", image, path, "--json", *options)
    assert done.code == 0, done.errors
    return {entry["name"]: entry for entry in json.loads(done.output)["entries"]}


def copied_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shown_only_when_asked_for(images: Images) -> None:
    root = volume_of(images.exact)
    assert "$Deleted" not in listed(images.exact, root)
    assert "$Deleted" in listed(images.exact, root, "--deleted")
    assert run_imagefs("ls", images.exact, f"{root}/$Deleted").code == 2


def test_ls_tells_what_is_left(images: Images) -> None:
    path = f"{volume_of(images.exact)}/$Deleted"
    found = listed(images.exact, path, "--deleted")
    assert {name: entry.get("deleted") for name, entry in found.items()} == {
        "$Orphans": None,
        "docs": None,
        "kept": None,
        "compressed": None,
        "first.bin": "lost",
        "last.bin": "whole",
        "sparse.bin": "whole",
    }
    orphans = listed(images.exact, f"{path}/$Orphans", "--deleted")
    assert orphans[partly_name(images.built)]["deleted"] == "partly overwritten"
    rows = run_imagefs("ls", images.exact, path, "--deleted").output.decode().splitlines()
    assert next(row.split()[3:] for row in rows if row.endswith("last.bin")) == ["whole", "last.bin"]
    used = listed(images.used, path, "--deleted")
    assert {used[name].get("deleted") for name in ("first.bin", "last.bin", "sparse.bin")} == {"lost"}


def test_a_volume_is_copied_without_it(images: Images, tmp_path: Path) -> None:
    root = volume_of(images.exact)
    done = run_imagefs("cp", images.exact, root, tmp_path, "--deleted")
    assert (done.code, done.errors.count("$Deleted is left out")) == (0, 1)
    found = copied_files(tmp_path)
    assert not any("$Deleted" in path for path in found)
    assert found[f"p1/{COVER}"] == images.built.contents[COVER]


def test_cp_copies_what_is_left(images: Images, tmp_path: Path) -> None:
    root = volume_of(images.exact)
    done = run_imagefs("cp", images.exact, f"{root}/$Deleted", tmp_path, "--deleted")
    assert done.code == 7
    found = copied_files(tmp_path / "$Deleted")
    contents = images.built.contents
    for path in ("last.bin", "sparse.bin", "docs/empty"):
        assert found[path] == contents[path]
    assert "first.bin" not in found
    assert f"{root}/$Deleted/first.bin: file" in done.errors
    assert "of the deleted files: " in done.errors
    name = partly_name(images.built)
    partly, whole = found[f"$Orphans/{name}"], contents["docs/fragmented.bin"]
    assert len(partly) == len(whole)
    gone = 0
    for at in range(0, len(whole), 4096):
        if partly[at : at + 4096] != whole[at : at + 4096]:
            assert not any(partly[at : at + 4096])
            gone += len(whole[at : at + 4096])
    assert gone > 0
    assert f"{name}: partly overwritten: {gone} of its {len(whole)} bytes are gone" in done.errors


def test_an_image_of_used_blocks_has_no_more(images: Images, tmp_path: Path) -> None:
    root = volume_of(images.used)
    done = run_imagefs("cp", images.used, f"{root}/$Deleted", tmp_path, "--deleted")
    assert done.code == 7
    assert "the image was made of used clusters only" in done.errors
    found = copied_files(tmp_path / "$Deleted")
    assert found["docs/twin.txt"] == images.built.contents["docs/twin a.txt"]
    known = {content for content in images.built.contents.values() if len(content) < 1000}
    assert set(found.values()) <= known
    done = run_imagefs("cat", images.used, f"{root}/$Deleted/first.bin", "--deleted")
    assert (done.code != 0, done.output) == (True, b"")


@pytest.fixture
def mount_of_exact(images: Images, tmp_path: Path) -> Iterator[Path]:
    with mounted(images.exact, tmp_path / "mnt", "--deleted") as root:
        yield root / volume_of(images.exact) / "$Deleted"


def test_mount(images: Images, mount_of_exact: Path) -> None:
    deleted = mount_of_exact
    partly = f"$Orphans/{partly_name(images.built)}"
    assert (deleted / "last.bin").read_bytes() == images.built.contents["last.bin"]
    for name, state in (("last.bin", b"whole"), (partly, b"partly overwritten"), ("first.bin", b"lost")):
        assert os.getxattr(deleted / name, "user.imagefs.deleted") == state
    for name in (partly, "first.bin"):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (deleted / name).read_bytes()
    assert (deleted / "docs" / "streams.bin").stat().st_ino != (deleted / "docs").stat().st_ino


def test_a_real_entry_wins(images: Images) -> None:
    with imagefs.open(images.exact) as container:
        assert container.point is not None
        tree = ImageTree.of_point(container.point, VolumeOptions(deleted=True))
        root = tree.resolve(volume_of(images.exact))
        shown = {entry.name: entry for entry in tree.entries(root)}
        assert list(shown)[-1] == "$Deleted"  # behind the file system's own
        added = shown["$Deleted"].inode
        assert tree.is_added(added)
        assert tree.lookup(root, "$Deleted") == added
        volume = tree.file_system(root)
        assert volume is not None
        cover = volume.lookup(volume.root, COVER)
        real = [Entry("$Deleted", cover, shown[COVER].type)]
        volume.entries = lambda inode: real  # type: ignore[method-assign]
        volume.lookup = lambda inode, name: cover  # type: ignore[method-assign]
        assert [entry.name for entry in tree.entries(root)] == ["$Deleted"]
        assert tree.entries(root)[0].inode == tree.lookup(root, "$Deleted") != added
