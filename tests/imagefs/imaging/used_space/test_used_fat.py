"""The used space of FAT and exFAT against sleuthkit's list of free sectors, fsck and mtools."""

import struct
from pathlib import Path

import numpy as np
import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from fixtures.volumes import exfat_volume, fat_volume, mounted_exfat, mtools
from formats.blockreader import FileReader, SliceReader
from imagefs.imaging.used_space import UsedSpace, used_space
from tests.imagefs.imaging.used_space.checking import (
    UNIT,
    bytes_at,
    copy_of,
    free_by_sleuthkit,
    is_whole,
    keep_used,
    patch,
    space_of,
    tree_hashes,
    used_map,
)

NAMES = ("a.tmp", "keep.txt", "dir/b.TMP", "dir/in/deep.bin", "c c.log")


class Table:
    """The FAT of a FAT16 volume, to be changed."""

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        boot = bytes_at(volume, 0, 512)
        sector, per_cluster, reserved, fats, entries = struct.unpack_from("<HBHBH", boot, 11)
        (length,) = struct.unpack_from("<H", boot, 22)
        self.starts = [(reserved + copy * length) * sector for copy in range(fats)]
        self.root: int = self.starts[-1] + length * sector
        self.first: int = self.root + entries * 32
        self.cluster_size: int = sector * per_cluster

    def get(self, cluster: int) -> int:
        return int(struct.unpack("<H", bytes_at(self.volume, self.starts[0] + 2 * cluster, 2))[0])

    def put(self, cluster: int, value: int, copies: int = 2) -> None:
        for start in self.starts[:copies]:
            patch(self.volume, start + 2 * cluster, struct.pack("<H", value))

    def entry(self, name: bytes) -> int:
        """Return where the entry of a file in the root directory lies."""
        return self.root + bytes_at(self.volume, self.root, self.first - self.root).index(name)

    def chain(self, name: bytes) -> list[int]:
        cluster = int.from_bytes(bytes_at(self.volume, self.entry(name) + 26, 2), "little")
        found = []
        while cluster < 0xFFF8:
            found.append(cluster)
            cluster = self.get(cluster)
        return found

    def units(self, clusters: list[int]) -> set[int]:
        per = self.cluster_size // UNIT
        return {self.first // UNIT + (cluster - 2) * per + n for cluster in clusters for n in range(per)}


@pytest.fixture(scope="module", params=["FAT12", "FAT16", "FAT32"])
def fat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = fat_volume(tmp_path_factory.mktemp(request.param), request.param, many=60).path
    assert path is not None
    return path


@pytest.fixture(scope="module")
def exfat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume = exfat_volume(tmp_path_factory.mktemp("exfat"), size=32 * MIB, big=MIB, many=60).path
    assert volume is not None
    with mounted_exfat(volume) as root:
        for number in range(0, 60, 3):
            (root / f"many/file-{number:05}.txt").unlink()
        (root / "fragmented/a.bin").unlink()
        write_named(root)
    return volume


def write_named(root: Path) -> None:
    for seed, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(noise(seed, 0, 50_000))


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a FAT16 with files to leave out."""
    folder = tmp_path_factory.mktemp("named")
    volume = create_file(folder / "volume", 16 * MIB)
    run("mkfs.vfat", "-F", "16", "-s", "4", "-n", "NAMED", volume)
    write_named(folder / "tree")
    mtools("mcopy", volume, "-s", *sorted((folder / "tree").iterdir()), "::/")
    return volume


def fat_hashes(volume: Path, target: Path) -> dict[str, str]:
    """Return what mtools reads of all files."""
    target.mkdir()
    mtools("mcopy", volume, "-s", "-n", "::/*", target)
    return tree_hashes(target)


def units(space: UsedSpace, volume: Path) -> set[int]:
    return set(np.flatnonzero(used_map(space, volume.stat().st_size)).tolist())


# FAT


def test_every_cluster_of_fat_as_sleuthkit_says(fat: Path) -> None:
    space = space_of(fat)
    free = free_by_sleuthkit(fat, "fat", UNIT)
    end = space.reserved_length + space.total_clusters * space.cluster_size
    assert end > fat.stat().st_size - space.cluster_size
    expected = ~free
    expected[end // UNIT :] = True  # what is too short for a cluster
    assert (used_map(space, fat.stat().st_size) == expected).all()
    assert space.free_clusters == np.count_nonzero(free[: end // UNIT]) * UNIT // space.cluster_size
    assert space.file_system == run("fsstat", fat).decode().split("File System Type: ")[1].split()[0]
    assert (space.label, space.warnings, space.mft_offset) == ("FATVOL", (), 0)


def test_what_is_used_is_the_whole_fat(fat: Path, tmp_path: Path) -> None:
    space = space_of(fat)
    copy = keep_used(fat, tmp_path / "copy", space, b"\xa5")
    run("fsck.vfat", "-n", copy)
    hashes = fat_hashes(fat, tmp_path / "source")
    assert len(hashes) > 60
    assert fat_hashes(copy, tmp_path / "kept") == hashes
    # the container keeps what lies before the first cluster apart: it must hold all that is not a cluster
    assert space.runs(0, space.reserved_length).tolist() == [[0, space.reserved_length]]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["-F", "32", "-s", "128"], 4300 * MIB),
        (["-F", "16", "-s", "128"], 300 * MIB),
        (["-F", "32", "-S", "4096", "-s", "1"], 300 * MIB),
        (["-F", "12", "-f", "1"], 2 * MIB),
        (["-F", "16", "-R", "37", "-r", "512"], 20 * MIB + 512 * 5),
    ],
)
def test_other_geometries(tmp_path: Path, options: list[str], size: int) -> None:
    volume = create_file(tmp_path / "volume", size)
    run("mkfs.vfat", "-a", *options, volume)
    for number in range(9):
        (tmp_path / f"{number}.bin").write_bytes(noise(number, 0, 150_000))
    mtools("mcopy", volume, *sorted(tmp_path.glob("*.bin")), "::/")
    mtools("mdel", volume, "::/3.bin", "::/5.bin")
    space = space_of(volume)
    used = sum(end - start for start, end in space.runs(0, size).tolist())
    assert space.free_clusters == space.total_clusters - free_of(volume, space)
    end = space.reserved_length + space.total_clusters * space.cluster_size
    assert used == size - space.free_clusters * space.cluster_size
    assert end <= size
    copy = keep_used(volume, tmp_path / "copy", space)
    run("fsck.vfat", "-n", copy)
    assert fat_hashes(copy, tmp_path / "kept") == fat_hashes(volume, tmp_path / "source")


def free_of(volume: Path, space: UsedSpace) -> int:
    """Return the clusters in use by fsck.vfat's last line: "N files, used/total clusters"."""
    used, total = run("fsck.vfat", "-n", volume).decode().split()[-2].split("/")
    assert int(total) == space.total_clusters
    return int(used)


def test_mirrored_copies_that_differ(named: Path, tmp_path: Path) -> None:
    volume = copy_of(named, tmp_path / "volume")
    table = Table(volume)
    chain = table.chain(b"KEEP    TXT")
    free = next(n for n in range(2, 9999) if not table.get(n))
    table.put(free, 0xFFFF, copies=1)
    for cluster in chain:  # in the first copy only
        patch(volume, table.starts[1] + 2 * cluster, b"\0\0")
    space = space_of(volume, exclude=("*.tmp",))
    assert [line.split(":")[0] for line in space.warnings] == ["the copies of the FAT differ"] * 2
    assert units(space, volume) == units(space_of(named), named) | table.units([free])
    assert not space.left_out


def test_bad_clusters_of_fat(named: Path, tmp_path: Path) -> None:
    volume = copy_of(named, tmp_path / "volume")
    table = Table(volume)
    free = [n for n in range(2, 9999) if not table.get(n)][10:12]
    for cluster in free:
        table.put(cluster, 0xFFF7)
    assert units(space_of(volume), volume) == units(space_of(named), named)
    assert space_of(volume).free_clusters == space_of(named).free_clusters - 2


def test_dirty_fat(fat: Path, tmp_path: Path) -> None:
    kind = space_of(fat).file_system
    plain = units(space_of(fat), fat)
    boot = bytes_at(fat, 0, 512)
    state = 0x41 if kind == "FAT32" else 0x25
    (reserved,) = struct.unpack_from("<H", boot, 14)
    changes = [(state, boot[state] | 1)]
    if kind != "FAT12":
        at = reserved * 512 + (7 if kind == "FAT32" else 3)
        changes.append((at, bytes_at(fat, at, 1)[0] & (0xF7 if kind == "FAT32" else 0x7F)))
    for number, (offset, value) in enumerate(changes):
        volume = copy_of(fat, tmp_path / f"{number}")
        patch(volume, offset, bytes([value]))
        space = space_of(volume)
        assert space.warnings[0] == "the volume is marked as dirty: it needs a check"
        assert units(space, volume) == plain


@pytest.mark.parametrize(
    ("value", "what"),
    [("free", "goes through a free cluster"), (0xFF00, "names cluster")],
    ids=["free", "far"],
)
def test_contradicting_fat(named: Path, tmp_path: Path, value: str | int, what: str) -> None:
    volume = copy_of(named, tmp_path / "volume")
    table = Table(volume)
    target = next(n for n in range(2, 9999) if not table.get(n)) if isinstance(value, str) else value
    table.put(table.chain(b"KEEP    TXT")[5], target)
    space = space_of(volume)
    assert is_whole(space, volume.stat().st_size)
    assert what in space.warnings[0]
    assert (space.file_system, space.reserved_length) == ("FAT16", table.first)


def test_fat_that_is_none_or_cut(named: Path, tmp_path: Path) -> None:
    volume = copy_of(named, tmp_path / "volume")
    patch(volume, Table(volume).starts[0], bytes(4))
    assert is_whole(space_of(volume), volume.stat().st_size)
    assert space_of(volume).warnings
    with FileReader(named) as reader:
        cut = SliceReader(reader, 0, reader.size - 4096)
        space = used_space(cut)
        assert is_whole(space, cut.size)
        assert "sectors in a volume of" in space.warnings[0]


def test_exact_fat_keeps_its_reserved_part(named: Path) -> None:
    with FileReader(named) as reader:
        space = used_space(reader, exact=True)
        assert is_whole(space, reader.size)
        assert (space.file_system, space.reserved_length) == ("FAT16", Table(named).first)
        assert space.free_clusters == used_space(reader).free_clusters


EXCLUDED = [
    (["*.TMP"], {"a.tmp", "dir/b.TMP"}),
    (["/*.tmp"], {"a.tmp"}),
    (["dir"], {"dir/b.TMP", "dir/in/deep.bin"}),
    (["dir/*/*.bin", "C?C.*"], {"dir/in/deep.bin", "c c.log"}),
    (["nothing", ""], set()),
]


@pytest.mark.parametrize(("patterns", "expected"), EXCLUDED)
def test_exclude_on_fat(named: Path, tmp_path: Path, patterns: list[str], expected: set[str]) -> None:
    space = space_of(named, exclude=tuple(patterns))
    assert set(space.left_out) == expected
    assert not space.warnings
    copy = keep_used(named, tmp_path / "copy", space)
    run("fsck.vfat", "-n", copy)
    ours, theirs = fat_hashes(copy, tmp_path / "kept"), fat_hashes(named, tmp_path / "source")
    assert {name for name in theirs if ours[name] != theirs[name]} == expected
    gone = units(space_of(named), named) - units(space, named)
    assert len(gone) * UNIT == len(expected) * -(-50_000 // 2048) * 2048


def test_cross_linked_chain_is_kept(named: Path, tmp_path: Path) -> None:
    volume = copy_of(named, tmp_path / "volume")
    table = Table(volume)
    mine, theirs = table.chain(b"A       TMP"), table.chain(b"KEEP    TXT")
    table.put(theirs[9], mine[10])  # the other one runs on into the middle of it
    plain, space = units(space_of(volume), volume), units(space_of(volume, exclude=("a.tmp",)), volume)
    assert plain - space == table.units(mine[:10])
    # a second entry of the same file
    twin = bytearray(bytes_at(volume, table.entry(b"A       TMP"), 32))
    twin[:11] = b"TWIN    BIN"
    end = table.root + bytes_at(volume, table.root, 16384)[::32].index(0) * 32
    patch(volume, end, bytes(twin))
    space_of_both = space_of(volume, exclude=("a.tmp",))
    assert units(space_of_both, volume) == plain
    assert not space_of_both.left_out


def test_exclude_nothing_where_a_chain_is_broken(named: Path, tmp_path: Path) -> None:
    volume = copy_of(named, tmp_path / "volume")
    table = Table(volume)
    table.put(table.chain(b"KEEP    TXT")[3], 0xFFFF)
    space = space_of(volume, exclude=("*.tmp",))
    assert "no files are excluded" in space.warnings[0]
    assert units(space, volume) == units(space_of(volume), volume)


# exFAT


def test_every_cluster_of_exfat_as_sleuthkit_says(exfat: Path) -> None:
    space = space_of(exfat)
    free = free_by_sleuthkit(exfat, "exfat", UNIT)
    assert (used_map(space, exfat.stat().st_size) == ~free).all()
    assert space.free_clusters * space.cluster_size == np.count_nonzero(free) * UNIT
    assert (space.file_system, space.label, space.reserved_length) == ("exFAT", "EXFATVOL", 0)
    assert space.warnings == ()


def test_what_is_used_is_the_whole_exfat(exfat: Path, tmp_path: Path) -> None:
    copy = keep_used(exfat, tmp_path / "copy", space_of(exfat), b"\xa5")
    run("fsck.exfat", "-n", copy)
    with mounted_exfat(copy) as kept, mounted_exfat(exfat) as source:
        hashes = tree_hashes(source)
        assert len(hashes) > 50
        assert tree_hashes(kept) == hashes


@pytest.mark.parametrize(("cluster", "size"), [(512, 8), (65536, 32), (MIB, 64)])
def test_clusters_of_exfat(tmp_path: Path, cluster: int, size: int) -> None:
    volume = create_file(tmp_path / "volume", size * MIB)
    run("mkfs.exfat", "-c", str(cluster), volume)
    with mounted_exfat(volume) as root:
        write_named(root)
        (root / "keep.txt").unlink()
    space = space_of(volume)
    assert space.cluster_size == cluster
    expected = ~free_by_sleuthkit(volume, "exfat", UNIT)
    assert (used_map(space, volume.stat().st_size) == expected).all()


def test_dirty_exfat(exfat: Path, tmp_path: Path) -> None:
    volume = copy_of(exfat, tmp_path / "volume")
    patch(volume, 106, b"\2")
    space = space_of(volume)
    assert space.warnings == ("the volume is marked as dirty: it needs a check",)
    assert units(space, volume) == units(space_of(exfat), exfat)


def exfat_entry(volume: Path, kind: int) -> int:
    """Return where an entry of the root directory lies."""
    boot = bytes_at(volume, 0, 512)
    heap, _, root = struct.unpack_from("<III", boot, 88)
    at = (heap << boot[108]) + (root - 2 << boot[108] + boot[109])
    return int(at + 32 * bytes_at(volume, at, 4096)[::32].index(kind))


def test_contradicting_exfat(exfat: Path, tmp_path: Path) -> None:
    size = exfat.stat().st_size
    bitmap = exfat_entry(exfat, 0x81)
    (length,) = struct.unpack("<Q", bytes_at(exfat, bitmap + 24, 8))
    boot = bytes_at(exfat, 0, 512)
    (first,) = struct.unpack("<I", bytes_at(exfat, bitmap + 20, 4))
    heap = struct.unpack_from("<I", boot, 88)[0] << boot[108]
    start = heap + (first - 2) * (1 << boot[108] + boot[109])
    for number, (offset, data, what) in enumerate((
        (bitmap + 24, struct.pack("<Q", length // 2), "a bitmap of"),
        (bitmap, b"\x83", "no bitmap"),
        (bitmap + 1, b"\1", "no bitmap"),
        (start, bytes(16), "own files free"),
        (72, struct.pack("<Q", size // 512 + 1), "sectors in a volume"),
    )):  # fmt: skip
        volume = copy_of(exfat, tmp_path / f"{number}")
        patch(volume, offset, data)
        space = space_of(volume)
        assert is_whole(space, size)
        assert what in space.warnings[0]


@pytest.mark.parametrize(("patterns", "expected"), EXCLUDED)
def test_exclude_on_exfat(exfat: Path, tmp_path: Path, patterns: list[str], expected: set[str]) -> None:
    space = space_of(exfat, exclude=tuple(patterns))
    assert set(space.left_out) == expected
    copy = keep_used(exfat, tmp_path / "copy", space)
    run("fsck.exfat", "-n", copy)
    with mounted_exfat(copy) as kept, mounted_exfat(exfat) as source:
        ours, theirs = tree_hashes(kept), tree_hashes(source)
    assert {name for name in theirs if ours[name] != theirs[name]} == expected
    gone = units(space_of(exfat), exfat) - units(space, exfat)
    assert len(gone) * UNIT == len(expected) * -(-50_000 // 4096) * 4096
