"""What is no file system, and what is a broken one: None or a FormatError, never anything else."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.blockreader import BlockReader, BytesReader, ZeroReader
from formats.errors import DamagedBlockError, DamagedError, FormatError, UnsupportedError
from imagefs.filesystems import open_file_system
from imagefs.filesystems.detect import recognise
from mounters.tree import NodeType

SIZE = 1 << 20
FAT_BOOT = (
    b"\xeb\x3c\x90mkfs.fat"
    + struct.pack("<HBHBHHBHHHII", 512, 4, 1, 2, 512, 2048, 0xF8, 2, 32, 64, 0, 0)
    + bytes(26)
).ljust(510, b"\0") + b"\x55\xaa"
NTFS_BOOT = (
    b"\xeb\x52\x90NTFS    "
    + struct.pack("<HB", 512, 8)
    + bytes(26)
    + struct.pack("<QQQb3xb3x", 2047, 4, 128, -10, 1)
).ljust(510, b"\0") + b"\x55\xaa"
EXFAT_BOOT = (
    b"\xeb\x76\x90EXFAT   "
    + bytes(53)
    + struct.pack("<QQIIIIII", 0, 2048, 24, 8, 32, 250, 4, 1)
    + struct.pack("<HHBBBBB", 0x100, 0, 9, 3, 1, 0x80, 0)
).ljust(510, b"\0") + b"\x55\xaa"
EXT_BLOCK = (
    bytes(1024) + struct.pack("<14I", 128, 1024, 0, 900, 100, 1, 0, 0, 8192, 8192, 128, 0, 0, 0) + b"\x53\xef"
)
HFS_BLOCK = bytes(1024) + b"H+\0\4" + bytes(36) + struct.pack(">III", 4096, 256, 100)
STARTS = [FAT_BOOT, NTFS_BOOT, EXFAT_BOOT, EXT_BLOCK, HFS_BLOCK, bytes(0x8000) + b"\1CD001\1"]


def use(reader: BlockReader) -> None:
    """Open a volume and all of its root that can be opened."""
    volume = open_file_system(reader)
    if volume is None:
        return
    for entry in volume.entries(volume.root)[:20]:
        try:
            volume.attributes(entry.inode)
            if entry.type is NodeType.FILE:
                file = volume.open(entry.inode)
                file.read_at(0, min(file.size, 10_000))
        except FormatError:
            pass


@given(st.binary(max_size=2000), st.integers(0, 5000))
@settings(deadline=None, max_examples=200)
def test_garbage(data: bytes, offset: int) -> None:
    content = bytearray(SIZE)
    content[offset : offset + len(data)] = data
    try:
        use(BytesReader(bytes(content)))
    except FormatError:
        assert recognise(BytesReader(bytes(content))) is not None


@given(
    st.sampled_from(STARTS),
    st.lists(st.tuples(st.integers(0, 1600), st.binary(min_size=1, max_size=4)), max_size=8),
    st.integers(0, SIZE),
)
@settings(deadline=None, max_examples=400)
def test_mutated_headers(start: bytes, changes: list[tuple[int, bytes]], size: int) -> None:
    content = bytearray(start.ljust(SIZE, b"\0"))
    for offset, data in changes:
        content[offset : offset + len(data)] = data
    try:
        use(BytesReader(bytes(content[:size])))
    except FormatError as error:
        assert str(error)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 2048, 100_000])
def test_nothing(size: int) -> None:
    assert open_file_system(ZeroReader(size)) is None


def test_a_two_byte_magic_is_not_enough() -> None:
    content = bytearray(SIZE)
    content[0x438:0x43A] = b"\x53\xef"
    content[0x400:0x402] = b"H+"
    assert open_file_system(BytesReader(bytes(content))) is None


@pytest.mark.parametrize(
    ("offset", "magic", "name"),
    [(3, b"-FVE-FS-", "BitLocker"), (32, b"NXSB", "APFS"), (0, b"XFSB", "XFS"), (3, b"ReFS\0\0\0\0", "ReFS")],
)
def test_recognised_but_not_read(offset: int, magic: bytes, name: str) -> None:
    content = bytearray(SIZE)
    content[offset : offset + len(magic)] = magic
    with pytest.raises(UnsupportedError, match=name):
        open_file_system(BytesReader(bytes(content)))


@pytest.mark.parametrize("start", [NTFS_BOOT, EXFAT_BOOT, HFS_BLOCK], ids=["NTFS", "exFAT", "HFS+"])
def test_a_header_alone_is_damage(start: bytes) -> None:
    with pytest.raises(DamagedError):
        use(BytesReader(start.ljust(SIZE, b"\0")))


class Unreadable(BlockReader):
    def _read(self, offset: int, length: int) -> bytes:
        raise DamagedBlockError("bad hash", path=Path("x.mrimgx"), partition="disk1/p1", block=0)


def test_an_unreadable_boot_sector_is_not_nothing() -> None:
    with pytest.raises(DamagedBlockError):
        open_file_system(Unreadable(SIZE))
