"""Files that WOF compressed: as wimlib was given them."""

import random
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.content import noise, text
from fixtures.ntfs_wof import (
    ALGORITHMS,
    STREAM,
    add_wof,
    compressed,
    mounted_with_streams,
    wof_point,
    wof_volume,
)
from fixtures.tools import MissingToolError
from formats import unpacking
from formats.blockreader import BlockReader, BytesReader, Extent, FileReader
from formats.errors import DamagedError, FormatError, UnsupportedError
from imagefs.filesystems import FileSystem, VolumeOptions, open_file_system
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.data import open_file
from imagefs.filesystems.ntfs.layout import ENCRYPTED
from imagefs.filesystems.ntfs.wof import WofReader, parse_wof
from imagefs.readahead import ReadAheadHandle
from tests.conftest import missing

KINDS = ("empty", "one byte", "one chunk", "one byte more", "chunks", "noise", "mixed", "code")
FILES = [*(f"{algorithm}/{kind}" for algorithm in ALGORITHMS for kind in KINDS), "lzx/big"]
ODD = text(11, 0, 40_000)


class CountingReader(BlockReader):
    """A reader that keeps what was read."""

    def __init__(self, lower: BlockReader) -> None:
        super().__init__(lower.size)
        self.lower = lower
        self.reads: list[tuple[int, int]] = []

    def _read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self.lower.read_at(offset, length)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Build the volume, and beside what is right some that can't be read."""
    try:
        volume, files = wof_volume(tmp_path_factory.mktemp("wof"))
        (stream,) = compressed([ODD], "xpress4k")
        with mounted_with_streams(volume) as root:
            (root / "odd").mkdir()
            for name, size, content, point in (
                ("wim", len(ODD), stream, wof_point(0, provider=1)),
                ("provider", len(ODD), stream, wof_point(0, provider=3)),
                ("algorithm", len(ODD), stream, wof_point(4)),
                ("version", len(ODD), stream, wof_point(0, version=2)),
                ("short point", len(ODD), stream, struct.pack("<IHHII", 0x80000017, 8, 0, 1, 2)),
                ("cut off", len(ODD), stream[:-20], wof_point(0)),
                ("half", len(ODD), stream[: len(stream) // 2], wof_point(0)),
                ("no room", len(ODD), stream[:39], wof_point(0)),
                ("other algorithm", len(ODD), stream, wof_point(1)),
            ):
                add_wof(root / "odd" / name, size, content, point)
            add_wof(root / "odd" / "no stream", len(ODD), stream, wof_point(0))
            Path(f"{root / 'odd' / 'no stream'}:{STREAM}").unlink()
    except MissingToolError as error:
        missing(str(error))
    return volume, files


@pytest.fixture
def volume(built: tuple[Path, dict[str, bytes]]) -> Iterator[FileSystem]:
    with FileReader(built[0]) as reader:
        opened = open_file_system(reader)
        assert opened is not None
        yield opened


def resolve(volume: FileSystem, path: str) -> int:
    inode = volume.root
    for name in path.split("/"):
        inode = volume.lookup(inode, name)
    return inode


@pytest.mark.parametrize("path", FILES)
def test_content(volume: FileSystem, built: tuple[Path, dict[str, bytes]], path: str) -> None:
    content = built[1][path]
    inode = resolve(volume, path)
    reader = volume.open(inode)
    assert volume.attributes(inode).size == reader.size == len(content)
    assert reader.read_at(0, reader.size) == content
    assert list(reader.extents()) == ([Extent(0, len(content), True)] if content else [])
    rng = random.Random(len(content))
    chunk = ALGORITHMS[path.split("/", maxsplit=1)[0]][2]
    for _ in range(100 if content else 0):
        edge = rng.randrange(len(content) // chunk + 1) * chunk
        offset = min(
            len(content), max(0, rng.choice([edge, edge - 1, edge + 1, rng.randrange(len(content))]))
        )
        longest = rng.choice([1, 2, chunk, 3 * chunk + 1, len(content)])
        length = rng.randrange(min(longest, len(content) - offset) + 1)
        assert reader.read_at(offset, length) == content[offset : offset + length]
        buffer = bytearray(length)
        reader.read_into(offset, memoryview(buffer))
        assert buffer == content[offset : offset + length]


@pytest.mark.parametrize("path", ["lzx/code", "xpress4k/code"])
def test_without_the_library(
    volume: FileSystem, built: tuple[Path, dict[str, bytes]], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "_chunks", unpacking._slow_chunks)
    content = built[1][path][600_000:900_000]
    assert volume.open(resolve(volume, path)).read_at(600_000, 300_000) == content


def test_takes_up_what_its_stream_does(volume: FileSystem, built: tuple[Path, dict[str, bytes]]) -> None:
    """A file that takes up nothing would be all hole to those who copy it."""
    for path in FILES:
        node = volume.attributes(resolve(volume, path))
        assert bool(node.allocated) == bool(node.size)
    assert volume.attributes(resolve(volume, "lzx/chunks")).allocated == 4096


def test_read_by_many(volume: FileSystem, built: tuple[Path, dict[str, bytes]]) -> None:
    content = built[1]["lzx/big"]
    reader = volume.open(resolve(volume, "lzx/big"))
    handle = ReadAheadHandle(reader)

    def some(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            offset, length = rng.randrange(len(content)), rng.choice([1, 5000, 40_000, 2_000_000])
            length = min(length, len(content) - offset)
            assert reader.read_at(offset, length) == content[offset : offset + length]
        for offset in range(0, len(content), 131_072):
            assert handle.read(offset, 131_072) == content[offset : offset + 131_072]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(some, range(6)))
    handle.close()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("wim", UnsupportedError, "WIM archive"),
        ("provider", UnsupportedError, "provider 3"),
        ("algorithm", UnsupportedError, "algorithm 4"),
        ("version", UnsupportedError, "in version 2"),
        ("short point", DamagedError, "reparse point of 16 bytes"),
        ("no room", DamagedError, "39 compressed bytes can't hold 10 chunks"),
        ("no stream", DamagedError, "no stream WofCompressedData"),
    ],
)
def test_what_can_t_be_opened(volume: FileSystem, name: str, error: type[FormatError], says: str) -> None:
    inode = resolve(volume, f"odd/{name}")
    with pytest.raises(error, match=says) as caught:
        volume.open(inode)
    assert str(inode) in str(caught.value)


@pytest.mark.parametrize("raw_efs", [False, True])
def test_compressed_and_encrypted(volume: FileSystem, *, raw_efs: bool) -> None:
    assert isinstance(volume, NtfsFileSystem)
    attributes = volume._mft.attributes(volume._mft.record(resolve(volume, "odd/cut off")))
    encrypted = [
        item._replace(flags=item.flags | ENCRYPTED) if (item.type, item.name) == (0x80, "") else item
        for item in attributes
    ]
    options = VolumeOptions(raw_efs=raw_efs)
    assert open_file(volume._mft, attributes, "f", options).size == len(ODD)
    with pytest.raises(DamagedError, match="and encrypted"):
        open_file(volume._mft, encrypted, "f", options)


def test_what_is_cut_off_reads_up_to_there(volume: FileSystem) -> None:
    for name, first in (("cut off", 9), ("half", 4)):
        inode = resolve(volume, f"odd/{name}")
        reader = volume.open(inode)
        for chunk in range(10):
            offset, length = chunk * 4096, min(4096, len(ODD) - chunk * 4096)
            if chunk < first:
                assert reader.read_at(offset, length) == ODD[offset : offset + length]
                continue
            for where in ((offset, length), (offset + 1, 1), (0, offset + 1)):
                wrong = chunk if where[0] else first
                with pytest.raises(DamagedError, match=f"file {inode}: chunk {wrong} "):
                    reader.read_at(*where)


def test_another_algorithm_than_it_says(volume: FileSystem) -> None:
    reader = volume.open(resolve(volume, "odd/other algorithm"))
    with pytest.raises(DamagedError, match="chunk 0"):
        reader.read_at(0, reader.size)


def test_reparse_points() -> None:
    assert parse_wof(wof_point(1), "file").chunk == 32768
    for length in range(24):
        with pytest.raises(DamagedError):
            parse_wof(wof_point(1)[:length], "file")


def huge(size: int, algorithm: str) -> tuple[CountingReader, bytes]:
    """Return the stream of a file that is one chunk again and again, after the format, and that chunk."""
    _, _, chunk = ALGORITHMS[algorithm]
    content = text(7, 0, chunk)
    (packed,) = compressed([content], algorithm)
    count = size // chunk
    starts = np.arange(1, count, dtype=np.uint64) * np.uint64(len(packed))
    table = starts.astype("<u4" if size < 1 << 32 else "<u8").tobytes()
    return CountingReader(BytesReader(table + packed * count)), content


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_byte_of_a_huge_file_decodes_one_chunk(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2 << 30
    number, _, chunk = ALGORITHMS[algorithm]
    stream, content = huge(size, algorithm)
    decoded = []
    real = unpacking._chunks

    def counting(
        method: unpacking.Method, data: bytes, edges: np.typing.NDArray[np.uint64], out: memoryview, size: int
    ) -> int:
        decoded.append(len(out))
        return real(method, data, edges, out, size)

    monkeypatch.setattr(unpacking, "_chunks", counting)
    reader = WofReader(stream, size, parse_wof(wof_point(number), "file"), "file")
    for offset in (0, 1_234_567_890, size - 1):
        decoded.clear()
        stream.reads.clear()
        assert reader.read_at(offset, 1) == content[offset % chunk :][:1]
        assert decoded == [chunk]
        assert sum(length for _, length in stream.reads) <= 65536 + chunk
        assert reader.read_at(offset // 10 * 10, 5) == content[offset // 10 * 10 % chunk :][:5]
        assert decoded == [chunk]


@pytest.mark.parametrize("size", [(1 << 32) - 32768, 1 << 32, (1 << 32) + 32768])
def test_entries_of_files_above_4_gib(size: int) -> None:
    stream, content = huge(size, "lzx")
    reader = WofReader(stream, size, parse_wof(wof_point(1), "file"), "file")
    for offset in (0, 32760, 1 << 31, size - 70_000, size - 1000):
        length = min(100_000, size - offset)
        expected = (content * 5)[offset % 32768 :][:length]
        assert reader.read_at(offset, length) == expected


def test_a_table_that_points_anywhere() -> None:
    (packed,) = compressed([ODD], "xpress4k")
    algorithm = parse_wof(wof_point(0), "file")
    for entry, value in ((0, 0), (3, 0xFFFFFFFF), (3, 4), (8, len(packed)), (0, 5000)):
        wrong = bytearray(packed)
        struct.pack_into("<I", wrong, 4 * entry, value)
        reader = WofReader(BytesReader(bytes(wrong)), len(ODD), algorithm, "file 5")
        with pytest.raises(DamagedError, match=f"file 5: chunk ({entry}|{entry + 1}) "):
            reader.read_at(0, len(ODD))
        for chunk in set(range(9)) - {entry, entry + 1}:
            assert reader.read_at(chunk * 4096, 4096) == ODD[chunk * 4096 :][:4096]


def test_a_chunk_longer_than_what_it_stands_for() -> None:
    """It could be decoded, with more behind it; but nothing writes such a thing."""
    (packed,) = compressed([ODD[:4097]], "xpress4k")
    algorithm = parse_wof(wof_point(0), "file")
    for length in (4095, 4097):
        stored = struct.pack("<I", length) + packed[4:-1].ljust(length, b"x") + packed[-1:]
        reader = WofReader(BytesReader(stored), 4097, algorithm, "file 5")
        if length < 4096:
            assert reader.read_at(0, 4097) == ODD[:4097]
            continue
        with pytest.raises(DamagedError, match="file 5: chunk 0 lies from 0 to 4097"):
            reader.read_at(0, 1)


CONTENTS = {
    algorithm: text(1, 0, 3 * chunk) + noise(1, 0, 2000) for algorithm, (_, _, chunk) in ALGORITHMS.items()
}
_packed: dict[str, bytes] = {}


@given(
    algorithm=st.sampled_from(list(ALGORITHMS)),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=5),
    cut=st.integers(0, 1 << 20) | st.none(),
    size=st.integers(0, 1 << 18) | st.integers(0, 1 << 62) | st.none(),
)
def test_anything_in_the_stream(
    algorithm: str, changes: list[tuple[int, int]], cut: int | None, size: int | None
) -> None:
    """Right lengths or DamagedError, soon."""
    if algorithm not in _packed:
        try:
            _packed[algorithm] = compressed([CONTENTS[algorithm]], algorithm)[0]
        except MissingToolError as error:
            missing(str(error))
    stream = bytearray(_packed[algorithm])
    for at, value in changes:
        stream[at % len(stream)] = value
    if cut is not None:
        del stream[cut % len(stream) :]
    wanted = len(CONTENTS[algorithm]) if size is None else size
    try:
        reader = WofReader(
            BytesReader(bytes(stream)), wanted, parse_wof(wof_point(ALGORITHMS[algorithm][0]), "f"), "f"
        )
        data = reader.read_at(0, min(wanted, 1 << 20))
        assert len(data) == min(wanted, 1 << 20)
        if not changes and cut is None and size is None:
            assert data == CONTENTS[algorithm]
    except DamagedError:
        assert changes or cut is not None or size is not None


@given(point=st.binary(max_size=40))
def test_any_reparse_point(point: bytes) -> None:
    try:
        parse_wof(struct.pack("<IHH", 0x80000017, len(point), 0) + point, "file")
    except (DamagedError, UnsupportedError):
        return
    assert point[:12] == struct.pack("<III", 1, 2, 1)
