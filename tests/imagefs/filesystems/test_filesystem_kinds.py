"""FAT, exFAT, ext and ISO 9660 volumes made by their own tools, against what was written to them."""

import hashlib
import os
import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from fixtures.partition_tables import BuiltPartition, Volume
from fixtures.tools import MissingToolError, run
from fixtures.volumes import exfat_volume, ext_volume, fat_volume, ntfs_volume
from formats.blockreader import BlockReader, BytesReader, FileReader
from formats.errors import DamagedBlockError, DamagedError
from imagefs.filesystems import FileSystem, open_file_system
from imagefs.filesystems.base import CachedFileSystem
from mounters.tree import Attributes, NodeType
from tests.imagefs.built import as_shown, expected_target

KINDS = ("NTFS", "FAT12", "FAT16", "FAT32", "exFAT", "ext2", "ext3", "ext4")


def build(kind: str, folder: Path) -> Volume:
    if kind == "NTFS":
        return ntfs_volume(folder, fragments=0)
    if kind == "exFAT":
        return exfat_volume(folder)
    return fat_volume(folder, kind) if kind.startswith("FAT") else ext_volume(folder, kind)


Made = TypeVar("Made")


def needed(make: Callable[[], Made]) -> Made:
    try:
        return make()
    except MissingToolError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    kind: str = request.param
    return needed(lambda: build(kind, tmp_path_factory.mktemp(kind)))


def image_of(built: Volume) -> Path:
    assert built.path is not None
    return built.path


def written(built: Volume) -> BuiltPartition:
    assert built.contents is not None
    return as_shown(built.contents)


@pytest.fixture
def volume(built: Volume) -> Iterator[FileSystem]:
    with FileReader(image_of(built)) as reader:
        opened = open_file_system(reader)
        assert opened is not None
        yield opened


def resolve(volume: FileSystem, path: str) -> int:
    inode = volume.root
    for name in path.split("/"):
        inode = volume.lookup(inode, name)
    return inode


def walk(volume: FileSystem, inode: int, path: str = "") -> Iterator[tuple[str, Attributes]]:
    for entry, attributes in volume.entries_with_attributes(inode):
        assert attributes is not None
        assert entry.type is attributes.type
        yield path + entry.name, attributes
        if entry.type is NodeType.DIRECTORY:
            yield from walk(volume, entry.inode, path + entry.name + "/")


def contents(reader: BlockReader) -> bytes:
    return reader.read_at(0, reader.size)


def sha256(reader: BlockReader) -> str:
    return hashlib.sha256(contents(reader)).hexdigest()


def is_mangled(path: str) -> bool:
    """Whether mtools writes this name wrong: it cuts characters to 16 bits."""
    return any(ord(character) > 0xFFFF for character in path)


def test_names_the_volume(built: Volume, volume: FileSystem) -> None:
    assert (volume.kind, volume.label) == (built.kind, built.label)
    assert volume.attributes(volume.root).type is NodeType.DIRECTORY


def test_shows_what_was_written(built: Volume, volume: FileSystem) -> None:
    found = dict(walk(volume, volume.root))
    is_fat = built.kind.startswith("FAT")
    for kind, paths in ((NodeType.FILE, written(built).files), (NodeType.LINK, written(built).links)):
        shown = {path for path, node in found.items() if node.type is kind}
        if is_fat:
            assert len(shown) == len(paths)
            assert {path for path in paths if not is_mangled(path)} <= shown
        else:
            assert shown == set(paths)


def test_same_bytes(built: Volume, volume: FileSystem) -> None:
    for path, digest in written(built).files.items():
        if not (built.kind.startswith("FAT") and is_mangled(path)):
            assert sha256(volume.open(resolve(volume, path))) == digest, path


def test_same_links(built: Volume, volume: FileSystem) -> None:
    for path, target in written(built).links.items():
        inode = resolve(volume, path)
        assert volume.read_link(inode) == expected_target(target), path


def test_holes(built: Volume, volume: FileSystem) -> None:
    for path, holes in written(built).holes.items():
        inode = resolve(volume, path)
        extents = list(volume.open(inode).extents())
        assert next(extent.offset for extent in extents if not extent.is_data) == holes[0][0]
        allocated = volume.attributes(inode).allocated
        assert allocated is not None
        assert allocated < volume.attributes(inode).size // 10


def test_times(built: Volume, volume: FileSystem) -> None:
    is_ext = built.kind.startswith("ext")
    step = 10**9 if is_ext and not has_nanoseconds(built, "sizes/0.bin") else 1
    for path, given in written(built).times.items():
        if path == "names/plain.txt" and built.kind == "NTFS":
            continue  # written once more after its time was set
        if is_mangled(path) and built.kind.startswith("FAT"):
            continue
        found = volume.attributes(resolve(volume, path)).modified
        assert found == given // step * step, path


def has_nanoseconds(built: Volume, path: str) -> bool:
    """Whether the volume has more than whole seconds of times, as debugfs sees it."""
    assert built.path is not None
    told = run("debugfs", "-R", f"stat {path}", built.path).decode()
    found = re.search(r"mtime: 0x[0-9a-f]+:([0-9a-f]+)", told)
    return found is not None and int(found[1], 16) >> 2 > 0


@pytest.mark.parametrize("path", ["big.bin", "sizes/65537.bin", "sizes/600.bin"])
def test_random_reads(built: Volume, volume: FileSystem, path: str) -> None:
    reader = volume.open(resolve(volume, path))
    content = contents(reader)
    assert hashlib.sha256(content).hexdigest() == written(built).files[path]
    generator = random.Random(path)
    for _ in range(500):
        offset = generator.choice(
            (generator.randrange(len(content)), generator.randrange(0, len(content), 512))
        )
        length = min(len(content) - offset, generator.choice((1, 511, 4097, 70_000)))
        assert reader.read_at(offset, length) == content[offset : offset + length]


def test_threads(built: Volume) -> None:
    paths = [path for path in written(built).files if not is_mangled(path)]
    with FileReader(image_of(built)) as reader:
        volume = open_file_system(reader)
        assert volume is not None

        def work(seed: int) -> None:
            for path in random.Random(seed).sample(paths, 60):
                assert sha256(volume.open(resolve(volume, path))) == written(built).files[path]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))


class FailingReader(BlockReader):
    """Fails where told to, as a damaged block does."""

    def __init__(self, lower: BlockReader) -> None:
        super().__init__(lower.size)
        self.lower = lower
        self.bad = range(0)
        self.reads: list[tuple[int, int]] = []

    def _read(self, offset: int, length: int) -> bytes:
        if offset < self.bad.stop and self.bad.start < offset + length:
            raise DamagedBlockError("bad hash", path=Path("x.mrimgx"), partition="disk1/p1", block=0)
        self.reads.append((offset, length))
        return self.lower.read_at(offset, length)


def test_an_unreadable_directory_is_damage(built: Volume) -> None:
    """Fail every read but those of opening: a lookup must raise what the reader raised."""
    with FileReader(image_of(built)) as lower:
        failing = FailingReader(lower)
        volume = open_file_system(failing)
        assert volume is not None
        volume.entries(volume.root)
        failing.bad = range(lower.size)
        seen = {offset for offset, _ in failing.reads}
        caught = 0
        for name in ("many", "deep", "names", "sizes"):
            try:
                inode = volume.lookup(volume.root, name)
                listed = len(volume.entries(inode))
            except DamagedBlockError:
                caught += 1
            else:  # it was in a cache: then it must be whole
                assert listed == len(
                    {p.split("/")[1] for p in written(built).files if p.startswith(name + "/")}
                )
        assert caught or len(seen) < 10


def test_unreadable_data(built: Volume) -> None:
    with FileReader(image_of(built)) as lower:
        failing = FailingReader(lower)
        volume = open_file_system(failing)
        assert volume is not None
        inode = resolve(volume, "big.bin")
        reader = volume.open(inode)
        failing.reads.clear()
        expected = reader.read_at(1_000_000 % reader.size, 1)
        ((offset, _),) = failing.reads
        failing.bad = range(offset, offset + 1)
        with pytest.raises(DamagedBlockError):
            reader.read_at(1_000_000 % reader.size, 1)
        assert reader.read_at(0, 512)
        failing.bad = range(0)
        assert reader.read_at(1_000_000 % reader.size, 1) == expected


# what single kinds have


def test_times_do_not_hang_on_the_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = needed(lambda: fat_volume(tmp_path, "FAT12", many=5))
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        with FileReader(image_of(built)) as reader:
            volume = open_file_system(reader)
            assert volume is not None
            found = volume.attributes(resolve(volume, "big.bin")).modified
        assert found == written(built).times["big.bin"]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_exfat_valid_length(tmp_path: Path) -> None:
    built = needed(lambda: exfat_volume(tmp_path, many=5))
    data = bytearray(image_of(built).read_bytes())
    volume = open_file_system(BytesReader(bytes(data)))
    assert isinstance(volume, CachedFileSystem)
    inode = resolve(volume, "big.bin")
    content = contents(volume.open(inode))
    (heap,) = struct.unpack_from("<I", data, 88)
    at = (heap << data[108]) + (inode - 3) * 32
    struct.pack_into("<Q", data, at + 32 + 8, 100_001)
    with pytest.raises(DamagedError, match="sum"):
        reopened = open_file_system(BytesReader(bytes(data)))
        assert reopened is not None
        reopened.open(inode)
    total = 0
    for index, byte in enumerate(data[at : at + 32 * (1 + data[at + 1])]):
        if index not in (2, 3):
            total = (((total & 1) << 15) + (total >> 1) + byte) & 0xFFFF
    struct.pack_into("<H", data, at + 2, total)
    reopened = open_file_system(BytesReader(bytes(data)))
    assert reopened is not None
    assert contents(reopened.open(inode)) == content[:100_001] + bytes(len(content) - 100_001)


def test_fat_directories_end_at_their_mark_and_are_whole(tmp_path: Path) -> None:
    built = needed(lambda: fat_volume(tmp_path, "FAT16", many=40))
    data = bytearray(image_of(built).read_bytes())
    volume = open_file_system(BytesReader(bytes(data)))
    assert volume is not None
    folder = volume.lookup(volume.root, "many")
    names = [entry.name for entry in volume.entries(folder)]
    assert len(names) == 40
    reserved, root_entries, length = (struct.unpack_from("<H", data, at)[0] for at in (14, 17, 22))
    start = (reserved + 2 * length) * 512
    assert root_entries
    last = start + (volume.lookup(folder, names[-1]) - 3) * 32
    while data[last - 32 + 11] == 0x0F:
        last -= 32
    data[last] = 0  # the end mark: the entries of one file stay behind it
    reopened = open_file_system(BytesReader(bytes(data)))
    assert reopened is not None
    assert [entry.name for entry in reopened.entries(folder)] == names[:-1]
    first = start + (volume.lookup(folder, names[0]) - 3) * 32
    data[first + 1 : first + 3] = b"\x01\x02"  # characters that no short name has
    broken = open_file_system(BytesReader(bytes(data)))
    assert broken is not None
    with pytest.raises(DamagedError, match="an entry with the name"):
        broken.entries(folder)


def make_ext(folder: Path, *features: str, commands: str = "", block: int = 1024) -> FileSystem:
    source = folder / "source"
    (source / "folder").mkdir(parents=True)
    (source / "small").write_bytes(b"inline?")
    (source / "middle").write_bytes(bytes(range(120)))
    (source / "big").write_bytes(random.Random(1).randbytes(3_000_000))
    for name in (b"control\x01\x1f", b"invalid\xff\xfe", b"n" * 255):
        (source / "folder" / os.fsdecode(name)).write_bytes(name)
    (source / "long link").symlink_to("x" * 300)
    (source / "short link").symlink_to("y\x01" * 20)
    (source / "link of 60").symlink_to("z" * 60)
    (source / "link of 59").symlink_to("z" * 59)
    os.mkfifo(source / "pipe")
    image = folder / "ext.img"
    try:
        run("mke2fs", "-q", "-b", str(block), *features, "-d", source, image, "16M")
        if commands:
            run("debugfs", "-w", "-f", "/dev/stdin", image, stdin=commands.encode())
    except MissingToolError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    opened = open_file_system(BytesReader(image.read_bytes()))
    assert opened is not None
    return opened


FEATURES = {
    "ext4": ("-t", "ext4"),
    "ext2": ("-t", "ext2"),
    "inline data": ("-t", "ext4", "-O", "inline_data", "-I", "256"),
    "meta groups": ("-t", "ext4", "-O", "meta_bg,^resize_inode", "-g", "256", "-N", "4000"),
    "old inodes": ("-t", "ext3", "-I", "128"),
    "no file types": ("-t", "ext2", "-O", "^filetype"),
    "large blocks of allocation": ("-t", "ext4", "-O", "bigalloc"),
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_ext_features(tmp_path: Path, features: tuple[str, ...]) -> None:
    volume = make_ext(tmp_path, *features)
    source = tmp_path / "source"
    found = dict(walk(volume, volume.root))
    given = {
        os.path.relpath(Path(at) / name, source)
        for at, folders, files in os.walk(source)
        for name in (*folders, *files)
    }
    assert set(found) - {"lost+found"} == given
    for path, node in found.items():
        if node.type is NodeType.FILE:
            assert contents(volume.open(node.inode)) == (source / path).read_bytes(), path
        elif node.type is NodeType.LINK:
            assert volume.read_link(node.inode) == str((source / path).readlink()), path
    assert found["pipe"].type is NodeType.OTHER
    assert found["big"].size == 3_000_000


def test_ext4_times_and_unwritten_extents(tmp_path: Path) -> None:
    commands = (
        "set_inode_field big mtime @0xffffffff\n"
        "set_inode_field big mtime_extra 0x000001ed\n"
        "set_inode_field small mtime @0x80000000\n"
        "set_inode_field small mtime_extra 0\n"
        "set_inode_field middle mtime @0x80000000\n"
        "set_inode_field middle mtime_extra 1\n"
        "fallocate folder/control\x01\x1f 1 9\n"
        "set_inode_field folder/control\x01\x1f size 20000\n"
    )
    volume = make_ext(tmp_path, "-t", "ext4", "-I", "256", commands=commands)
    node = volume.attributes(resolve(volume, "big"))
    assert node.modified == (-1 + (1 << 32)) * 10**9 + 123
    assert volume.attributes(resolve(volume, "small")).modified == -(1 << 31) * 10**9
    assert volume.attributes(resolve(volume, "middle")).modified == (1 << 31) * 10**9
    reader = volume.open(resolve(volume, "folder/control\x01\x1f"))
    assert contents(reader) == b"control\x01\x1f".ljust(20000, b"\0")
    assert [extent.length for extent in reader.extents() if extent.is_data] == [1024]


def inode_place(image: Path, path: str) -> int:
    """Return where an inode lies, as debugfs tells."""
    said = run("debugfs", "-R", f"imap {path}", image).decode()
    block, offset = said.split("located at block ")[1].split(", offset ")
    return int(block) * 1024 + int(offset, 16)


def make_holes(folder: Path, *features: str, commands: str = "") -> tuple[Path, bytes]:
    """Make a volume with one file of 200 pieces and holes between them."""
    source = folder / "source"
    source.mkdir()
    with (source / "pieces").open("wb") as file:
        for number in range(200):
            file.seek(number * 5120)
            file.write(random.Random(number).randbytes(1024))
    image = folder / "ext.img"
    needed(lambda: run("mke2fs", "-q", "-b", "1024", *features, "-d", source, image, "16M"))
    if commands:
        run("debugfs", "-w", "-f", "/dev/stdin", image, stdin=commands.encode())
    return image, (source / "pieces").read_bytes()


def use_pieces(data: bytes | bytearray) -> bytes:
    volume = open_file_system(BytesReader(bytes(data)))
    assert volume is not None
    return contents(volume.open(volume.lookup(volume.root, "pieces")))


def test_ext_trees_that_contradict_themselves(tmp_path: Path) -> None:
    image, content = make_holes(tmp_path, "-t", "ext4", "-O", "^metadata_csum,^inline_data")
    data = bytearray(image.read_bytes())
    place = inode_place(image, "/pieces") + 40
    assert struct.unpack_from("<HHHH", data, place)[3] == 1
    assert use_pieces(data) == content
    leaf = struct.unpack_from("<I", data, place + 12 + 4)[0] * 1024
    (first,) = struct.unpack_from("<I", data, leaf + 12)
    for at, value in ((leaf + 12, first + 1), (leaf + 2, 0), (place + 12, first + 1)):
        broken = bytearray(data)
        struct.pack_into("<I" if at != leaf + 2 else "<H", broken, at, value)
        with pytest.raises(DamagedError):
            use_pieces(broken)
    root = bytearray(data)  # a node that is its own child, at every depth
    root[leaf : leaf + 1024] = (
        struct.pack("<HHHHI", 0xF30A, 84, 84, 4, 0)
        + b"".join(struct.pack("<IIHH", first + number, leaf // 1024, 0, 0) for number in range(84))
        + bytes(4)
    )
    struct.pack_into("<H", root, place + 6, 5)
    with pytest.raises(DamagedError):
        use_pieces(root)


def test_ext_block_maps(tmp_path: Path) -> None:
    image, content = make_holes(tmp_path, "-t", "ext2")
    data = bytearray(image.read_bytes())
    place = inode_place(image, "/pieces")
    assert use_pieces(data) == content
    numbers = struct.unpack_from("<15I", data, place + 40)
    assert numbers[12]
    assert numbers[13]
    # a triple indirect block that holds itself, in a file that claims to be huge
    at = numbers[13] * 1024
    data[at : at + 1024] = struct.pack("<I", numbers[13]) * 256
    struct.pack_into("<I", data, place + 40 + 14 * 4, numbers[13])
    struct.pack_into("<I", data, place + 40 + 13 * 4, 0)
    struct.pack_into("<I", data, place + 108, 4)
    with pytest.raises(DamagedError, match="twice"):
        use_pieces(data)


def test_ext_far_blocks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    offsets = (
        0,
        11 << 10,
        12 << 10,
        267 << 10,
        268 << 10,
        (268 + 65536) << 10,
        ((268 + 65536) << 10) + 99_000_000,
    )
    with (source / "far").open("wb") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(random.Random(offset).randbytes(3000))
    image = tmp_path / "ext.img"
    needed(lambda: run("mke2fs", "-q", "-b", "1024", "-t", "ext3", "-d", source, image, "16M"))
    with FileReader(image) as reader:
        volume = open_file_system(reader)
        assert volume is not None
        opened = volume.open(volume.lookup(volume.root, "far"))
        with (source / "far").open("rb") as file:
            for offset in offsets:
                file.seek(max(0, offset - 2000))
                expected = file.read(7000)
                assert opened.read_at(max(0, offset - 2000), len(expected)) == expected


def test_ext_links_inside_inodes_whatever_blocks_are_counted(tmp_path: Path) -> None:
    commands = "set_inode_field short\\ link blocks 64\n"
    volume = make_ext(tmp_path, "-t", "ext4", commands=commands.replace("short\\ link", '"short link"'))
    assert volume.read_link(resolve(volume, "short link")) == "y\x01" * 20
    assert volume.attributes(resolve(volume, "short link")).allocated == 64 * 512


def test_ext_directories_with_half_a_size_that_is_none(tmp_path: Path) -> None:
    volume = make_ext(tmp_path, "-t", "ext2", commands="set_inode_field folder size_high 5\n")
    assert len(volume.entries(resolve(volume, "folder"))) == 3


def test_ext_kinds(tmp_path: Path) -> None:
    assert make_ext(tmp_path / "a", "-t", "ext2").kind == "ext2"
    assert make_ext(tmp_path / "b", "-t", "ext3").kind == "ext3"
    assert make_ext(tmp_path / "c", "-t", "ext4").kind == "ext4"
    said = run("blkid", "-p", "-o", "value", "-s", "TYPE", tmp_path / "b" / "ext.img")
    assert said.strip() == b"ext3"


def test_iso(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "A longer name.bin").write_bytes(random.Random(1).randbytes(100_001))
    image = tmp_path / "x.iso"
    try:
        run("genisoimage", "-quiet", "-J", "-V", "NAME", "-o", image, source)
    except MissingToolError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with FileReader(image) as reader:
        volume = open_file_system(reader)
        assert volume is not None
        assert (volume.kind, volume.label) == ("ISO 9660", "NAME")
        inode = resolve(volume, "folder/A longer name.bin")
        assert abs(volume.attributes(inode).modified - time.time_ns()) < 600 * 10**9
        found = contents(volume.open(inode))
        assert found == random.Random(1).randbytes(100_001)
