"""Deleted files of FAT, exFAT and ext against what they held, and against what sleuthkit says."""

import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.content import noise
from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from fixtures.volumes import mounted_exfat, mtools
from formats.blockreader import BytesReader, FileReader
from formats.errors import FormatError
from imagefs.filesystems import FileSystem, GoneError, RecoveryState, open_deleted
from mounters.tree import NodeType

WHOLE, PARTLY, LOST = RecoveryState
CONTENTS = {
    "docs/a long name of one.bin": noise(1, 0, 30_000),
    "docs/second.bin": noise(2, 0, 60_001),
    "gone/inside.bin": noise(3, 0, 90_000),
    "alone.bin": noise(4, 0, 400_000),
}
KEPT = noise(5, 0, 50_000)


def write_sources(folder: Path) -> None:
    for name in ("docs", "gone"):
        (folder / name).mkdir(parents=True)
    for path, content in {**CONTENTS, "docs/kept.bin": KEPT}.items():
        (folder / path).write_bytes(content)


def fat(folder: Path, kind: str) -> Path:
    """Make a FAT with mtools, which marks entries and chains as Linux does."""
    volume = create_file(folder / "fat.volume", 16 * MIB if kind == "16" else 40 * MIB)
    run("mkfs.vfat", "-F", kind, *(["-s", "1"] if kind == "32" else []), volume)
    write_sources(folder / "tree")
    if kind == "32":  # so that what follows lies where numbers of clusters need their upper half
        (folder / "tree" / "first").write_bytes(noise(6, 0, 34 * MIB))
        mtools("mcopy", volume, folder / "tree" / "first", "::/")
    mtools("mcopy", volume, "-s", *(folder / "tree" / name for name in ("docs", "gone", "alone.bin")), "::/")
    for path in CONTENTS:
        mtools("mdel", volume, f"::/{path}")
    mtools("mrd", volume, "::/gone")
    return volume


def exfat(folder: Path) -> Path:
    volume = create_file(folder / "exfat.volume", 16 * MIB)
    run("mkfs.exfat", volume)
    with mounted_exfat(volume) as root:
        write_sources(root)
    with mounted_exfat(volume) as root:
        for path in CONTENTS:
            (root / path).unlink()
        (root / "gone").rmdir()
    return volume


def ext(folder: Path) -> Path:
    """Make an ext4 with debugfs, which leaves the extents of what it removes."""
    volume = create_file(folder / "ext.volume", 16 * MIB)
    write_sources(folder / "tree")
    run("mke2fs", "-q", "-t", "ext4", "-d", folder / "tree", volume)
    for command in [*(f'rm "{path}"' for path in CONTENTS), "rmdir gone"]:
        run("debugfs", "-w", "-R", command, volume)
    return volume


KINDS: dict[str, Callable[[Path], Path]] = {
    "FAT16": lambda folder: fat(folder, "16"),
    "FAT32": lambda folder: fat(folder, "32"),
    "exFAT": exfat,
    "ext4": ext,
}


@pytest.fixture(scope="module", params=KINDS)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


def opened(reader: BytesReader | FileReader, *, is_held: bool = True) -> FileSystem:
    found = open_deleted(reader, is_held=is_held)
    assert found is not None
    return found


def walk(volume: FileSystem, inode: int | None = None, path: str = "") -> Iterator[tuple[str, int, NodeType]]:
    for entry, attributes in volume.entries_with_attributes(volume.root if inode is None else inode):
        assert attributes is not None
        assert (entry.inode, entry.type) == (attributes.inode, attributes.type)
        assert volume.lookup(volume.root if inode is None else inode, entry.name) == entry.inode
        yield path + entry.name, entry.inode, entry.type
        if entry.type is NodeType.DIRECTORY:
            yield from walk(volume, entry.inode, f"{path}{entry.name}/")


def files(volume: FileSystem) -> dict[str, int]:
    return {path: inode for path, inode, kind in walk(volume) if kind is NodeType.FILE}


def read_all(volume: FileSystem) -> dict[str, bytes]:
    """Return the bytes of all files that are whole; the others are errors."""
    found = {}
    for path, inode in files(volume).items():
        recovery = volume.recovery(inode)
        assert recovery is not None
        if recovery.state is LOST:
            with pytest.raises(GoneError, match="lost"):
                volume.open(inode)
            continue
        reader = volume.open(inode)
        if recovery.state is WHOLE:
            found[path] = reader.read_at(0, reader.size)
        else:
            with pytest.raises(GoneError):
                reader.read_at(0, reader.size)
    return found


def test_same_names_as_fls(volume: Path) -> None:
    listed = run("fls", "-r", "-d", "-p", volume).decode()
    theirs = sorted(re.findall(r"^./. \* \d+:\t(.+)$", listed, re.MULTILINE))
    with FileReader(volume) as reader:
        ours = sorted(path for path, _, _ in walk(opened(reader)) if path not in ("docs", "$Orphans"))
    assert len(ours) >= len(CONTENTS)
    assert [re.sub("~.*", "", path) for path in ours] == [
        path.replace("$OrphanFiles", "$Orphans") for path in theirs
    ]


def test_all_is_whole(volume: Path) -> None:
    with FileReader(volume) as reader:
        found = read_all(opened(reader))
    assert sorted(found.values()) == sorted(CONTENTS.values())


def test_dates(volume: Path) -> None:
    """Of now: TSK would run those of FAT through this machine's time zone."""
    with FileReader(volume) as reader:
        fs = opened(reader)
        for inode in files(fs).values():
            known = fs.attributes(inode)
            assert abs(known.modified / 1e9 - time.time()) < 4000
            assert fs.extended_attribute(inode, "user.imagefs.deleted") == b"whole"


def test_image_without_free_clusters(volume: Path) -> None:
    with FileReader(volume) as reader:
        fs = opened(reader, is_held=False)
        found = files(fs)
        assert found
        for inode in found.values():
            recovery = fs.recovery(inode)
            assert recovery is not None
            assert recovery.state is LOST
            with pytest.raises(GoneError, match="lost"):
                fs.open(inode)


def test_what_is_overwritten(tmp_path: Path) -> None:
    """Behind the first cluster that another has, nothing is known of a FAT's file: its chain is gone."""
    volume = fat(tmp_path, "16")
    with FileReader(volume) as reader:
        fs = opened(reader)
        placed = fs.open(files(fs)["_lone.bin"])
        start = reader.read_at(0, reader.size).index(CONTENTS["alone.bin"][:64])
    assert placed.size == 400_000
    reserved, sectors = struct.unpack_from("<H6xH", volume.read_bytes(), 14)
    per_cluster = volume.read_bytes()[13]
    data = bytearray(volume.read_bytes())
    first = reserved * 512
    offsets = {reserved * 512 + copy * sectors * 512 for copy in (0, 1)}
    root = first + 2 * sectors * 512
    entries = struct.unpack_from("<H", data, 17)[0]
    cluster = (start - root - entries * 32) // (per_cluster * 512) + 2
    for at in offsets:
        struct.pack_into("<H", data, at + 2 * (cluster + 5), 0xFFFF)
    fs = opened(BytesReader(bytes(data)))
    inode = files(fs)["_lone.bin"]
    recovery = fs.recovery(inode)
    known = 5 * per_cluster * 512
    assert recovery is not None
    assert (recovery.state, recovery.gone) == (PARTLY, 400_000 - known)
    reader_of = fs.open(inode)
    assert reader_of.read_at(0, known) == CONTENTS["alone.bin"][:known]
    for at in (known, known + 512 * per_cluster, 399_999):
        with pytest.raises(GoneError):
            reader_of.read_at(at, 1)


def test_lower_clusters_of_a_large_fat32(tmp_path: Path) -> None:
    """Windows clears the upper half of the first cluster's number: there is no telling where it was."""
    volume = create_file(tmp_path / "fat.volume", 40 * MIB)
    run("mkfs.vfat", "-F", "32", "-s", "1", volume)
    (tmp_path / "file.bin").write_bytes(CONTENTS["alone.bin"])
    mtools("mcopy", volume, tmp_path / "file.bin", "::/")
    mtools("mdel", volume, "::/file.bin")
    with FileReader(volume) as reader:
        fs = opened(reader)
        (inode,) = files(fs).values()
        recovery = fs.recovery(inode)
        assert recovery is not None
        assert recovery.state is LOST
        assert "upper half" in recovery.reason
        assert fs.attributes(inode).size == 400_000


def test_linux_clears_what_it_deletes(tmp_path: Path) -> None:
    """As the kernel does: an inode without size and extents is lost, not empty."""
    volume = ext(tmp_path)
    with FileReader(volume) as reader:
        (number,) = re.findall(r"\* (\d+):\tdocs/second.bin", run("fls", "-r", "-d", "-p", volume).decode())
    run("debugfs", "-w", "-R", f"set_inode_field <{number}> size 0", volume)
    with FileReader(volume) as reader:
        fs = opened(reader)
        recovery = fs.recovery(files(fs)["docs/second.bin"])
        assert recovery is not None
        assert recovery.state is LOST


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40))
def test_damage(volume: Path, seed: int, count: int) -> None:
    """Only FormatErrors, whatever the structures say."""
    drawn = random.Random(seed)
    data = bytearray(volume.read_bytes())
    used = [at for at in range(0, min(len(data), 3 * MIB), 512) if any(data[at : at + 512])]
    for _ in range(count):
        data[drawn.choice(used) + drawn.randrange(512)] = drawn.randrange(256)
    try:
        fs = opened(BytesReader(bytes(data)))
        found = files(fs)
    except FormatError:
        return
    for inode in found.values():
        try:
            reader = fs.open(inode)
            reader.read_at(0, min(reader.size, 100_000))
        except FormatError:
            pass
