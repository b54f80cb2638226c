"""Files that NTFS compressed: as ntfs-3g was given them, and reads them."""

import contextlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.content import noise, text
from fixtures.ntfs_wof import mounted_with_streams
from fixtures.partition_tables import MIB
from fixtures.tools import MissingToolError, fuse_mount
from fixtures.volumes import make_ntfs, mixed, set_xattr
from formats.blockreader import BytesReader, Extent, FileReader
from formats.errors import DamagedError, UnsupportedError
from imagefs.filesystems import open_file_system
from imagefs.filesystems.base import VolumeOptions
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.compression import CompressedReader
from imagefs.filesystems.ntfs.data import open_attribute
from imagefs.filesystems.ntfs.layout import COMPRESSED, Attribute, AttributeType
from imagefs.filesystems.ntfs.mft import find
from imagefs.filesystems.runs import Run
from tests.conftest import missing

UNIT = 65536
CLUSTER = 4096
SIZES = (0, 1, 600, 4096, 4097, UNIT - 1, UNIT, UNIT + 1, 3 * UNIT, 5 * UNIT + 4095)
HOLES = 40 * UNIT + 77
HUGE = 1 << 40  # of a volume of 64 MiB


def contents() -> dict[str, bytes]:
    found = {f"text {size}": text(size, 0, size) for size in SIZES}
    found |= {f"noise {size}": noise(size, 0, size) for size in SIZES[4:]}
    found |= {"mixed": mixed(1, 3_000_001), "zeros": bytes(500_000)}
    return found


def holes() -> bytes:
    content = bytearray(HOLES)
    content[3 * UNIT + 5 : 4 * UNIT] = text(5, 0, UNIT - 5)
    content[20 * UNIT : 22 * UNIT] = noise(6, 0, 2 * UNIT)
    return bytes(content)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        volume = make_ntfs(tmp_path_factory.mktemp("lznt1") / "lznt1.volume", 64 * MIB, "lznt1")
        mountpoint = volume.with_name("mnt")
        options = "no_detach,compression,streams_interface=windows"
        with fuse_mount(mountpoint, "ntfs-3g", "-o", options, volume, mountpoint) as root:
            set_xattr(root, "system.ntfs_attrib_be", struct.pack(">I", 0x810))
            for name, content in contents().items():
                (root / name).write_bytes(content)
            for name, size in (("holes", HOLES), ("huge", HUGE)):
                content = holes()
                with (root / name).open("wb") as file:
                    for start, end in ((3 * UNIT + 5, 4 * UNIT), (20 * UNIT, 22 * UNIT)):
                        file.seek(start + size - HOLES)
                        file.write(content[start:end])
                    file.truncate(size)
            Path(f"{root / 'mixed'}:stream").write_bytes(mixed(2, 900_000))
    except MissingToolError as error:
        missing(str(error))
    return volume


@pytest.fixture
def volume(built: Path) -> Iterator[NtfsFileSystem]:
    with FileReader(built) as reader:
        opened = open_file_system(reader)
        assert isinstance(opened, NtfsFileSystem)
        yield opened


def data_of(volume: NtfsFileSystem, name: str) -> list[Attribute]:
    record = volume._mft.record(volume.lookup(volume.root, name))
    return find(volume._mft.attributes(record), AttributeType.DATA)


@pytest.mark.parametrize("name", contents())
def test_content(volume: NtfsFileSystem, name: str) -> None:
    content = contents()[name]
    reader = volume.open(volume.lookup(volume.root, name))
    assert reader.read_at(0, reader.size) == content
    rng = random.Random(len(content))
    for _ in range(60 if content else 0):
        offset = min(len(content), rng.choice([rng.randrange(len(content)), rng.randrange(5) * UNIT]))
        length = rng.randrange(min(rng.choice([1, 5000, UNIT + 1, 4 * UNIT]), len(content) - offset) + 1)
        assert reader.read_at(offset, length) == content[offset : offset + length]


def test_they_are_compressed(volume: NtfsFileSystem) -> None:
    """Else the other tests would prove nothing."""
    for name in ("text 65537", "mixed", "holes"):
        first = data_of(volume, name)[0]
        assert first.flags & COMPRESSED == 1
        assert first.unit == 4
        assert first.allocated < first.size


@pytest.mark.parametrize(("name", "size"), [("holes", HOLES), ("huge", HUGE)])
def test_holes(volume: NtfsFileSystem, name: str, size: int) -> None:
    reader = volume.open(volume.lookup(volume.root, name))
    assert reader.size == size
    shift = size - HOLES
    data = [extent for extent in reader.extents() if extent.is_data]
    for start, end in ((3 * UNIT + 5, 4 * UNIT), (20 * UNIT, 22 * UNIT)):
        assert any(extent.offset <= shift + start and shift + end <= extent.end for extent in data)
    assert sum(extent.length for extent in data) <= 6 * UNIT
    assert reader.read_at(shift, HOLES) == holes()
    if size == HUGE:
        assert reader.read_at(size // 3, 100_000) == bytes(100_000)


def test_a_named_stream(volume: NtfsFileSystem) -> None:
    reader = volume.open_stream(volume.lookup(volume.root, "mixed"), "stream")
    assert reader.read_at(0, reader.size) == mixed(2, 900_000)


def test_a_compressed_attribute_of_any_name(volume: NtfsFileSystem) -> None:
    extents = [extent._replace(name="stream") for extent in data_of(volume, "mixed")]
    reader = open_attribute(volume._mft, extents, "stream", VolumeOptions())
    assert reader.read_at(0, reader.size) == mixed(1, 3_000_001)


@pytest.mark.parametrize("valid", [0, 1, UNIT, UNIT + 5, 5 * UNIT + 40_001])
def test_valid_data_length(volume: NtfsFileSystem, valid: int) -> None:
    """What is beyond it reads as zeros, and needs no clusters; a unit may be valid in part."""
    extents = data_of(volume, "mixed")
    extents[0] = extents[0]._replace(initialized=valid)
    reader = open_attribute(volume._mft, extents, "file", VolumeOptions())
    assert reader.read_at(0, reader.size) == mixed(1, 3_000_001)[:valid] + bytes(3_000_001 - valid)
    assert [extent for extent in reader.extents() if extent.offset >= valid] == [
        Extent(valid, 3_000_001 - valid, False)
    ]


def test_what_does_not_fit(volume: NtfsFileSystem) -> None:
    extents = data_of(volume, "mixed")
    for change, error in (
        ({"size": 1 << 30, "initialized": 1 << 30}, DamagedError),  # more than has runs
        ({"unit": 0}, DamagedError),
        ({"unit": 60000}, DamagedError),
        ({"unit": 12}, DamagedError),
        ({"flags": 2}, UnsupportedError),
    ):
        with pytest.raises(error):
            open_attribute(volume._mft, [extents[0]._replace(**change), *extents[1:]], "f", VolumeOptions())  # type: ignore[arg-type]


# --- units put together after [MS-XCA] 2.5 ---


def chunk(length: int) -> bytes:
    """Return a chunk of "abc" again and again: three bytes and a match."""
    return struct.pack("<HB", 0xB000 | 5, 0b1000) + b"abc" + struct.pack("<H", 2 << 12 | length - 6)


WHOLE, SHORT, LONG = chunk(4096), chunk(9), chunk(4097)
PLAIN = struct.pack("<H", 0x3FFF) + noise(1, 0, 4096)


def read_unit(stored: bytes, length: int = UNIT) -> bytes:
    clusters = -(-len(stored) // CLUSTER) * CLUSTER
    runs = [Run(clusters, 0), Run(UNIT - clusters, None)]
    volume = BytesReader(stored.ljust(clusters, b"\0"))
    return CompressedReader(volume, runs, length, valid=length, unit=UNIT, name="f").read_at(0, length)


def test_chunks_of_a_unit() -> None:
    abc = (b"abc" * 1400)[:4096]
    assert read_unit(WHOLE * 16) == abc * 16
    assert read_unit(WHOLE + PLAIN + WHOLE, 3 * 4096) == abc + noise(1, 0, 4096) + abc
    assert read_unit(WHOLE, 100) == abc[:100]
    assert read_unit(PLAIN, 100) == noise(1, 0, 100)
    assert read_unit(SHORT + WHOLE, 2 * 4096) == b"abcabcabc".ljust(4096, b"\0") + abc
    assert read_unit(SHORT, 9) == b"abcabcabc"


@pytest.mark.parametrize(
    ("stored", "length"),
    [
        (WHOLE, 4097),  # ends before what is valid
        (SHORT, 10),
        (LONG, 4096),  # a match beyond the chunk
        (b"\0\0" + WHOLE, 4096),
        (WHOLE.replace(b"\x05\xb0", b"\x05\xa0"), 4096),  # another signature
        (struct.pack("<HBH", 0xB002, 1, 0), 3),  # a match before the first byte
        (struct.pack("<HBBB", 0xB002, 2, 65, 0), 4096),  # half a match
    ],
)
def test_units_that_can_t_be(stored: bytes, length: int) -> None:
    with pytest.raises(DamagedError, match="f: compression unit 0 "):
        read_unit(stored, length)


def test_a_hole_inside_a_unit() -> None:
    runs = [Run(CLUSTER, 0), Run(CLUSTER, None), Run(CLUSTER, CLUSTER), Run(UNIT - 3 * CLUSTER, None)]
    reader = CompressedReader(BytesReader(bytes(UNIT)), runs, UNIT, valid=UNIT, unit=UNIT, name="f")
    with pytest.raises(DamagedError, match="hole before the end of compression unit 0"):
        reader.read_at(0, 1)


def test_a_unit_in_pieces_is_plain() -> None:
    content = noise(3, 0, UNIT)
    runs = [Run(CLUSTER, UNIT - CLUSTER), Run(UNIT - CLUSTER, 0)]
    moved = content[CLUSTER:] + content[:CLUSTER]
    reader = CompressedReader(BytesReader(moved), runs, UNIT, valid=UNIT, unit=UNIT, name="f")
    assert reader.read_at(0, UNIT) == content


@given(
    stored=st.binary(max_size=200)
    | st.lists(st.sampled_from([WHOLE, SHORT, PLAIN, b"\0\0"]), max_size=20).map(b"".join),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
    length=st.integers(1, UNIT),
)
def test_any_unit(stored: bytes, changes: list[tuple[int, int]], length: int) -> None:
    unit = bytearray(stored[: 15 * CLUSTER] or b"\0")
    for at, value in changes:
        unit[at % len(unit)] = value
    with contextlib.suppress(DamagedError):
        assert len(read_unit(bytes(unit), length)) == length


@given(
    runs=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20) | st.none()), max_size=12),
    size=st.integers(0, 12 * UNIT) | st.just(1 << 62),
    valid=st.integers(0, 12 * UNIT),
    offset=st.integers(0, 12 * UNIT),
)
def test_any_runs(runs: list[tuple[int, int | None]], size: int, valid: int, offset: int) -> None:
    """Holes are zeros, everything else is data or damage; nothing goes through a huge hole by units."""
    volume = BytesReader((WHOLE * 16).ljust(CLUSTER, b"\0") * 60)
    clusters = [Run(count * CLUSTER, None if at is None else at * CLUSTER) for count, at in runs]
    with contextlib.suppress(DamagedError):
        reader = CompressedReader(volume, clusters, size, valid=valid, unit=UNIT, name="f")
        offset = min(offset, size)
        length = min(300_000, size - offset)
        data = reader.read_at(offset, length)
        assert len(data) == length
        for extent in reader.extents(offset, length):
            if not extent.is_data:
                assert not any(data[extent.offset - offset : extent.end - offset])
        assert sum(extent.length for extent in reader.extents()) == size


def test_ntfs_3g_reads_the_same(built: Path, volume: NtfsFileSystem) -> None:
    with mounted_with_streams(built) as root:
        for entry in volume.entries(volume.root):
            if entry.name == "huge":
                continue
            reader = volume.open(entry.inode)
            assert (root / entry.name).read_bytes() == reader.read_at(0, reader.size)
        assert Path(f"{root / 'mixed'}:stream").read_bytes() == mixed(2, 900_000)
