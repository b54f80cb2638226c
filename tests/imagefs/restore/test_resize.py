"""Volumes with other sizes: sound and with the same files, as the tools that own the formats see them."""

import dataclasses
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import Volume as BuiltVolume
from fixtures.partition_tables import create_file
from fixtures.tools import run
from fixtures.volumes import exfat_volume, ext_volume, loop_device, mounted_ntfs, ntfs_volume
from formats.blockreader import BlockReader, ZeroReader
from formats.errors import ReadError
from imagefs.errors import RefusedError
from imagefs.imaging.used_space import used_space
from imagefs.restore import exposed as exposed_module
from imagefs.restore.layout import Volume
from imagefs.restore.resize import can_grow_in_place, check_resizable, grow_in_place, resized, smallest_size
from imagefs.restore.resizers import resizer_of
from imagefs.restore.used import UsedReader
from tests.imagefs.imaging.others import check_files, check_sound
from tests.imagefs.imaging.used_space.checking import ClosedFile, FailingReader, bytes_at, copy_of, patch

MIB = 1 << 20
RECIPES = {
    "NTFS": partial(ntfs_volume, name="ntfs", size=32 * MIB, big=2 * MIB, many=100, fragments=40),
    "ext2": partial(ext_volume, kind="ext2", name="ext2", size=24 * MIB, big=2 * MIB, many=100),
    "ext3": partial(ext_volume, kind="ext3", name="ext3", size=32 * MIB, big=2 * MIB, many=100),
    "ext4": partial(ext_volume, kind="ext4", name="ext4", size=32 * MIB, big=2 * MIB, many=100),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuiltVolume]:
    """Return a volume of each kind; tests change copies only."""
    folder = tmp_path_factory.mktemp("volumes")
    return {kind: recipe(folder) for kind, recipe in RECIPES.items()}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder in which nothing is left at the end, nor a mount or a file among temporary ones."""
    folder, temporary = tmp_path / "scratch", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield folder
    assert list(folder.iterdir()) == list(temporary.iterdir()) == []
    assert str(temporary) not in Path("/proc/mounts").read_text()


def path_of(volume: BuiltVolume) -> Path:
    assert volume.path is not None
    return volume.path


def volume_at(path: Path, kind: str = "") -> Volume:
    reader = ClosedFile(path)
    return Volume(1, MIB, reader.size, kind, "", None, UsedReader(reader, used_space(reader)))


def write_data(volume: Volume, path: Path) -> Path:
    """Write what a volume's reader calls data, over noise: what it calls holes is not needed."""
    with path.open("wb") as stream:
        stream.write(noise(99, 0, volume.size))
        for extent in volume.reader.extents():
            if extent.is_data:
                stream.seek(extent.offset)
                stream.write(volume.reader.read_at(extent.offset, extent.length))
    assert path.stat().st_size == volume.size
    return path


def check_volume(path: Path, was: BuiltVolume, size: int) -> None:
    """Check a volume's size, soundness and files."""
    assert was.contents is not None
    kind = "ext4" if was.kind.startswith("ext") else was.kind
    check_sound(path, kind)
    if kind == "ext4":
        shown = run("dumpe2fs", "-h", path).decode()
        numbers = dict(re.findall(r"(Block size|Block count):\s+(\d+)", shown))
        block = int(numbers["Block size"])
        assert block * int(numbers["Block count"]) == size // block * block
        check_files(path, dataclasses.replace(was.contents, kind=kind))
        return
    (sectors,) = struct.unpack("<Q", bytes_at(path, 0x28, 8))
    assert size - 2 * 4096 <= (sectors + 1) * 512 <= size
    check_files(path, was.contents)


@pytest.mark.parametrize("kind", RECIPES)
def test_shrunk_to_the_least_and_grown_again(
    built: dict[str, BuiltVolume], kind: str, scratch: Path, tmp_path: Path
) -> None:
    was = built[kind]
    volume = volume_at(path_of(was), kind)
    least = smallest_size(volume)
    assert was.size // 20 < least < was.size
    size = -(-least // MIB) * MIB
    with resized(volume, size, scratch) as smaller:
        assert smaller.size == smaller.reader.size == size
        shrunk = write_data(smaller, tmp_path / "shrunk")
    check_volume(shrunk, was, size)
    size = 80 * MIB
    with resized(volume, size, scratch) as larger:
        grown = write_data(larger, tmp_path / "grown")
        assert sum(extent.length for extent in larger.reader.extents() if extent.is_data) < was.size
    check_volume(grown, was, size)


def test_the_least_size_is_enough_to_the_byte(
    built: dict[str, BuiltVolume], scratch: Path, tmp_path: Path
) -> None:
    for kind in ("NTFS", "ext4"):
        volume = volume_at(path_of(built[kind]), kind)
        least = smallest_size(volume)
        with resized(volume, least, scratch) as smaller:
            check_volume(write_data(smaller, tmp_path / kind), built[kind], least)
        with pytest.raises(RefusedError, match="can't make it"), resized(volume, 2 * MIB, scratch):
            pass


def test_without_fuse_a_copy_is_asked(
    built: dict[str, BuiltVolume], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = volume_at(path_of(built["ext4"]))
    least = smallest_size(volume, scratch)
    monkeypatch.setattr(exposed_module, "mechanisms", lambda: {"mfusepy": "not there"})
    assert smallest_size(volume, scratch) == least


@pytest.mark.parametrize("kind", ["NTFS", "ext4"])
@pytest.mark.parametrize("sector_size", [0, 4096])
def test_grown_where_it_lies_and_nothing_else_is_touched(
    built: dict[str, BuiltVolume], kind: str, sector_size: int, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    assert can_grow_in_place(kind)
    assert can_grow_in_place(used_space(ClosedFile(path_of(built[kind]))).file_system)
    was, offset, size = built[kind], 7 * MIB, 60 * MIB
    disk = tmp_path / "disk"
    around = noise(5, 0, offset)
    disk.write_bytes(around + path_of(was).read_bytes() + noise(7, 0, size - was.size) + around)
    if sector_size:
        with loop_device(disk, sector_size) as device:
            grow_in_place(device, offset, size, was.size, kind)
    else:
        grow_in_place(disk, offset, size, was.size, kind)
    assert str(disk) not in run("losetup", "--list").decode()
    data = disk.read_bytes()
    assert data[:offset] == data[offset + size :] == around
    (tmp_path / "volume").write_bytes(data[offset : offset + size])
    check_volume(tmp_path / "volume", was, size)


def test_what_can_not_be_grown_where_it_lies(built: dict[str, BuiltVolume], tmp_path: Path) -> None:
    assert not can_grow_in_place("exFAT")
    assert not can_grow_in_place("FAT32")
    disk = create_file(tmp_path / "disk", 8 * MIB)
    with pytest.raises(RefusedError, match="no NTFS"):
        grow_in_place(disk, MIB, 4 * MIB, 2 * MIB, "NTFS")
    copy = copy_of(path_of(built["ext4"]), tmp_path / "copy")
    damage_bitmap(copy)
    os.truncate(copy, 48 * MIB)
    before = copy.read_bytes()
    if os.geteuid() == 0:
        with pytest.raises(RefusedError, match="errors"):
            grow_in_place(copy, 0, 48 * MIB, built["ext4"].size, "ext4")
        assert copy.read_bytes() == before


def damage_bitmap(volume: Path) -> None:
    run("debugfs", "-w", "-R", "freeb 1200 400", volume)


def refuses(volume: Path, scratch: Path, match: str) -> None:
    with pytest.raises(RefusedError, match=match) as raised, resized(volume_at(volume), 48 * MIB, scratch):
        pass
    assert raised.value.exit_code == 6


def test_errors_are_refused_not_repaired(
    built: dict[str, BuiltVolume], scratch: Path, tmp_path: Path
) -> None:
    copy = copy_of(path_of(built["ext4"]), tmp_path / "bitmap")
    damage_bitmap(copy)
    refuses(copy, scratch, "it has errors")
    for ask in (check_resizable, smallest_size):
        with pytest.raises(RefusedError, match="it has errors"):
            ask(volume_at(copy))
    check_resizable(volume_at(path_of(built["ext4"])))
    check_resizable(volume_at(path_of(built["NTFS"])))
    copy = copy_of(path_of(built["ext4"]), tmp_path / "state")
    run("debugfs", "-w", "-R", "ssv state 3", copy)
    refuses(copy, scratch, "kernel found errors")
    copy = copy_of(path_of(built["NTFS"]), tmp_path / "dirty")
    run("ntfsresize", "--force", "--size", str(24 * MIB), copy)  # has Windows check it
    refuses(copy, scratch, "chkdsk")
    with pytest.raises(RefusedError, match="chkdsk"):
        smallest_size(volume_at(copy))


def restart_page(number: int, client: int, flags: int) -> bytes:
    """Return a restart page of NTFS's journal; a client of 0 is one that has it open, 0xFFFF none."""
    size = 2 * MIB
    page = bytearray(4096)
    struct.pack_into("<4sHHQIIHHH", page, 0, b"RSTR", 30, 9, 0, 4096, 4096, 48, 1, 1)
    bits, free = 67 - size.bit_length(), 0xFFFF if client == 0 else 0
    struct.pack_into(
        "<QHHHHIHHQIHH", page, 48, number, 1, free, client, flags, bits, 208, 48, size, 0, 48, 64
    )
    struct.pack_into("<QQHHH6xI", page, 96, number, number, 0xFFFF, 0xFFFF, 0, 8)
    page[128:136] = "NTFS".encode("utf-16-le")
    for sector in range(8):
        page[32 + 2 * sector : 34 + 2 * sector] = page[512 * sector + 510 : 512 * sector + 512]
        page[512 * sector + 510 : 512 * sector + 512] = b"\1\0"
    page[30:32] = b"\1\0"
    return bytes(page)


def first_cluster(volume: Path, inode: int) -> int:
    """Return where the data of one of NTFS's own files begins."""
    shown = run("ntfsinfo", "--inode", str(inode), "--verbose", volume).decode()
    found = re.search(r"VCN\s+LCN\s+Length\s+0x0\s+0x([0-9a-f]+)", shown)
    assert found, shown
    return int(found[1], 16)


@pytest.mark.parametrize(
    "pages",
    [
        ((100, 0, 0), (100, 0, 0)),
        ((100, 0, 2), (100, 0, 2)),
        ((100, 0xFFFF, 0), (90, 0, 0)),
        ((90, 0, 0), (100, 0xFFFF, 0)),
        ((90, 0xFFFF, 0), (100, 0, 0)),
    ],
)
def test_a_journal_of_ntfs_is_in_use_where_ntfs_3g_says_so(
    built: dict[str, BuiltVolume], pages: tuple[tuple[int, int, int], ...], tmp_path: Path
) -> None:
    copy = copy_of(path_of(built["NTFS"]), tmp_path / "copy")
    patch(copy, first_cluster(copy, 2) * 4096, b"".join(restart_page(*page) for page in pages))
    found = subprocess.run(["ntfs-3g.probe", "--readwrite", copy], capture_output=True, check=False)
    assert found.returncode in (0, 15)
    reader = ClosedFile(copy)
    resizer = resizer_of(reader)
    assert resizer is not None
    assert ("cleanly unmounted" in resizer.obstacle(reader)) == (found.returncode == 15)


@pytest.mark.parametrize(
    ("name", "content", "is_asleep"),
    [("hiberfil.sys", b"hibr", True), ("HIBERFIL.SYS", b"HIBR", True), ("hiberfil.sys", bytes(4), False)],
)
def test_windows_asleep_in_a_volume_is_not_disturbed(
    built: dict[str, BuiltVolume], scratch: Path, tmp_path: Path, name: str, content: bytes, is_asleep: bool
) -> None:
    copy = copy_of(path_of(built["NTFS"]), tmp_path / "copy")
    with mounted_ntfs(copy) as root:
        (root / name).write_bytes(content + bytes(8188))
    whole = dataclasses.replace(volume_at(copy), reader=ClosedFile(copy))  # an image leaves its contents out
    if is_asleep:
        with pytest.raises(RefusedError, match="hibernated"), resized(whole, 48 * MIB, scratch):
            pass
    else:
        with resized(whole, 48 * MIB, scratch) as larger:
            assert larger.size == 48 * MIB


def test_a_journal_of_ext_is_played_back(
    built: dict[str, BuiltVolume], scratch: Path, tmp_path: Path
) -> None:
    copy = copy_of(path_of(built["ext4"]), tmp_path / "copy")
    block = noise(3, 0, 4096)
    (tmp_path / "block").write_bytes(block)
    free = re.search(r"Free blocks: (\d+)", run("dumpe2fs", copy).decode().split("Group 0")[1])
    assert free
    script = f"jo\njw -b {free[1]} {tmp_path / 'block'}\njc\n"
    run("debugfs", "-w", "-f", "-", copy, stdin=script.encode())
    assert "needs_recovery" in run("dumpe2fs", "-h", copy).decode()
    with resized(volume_at(copy), 48 * MIB, scratch) as larger:
        path = write_data(larger, tmp_path / "grown")
        assert block in copy_whole(larger.reader)  # it was in the journal, now it is in its place too
    assert "needs_recovery" not in run("dumpe2fs", "-h", path).decode()
    check_volume(path, built["ext4"], 48 * MIB)


def copy_whole(reader: BlockReader) -> bytes:
    return reader.read_at(0, reader.size)


def test_other_file_systems_keep_their_size(scratch: Path, tmp_path: Path) -> None:
    path = exfat_volume(tmp_path, size=16 * MIB, big=MIB, many=3).path
    assert path is not None
    for file in (path, create_file(tmp_path / "zeros", MIB)):
        refuses(file, scratch, "can't be resized")


def test_a_missing_tool_is_named_with_its_package(
    built: dict[str, BuiltVolume], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    missing = ("resize2fs", "ntfsresize")
    monkeypatch.setattr(
        shutil, "which", lambda tool, path=None: None if tool in missing else which(tool, path=path)
    )
    refuses(path_of(built["NTFS"]), scratch, "ntfsresize is not installed")
    with pytest.raises(RefusedError, match="resize2fs") as raised:
        smallest_size(volume_at(path_of(built["ext4"])))
    assert "e2fsprogs" in str(raised.value)
    assert not can_grow_in_place("NTFS")
    assert not can_grow_in_place("ext4")


class Full(ZeroReader):
    """A volume all of which is data, with the start of another."""

    def __init__(self, size: int, head: bytes) -> None:
        super().__init__(size)
        self._head = head

    def _read(self, offset: int, length: int) -> bytes:
        return self._head[offset : offset + length].ljust(length, b"\0")

    _extents = BlockReader._extents


def test_a_copy_without_room_is_refused_before_it_is_written(
    built: dict[str, BuiltVolume], scratch: Path
) -> None:
    volume = Volume(1, 0, 1 << 60, "ext4", "", None, Full(1 << 60, bytes_at(path_of(built["ext4"]), 0, MIB)))
    with pytest.raises(RefusedError, match="bytes free"), resized(volume, 1 << 50, scratch):
        pass


def test_a_source_that_can_not_be_read_is_told_as_such(built: dict[str, BuiltVolume], scratch: Path) -> None:
    path = path_of(built["NTFS"])
    at = first_cluster(path, 6) * 4096  # $Bitmap
    volume = dataclasses.replace(volume_at(path), reader=FailingReader(ClosedFile(path), at, at + 512))
    with pytest.raises(ReadError, match="Input/output error"):
        smallest_size(volume, scratch)


def test_an_error_of_who_uses_it_passes(built: dict[str, BuiltVolume], scratch: Path) -> None:
    volume = volume_at(path_of(built["ext4"]))
    with (
        pytest.raises(FileNotFoundError),
        resized(volume, 48 * MIB, scratch),
        (scratch / "nowhere").open(),
    ):
        pass
