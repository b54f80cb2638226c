"""A volume with every kind of metadata, as imagefs reads it and as ntfs-3g mounts it; and damage to it."""

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fixtures.tools import fuse_mount
from formats.blockreader import BlockReader, FileReader
from formats.errors import DamagedError
from imagefs.filesystems import VolumeOptions, open_file_system
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import Attribute, parse_runs
from imagefs.filesystems.ntfs.mft import find
from mounters.tree import NodeType


@contextmanager
def mounted_by_ntfs3g(volume: Path, mountpoint: Path, options: str = "") -> Iterator[Path]:
    """Mount a volume read-only with streams as attributes."""
    wanted = "no_detach,ro,streams_interface=xattr" + options
    with fuse_mount(mountpoint, "ntfs-3g", "-o", wanted, volume, mountpoint) as root:
        yield root


@contextmanager
def opened(path: Path, options: VolumeOptions | None = None) -> Iterator[NtfsFileSystem]:
    """Open a volume with imagefs."""
    with FileReader(path) as reader:
        volume = open_file_system(reader, options=options)
        assert isinstance(volume, NtfsFileSystem)
        with volume:
            yield volume


def resolve(volume: NtfsFileSystem, path: str) -> int:
    """Return the inode number of a path."""
    inode = volume.root
    for name in filter(None, path.split("/")):
        inode = volume.lookup(inode, name)
    return inode


def walk(volume: NtfsFileSystem, inode: int = 5, path: str = "") -> Iterator[tuple[str, int]]:
    """Yield the paths and inode numbers of all that is in a directory, and its own first."""
    yield path, inode
    if volume.attributes(inode).type is NodeType.DIRECTORY:
        for entry in volume.entries(inode):
            yield from walk(volume, entry.inode, f"{path}/{entry.name}" if path else entry.name)


def attribute_of(path: Path, name: str) -> bytes | str:
    """Return an extended attribute of a mounted file, or the name of its error.

    ``os.getxattr`` asks with a small buffer first, at which some values of ntfs-3g fail.
    """
    library = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(65536)
    size = library.lgetxattr(os.fsencode(path), os.fsencode(name), buffer, len(buffer))
    return errno.errorcode[ctypes.get_errno()] if size < 0 else buffer.raw[:size]


def our_attribute(volume: NtfsFileSystem, inode: int, name: str) -> bytes | str:
    """Return an extended attribute, or the name of its error."""
    try:
        return volume.extended_attribute(inode, name)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except DamagedError:
        return "EIO"


class PatchedReader(BlockReader):
    """A reader with other bytes in some places."""

    def __init__(self, lower: BlockReader, patches: dict[int, bytes]) -> None:
        super().__init__(lower.size)
        self._lower = lower
        self._patches = patches

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(self._lower.read_at(offset, length))
        for at, patch in self._patches.items():
            for index, byte in enumerate(patch):
                if 0 <= at + index - offset < length:
                    data[at + index - offset] = byte
        return bytes(data)


@contextmanager
def patched(path: Path, patches: dict[int, bytes]) -> Iterator[NtfsFileSystem]:
    """Open a volume with other bytes in some places."""
    with FileReader(path) as reader:
        volume = open_file_system(PatchedReader(reader, patches))
        assert isinstance(volume, NtfsFileSystem)
        yield volume


def place_in_record(volume: NtfsFileSystem, path: Path, inode: int, content: bytes) -> int:
    """Return where in a volume some bytes of a file record are; they have to be there once."""
    raw = volume._mft.raw_record(inode)
    assert raw.count(content) == 1
    at = raw.index(content)
    assert at // 512 == (at + len(content) + 1) // 512, "a fixup lies in between"
    whole = path.read_bytes()
    places = [place for place in range(0, len(whole), 1024) if whole[place : place + 1024] == raw]
    return places[0] + at  # a copy in $MFTMirr lies behind


def places_of(
    volume: NtfsFileSystem, inode: int, kind: int, name: str, offset: int, length: int
) -> Sequence[int]:
    """Return the place in the volume of some bytes of a non-resident attribute, in one run."""
    found: list[Attribute] = find(volume._mft.attributes(volume._mft.record(inode)), kind, name)  # type: ignore[arg-type]
    position = 0
    for extent in found:
        for clusters, lcn in parse_runs(extent, "test"):
            size = clusters * volume.block_size
            if position <= offset and offset + length <= position + size:
                assert lcn is not None
                return [lcn * volume.block_size + offset - position]
            position += size
    raise AssertionError("not in one run")
