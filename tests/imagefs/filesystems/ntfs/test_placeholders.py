"""Files whose data may be elsewhere: read only where it is surely here."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.content import text
from fixtures.partition_tables import MIB
from fixtures.tools import MissingToolError
from fixtures.volumes import make_ntfs, mounted_ntfs, set_xattr
from formats.blockreader import BlockReader, FileReader
from formats.errors import UnsupportedError
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import AttributeType
from imagefs.filesystems.ntfs.mft import find
from imagefs.filesystems.ntfs.placeholders import check_is_here
from tests.conftest import missing

CLOUD, ONEDRIVE = 0x9000601A, 0x80000021
OFFLINE, RECALL_ON_OPEN, RECALL_ON_DATA_ACCESS = 0x1000, 0x40000, 0x400000
CONTENT = text(1, 0, 200_000)
SMALL = text(2, 0, 300)
ELSEWHERE = {
    0x80000006: "hierarchical storage",
    0xC0000004: "hierarchical storage",
    0x80000007: "single instance store",
    0x80000013: "deduplication store",
    0x80000018: "Windows container",
    0x90001018: "Windows container",
    0x9000001C: "projects it",
    0x8000001E: "Azure File Sync",
    0x80001234: "unknown, reparse tag 0x80001234",
}


class Patched(BlockReader):
    """A reader with other bytes in one place."""

    def __init__(self, lower: BlockReader, at: int, data: bytes) -> None:
        super().__init__(lower.size)
        self.lower, self.at, self.data = lower, at, data

    def _read(self, offset: int, length: int) -> bytes:
        found = bytearray(self.lower.read_at(offset, length))
        for index, value in enumerate(self.data, self.at - offset):
            if 0 <= index < length:
                found[index] = value
        return bytes(found)


def point(tag: int) -> bytes:
    return struct.pack("<IHH", tag, 16, 0) + bytes(16)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        path = make_ntfs(tmp_path_factory.mktemp("placeholders") / "p.volume", 32 * MIB, "p")
        with mounted_ntfs(path) as root:
            for tag in (CLOUD, ONEDRIVE, *ELSEWHERE):
                (root / f"{tag:#x}").write_bytes(CONTENT)
            (root / "small").write_bytes(SMALL)
            (root / "missing").write_bytes(b"")
            os.truncate(root / "missing", len(CONTENT))
            with (root / "partly").open("wb") as file:
                file.write(CONTENT[:65536])
                file.seek(65536, os.SEEK_CUR)
                file.write(CONTENT[131072:])
            with (root / "end missing").open("wb") as file:
                file.write(CONTENT[:65536])
                file.truncate(len(CONTENT))
            (root / "plain").write_bytes(CONTENT)
            for file_path in sorted(root.iterdir()):
                if file_path.name != "plain":
                    tag = int(file_path.name, 16) if file_path.name.startswith("0x") else CLOUD
                    set_xattr(file_path, "system.ntfs_reparse_data", point(tag))
    except MissingToolError as error:
        missing(str(error))
    return path


@pytest.fixture
def reader(built: Path) -> Iterator[FileReader]:
    with FileReader(built) as opened:
        yield opened


def read(reader: BlockReader, name: str, flags: int = 0) -> bytes:
    """Return what a file reads as when its file attributes have some more."""
    volume = NtfsFileSystem(reader)
    inode = volume.lookup(volume.root, name)
    if flags:
        raw = volume._mft.raw_record(inode)
        (first,) = struct.unpack_from("<H", raw, 20)
        assert struct.unpack_from("<I", raw, first) == (0x10,)
        at = first + struct.unpack_from("<H", raw, first + 20)[0] + 32
        place = volume._mft.data.place(inode * len(raw) + at)  # type: ignore[attr-defined]
        (before,) = struct.unpack_from("<I", raw, at)
        volume = NtfsFileSystem(Patched(reader, place, struct.pack("<I", before | flags)))
    opened = volume.open(inode)
    return opened.read_at(0, opened.size)


@pytest.mark.parametrize("tag", [CLOUD, ONEDRIVE])
def test_what_is_all_here_is_read(reader: FileReader, tag: int) -> None:
    assert read(reader, f"{tag:#x}") == CONTENT
    assert read(reader, "small") == SMALL


@pytest.mark.parametrize("flag", [OFFLINE, RECALL_ON_OPEN, RECALL_ON_DATA_ACCESS])
@pytest.mark.parametrize("name", [f"{CLOUD:#x}", f"{ONEDRIVE:#x}", "small"])
def test_what_its_attributes_say_is_elsewhere_is_not(reader: FileReader, name: str, flag: int) -> None:
    with pytest.raises(UnsupportedError, match=r"has its data elsewhere, in the cloud: .* reparse tag"):
        read(reader, name, flag)


@pytest.mark.parametrize("name", ["missing", "partly", "end missing"])
def test_what_lacks_clusters_is_not(reader: FileReader, name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"in the cloud: cloud file, reparse tag 0x9000601a"):
        read(reader, name)


def test_what_is_not_valid_to_its_end_is_not(reader: FileReader) -> None:
    volume = NtfsFileSystem(reader)
    attributes = volume._mft.attributes(volume._mft.record(volume.lookup(volume.root, f"{CLOUD:#x}")))
    data = find(attributes, AttributeType.DATA)
    check_is_here(volume._mft, data, 0, CLOUD, "file")
    short = [data[0]._replace(initialized=data[0].size - 1), *data[1:]]
    with pytest.raises(UnsupportedError, match="in the cloud"):
        check_is_here(volume._mft, short, 0, CLOUD, "file")


@pytest.mark.parametrize("tag", ELSEWHERE)
def test_other_tags_never_are(reader: FileReader, tag: int) -> None:
    with pytest.raises(UnsupportedError, match=f"{ELSEWHERE[tag]}"):
        read(reader, f"{tag:#x}")


def test_attributes_alone(reader: FileReader) -> None:
    """OFFLINE without a reparse point is what any program may set; the one for recalls is not."""
    assert read(reader, "plain", OFFLINE) == CONTENT
    with pytest.raises(UnsupportedError, match="attributes say so"):
        read(reader, "plain", RECALL_ON_DATA_ACCESS)
