"""FAT and exFAT directories and chains, patched on volumes that mkfs and mtools made."""

import errno
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from fixtures.tools import MissingToolError, run
from fixtures.volumes import exfat_volume, mtools
from formats.blockreader import BytesReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems import FileSystem
from imagefs.filesystems.detect import open_file_system
from imagefs.filesystems.fat import FatFileSystem
from imagefs.filesystems.fat_layout import exfat_upcase_place, parse_exfat_upcase
from mounters.tree import NodeType

CHAIN = random.Random(3).randbytes(100_000)
KINDS = {"FAT12": (6, 4), "FAT16": (40, 4), "FAT32": (40, 1)}  # MiB, sectors per cluster
LONGEST = ("long " * 51)[:251] + ".txt"
WIDEST = "語" * 70 + ".txt"


Made = TypeVar("Made")


def skipping(make: Callable[[], Made]) -> Made:
    """Skip the test where a tool is missing, but in CI."""
    try:
        return make()
    except MissingToolError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def resolve(volume: FileSystem, path: str) -> int:
    inode = volume.root
    for name in path.split("/"):
        inode = volume.lookup(inode, name)
    return inode


def opened(data: bytes | bytearray) -> FatFileSystem:
    volume = open_file_system(BytesReader(bytes(data)))
    assert isinstance(volume, FatFileSystem)
    return volume


class Built:
    """A volume's bytes and the places in it that tests change."""

    def __init__(self, kind: str, data: bytes) -> None:
        self.kind = kind
        self.data = data
        volume = opened(data)
        geometry = volume._geometry
        assert volume.kind == kind
        self.data_start, self.fat_start, self.cluster = (
            geometry.data_start,
            geometry.fat_start,
            geometry.cluster_size,
        )
        self.chain = volume.lookup(volume.root, "CHAIN.BIN")

    def at(self, inode: int) -> int:
        return self.data_start + (inode - 3) * 32

    def first_cluster(self, inode: int) -> int:
        entry = self.data[self.at(inode) :][:32]
        return int(struct.unpack_from("<H", entry, 26)[0] | struct.unpack_from("<H", entry, 20)[0] << 16)

    def with_next(self, cluster: int, value: int) -> bytearray:
        data = bytearray(self.data)
        if self.kind == "FAT12":
            at = self.fat_start + cluster * 3 // 2
            both = int.from_bytes(data[at : at + 2], "little")
            both = both & 0xF | (value & 0xFFF) << 4 if cluster & 1 else both & 0xF000 | value & 0xFFF
            data[at : at + 2] = both.to_bytes(2, "little")
        else:
            width = 2 if self.kind == "FAT16" else 4
            at = self.fat_start + cluster * width
            data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        return data

    def with_short_name(self, name: str, raw: bytes) -> bytearray:
        volume = opened(self.data)
        at = self.at(volume.lookup(volume.root, name))
        data = bytearray(self.data)
        data[at : at + 11] = raw
        return data


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    megabytes, per_cluster = KINDS[kind]
    image = folder / "fat.img"
    image.write_bytes(bytes(megabytes << 20))
    skipping(lambda: run("mkfs.vfat", "-F", kind[3:], "-s", str(per_cluster), "-n", "LABEL", image))
    source = folder / "source"
    (source / "DIR" / "SUB").mkdir(parents=True)
    (source / "DIR" / "INNER.TXT").write_bytes(b"inner")
    for name in ("ABC.TXT", "XYZ.TXT", "two words.text"):
        (source / name).write_bytes(name.encode())
    (source / "EMPTY").write_bytes(b"")
    (source / "CHAIN.BIN").write_bytes(CHAIN)
    (source / "long").write_bytes(b"of 255")
    (source / "wide").write_bytes(b"214 bytes of UTF-8")
    skipping(lambda: mtools("mcopy", image, "-s", "-m", *sorted(source.glob("[!lw]*")), "::/"))
    mtools("mcopy", image, source / "long", f"::/{LONGEST}")
    mtools("mcopy", image, source / "wide", f"::/{WIDEST}")
    return Built(kind, image.read_bytes())


def names(volume: FileSystem) -> set[str]:
    return {entry.name for entry in volume.entries(volume.root)}


ALL = {"ABC.TXT", "XYZ.TXT", "two words.text", "EMPTY", "CHAIN.BIN", "DIR", LONGEST, WIDEST}


def test_names_of_any_length(built: Built) -> None:
    volume = opened(built.data)
    assert names(volume) == ALL
    assert volume.open(resolve(volume, WIDEST)).read_at(0, 18) == b"214 bytes of UTF-8"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x8e\x99\x9a     TXT", "ÄÖÜ.TXT"),
        (b"\x05BC     TXT", "\N{GREEK SMALL LETTER SIGMA}BC.TXT"),
        (b"A B+[   TXT", "A B+[.TXT"),
    ],
)
def test_short_names_of_a_code_page(built: Built, raw: bytes, shown: str) -> None:
    assert names(opened(built.with_short_name("ABC.TXT", raw))) == ALL - {"ABC.TXT"} | {shown}


def test_names_that_differ_beyond_ascii_stay_two(built: Built) -> None:
    data = built.with_short_name("ABC.TXT", b"A\x81      TXT")
    volume = opened(built.data)
    at = built.at(volume.lookup(volume.root, "XYZ.TXT"))
    data[at : at + 11] = b"A\x82      TXT"
    assert names(opened(data)) == ALL - {"ABC.TXT", "XYZ.TXT"} | {"Aü.TXT", "Aé.TXT"}
    data[at : at + 11] = b"A\x81      TXT"
    with pytest.raises(DamagedError, match="twice"):
        opened(data).entries(2)


def test_names_without_regard_to_case(built: Built) -> None:
    volume = opened(built.data)
    for name, other in (
        ("ABC.TXT", "aBc.txt"),
        ("two words.text", "TWO Words.TEXT"),
        (LONGEST, LONGEST.upper()),
    ):
        assert volume.lookup(volume.root, other) == volume.lookup(volume.root, name)
    with pytest.raises(FileNotFoundError):
        volume.lookup(volume.root, "abcd.txt")


def test_lower_case_flags(built: Built) -> None:
    volume = opened(built.data)
    data = bytearray(built.data)
    data[built.at(volume.lookup(volume.root, "ABC.TXT")) + 12] = 0x18
    data[built.at(volume.lookup(volume.root, "XYZ.TXT")) + 12] = 0x10
    assert names(opened(data)) == ALL - {"ABC.TXT", "XYZ.TXT"} | {"abc.txt", "XYZ.txt"}


def test_a_long_name_of_another_entry(built: Built) -> None:
    volume = opened(built.data)
    at = built.at(volume.lookup(volume.root, "two words.text"))
    data = bytearray(built.data)
    data[at - 32 + 13] ^= 0xFF
    assert names(opened(data)) == ALL - {"two words.text"} | {"TWOWOR~1.TEX"}
    data = bytearray(built.data)
    data[at - 32 + 1 : at - 32 + 3] = b"\x00\xd8"
    assert "\udced\udca0\udc80wo words.text" in names(opened(data))


def test_deleted_entries_and_kinds(built: Built) -> None:
    volume = opened(built.data)
    data = bytearray(built.data)
    inode = volume.lookup(volume.root, "ABC.TXT")
    data[built.at(inode)] = 0xE5
    volume = opened(data)
    assert names(volume) == ALL - {"ABC.TXT"}
    with pytest.raises(DamagedError):
        volume.attributes(inode)
    with pytest.raises(IsADirectoryError):
        volume.open(resolve(volume, "DIR"))
    with pytest.raises(OSError, match="Invalid") as caught:
        volume.read_link(resolve(volume, "EMPTY"))
    assert caught.value.errno == errno.EINVAL
    assert volume.open(resolve(volume, "EMPTY")).size == 0


@pytest.mark.parametrize("value", [0x0FFF_FFFF, 0, 1, 0x0FFF_FFF7, 0x0FFF_FFE0])
def test_a_chain_that_ends_early(built: Built, value: int) -> None:
    third = built.first_cluster(built.chain) + 2
    with pytest.raises(DamagedError, match="follows the first 3"):
        opened(built.with_next(third, value)).open(built.chain)


@pytest.mark.parametrize("back", [0, 2])
def test_a_chain_that_loops(built: Built, back: int) -> None:
    first = built.first_cluster(built.chain)
    with pytest.raises(DamagedError, match="twice"):
        opened(built.with_next(first + 2, first + back)).open(built.chain)
    folder = opened(built.data).lookup(2, "DIR")
    cluster = built.first_cluster(folder)
    broken = opened(built.with_next(cluster, cluster))
    with pytest.raises(DamagedError, match="more than"):
        broken.entries(folder)


def test_a_chain_in_pieces(built: Built) -> None:
    first = built.first_cluster(built.chain)
    data = built.with_next(first + 5, first + 7)  # the seventh cluster is left out, the chain one too short
    with pytest.raises(DamagedError):
        opened(data).open(built.chain)
    at = built.at(built.chain)
    size = 20 * built.cluster
    struct.pack_into("<I", data, at + 28, size)
    expected = CHAIN[: 6 * built.cluster] + CHAIN[7 * built.cluster : 21 * built.cluster]
    volume = opened(data)
    assert volume.open(built.chain).read_at(0, size) == expected
    assert volume.attributes(built.chain).size == size


def zero(built: Built, data: bytearray, folder: int) -> None:
    cluster = built.first_cluster(folder)
    start = opened(data)._place(cluster)
    data[start : start + built.cluster] = bytes(built.cluster)


def garbage(built: Built, data: bytearray, folder: int) -> None:
    start = opened(data)._place(built.first_cluster(folder)) + 64
    data[start : start + 64] = b"what another file may hold in this place".ljust(64)


def nowhere(built: Built, data: bytearray, folder: int) -> None:
    struct.pack_into("<H", data, built.at(folder) + 26, 0)
    struct.pack_into("<H", data, built.at(folder) + 20, 0)


@pytest.mark.parametrize("change", [zero, garbage, nowhere])
def test_damaged_directories(built: Built, change: Callable[[Built, bytearray, int], None]) -> None:
    data = bytearray(built.data)
    folder = opened(data).lookup(2, "DIR")
    change(built, data, folder)
    with pytest.raises(DamagedError):
        opened(data).entries(folder)


def test_directories_that_hold_themselves(built: Built) -> None:
    volume = opened(built.data)
    folder = volume.lookup(2, "DIR")
    inner = volume.lookup(folder, "SUB")
    data = bytearray(built.data)
    for at in (20, 26):
        data[built.at(inner) + at : built.at(inner) + at + 2] = data[built.at(folder) + at :][:2]
    volume = opened(data)
    assert {entry.type for entry in volume.entries(folder)} == {NodeType.DIRECTORY, NodeType.FILE}
    with pytest.raises(DamagedError, match="same place"):
        volume.entries(inner)


def test_an_emptied_fat_is_damage(built: Built) -> None:
    data = bytearray(built.data)
    data[built.fat_start : built.fat_start + 512] = bytes(512)
    with pytest.raises(FormatError, match="FAT is empty"):
        open_file_system(BytesReader(bytes(data)))


def test_exfat_names_of_any_length_and_loops(tmp_path: Path) -> None:
    made = skipping(lambda: exfat_volume(tmp_path, many=400))
    assert made.path is not None
    data = bytearray(made.path.read_bytes())
    volume = opened(data)
    assert len(volume.entries(resolve(volume, "many"))) == 400
    pieces = resolve(volume, "fragmented/a.bin")
    whole = resolve(volume, "big.bin")
    assert not volume._node(whole).is_chained
    node = volume._node(pieces)
    if node.is_chained:
        geometry = volume._geometry
        struct.pack_into("<I", data, geometry.fat_start + 4 * node.first_cluster, node.first_cluster)
        with pytest.raises(DamagedError, match="twice"):
            opened(data).open(pieces)
        struct.pack_into("<I", data, geometry.fat_start + 4 * node.first_cluster, 0xFFFF_FFFF)
        with pytest.raises(DamagedError, match="follows the first 1"):
            opened(data).open(pieces)
    at = volume._geometry.data_start + (whole - 3) * 32
    data[at + 4] ^= 1  # an attribute: the sum is wrong
    with pytest.raises(DamagedError, match="sum"):
        opened(data).entries(2)


def test_exfat_names_without_regard_to_case(tmp_path: Path) -> None:
    made = skipping(lambda: exfat_volume(tmp_path, many=3))
    assert made.path is not None
    data = bytearray(made.path.read_bytes())
    volume = opened(data)
    assert volume.lookup(volume.root, "BIG.bin") == volume.lookup(volume.root, "big.bin")
    place = exfat_upcase_place(volume.root_content())
    assert place is not None
    _, cluster, size = place
    table = volume.system_file(cluster, size, "").read_at(0, size)
    at = data.index(table)
    assert volume._upcase().fold("ßäéΩωжИ😀") == "ßÄÉΩΩЖИ😀"  # type: ignore[union-attr]
    data[at + 2 * ord("b")] ^= 1  # its sum is wrong: names are exact
    broken = opened(data)
    assert broken.lookup(broken.root, "big.bin")
    with pytest.raises(FileNotFoundError):
        broken.lookup(broken.root, "BIG.bin")


@pytest.mark.parametrize("words", [[0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF], [0xFFFF, 0xFF00, *range(0x200)]])
def test_exfat_tables_of_too_much(words: list[int]) -> None:
    table = struct.pack(f"<{len(words)}H", *words)
    total = 0
    for byte in table:
        total = ((total << 31 | total >> 1) + byte) & 0xFFFF_FFFF
    with pytest.raises(DamagedError, match="characters"):
        parse_exfat_upcase(table, total)
