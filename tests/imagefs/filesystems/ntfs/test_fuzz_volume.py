"""NTFS volumes with bytes changed at random: typed errors for what is damaged, in bounded time and memory."""

import gc
import logging
import os
import random
import re
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest

from fixtures.content import TreeWriter, noise, text
from fixtures.ntfs_metadata import ea_list
from fixtures.ntfs_wof import ALGORITHMS, add_wof, compressed, mounted_with_streams, wof_point
from fixtures.partition_tables import MIB
from fixtures.volumes import make_ntfs, many_files, mixed, mounted_ntfs, ntfs_reparse, set_xattr
from formats.blockreader import BlockReader, BytesReader
from formats.errors import FormatError
from imagefs.filesystems import FileSystem, VolumeOptions, open_file_system
from mounters.tree import Attributes, NodeType

Result = TypeVar("Result")

MARK = b"\xde\xad\xbe\xef\xca\xfe\xba\xbe"  # stays as it is in what NTFS compresses: the first eight bytes do
EXAMPLES = 25
CPU_SECONDS = 20.0  # for one volume; a whole one takes a fifth of a second
GROWTH = 200 * MIB  # of the process, over all examples
READ_LIMIT = 24 * MIB  # bytes of all files; damaged ones may claim exabytes
NODE_LIMIT = 5000  # nodes of a volume that has some two hundred

VALUES = (
    *(b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff", b"\xff\x7f", b"\x00\x80"),
    *(b"\xff" * 4, b"\xff\xff\xff\x7f", b"\xff" * 8, b"\xff" * 7 + b"\x7f", bytes(8)),
)


@dataclass(frozen=True)
class Built:
    """A volume, and the runs (offset, length) of what tells where and what its files are."""

    data: bytes
    targets: tuple[tuple[int, int], ...]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    path = make_ntfs(tmp_path_factory.mktemp("fuzz") / "volume", 12 * MIB, "fuzz")
    streams = []
    with mounted_ntfs(path) as root:
        tree = TreeWriter(root)
        many_files(tree, "many", 120)
        tree.add("big.bin", noise(1, 0, 300_000))
        tree.interleave(["pieces/a", "pieces/b"], [2, 3], 80_000, 4096)
        tree.sparse("sparse.bin", 4, 2 * MIB, [(MIB, 5000)])
        (root / "compressed").mkdir()
        set_xattr(root / "compressed", "system.ntfs_attrib_be", struct.pack(">I", 0x810))
        tree.add("compressed/text.txt", MARK + text(5, 0, 200_000))
        tree.add("compressed/mixed.bin", mixed(5, 300_000))
        tree.add("host.txt", b"main")
        set_xattr(root / "host.txt", "user.small", b"stream")
        set_xattr(root / "host.txt", "user.large", noise(6, 0, 30_000))
        set_xattr(root / "host.txt", "system.ntfs_dos_name", b"HOST~1.TXT")
        tree.hard_link("many/hard.txt", "host.txt")
        tree.symlink("posix", "host.txt")
        for name, tag, target in (
            ("windows", 0xA000000C, "many\\hard.txt"),
            ("junction", 0xA0000003, "\\??\\C:\\many"),
        ):
            (root / name).mkdir() if tag == 0xA0000003 else (root / name).touch()
            point = ntfs_reparse(tag, target, target, tag == 0xA000000C)
            set_xattr(root / name, "system.ntfs_reparse_data", point)
        set_xattr(root / "big.bin", "system.ntfs_ea", ea_list({b"KEY": b"value", b"OTHER": b"x" * 300}))
    with mounted_with_streams(path) as root:
        content = mixed(7, 100_000)
        for algorithm, (number, _, _) in ALGORITHMS.items():
            (stream,) = compressed([content], algorithm)
            add_wof(root / f"wof {algorithm}", len(content), stream, wof_point(number))
            streams.append(stream)
    data = path.read_bytes()
    return Built(data, tuple(_targets(data, streams)))


def _targets(data: bytes, streams: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    for found in re.finditer(rb"FILE|INDX", data):
        if found.start() % 1024 == 0:
            yield found.start(), 1024 if found.group() == b"FILE" else 4096
    for stream in streams:
        place = data.index(stream[:512])
        yield place, 4096
    yield 0, 512
    yield data.index(MARK) & ~4095, 4096


def changed(built: Built, seed: int) -> bytes:
    """Return the volume with some bytes of some targets changed."""
    chance = random.Random(seed)
    data = bytearray(built.data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        start, length = chance.choice(built.targets)
        # The first half of records holds most of what is meant.
        at = start + min(chance.randrange(length), chance.randrange(length))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.randrange(256)
        elif kind == 2:
            value = chance.choice(VALUES)
            data[at : at + len(value)] = value
        else:
            other, size = chance.choice(built.targets)
            size = min(size, length, chance.choice((8, 64, 1024)))
            data[start : start + size] = built.data[other : other + size]
    return bytes(data[: len(built.data)])


class _Walk:
    """Everything that can be asked of a volume, asked."""

    def __init__(self, volume: FileSystem) -> None:
        self.volume = volume
        self.seen: set[int] = set()
        self.nodes = self.errors = self.bytes = 0

    def run(self) -> None:
        waiting = [self.volume.root]
        for entry in self.volume.system_entries():
            self.node(entry.inode, None)
        while waiting and self.nodes < NODE_LIMIT:
            inode = waiting.pop()
            if inode in self.seen:
                continue
            self.seen.add(inode)
            try:
                listed = self.volume.entries_with_attributes(inode)
                assert [entry.name for entry, _ in listed] == [e.name for e in self.volume.entries(inode)]
            except (FormatError, OSError):
                self.errors += 1
                continue
            for entry, known in listed:
                self.tried(self.volume.lookup, inode, entry.name)
                self.tried(self.volume.lookup, inode, entry.name.swapcase() + "?")
                self.node(entry.inode, known)
                if entry.type is NodeType.DIRECTORY:
                    waiting.append(entry.inode)

    def node(self, inode: int, known: Attributes | None) -> None:
        volume = self.volume
        self.nodes += 1
        attributes = self.tried(volume.attributes, inode)
        assert known is None or attributes == known
        self.tried(volume.recorded_times, inode)
        self.tried(volume.read_link, inode)
        self.read(volume.open, inode)
        for name in self.tried(volume.extended_attributes, inode) or ():
            self.tried(volume.extended_attribute, inode, name)
        for stream in self.tried(volume.streams, inode) or ():
            self.read(volume.open_stream, inode, stream.name)

    def tried(self, do: Callable[..., Result], *arguments: object) -> Result | None:
        try:
            return do(*arguments)
        except (FormatError, OSError):
            self.errors += 1
        return None

    def read(self, opening: Callable[..., BlockReader], *arguments: object) -> None:
        reader = self.tried(opening, *arguments)
        if reader is not None:
            self.tried(self.read_all, reader)

    def read_all(self, reader: BlockReader) -> None:
        size = reader.size
        for place in (0, size // 2, max(0, size - 100)):
            self.tried(reader.read_at, place, min(100, size - place))
        for count, extent in enumerate(reader.extents()):
            for offset in range(extent.offset, extent.end, MIB):
                if self.bytes > READ_LIMIT or count > 1000:
                    return
                length = min(MIB, extent.end - offset)
                self.bytes += length
                data = self.tried(reader.read_at, offset, length)
                assert data is None or len(data) == length
                assert data is None or extent.is_data or not any(data)


def walk(data: bytes, options: VolumeOptions | None = None) -> _Walk | None:
    """Go through a volume; None where it can't be opened."""
    try:
        volume = open_file_system(BytesReader(data), options=options)
    except FormatError:
        return None
    if volume is None:
        return None
    with volume:
        found = _Walk(volume)
        found.run()
        return found


def test_the_whole_volume_is_read(built: Built) -> None:
    found = walk(built.data)
    assert found is not None
    assert found.nodes > 130
    assert found.bytes > 2 * MIB


@pytest.fixture
def unlogged() -> Iterator[None]:
    """Log nothing: what is logged is kept with its error, and that with the volume."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("unlogged")
def test_changed_volumes(built: Built) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    opened = errors = 0
    whole = walk(built.data)
    assert whole is not None
    for seed in range(int(os.environ.get("FUZZ_FIRST", "0")), int(os.environ.get("FUZZ_END", str(EXAMPLES)))):
        start = time.process_time()
        try:
            found = walk(changed(built, seed))
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
        assert time.process_time() - start < CPU_SECONDS, f"seed {seed}"
        gc.collect()  # a volume and its errors may hold each other, and each example's is new
        opened += found is not None
        errors += found is not None and found.errors > whole.errors
    assert opened > EXAMPLES // 2  # else the changes tell nothing
    assert errors > EXAMPLES // 4
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH
