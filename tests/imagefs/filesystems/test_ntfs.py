"""NTFS against what ntfs-3g shows of the same volume."""

import errno
import hashlib
import os
import random
import stat
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.tools import MissingToolError, fuse_mount, run
from formats.blockreader import BlockReader, BytesReader, FileReader
from formats.errors import DamagedBlockError, DamagedError, FormatError, UnsupportedError
from imagefs.filesystems import FileSystem, open_file_system
from imagefs.filesystems.names import decode_name
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import IN_USE, parse_record
from imagefs.filesystems.ntfs.quick import quick_node
from imagefs.filesystems.runs import Run, RunsReader
from imagefs.readahead import ReadAheadHandle
from mounters.tree import NodeType


class FailingReader(BlockReader):
    """A reader that fails where ``bad`` says so, as a damaged block does."""

    def __init__(self, lower: BlockReader, *bad: tuple[int, int]) -> None:
        super().__init__(lower.size)
        self.lower = lower
        self.bad = list(bad)

    def _read(self, offset: int, length: int) -> bytes:
        for start, size in self.bad:
            if offset < start + size and start < offset + length:
                raise DamagedBlockError("bad hash", path=Path("x.mrimgx"), partition="disk1/p1", block=start)
        return self.lower.read_at(offset, length)


def pattern(seed: int, size: int) -> bytes:
    """Return bytes that differ at every position."""
    return random.Random(seed).randbytes(size)


def text(lines: int) -> bytes:
    """Return bytes that compress well and still differ by position."""
    return b"".join(b"line %d of a text that repeats itself %d\n" % (n, n * n % 977) for n in range(lines))


REPARSE_POINTS = (
    ("wsl link", 0xA000001D, struct.pack("<I", 2) + "ä/b".encode()),
    ("wof", 0x80000017, struct.pack("<IIII", 1, 2, 1, 0)),
    ("cloud", 0x9000601A, bytes(16)),
)


def fill_ntfs(root: Path) -> None:
    (root / "resident.txt").write_bytes(b"hello world\n")
    (root / "empty").write_bytes(b"")
    (root / "plain.bin").write_bytes(pattern(1, 3_000_001))
    for name in ("sparse.bin", "tail.bin"):
        with (root / name).open("wb") as file:
            if name == "sparse.bin":
                file.seek(5_000_000)
            file.write(pattern(2, 70_000))
            file.truncate(9_000_000)
    fragments(root)
    with (root / "scattered.bin").open("wb") as file:  # more runs than a record holds
        for number in range(300):
            file.seek(number * 70_000)
            file.write(pattern(number, 1000))
    compressed = root / "compressed"
    compressed.mkdir()
    os.setxattr(compressed, "system.ntfs_attrib_be", (0x810).to_bytes(4, "big"))
    (compressed / "text.txt").write_bytes(text(30_000))
    (compressed / "random.bin").write_bytes(pattern(3, 500_000))
    (compressed / "mixed.bin").write_bytes(text(3000) + pattern(4, 200_000) + bytes(300_000) + text(99))
    with (compressed / "holes.bin").open("wb") as file:
        file.write(text(4000))
        file.seek(2_000_000)
        file.write(text(5000))
    folder = root / "folder"
    folder.mkdir()
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_bytes(pattern(5, 4097))
    os.link(root / "plain.bin", folder / "hard link")
    (folder / "relative").symlink_to("../resident.txt")
    (folder / "absolute").symlink_to("/somewhere/else/ä")
    reparse = root / "reparse"
    reparse.mkdir()
    for name, tag, data in REPARSE_POINTS:
        (reparse / name).write_bytes(b"")
        value = struct.pack("<IHH", tag, len(data), 0) + data
        os.setxattr(reparse / name, "system.ntfs_reparse_data", value)
    names = root / "names"
    names.mkdir()
    for name in (
        "n" * 255,
        "😀" * 127,
        "ä ö ü",
        "Case",
        "case",
        "CASE",
        "trailing.",
        "semi;colon",
        "日本語.txt",
        "\x01",
    ):
        (names / name).write_bytes(name.encode())
    many = root / "many"
    many.mkdir()
    for number in range(3000):
        (many / f"file number {number:05}.dat").write_bytes(b"%d" % number)
    for number in range(0, 3000, 3):
        (many / f"file number {number:05}.dat").unlink()
    listed = root / "names" / "many links"
    listed.write_bytes(pattern(6, 100_000))
    for number in range(40):  # more names than a record holds: an attribute list
        os.link(listed, names / f"another rather long name of the same file {number:03}")
    for name, time in (("empty", -(10**9) * 86400 * 365 * 30 + 700), ("resident.txt", 1234567890_1234567_00)):
        os.utime(root / name, ns=(time, time))
    os.utime(root / "tail.bin", ns=(0, 4_300_000_000_000_000_100))


def fragments(root: Path) -> None:
    """Write two files in turns, so that neither lies in one piece, nor its runs in one record."""
    for name in ("fragmented.bin", "filler.bin"):
        (root / name).write_bytes(b"")
    for number in range(900):
        for name in ("fragmented.bin", "filler.bin"):
            with (root / name).open("ab") as file:
                file.write(pattern(number, 4096 * (1 + number % 3)))
                file.flush()
                os.fsync(file.fileno())


@pytest.fixture(scope="module")
def ntfs_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an NTFS volume with every kind of file that ntfs-3g writes."""
    folder = tmp_path_factory.mktemp("ntfs")
    image, mount = folder / "ntfs.img", folder / "mnt"
    with image.open("wb") as file:
        file.truncate(200 << 20)
    try:
        run("mkntfs", "-q", "-F", "-f", "-L", "Größe 😀", image)
        with fuse_mount(mount, "ntfs-3g", "-o", "no_detach,compression", image, mount) as root:
            fill_ntfs(root)
    except MissingToolError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    return image


@pytest.fixture(scope="module")
def ntfs_mount(ntfs_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount the volume with ntfs-3g."""
    folder = tmp_path_factory.mktemp("ntfs3g") / "mnt"
    with fuse_mount(folder, "ntfs-3g", "-o", "no_detach,ro,norecover", ntfs_image, folder) as root:
        yield root


@pytest.fixture
def volume(ntfs_image: Path) -> Iterator[NtfsFileSystem]:
    with FileReader(ntfs_image) as reader:
        opened = open_file_system(reader)
        assert isinstance(opened, NtfsFileSystem)
        yield opened


def resolve(volume: FileSystem, path: str) -> int:
    inode = volume.root
    for name in path.split("/"):
        inode = volume.lookup(inode, name)
    return inode


def walk(volume: FileSystem, inode: int, path: str = "") -> Iterator[tuple[str, int]]:
    for entry, attributes in volume.entries_with_attributes(inode):
        assert attributes is not None
        assert entry.type is attributes.type
        assert entry.inode == attributes.inode
        yield path + entry.name, entry.inode
        if entry.type is NodeType.DIRECTORY:
            yield from walk(volume, entry.inode, path + entry.name + "/")


def test_names_the_volume(volume: NtfsFileSystem) -> None:
    assert (volume.kind, volume.label, volume.block_size) == ("NTFS", "Größe 😀", 4096)


def test_same_names(volume: NtfsFileSystem, ntfs_mount: Path) -> None:
    theirs = sorted(str(path.relative_to(ntfs_mount)) for path in ntfs_mount.rglob("*"))
    assert sorted(path for path, _ in walk(volume, volume.root)) == theirs


def test_same_attributes(volume: NtfsFileSystem, ntfs_mount: Path) -> None:
    for path, inode in walk(volume, volume.root):
        if path.startswith("reparse/"):
            continue  # ntfs-3g shows these as unsupported
        if path == "folder/absolute":
            continue  # it leads out of the volume; see test_links
        ours, theirs = volume.attributes(inode), (ntfs_mount / path).lstat()
        assert ours.inode == theirs.st_ino, path
        assert (ours.type is NodeType.DIRECTORY) == stat.S_ISDIR(theirs.st_mode), path
        assert (ours.type is NodeType.LINK) == stat.S_ISLNK(theirs.st_mode), path
        assert ours.size == theirs.st_size or ours.type is NodeType.DIRECTORY, path
        assert ours.links == theirs.st_nlink, path
        if path != "empty":  # before 1970 ntfs-3g drops the fraction
            assert ours.modified == theirs.st_mtime_ns, path
            assert ours.accessed == theirs.st_atime_ns, path
        assert ours.changed == theirs.st_ctime_ns, path
        if ours.type is NodeType.FILE:
            assert ours.allocated == theirs.st_blocks * 512 or ours.size < 1024, path


def test_times_are_exact(volume: NtfsFileSystem) -> None:
    assert volume.attributes(resolve(volume, "empty")).modified == -(10**9) * 86400 * 365 * 30 + 700
    assert volume.attributes(resolve(volume, "resident.txt")).modified == 1234567890_1234567_00
    assert volume.attributes(resolve(volume, "tail.bin")).modified == 4_300_000_000_000_000_100


def test_same_bytes_and_links(volume: NtfsFileSystem, ntfs_mount: Path) -> None:
    for path, inode in walk(volume, volume.root):
        kind = volume.attributes(inode).type
        if path.startswith("reparse/") or path == "folder/absolute":
            continue
        if kind is NodeType.LINK:
            assert volume.read_link(inode) == str((ntfs_mount / path).readlink())
        elif kind is NodeType.FILE:
            reader = volume.open(inode)
            theirs = (ntfs_mount / path).read_bytes()
            assert (
                hashlib.sha256(reader.read_at(0, reader.size)).digest() == hashlib.sha256(theirs).digest()
            ), path


FILES = [
    "plain.bin",
    "sparse.bin",
    "tail.bin",
    "fragmented.bin",
    "scattered.bin",
    "resident.txt",
    "compressed/text.txt",
    "compressed/random.bin",
    "compressed/mixed.bin",
    "compressed/holes.bin",
    "names/many links",
]


@pytest.mark.parametrize("path", FILES)
def test_random_reads(volume: NtfsFileSystem, ntfs_mount: Path, path: str) -> None:
    content = (ntfs_mount / path).read_bytes()
    reader = volume.open(resolve(volume, path))
    assert reader.size == len(content)
    generator = random.Random(path)
    for _ in range(500):
        offset = generator.choice(
            (generator.randrange(len(content)), generator.randrange(0, len(content), 4096))
        )
        offset = max(0, min(len(content), offset + generator.choice((0, 0, -1, 1))))
        length = min(len(content) - offset, generator.choice((1, 100, 4096, 5000, 70_000)))
        assert reader.read_at(offset, length) == content[offset : offset + length]


@pytest.mark.parametrize("path", FILES)
def test_holes_are_zeros(volume: NtfsFileSystem, path: str) -> None:
    reader = volume.open(resolve(volume, path))
    end = 0
    for extent in reader.extents():
        assert extent.offset == end
        end = extent.end
        if not extent.is_data:
            assert not any(reader.read_at(extent.offset, extent.length))
    assert end == reader.size
    stored = sum(extent.length for extent in reader.extents() if extent.is_data)
    assert path not in ("sparse.bin", "tail.bin") or 70_000 <= stored < 200_000


def test_quick_attributes_are_the_parsed_ones(volume: NtfsFileSystem) -> None:
    compared = 0
    for number in range(volume._mft.data.size // volume._mft.record_size):
        raw = volume._mft.raw_record(number)
        if raw[:4] != b"FILE":
            continue
        quick = quick_node(raw, number, volume._owners)
        if quick is not None:
            compared += 1
            assert quick == volume._record_nodes._of_record(parse_record(raw, number))
    assert compared > 2000


def test_hidden_files_are_found(volume: NtfsFileSystem) -> None:
    names = {entry.name for entry in volume.entries(volume.root)}
    assert not names & {"$MFT", "$Bitmap", "$Extend", ".", "..", "$OrphanFiles"}
    inode = volume.lookup(volume.root, "$MFT")
    assert inode == 0
    reader = volume.open(inode)
    assert reader.read_at(0, 4) == b"FILE"


def test_names_are_compared_exactly_first(volume: NtfsFileSystem) -> None:
    names = resolve(volume, "names")
    assert len({volume.lookup(names, name) for name in ("Case", "case", "CASE")}) == 3
    assert volume.lookup(names, "cAse") == volume.lookup(names, "CASE")  # the first of the three
    for name in ("", "ä ö"):
        with pytest.raises(FileNotFoundError):
            volume.lookup(names, name)


def test_wrong_kinds(volume: NtfsFileSystem) -> None:
    file, folder = resolve(volume, "plain.bin"), resolve(volume, "folder")
    with pytest.raises(NotADirectoryError):
        volume.entries(file)
    with pytest.raises(IsADirectoryError):
        volume.open(folder)
    with pytest.raises(OSError, match="Invalid") as caught:
        volume.read_link(file)
    assert caught.value.errno == errno.EINVAL


def test_reparse_points(volume: NtfsFileSystem) -> None:
    folder = resolve(volume, "reparse")
    types = {entry.name: entry.type for entry in volume.entries(folder)}
    assert types == {
        "wsl link": NodeType.LINK,
        "wof": NodeType.FILE,
        "cloud": NodeType.FILE,
    }
    assert volume.read_link(volume.lookup(folder, "wsl link")) == "ä/b"
    with pytest.raises(DamagedError, match=r"WOF.*0x80000017.*no stream WofCompressedData"):
        volume.open(volume.lookup(folder, "wof"))
    assert volume.open(volume.lookup(folder, "cloud")).size == 0


@pytest.mark.parametrize("path", ["scattered.bin", "names/many links"])
def test_attribute_lists_are_read_through(volume: NtfsFileSystem, path: str) -> None:
    record = volume._mft.record(resolve(volume, path))
    assert any(attribute.type == 0x20 for attribute in record.attributes)


@pytest.mark.parametrize(("sector", "cluster"), [(512, 512), (512, 65536), (4096, 4096), (512, 1 << 18)])
def test_other_sector_and_cluster_sizes(tmp_path: Path, sector: int, cluster: int) -> None:
    image, mount = tmp_path / "ntfs.img", tmp_path / "mnt"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    content = {f"folder/file {n}": pattern(n, n * 997) for n in range(300)}
    try:
        run("mkntfs", "-q", "-F", "-f", "-s", str(sector), "-c", str(cluster), image)
        with fuse_mount(mount, "ntfs-3g", "-o", "no_detach,compression", image, mount) as root:
            (root / "folder").mkdir()
            if cluster <= 4096:
                os.setxattr(root / "folder", "system.ntfs_attrib_be", (0x810).to_bytes(4, "big"))
            for name, data in content.items():
                (root / name).write_bytes(data)
    except MissingToolError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with FileReader(image) as reader:
        volume = open_file_system(reader, sector)
        assert volume is not None
        assert volume.block_size == cluster
        assert {name for name, _ in walk(volume, volume.root)} == {*content, "folder"}
        for name, data in content.items():
            opened = volume.open(resolve(volume, name))
            assert opened.read_at(0, opened.size) == data


def test_lone_surrogates_survive() -> None:
    raw = "a".encode("utf-16-le") + b"\x00\xd8" + "😀".encode("utf-16-le")
    name = decode_name(raw)
    assert os.fsencode(name) == b"a\xed\xa0\x80" + "😀".encode()


def test_threads(ntfs_image: Path, ntfs_mount: Path) -> None:
    digests = {path: hashlib.sha256((ntfs_mount / path).read_bytes()).digest() for path in FILES}
    with FileReader(ntfs_image) as reader:
        volume = open_file_system(reader)
        assert volume is not None

        def work(seed: int) -> None:
            generator = random.Random(seed)
            for path in generator.sample(FILES, len(FILES)):
                file = volume.open(resolve(volume, path))
                data = b"".join(
                    file.read_at(at, min(50_000, file.size - at)) for at in range(0, file.size, 50_000)
                )
                assert hashlib.sha256(data).digest() == digests[path]
                assert len(volume.entries(resolve(volume, "many"))) == 2000

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))


def test_threads_while_some_reads_fail(ntfs_image: Path, ntfs_mount: Path) -> None:
    """Compressed files and others, all read ahead: right bytes or the error."""
    names = [path for path in FILES if path.startswith("compressed/")] + ["plain.bin", "fragmented.bin"]
    contents = {path: (ntfs_mount / path).read_bytes() for path in names}
    with FileReader(ntfs_image) as lower:
        failing = FailingReader(lower)
        volume = open_file_system(failing)
        assert volume is not None
        inodes = {path: resolve(volume, path) for path in names}
        data = [a for a in volume._mft.attributes(volume._mft.record(inodes["plain.bin"])) if a.type == 0x80]  # type: ignore[attr-defined]
        start = next(iter(volume._mft._runs(data, ""))).start  # type: ignore[attr-defined]

        def work(seed: int) -> int:
            generator = random.Random(seed)
            failed = 0
            for _ in range(30):
                path = generator.choice(names)
                if seed == 0:  # one place fails, then another one, then none
                    failing.bad = generator.choice(
                        ([], [(start, 1 << 20)], [(generator.randrange(lower.size), 1 << 24)])
                    )
                try:
                    with ReadAheadHandle(volume.open(inodes[path])) as handle:
                        for at in range(0, handle.size, 131_072):
                            assert handle.read(at, 131_072) == contents[path][at : at + 131_072]
                except DamagedBlockError:
                    failed += 1
            return failed

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(work, range(8))) > 0


# damage


def patched(image: Path, inode: int, change: Callable[[bytearray], None]) -> FileSystem:
    """Return the volume with one file record changed, its fixups kept."""
    data = bytearray(image.read_bytes())
    with FileReader(image) as reader:
        volume = NtfsFileSystem(reader)
        at = next(
            run[2] + inode % 4 * 1024
            for run in volume._mft.data.parts(inode // 4 * 4096, 4096)  # type: ignore[attr-defined]
        )
    record = bytearray(data[at : at + 1024])
    place = struct.unpack_from("<H", record, 4)[0]
    for sector in (1, 2):
        record[sector * 512 - 2 : sector * 512] = record[place + 2 * sector : place + 2 * sector + 2]
    change(record)
    for sector in (1, 2):
        record[place + 2 * sector : place + 2 * sector + 2] = record[sector * 512 - 2 : sector * 512]
        record[sector * 512 - 2 : sector * 512] = record[place : place + 2]
    data[at : at + 1024] = record
    opened = open_file_system(BytesReader(bytes(data)))
    assert opened is not None
    return opened


def data_attribute(record: bytearray) -> int:
    position = struct.unpack_from("<H", record, 20)[0]
    while struct.unpack_from("<I", record, position)[0] != 0x80:
        position += struct.unpack_from("<I", record, position + 4)[0]
    return int(position)


def test_bytes_beyond_the_valid_length_are_zeros(volume: NtfsFileSystem, ntfs_image: Path) -> None:
    inode = resolve(volume, "plain.bin")
    content = volume.open(inode).read_at(0, 3_000_001)

    def shorten(record: bytearray) -> None:
        struct.pack_into("<Q", record, data_attribute(record) + 56, 1_000_123)

    reader = patched(ntfs_image, inode, shorten).open(inode)
    assert reader.read_at(0, reader.size) == content[:1_000_123] + bytes(3_000_001 - 1_000_123)
    assert [extent.length for extent in reader.extents()] == [1_000_123, 3_000_001 - 1_000_123]


def test_runs_before_the_volume(volume: NtfsFileSystem, ntfs_image: Path) -> None:
    inode = resolve(volume, "plain.bin")

    def displace(record: bytearray) -> None:
        at = data_attribute(record)
        run = at + struct.unpack_from("<H", record, at + 32)[0]
        record[run + (record[run] & 15) + (record[run] >> 4)] = 0x80

    broken = patched(ntfs_image, inode, displace)
    with pytest.raises(DamagedError, match="before the volume"):
        broken.open(inode)


def test_runs_outside_the_volume() -> None:
    volume = BytesReader(bytes(10_000))
    with pytest.raises(DamagedError, match="outside the volume"):
        RunsReader(volume, [Run(4096, 0), Run(4096, 8192)], 8192)
    assert RunsReader(volume, [Run(4096, 0), Run(4096, 8192)], 4096 + 1808).size == 5904
    with pytest.raises(DamagedError, match="have a place"):
        RunsReader(volume, [Run(4096, 0)], 4097)


def test_runs_holes_and_what_was_never_written() -> None:
    volume = BytesReader(bytes(range(256)) * 40)
    reader = RunsReader(volume, [Run(100, 50), Run(100, None), Run(100, 5000)], 300, initialized=250)
    expected = volume.read_at(50, 100) + bytes(100) + volume.read_at(5000, 50) + bytes(50)
    assert reader.read_at(0, 300) == expected


def test_size_beyond_the_runs(volume: NtfsFileSystem, ntfs_image: Path) -> None:
    inode = resolve(volume, "plain.bin")

    def grow(record: bytearray) -> None:
        struct.pack_into("<QQ", record, data_attribute(record) + 48, 3_100_000, 3_100_000)

    broken = patched(ntfs_image, inode, grow)
    with pytest.raises(DamagedError, match="have a place"):
        broken.open(inode)


def test_encrypted(volume: NtfsFileSystem, ntfs_image: Path) -> None:
    inode = resolve(volume, "plain.bin")

    def encrypt(record: bytearray) -> None:
        struct.pack_into("<H", record, data_attribute(record) + 12, 0x4000)

    broken = patched(ntfs_image, inode, encrypt)
    with pytest.raises(UnsupportedError, match="encrypted by EFS"):
        broken.open(inode)


def test_a_name_of_another_file(volume: NtfsFileSystem, ntfs_image: Path) -> None:
    inode = resolve(volume, "plain.bin")

    def reuse(record: bytearray) -> None:
        struct.pack_into("<H", record, 16, 99)

    broken = patched(ntfs_image, inode, reuse)
    with pytest.raises(DamagedError, match="another file"):
        resolve(broken, "plain.bin")
    assert resolve(broken, "tail.bin")
    listed = {
        entry.name: (entry.inode, known) for entry, known in broken.entries_with_attributes(broken.root)
    }
    number, known = listed.pop("plain.bin")
    assert known is None
    assert all(known for _, known in listed.values())
    with pytest.raises(DamagedError, match=f"file record {inode} has become another"):
        broken.attributes(number)  # never those of the file that has the record now


def test_torn_record(volume: NtfsFileSystem, ntfs_image: Path) -> None:
    inode = resolve(volume, "tail.bin")
    data = bytearray(ntfs_image.read_bytes())
    at = next(p[2] for p in volume._mft.data.parts(inode * 1024, 1024))  # type: ignore[attr-defined]
    data[at + 511] ^= 1
    broken = open_file_system(BytesReader(bytes(data)))
    assert broken is not None
    with pytest.raises(DamagedError, match=f"file record {inode}"):
        resolve(broken, "tail.bin")
    assert resolve(broken, "plain.bin")
    assert "tail.bin" in [entry.name for entry in broken.entries(broken.root)]
    listed = {entry.name: known for entry, known in broken.entries_with_attributes(broken.root)}
    assert [name for name, known in listed.items() if known is None] == ["tail.bin"]
    with pytest.raises(DamagedError, match=f"file record {inode}"):
        broken.attributes(inode)


def test_unreadable_ranges(ntfs_image: Path) -> None:
    with FileReader(ntfs_image) as lower:
        sound = NtfsFileSystem(lower)
        many = resolve(sound, "many")
        attributes = sound._mft.attributes(sound._mft.record(many))
        index = next(a for a in attributes if a.type == 0xA0)
        start = next(iter(sound._mft._runs([index], ""))).start
        assert start is not None
        file = sound.open(resolve(sound, "fragmented.bin"))
        middle = next(part[2] for part in file.parts(file.size // 2, 1))  # type: ignore[attr-defined]
        packed = sound.open(resolve(sound, "compressed/text.txt"))
        assert isinstance(packed, BlockReader)
        broken = open_file_system(FailingReader(lower, (start, 1), (middle, 1)))
        assert broken is not None
        assert sorted(broken.entries(many)) == sorted(sound.entries(many))  # from $MFT
        assert broken.lookup(many, "file number 00001.dat") == sound.lookup(many, "file number 00001.dat")
        records = sound._mft.data.place(resolve(sound, "plain.bin") * 1024)  # type: ignore[attr-defined]
        worse = open_file_system(FailingReader(lower, (start, 1), (records, 1)))
        assert worse is not None
        with pytest.raises(DamagedBlockError):
            worse.entries(many)
        reader = broken.open(resolve(broken, "fragmented.bin"))
        with pytest.raises(DamagedBlockError):
            reader.read_at(file.size // 2, 1)
        assert reader.read_at(0, 5000) == file.read_at(0, 5000)
        good = broken.open(resolve(broken, "plain.bin"))
        assert good.read_at(0, good.size) == sound.open(resolve(sound, "plain.bin")).read_at(0, good.size)


def test_unreadable_compressed_data(ntfs_image: Path) -> None:
    with FileReader(ntfs_image) as lower:
        sound = NtfsFileSystem(lower)
        inode = resolve(sound, "compressed/text.txt")
        data = [a for a in sound._mft.attributes(sound._mft.record(inode)) if a.type == 0x80]
        start = next(iter(sound._mft._runs(data, ""))).start
        assert start is not None
        content = sound.open(inode)
        failing = FailingReader(lower)
        broken = open_file_system(failing)
        assert broken is not None
        reader = broken.open(inode)
        failing.bad.append((start, 1))
        with pytest.raises(DamagedBlockError):
            reader.read_at(0, 10)
        failing.bad.clear()  # a failed read is not remembered as data
        assert reader.read_at(0, 100_000) == content.read_at(0, 100_000)


def test_every_record_is_parsed_or_free(volume: NtfsFileSystem) -> None:
    for number in range(volume._mft.data.size // 1024):
        raw = volume._mft.raw_record(number)
        if raw[:4] == b"FILE" and parse_record(raw, number).flags & IN_USE and number >= 24:
            with pytest.raises(FormatError) if parse_record(raw, number).base else _nothing():
                volume.attributes(number)


class _nothing:  # noqa: N801
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
