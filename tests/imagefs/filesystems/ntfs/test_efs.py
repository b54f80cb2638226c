"""Files that EFS encrypted: an error, or the stored bytes as ntfs-3g's efs_raw gives them."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB
from fixtures.tools import MissingToolError, fuse_mount
from fixtures.volumes import make_ntfs, set_xattr
from formats.blockreader import FileReader
from formats.errors import UnsupportedError
from imagefs.filesystems import FileSystem, open_file_system
from imagefs.filesystems.base import VolumeOptions
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.data import open_attribute
from imagefs.filesystems.ntfs.layout import AttributeType
from imagefs.filesystems.ntfs.mft import find
from tests.conftest import missing

SIZES = (1, 512, 4096, 100_000)
INFO = struct.pack("<II", 84, 0) + bytes(76)  # of the keys only the length is looked at


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Yield a volume with encrypted files, and what ntfs-3g shows of it."""
    folder = tmp_path_factory.mktemp("efs")
    mountpoint = folder / "mnt"
    try:
        volume = make_ntfs(folder / "efs.volume", 32 * MIB, "efs")
        with fuse_mount(mountpoint, "ntfs-3g", "-o", "no_detach,efs_raw", volume, mountpoint) as root:
            for size in SIZES:  # whole sectors, then how many bytes of the last one are too many
                raw = noise(size, 0, -(-size // 512) * 512)
                (root / str(size)).write_bytes(raw + struct.pack("<H", -size % 512))
                set_xattr(root / str(size), "system.ntfs_efsinfo", INFO)
        with fuse_mount(mountpoint, "ntfs-3g", "-o", "no_detach,efs_raw,ro", volume, mountpoint) as root:
            yield volume, root
    except MissingToolError as error:
        missing(str(error))


def opened(reader: FileReader, *, raw_efs: bool) -> FileSystem:
    volume = open_file_system(reader, options=VolumeOptions(raw_efs=raw_efs))
    assert volume is not None
    return volume


@pytest.mark.parametrize("size", SIZES)
def test_stored_bytes(built: tuple[Path, Path], size: int) -> None:
    with FileReader(built[0]) as lower:
        volume = opened(lower, raw_efs=True)
        inode = volume.lookup(volume.root, str(size))
        reader = volume.open(inode)
        theirs = (built[1] / str(size)).read_bytes()[:-2]
        assert theirs == noise(size, 0, -(-size // 512) * 512)
        assert reader.read_at(0, reader.size) == theirs
        assert volume.attributes(inode).size == reader.size
        listed = {entry.name: node for entry, node in volume.entries_with_attributes(volume.root)}
        assert (node := listed[str(size)]) is not None
        assert node.size == reader.size


@pytest.mark.parametrize("size", SIZES)
def test_an_error_unless_asked_for(built: tuple[Path, Path], size: int) -> None:
    with FileReader(built[0]) as lower:
        volume = opened(lower, raw_efs=False)
        inode = volume.lookup(volume.root, str(size))
        assert volume.attributes(inode).size == size
        with pytest.raises(UnsupportedError, match=f"file {inode} is encrypted by EFS .*--raw-efs"):
            volume.open(inode)


def test_a_stream_is_encrypted_by_itself(built: tuple[Path, Path]) -> None:
    """Whatever the file says: its attributes tell of the unnamed data."""
    with FileReader(built[0]) as lower:
        volume = NtfsFileSystem(lower)
        record = volume._mft.record(volume.lookup(volume.root, "512"))
        extents = find(volume._mft.attributes(record), AttributeType.DATA)
        with pytest.raises(UnsupportedError, match="stream is encrypted by EFS"):
            open_attribute(volume._mft, extents, "stream", VolumeOptions())
        raw = open_attribute(volume._mft, extents, "stream", VolumeOptions(raw_efs=True))
        assert raw.read_at(0, raw.size) == noise(512, 0, 512)
