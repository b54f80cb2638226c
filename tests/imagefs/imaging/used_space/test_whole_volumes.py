"""What is not understood is used as a whole; patterns; runs against a slow model."""

from pathlib import Path

import numpy as np
import pytest

from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from formats.blockreader import BytesReader, ZeroReader
from imagefs.imaging.used_space import used_space
from imagefs.imaging.used_space.cluster_runs import (
    clip_and_merge,
    mark,
    parts_inside,
    runs_of,
    subtract,
    union,
)
from imagefs.imaging.used_space.patterns import Patterns
from tests.imagefs.imaging.used_space.checking import copy_of, is_whole, patch, space_of


def with_marks(*marks: tuple[int, bytes]) -> BytesReader:
    data = bytearray(MIB)
    for offset, magic in marks:
        data[offset : offset + len(magic)] = magic
    return BytesReader(bytes(data))


@pytest.mark.parametrize(
    ("name", "offset", "magic"),
    [
        ("unknown", 0, b"nothing"),
        ("unknown", 3, b"-FVE-FS-"),
        ("unknown", 0, b"LUKS\xba\xbe"),
        ("ReFS", 3, b"ReFS\0\0\0\0"),
        ("XFS", 0, b"XFSB"),
        ("Btrfs", 0x10040, b"_BHRfS_M"),
        ("HFS+", 0x400, b"H+\0\4"),
        ("ISO 9660", 0x8001, b"CD001"),
        ("APFS", 32, b"NXSB"),
    ],
)
def test_not_understood(name: str, offset: int, magic: bytes) -> None:
    space = used_space(with_marks((offset, magic)), 4096, exclude=["*"])
    assert (space.file_system, space.cluster_size, space.sector_size) == (name, 0, 4096)
    assert (space.total_clusters, space.free_clusters, space.reserved_length, space.label) == (0, 0, 0, "")
    assert is_whole(space, MIB)
    assert space.runs(77, 100).tolist() == [[77, 177]]
    assert space.runs(5, 0).shape == (0, 2)


def test_small_and_empty_volumes() -> None:
    for size in (0, 1, 511, 4095):
        space = used_space(ZeroReader(size))
        assert space.file_system == "unknown"
        assert space.runs(0, size).tolist() == ([[0, size]] if size else [])


def test_boot_sector_without_the_rest() -> None:
    space = used_space(with_marks((3, b"NTFS    ")))
    assert is_whole(space, MIB)
    assert "all of the volume is stored" in space.warnings[0]


@pytest.mark.parametrize(
    ("offset", "magic"),
    [
        (512, b"LABELONE"),
        (4096, b"\xfc\x4e\x2b\xa9"),
        (4086, b"SWAPSPACE2"),
        (0x10040, b"_BHRfS_M"),
        (128 << 10, (0x00BAB10C).to_bytes(8, "little").ljust(1024, b"\0") * 5),
        (424, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")),
    ],
)
def test_something_else_over_an_old_file_system(tmp_path: Path, offset: int, magic: bytes) -> None:
    volume = create_file(tmp_path / "volume", 16 * MIB)
    run("mkfs.vfat", "-F", "16", volume)
    assert space_of(volume).file_system == "FAT16"
    patch(volume, offset, magic)
    space = space_of(copy_of(volume, tmp_path / "copy"))
    assert is_whole(space, 16 * MIB)
    assert space.file_system == "unknown"
    assert "bears the signs of " in space.warnings[0]
    assert "FAT" in space.warnings[0]


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("*.tmp", "a.tmp", True),
        ("*.tmp", "x/y/A.TMP", True),
        ("*.tmp", "a.tmp.txt", False),
        ("/*.tmp", "x/a.tmp", False),
        ("x/*.tmp", "x/a.tmp", True),
        ("x/*.tmp", "x/y/a.tmp", False),
        ("x/**/a.tmp", "x/a.tmp", True),
        ("x/**/a.tmp", "x/y/z/a.tmp", True),
        ("**/y/*", "x/y/a", True),
        ("**/y/*", "y/a", True),
        ("x/**", "x/y/z", True),
        ("x/**", "xy", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a[0-9]", "a5", True),
        ("a[!0-9]", "a5", False),
        ("a[!0-9]", "ax", True),
        ("a[", "a[", True),
        ("[]]", "]", True),
        ("a.c", "abc", False),
        ("x\\*.tmp", "x/a.tmp", True),
        ("folder/", "folder", True),
        ("ÄÖ", "äö", True),
        ("kelvin", "\u212aelvin", False),
        ("strasse", "straße", False),
        ("s", "\u017f", False),
        ("line", "line\n", False),
        ("*", "two\nlines", True),
        ("", "a", False),
        ("/", "a", False),
    ],
)
def test_patterns(pattern: str, path: str, is_match: bool) -> None:
    assert Patterns([pattern]).match(path) == is_match
    assert Patterns(["other", pattern]).match(path) == is_match


def test_runs_against_a_slow_model() -> None:
    generator = np.random.default_rng(5)
    for _ in range(500):
        count = int(generator.integers(1, 60))
        bits = generator.random(count) < generator.random()
        runs = runs_of(bits)
        assert [n for start, end in runs.tolist() for n in range(start, end)] == np.flatnonzero(bits).tolist()
        assert (mark(runs, count) == bits).all()
        low, high = sorted(generator.integers(0, count + 1, 2).tolist())
        clipped = clip_and_merge(runs, low, high)
        assert set_of(clipped) == set_of(runs) & set(range(low, high))
        assert len(clipped) < 2 or (clipped[1:, 0] > clipped[:-1, 1]).all()
        mine, theirs = (random_runs(generator, count) for _ in range(2))
        assert set_of(union(mine)) == set_of(mine)
        assert (union(mine)[1:, 0] > union(mine)[:-1, 1]).all()
        assert set_of(subtract(mine, theirs)) == set_of(mine) - set_of(theirs)
        inside = parts_inside(union(mine), low, high - low)
        assert {n + low for n in set_of(inside)} == set_of(mine) & set(range(low, high))


def random_runs(
    generator: np.random.Generator, count: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.sort(generator.integers(0, count + 1, (int(generator.integers(0, 9)), 2)), axis=1)


def set_of(runs: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> set[int]:
    return {n for start, end in runs.tolist() for n in range(start, end)}
