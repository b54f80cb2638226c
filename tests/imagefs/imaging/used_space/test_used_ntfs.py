"""The used space of NTFS against sleuthkit's list of free clusters, ntfsfix and ntfs-3g."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from fixtures.volumes import make_ntfs, mounted_ntfs, ntfs_volume, set_xattr
from formats.blockreader import BlockReader, FileReader, SliceReader
from formats.errors import ReadError
from imagefs.filesystems.ntfs.layout import AttributeType, parse_boot
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.imaging.used_space import UsedSpace, used_space
from tests.imagefs.imaging.used_space.checking import (
    UNIT,
    FailingReader,
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

CLUSTER = 4096


def table(reader: BlockReader) -> MasterFileTable:
    return MasterFileTable(reader, parse_boot(reader.read_at(0, 512)))


def units_of(volume: Path, inode: int, kind: AttributeType = AttributeType.DATA, name: str = "") -> set[int]:
    """Return the units that an attribute's clusters take."""
    with FileReader(volume) as reader:
        mft = table(reader)
        extents = find(mft.attributes(mft.record(inode)), kind, name)
        resident = extents[0].value is not None
        runs = [] if resident else [run for run in mft.runs(extents, "") if run.start is not None]
    return {
        unit
        for run in runs
        for unit in range((run.start or 0) // UNIT, ((run.start or 0) + run.length) // UNIT)
    }


def record_place(volume: Path, inode: int) -> int:
    """Return where a file record lies."""
    with FileReader(volume) as reader:
        mft = table(reader)
        data = find(mft.record(0).attributes, AttributeType.DATA)
        at = inode * mft.record_size
        for run in mft.runs(data, ""):
            if at < run.length:
                return (run.start or 0) + at
            at -= run.length
    raise AssertionError(inode)


def inode_of(volume: Path, path: str) -> int:
    """Return the number of a file's record, by ntfsinfo."""
    listed = run("ntfsinfo", "-f", "-F", path, volume).decode()
    line = next(line for line in listed.splitlines() if line.startswith("Dumping Inode"))
    return int(line.split()[2])


def units(space: UsedSpace, volume: Path) -> set[int]:
    return set(np.flatnonzero(used_map(space, volume.stat().st_size)).tolist())


def changed(space: UsedSpace, plain: UsedSpace, volume: Path) -> set[int]:
    """Return the units that exclusion left out; it adds none."""
    with_all, less = units(plain, volume), units(space, volume)
    assert less <= with_all
    return with_all - less


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume with everything NTFS can hold, and with deleted files."""
    volume = ntfs_volume(tmp_path_factory.mktemp("ntfs"), size=48 * MIB, big=2 * MIB, many=300, fragments=60)
    assert volume.path is not None
    with mounted_ntfs(volume.path) as root:
        for number in range(0, 300, 3):
            (root / f"many/file-{number:05}.txt").unlink()
        (root / "interleaved/a.bin").unlink()
    return volume.path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume with files to leave out."""
    volume = make_ntfs(tmp_path_factory.mktemp("files") / "files.volume", 24 * MIB, "Dateien")
    with mounted_ntfs(volume) as root:
        (root / "sub/deeper").mkdir(parents=True)
        (root / "Cache Files/inner").mkdir(parents=True)
        for seed, name in enumerate((
            "pagefile.sys", "HIBERFIL.SYS", "swapfile.sys", "sub/pagefile.sys", "sub/a.tmp",
            "sub/deeper/B.TMP",
            "c.tmp", "sub/deeper/keep.txt", "Cache Files/inner/x.bin", "Größe.Öl", "linked.tmp", "both.tmp",
            "plain.bin", "twin.bin",
        )):  # fmt: skip
            (root / name).write_bytes(noise(seed, 0, 100_000))
        (root / "small.tmp").write_bytes(b"inside its record")
        os.link(root / "linked.tmp", root / "linked.txt")
        os.link(root / "both.tmp", root / "sub/again.tmp")
        (root / "sub/list.tmp.txt").write_bytes(noise(90, 0, 9000))
        (root / "compressed").mkdir()
        set_xattr(root / "compressed", "system.ntfs_attrib_be", struct.pack(">I", 0x810))
        (root / "compressed/text.tmp").write_bytes(b"the same again and again. " * 20_000)
        set_xattr(root / "c.tmp", "user.stream", noise(91, 0, 50_000))
    return volume


@pytest.mark.parametrize(("cluster", "sector"), [(512, 512), (4096, 512), (4096, 4096), (65536, 512)])
def test_clusters_of_all_sizes(tmp_path: Path, cluster: int, sector: int) -> None:
    volume = create_file(tmp_path / "volume", 24 * MIB + 3 * 4096)
    run(
        "mkntfs", "--quick", "--force", "--quiet", "--partition-start", "2048", "--heads", "255",
        "--sectors-per-track", "63", "--sector-size", str(sector), "--cluster-size", str(cluster), volume,
    )  # fmt: skip
    with mounted_ntfs(volume) as root:
        for number in range(40):
            (root / f"{number}").write_bytes(noise(number, 0, 70_000))
        for number in range(0, 40, 2):
            (root / f"{number}").unlink()
    space = space_of(volume, sector_size=sector)
    assert (space.file_system, space.cluster_size, space.sector_size) == ("NTFS", cluster, sector)
    assert (used_map(space, volume.stat().st_size) == ~free_by_sleuthkit(volume, "ntfs", cluster)).all()
    with FileReader(volume) as reader:
        assert space.mft_offset == parse_boot(reader.read_at(0, 512)).mft_cluster * cluster
    assert space.mft_record_size == max(1024, sector)
    assert space.warnings == space.left_out == ()


def test_every_cluster_as_sleuthkit_says(full: Path) -> None:
    space = space_of(full)
    free = free_by_sleuthkit(full, "ntfs", CLUSTER)
    assert (used_map(space, full.stat().st_size) == ~free).all()
    assert space.free_clusters * CLUSTER // UNIT == np.count_nonzero(free)
    assert (space.label, space.total_clusters) == ("Daten 1", full.stat().st_size // CLUSTER - 1)
    assert space.reserved_length == 0


def test_what_is_used_is_the_whole_file_system(full: Path, tmp_path: Path) -> None:
    copy = keep_used(full, tmp_path / "copy", space_of(full), b"\xa5")
    run("ntfsfix", "-n", copy)
    with mounted_ntfs(copy) as kept, mounted_ntfs(full) as source:
        hashes = tree_hashes(source)
        assert len(hashes) > 200
        assert tree_hashes(kept) == hashes
        assert os.getxattr(kept / "streams/host.txt", "user.big") == noise(7, 0, 50_000)


def test_backup_boot_sector_and_tail(full: Path, tmp_path: Path) -> None:
    longer = copy_of(full, tmp_path / "longer")
    size = full.stat().st_size + 5 * MIB + 512
    os.truncate(longer, size)
    end = (full.stat().st_size // CLUSTER - 1) * CLUSTER
    assert space_of(longer).runs(end, size - end).tolist() == [[end, size]]
    assert not space_of(longer).warnings


def test_exact(full: Path) -> None:
    size = full.stat().st_size
    with FileReader(full) as reader:
        space = used_space(reader, exact=True, exclude=["*.bin"])
        assert is_whole(space, size)
        assert (space.file_system, space.label, space.cluster_size) == ("NTFS", "Daten 1", CLUSTER)
        assert space.free_clusters == used_space(reader).free_clusters
        assert not space.left_out


def test_windows_outside_the_volume(full: Path) -> None:
    space = space_of(full)
    size = full.stat().st_size
    assert space.runs(size, 0).shape == (0, 2)
    assert space.runs(5, 0).shape == (0, 2)
    for offset, length in ((-1, 2), (size, 1), (0, size + 1), (0, -1)):
        with pytest.raises(ValueError, match="outside"):
            space.runs(offset, length)


# what is left out


def test_paging_files_in_the_root_only(files: Path, tmp_path: Path) -> None:
    space = space_of(files)
    assert sorted(space.left_out) == ["HIBERFIL.SYS", "pagefile.sys", "swapfile.sys"]
    free = free_by_sleuthkit(files, "ntfs", CLUSTER)
    expected = set(np.flatnonzero(~free).tolist())
    for name in space.left_out:
        expected -= units_of(files, inode_of(files, name))
    assert units(space, files) == expected
    assert units_of(files, inode_of(files, "sub/pagefile.sys")) <= expected
    copy = keep_used(files, tmp_path / "copy", space)
    with mounted_ntfs(copy) as kept:
        for name in space.left_out:
            assert (kept / name).read_bytes() == bytes(100_000)
        assert (kept / "sub/pagefile.sys").read_bytes() == noise(3, 0, 100_000)


def test_paging_file_with_another_name_is_kept(files: Path, tmp_path: Path) -> None:
    volume = copy_of(files, tmp_path / "volume")
    with mounted_ntfs(volume) as root:
        os.link(root / "pagefile.sys", root / "mine.txt")
    assert sorted(space_of(volume).left_out) == ["HIBERFIL.SYS", "swapfile.sys"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.tmp"], {"c.tmp", "sub/a.tmp", "sub/deeper/B.TMP", "compressed/text.tmp", "both.tmp"}),
        (["/*.tmp"], {"c.tmp"}),
        (["sub/*.tmp"], {"sub/a.tmp"}),
        (["SUB/**"], {"sub/a.tmp", "sub/deeper/B.TMP", "sub/pagefile.sys", "sub/deeper/keep.txt",
                      "sub/list.tmp.txt"}),
        (["deeper"], {"sub/deeper/B.TMP", "sub/deeper/keep.txt"}),
        (["cache*"], {"Cache Files/inner/x.bin"}),
        (["GRÖSSE.*"], set()),
        (["größe.öl"], {"Größe.Öl"}),
        (["linked.*"], {"linked.tmp"}),
        (["GRÖßE.ö?"], {"Größe.Öl"}),
        (["$*", "$MFT", "$Bitmap", "$Extend", "."], set()),
        ([], set()),
    ],
)  # fmt: skip
def test_exclude(files: Path, tmp_path: Path, patterns: list[str], expected: set[str]) -> None:
    plain, space = space_of(files), space_of(files, exclude=tuple(patterns))
    assert not space.warnings
    other_names = {"linked.txt": "linked.tmp", "sub/again.tmp": "both.tmp"}
    left_out = set(space.left_out) - set(plain.left_out)
    assert {other_names.get(name, name) for name in left_out} == expected
    gone = set()
    for name in expected:
        gone |= units_of(files, inode_of(files, name))
    assert changed(space, plain, files) == gone
    copy = keep_used(files, tmp_path / "copy", space)
    run("ntfsfix", "-n", copy)
    with mounted_ntfs(copy) as kept, mounted_ntfs(files) as source:
        ours, theirs = tree_hashes(kept), tree_hashes(source)
        differ = {name for name in theirs if ours[name] != theirs[name]}
        others = {other for other, name in other_names.items() if name in expected}
        assert differ == expected | others | set(plain.left_out)
        assert os.getxattr(kept / "c.tmp", "user.stream") == noise(91, 0, 50_000)


def test_exclude_keeps_clusters_that_another_file_uses(files: Path, tmp_path: Path) -> None:
    volume = copy_of(files, tmp_path / "volume")
    source, target = inode_of(volume, "plain.bin"), inode_of(volume, "twin.bin")
    with FileReader(volume) as reader:
        mft = table(reader)
        mappings = [find(mft.record(n).attributes, AttributeType.DATA)[0].mapping for n in (source, target)]
    raw = bytes_at(volume, record_place(volume, target), 1024)
    assert raw.count(mappings[1]) == 1
    assert len(mappings[0]) == len(mappings[1])
    patch(volume, record_place(volume, target), raw.replace(mappings[1], mappings[0]))
    plain = space_of(volume)
    assert not changed(space_of(volume, exclude=("twin.bin",)), plain, volume)
    assert "twin.bin" not in space_of(volume, exclude=("twin.bin",)).left_out
    both = space_of(volume, exclude=("twin.bin", "plain.bin"))
    assert changed(both, plain, volume) == units_of(volume, source)


def test_exclude_nothing_where_a_record_is_damaged(files: Path, tmp_path: Path) -> None:
    volume = copy_of(files, tmp_path / "volume")
    place = record_place(volume, inode_of(volume, "plain.bin"))
    patch(volume, place + 510, b"\xff\xff")
    space = space_of(volume, exclude=("*.tmp",))
    assert len(space.warnings) == 1
    assert "no files are excluded" in space.warnings[0]
    assert len(space.left_out) == 3


# doubts


def test_dirty(files: Path, tmp_path: Path) -> None:
    volume = copy_of(files, tmp_path / "volume")
    run("ntfsfix", volume)
    space = space_of(volume, exclude=("*.tmp",))
    assert space.warnings == (
        "the volume is marked as dirty: it needs a check",
        "the volume is dirty: no files are excluded",
    )
    assert not space.left_out
    assert (used_map(space, volume.stat().st_size) == ~free_by_sleuthkit(volume, "ntfs", CLUSTER)).all()


def bitmap_attribute(volume: Path) -> int:
    """Return where the $DATA attribute of $Bitmap lies."""
    place = record_place(volume, 6)
    raw = bytes_at(volume, place, 1024)
    at = int.from_bytes(raw[20:22], "little")
    while struct.unpack_from("<I", raw, at)[0] != AttributeType.DATA:
        at += struct.unpack_from("<I", raw, at + 4)[0]
    return place + at


@pytest.mark.parametrize("field", [48, 56], ids=["size", "initialized"])
def test_bitmap_shorter_than_the_volume(files: Path, tmp_path: Path, field: int) -> None:
    volume = copy_of(files, tmp_path / "volume")
    place = bitmap_attribute(volume) + field
    (size,) = struct.unpack("<Q", bytes_at(volume, place, 8))
    patch(volume, place, struct.pack("<Q", size // 2))
    space = space_of(volume)
    assert is_whole(space, volume.stat().st_size)
    assert "$Bitmap has" in space.warnings[0]
    assert (space.file_system, space.free_clusters, space.left_out) == ("NTFS", 0, ())


def test_bitmap_of_zeros(files: Path, tmp_path: Path) -> None:
    volume = copy_of(files, tmp_path / "volume")
    start = min(units_of(volume, 6)) * UNIT
    for length in (1, 64):  # $Boot and $MFT; more
        patch(volume, start, bytes(length))
        space = space_of(volume)
        assert is_whole(space, volume.stat().st_size)
        assert "own files free" in space.warnings[0]


def test_bitmap_outside_the_volume_and_a_cut_volume(files: Path) -> None:
    with FileReader(files) as reader:
        cut = SliceReader(reader, 0, reader.size - MIB)
        space = used_space(cut)
        assert is_whole(space, cut.size)
        assert len(space.warnings) == 1


def test_damaged_table(files: Path, tmp_path: Path) -> None:
    for inode in (0, 3, 6):
        volume = copy_of(files, tmp_path / f"{inode}")
        patch(volume, record_place(volume, inode), b"BAAD")
        space = space_of(volume)
        assert is_whole(space, volume.stat().st_size)
        assert "BAAD" in space.warnings[0]


def test_read_errors_are_not_taken_for_damage(files: Path) -> None:
    start = min(units_of(files, 6)) * UNIT
    with FileReader(files) as reader, pytest.raises(ReadError):
        used_space(FailingReader(reader, start, start + 4096))
    place = record_place(files, 40)
    with FileReader(files) as reader, pytest.raises(ReadError):
        used_space(FailingReader(reader, place, place + 1), exclude=["*.tmp"])


def test_bad_clusters_are_not_read(files: Path, tmp_path: Path) -> None:
    volume = copy_of(files, tmp_path / "volume")
    free = np.flatnonzero(free_by_sleuthkit(volume, "ntfs", CLUSTER))
    bad = int(free[-1]) * UNIT // CLUSTER - 9  # it and the next one
    place = record_place(volume, 8)
    raw = bytearray(bytes_at(volume, place, 1024))
    at = struct.unpack_from("<H", raw, 20)[0]
    while struct.unpack_from("<I", raw, at)[0] != AttributeType.DATA or not raw[at + 9]:
        at += struct.unpack_from("<I", raw, at + 4)[0]
    (runs,) = struct.unpack_from("<H", raw, at + 32)
    total = struct.unpack_from("<Q", raw, at + 24)[0] + 1
    mapping = struct.pack("<BHBBHBH", 0x02, bad, 0x21, 2, bad, 0x02, total - bad - 2) + b"\0"
    attribute = bytes(raw[at : at + runs]) + mapping
    attribute += bytes(-len(attribute) % 8)
    attribute = attribute[:4] + struct.pack("<I", len(attribute)) + attribute[8:]
    end = at + len(attribute) + 8
    assert end < 510
    raw[at:end] = attribute + b"\xff\xff\xff\xff\0\0\0\0"
    struct.pack_into("<I", raw, 24, end)
    patch(volume, place, bytes(raw))
    bitmap = min(units_of(volume, 6)) * UNIT
    for cluster in (bad, bad + 1):
        (byte,) = bytes_at(volume, bitmap + cluster // 8, 1)
        patch(volume, bitmap + cluster // 8, bytes([byte | 1 << cluster % 8]))
    space = space_of(volume)
    assert not space.warnings
    assert units(space, volume) == units(space_of(files), files)
    assert space.free_clusters == space_of(files).free_clusters - 2
    allocated = ~free_by_sleuthkit(volume, "ntfs", CLUSTER)
    assert allocated[bad * CLUSTER // UNIT : (bad + 2) * CLUSTER // UNIT].all()
