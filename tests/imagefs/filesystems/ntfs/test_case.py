"""Names without regard to case, held against lowntfs-3g, which can ignore it; directories where it counts."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.tools import fuse_mount
from fixtures.volumes import make_ntfs
from formats.blockreader import BytesReader, FileReader
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import AttributeType
from imagefs.filesystems.ntfs.mft import find

NAMES = ["File", "file", "Größe.txt", "ÉTÉ", "ßharp s", "ωmega", "Жук", "😀 Face", "İ", "ÿ", "dz", "plain"]
ASKED = ["FILE", "fILE", "GRÖSSE.TXT", "größe.TXT", "été", "ßHARP S", "ẞharp s", "SSharp s", "ΩMEGA", "жУК"]
ASKED += ["😀 fACE", "i", "\u0131", "Ÿ", "DZ", "Dz", "PLAIN", "pla\u0131n", "plaİn", "none", "ΩMEGA"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    image = make_ntfs(folder / "case.img", 16 << 20, "case")
    with fuse_mount(folder / "mnt", "ntfs-3g", "-o", "no_detach", image, folder / "mnt") as root:
        for directory in ("Folder", "Sensitive"):
            (root / directory).mkdir()
            for name in NAMES:
                (root / directory / name).write_bytes(name.encode())
    return image


@pytest.fixture
def volume(image: Path) -> Iterator[NtfsFileSystem]:
    with FileReader(image) as reader:
        yield NtfsFileSystem(reader)


def found(volume: NtfsFileSystem, directory: str, name: str) -> int | None:
    try:
        return volume.lookup(volume.lookup(volume.root, directory), name)
    except FileNotFoundError:
        return None


def test_as_lowntfs3g_ignores_case(volume: NtfsFileSystem, image: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mnt"
    options = "no_detach,ro,norecover,ignore_case"
    with fuse_mount(mount, "lowntfs-3g", "-o", options, image, mount) as root:
        for name in ASKED + NAMES[2:]:
            path = root / "fOLDER" / name
            theirs = path.stat().st_ino if path.exists() else None
            if name.casefold() == "file":
                assert theirs in (found(volume, "Folder", "File"), found(volume, "Folder", "file"))
                theirs = found(volume, "Folder", "File")  # the first of two
            assert found(volume, "fOLDER", name) == theirs, name


def test_exact_names_come_first(volume: NtfsFileSystem) -> None:
    both = found(volume, "Folder", "File"), found(volume, "Folder", "file")
    assert both[0] != both[1]
    for name in NAMES:
        inode = found(volume, "Folder", name)
        assert inode is not None
        reader = volume.open(inode)
        assert reader.read_at(0, reader.size) == name.encode()


def patched(image: Path, inode: int, change: dict[int, bytes]) -> NtfsFileSystem:
    """Return the volume with bytes of a record's $STANDARD_INFORMATION changed."""
    data = bytearray(image.read_bytes())
    with FileReader(image) as reader:
        volume = NtfsFileSystem(reader)
        at = volume._mft.data.place(inode * 1024)  # type: ignore[attr-defined]
    position = at + struct.unpack_from("<H", data, at + 20)[0]
    assert struct.unpack_from("<I", data, position)[0] == 0x10
    position += struct.unpack_from("<H", data, position + 20)[0]
    for offset, new in change.items():
        data[position + offset : position + offset + len(new)] = new
    return NtfsFileSystem(BytesReader(bytes(data)))


def test_a_directory_where_case_counts(volume: NtfsFileSystem, image: Path) -> None:
    inode = volume.lookup(volume.root, "Sensitive")
    sensitive = patched(image, inode, {40: b"\x01"})
    for name in NAMES:
        assert found(sensitive, "SENSITIVE", name) == found(volume, "Sensitive", name)
    for name in set(ASKED) - set(NAMES):
        assert found(sensitive, "Sensitive", name) is None
        assert found(sensitive, "Folder", name) == found(volume, "Folder", name)
        assert sensitive._directories.stored(inode, name) is None
    reserved = patched(image, inode, {40: b"\0\1"})  # what other bits mean is another matter
    assert found(reserved, "Sensitive", "PLAIN") == found(volume, "Sensitive", "plain")


def test_names_are_exact_where_the_table_is_damaged(
    volume: NtfsFileSystem, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = volume._mft.value(find(volume._mft.record(10).attributes, AttributeType.DATA), "$UpCase")
    place = table.place(2 * ord("a"))  # type: ignore[attr-defined]
    data = bytearray(image.read_bytes())
    data[place : place + 2] = b"B\0"
    broken = NtfsFileSystem(BytesReader(bytes(data)))
    assert found(broken, "Folder", "plain") == found(volume, "Folder", "plain")
    assert found(broken, "Folder", "PLAIN") is None
    assert "compared exactly" in caplog.text
