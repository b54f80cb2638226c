"""Hard links: as many as there are names that ntfs-3g lists, 8.3 names not among them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.ntfs_metadata import metadata_volume
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import Attribute
from mounters.tree import NodeType
from tests.imagefs.filesystems.ntfs.metadata import mounted_by_ntfs3g, opened, resolve, walk


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return metadata_volume(tmp_path_factory.mktemp("links"))


@pytest.fixture
def volume(path: Path) -> Iterator[NtfsFileSystem]:
    with opened(path) as volume:
        yield volume


def names(volume: NtfsFileSystem, path: str) -> list[Attribute]:
    attributes = volume._mft.attributes(volume._mft.record(resolve(volume, path)))
    return [attribute for attribute in attributes if attribute.type == 0x30]


def test_as_many_as_names(path: Path, volume: NtfsFileSystem, tmp_path: Path) -> None:
    """ntfs-3g's own count includes 8.3 names; the names that it lists do not."""
    with mounted_by_ntfs3g(path, tmp_path / "mnt") as root:
        counted = Counter(found.lstat().st_ino for found in root.rglob("*") if not found.is_dir())
        for name, inode in walk(volume):
            known = volume.attributes(inode)
            assert known.inode == (root / name).lstat().st_ino or not name, name
            assert known.links == (1 if known.type is NodeType.DIRECTORY else counted[inode]), name
    assert Counter(counted.values())[3] == 1
    assert max(counted.values()) == 31


@pytest.mark.parametrize(
    ("name", "spaces", "links"),
    [
        ("names/lower.txt", [3], 1),  # one name that is both
        ("names/A long name of a file.txt", [1, 2], 1),
        ("names/a long name of a folder", [1, 2], 1),
        ("names/short and linked.txt", [0, 1, 2], 2),
        ("names/three names.txt", [0, 0, 0], 3),
    ],
)
def test_kinds_of_names(volume: NtfsFileSystem, name: str, spaces: list[int], links: int) -> None:
    assert sorted((found.value or b"")[65] for found in names(volume, name)) == spaces
    assert volume.attributes(resolve(volume, name)).links == links


def test_one_node_has_all_names(volume: NtfsFileSystem) -> None:
    assert len({resolve(volume, f"names/{name}") for name in ("three names.txt", "second name.txt")}) == 1
    listed = dict(volume.entries_with_attributes(resolve(volume, "names/other")))
    inodes = Counter(entry.inode for entry in listed)
    assert inodes[resolve(volume, "names/many names.txt")] == 30
    assert all(known is not None and known.links > 1 for known in listed.values())


def test_names_behind_an_attribute_list(volume: NtfsFileSystem) -> None:
    record = volume._mft.record(resolve(volume, "names/many names.txt"))
    assert any(attribute.type == 0x20 for attribute in record.attributes)
    assert len([a for a in record.attributes if a.type == 0x30]) < 31
    assert volume.attributes(record.number).links == 31
