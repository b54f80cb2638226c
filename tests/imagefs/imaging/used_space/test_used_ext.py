"""The used space of ext against dumpe2fs's lists of free blocks, e2fsck and debugfs."""

import struct
from pathlib import Path

import numpy as np
import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from fixtures.volumes import ext_volume
from formats.blockreader import FileReader, SliceReader
from imagefs.imaging.used_space import used_space
from tests.imagefs.imaging.used_space.checking import (
    UNIT,
    bytes_at,
    copy_of,
    free_by_dumpe2fs,
    is_whole,
    keep_used,
    patch,
    space_of,
    tree_hashes,
    used_map,
)

NO_CHECKSUMS = "^metadata_csum,^metadata_csum_seed"


def ext_hashes(volume: Path, target: Path) -> dict[str, str]:
    """Return what debugfs reads of all files."""
    target.mkdir()
    run("debugfs", "-R", f"rdump / {target}", volume)
    return tree_hashes(target)


def check(volume: Path, scratch: Path) -> None:
    """Compare every block, and what a copy of the used ones alone is worth."""
    space = space_of(volume)
    assert space.warnings == ()
    block = int.from_bytes(bytes_at(volume, 1024 + 24, 4), "little")
    free = free_by_dumpe2fs(volume, 1024 << block, space.cluster_size)
    assert free.any()
    assert (used_map(space, volume.stat().st_size) == ~free).all()
    assert space.free_clusters * space.cluster_size == np.count_nonzero(free) * UNIT
    copy = keep_used(volume, scratch / "copy", space, b"\xa5" if volume.stat().st_size < 100 * MIB else b"\0")
    run("e2fsck", "-fn", copy)
    hashes = ext_hashes(volume, scratch / "source")
    assert len(hashes) >= 9
    assert ext_hashes(copy, scratch / "kept") == hashes


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_every_block_as_dumpe2fs_says(tmp_path: Path, kind: str) -> None:
    volume = ext_volume(tmp_path, kind, many=200, big=MIB).path
    assert volume is not None
    run("debugfs", "-w", "-R", "rm /many/file-00007.txt", volume)
    run("debugfs", "-w", "-R", "rm /big.bin", volume)
    space = space_of(volume)
    assert (space.file_system, space.label) == (kind.upper(), "extvol")
    assert space.cluster_size == (1024 if kind == "ext2" else 4096)
    check(volume, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ["-t", "ext4", "-b", "1024"],
        ["-t", "ext4", "-b", "4096", "-g", "2048"],
        ["-t", "ext4", "-b", "1024", "-O", f"{NO_CHECKSUMS},uninit_bg"],
        ["-t", "ext4", "-b", "1024", "-O", f"{NO_CHECKSUMS},^uninit_bg"],
        ["-t", "ext4", "-b", "1024", "-O", "^flex_bg"],
        ["-t", "ext4", "-b", "1024", "-G", "4"],
        ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"],
        ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^flex_bg,^64bit"],
        ["-t", "ext4", "-b", "1024", "-O", "sparse_super2,^resize_inode"],
        ["-t", "ext4", "-b", "1024", "-O", "^sparse_super,^flex_bg,^resize_inode"],
        ["-t", "ext4", "-b", "1024", "-O", "^resize_inode,^64bit"],
        ["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "65536"],
        ["-t", "ext4", "-b", "4096", "-g", "2048", "-O", "^has_journal"],
        ["-t", "ext4", "-b", "65536"],
        ["-t", "ext3", "-b", "1024", "-i", "2048"],
        ["-t", "ext2", "-b", "2048", "-r", "0"],
    ],
    ids=" ".join,
)
def test_layouts(tmp_path: Path, options: list[str]) -> None:
    """Make a volume of many groups, most of them never used, and one too short for a group at its end."""
    volume = create_file(tmp_path / "volume", 140 * MIB + 77 * 1024)
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(12):
        (tree / f"{number}").write_bytes(noise(number, 0, 600_000))
    run("mke2fs", "-q", "-F", *options, "-d", tree, volume)
    for number in range(0, 12, 2):
        run("debugfs", "-w", "-R", f"rm /{number}", volume)
    (tmp_path / "scratch").mkdir()
    if "-r" not in options:
        unused = run("dumpe2fs", volume).decode().count("BLOCK_UNINIT")
        has_flags = "^uninit_bg" not in options[-1] and "ext4" in options and "65536" not in options[-1]
        assert bool(unused) == has_flags
    (tree / "more").write_bytes(b"")
    for number in range(3):
        run("debugfs", "-w", "-R", f"write {tree / 'more'} more{number}", volume)
    check(volume, tmp_path / "scratch")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = create_file(tmp_path_factory.mktemp("ext") / "volume", 40 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-L", "doubtful", path)
    return path


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("feature needs_recovery", "its journal has to be replayed"),
        ("set_super_value state 0", "marked as dirty"),
        ("set_super_value state 3", "marked as having errors"),
        ("set_super_value state 5", "marked as dirty"),
        ("feature shared_blocks", "unknown features"),
    ],
)
def test_doubtful_state(volume: Path, tmp_path: Path, command: str, what: str) -> None:
    copy = copy_of(volume, tmp_path / "copy")
    run("debugfs", "-w", "-R", command, copy)
    space = space_of(copy)
    assert is_whole(space, copy.stat().st_size)
    assert what in space.warnings[0]
    assert "all of the volume is stored" in space.warnings[0]
    assert (space.file_system, space.label, space.cluster_size) == ("EXT4", "doubtful", 1024)


def bitmap_block(volume: Path, group: int) -> int:
    """Return the block of a group's bitmap, by dumpe2fs."""
    listed = run("dumpe2fs", volume).decode().split(f"\nGroup {group}:")[1]
    return int(listed.split("Block bitmap at ")[1].split()[0])


def test_contradicting_bitmaps(volume: Path, tmp_path: Path) -> None:
    size = volume.stat().st_size
    block = bitmap_block(volume, 0)
    at = block * 1024
    (own,) = bytes_at(volume, at + (block - 1) // 8, 1)
    (last,) = bytes_at(volume, at + 900, 1)
    descriptor = 2048  # of group 0
    for number, (offset, data, what) in enumerate((
        (at + (block - 1) // 8, bytes([own & ~(1 << (block - 1) % 8)]), "calls its own structures free"),
        (at + 900, bytes([last ^ 1]), "by its descriptor"),
        (descriptor, struct.pack("<I", 1 << 20), "outside the volume"),
        (descriptor + 12, struct.pack("<H", 5), "by its descriptor"),
        (1024 + 4, struct.pack("<I", 8 * size // 1024), ""),
        (1024 + 32, struct.pack("<I", 4096), "in groups of"),
    )):  # fmt: skip
        copy = copy_of(volume, tmp_path / f"{number}")
        patch(copy, offset, data)
        space = space_of(copy)
        assert is_whole(space, size)
        assert what in space.warnings[0]


def test_cut_volume_and_exclusion(volume: Path) -> None:
    with FileReader(volume) as reader:
        space = used_space(SliceReader(reader, 0, reader.size - 4096))
        assert is_whole(space, reader.size - 4096)
        assert "blocks in a volume" in space.warnings[0]
        excluding = used_space(reader, exclude=["*.tmp"])
        assert excluding.warnings == ("files can't be excluded on ext4",)
        assert (excluding.runs(0, reader.size) == used_space(reader).runs(0, reader.size)).all()
        exact = used_space(reader, exact=True)
        assert is_whole(exact, reader.size)
        assert exact.free_clusters == used_space(reader).free_clusters
