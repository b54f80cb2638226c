"""Directories of many index blocks: names found by the index's order, listings, and damage to either."""

import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.tools import fuse_mount
from fixtures.volumes import make_ntfs
from formats.blockreader import BlockReader, BytesReader, FileReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.descent import Descents
from imagefs.filesystems.ntfs.index import open_index
from imagefs.filesystems.ntfs.index_blocks import Names, names_of_blocks
from imagefs.filesystems.ntfs.layout import AttributeType, apply_fixups, parse_children, parse_index_entries
from imagefs.filesystems.ntfs.mft import find

BLOCK = 4096
LETTERS = "aAbBzZäÄßéÉiI\u0131İωΩжЖ_09-😀語"


def made_names() -> list[str]:
    generator = random.Random(6)
    names = {f"{'file' if n % 2 else 'FILE'} number {n:05}" for n in range(2500)}
    names |= {
        "".join(generator.choices(LETTERS, k=generator.randrange(1, 120))) + str(n) for n in range(1500)
    }
    names |= {f"pair {n} {kind}" for n in range(150) for kind in ("x", "X")}
    ordered = sorted(names)
    generator.shuffle(ordered)
    return ordered


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a directory whose index is three blocks deep, with names taken out again."""
    folder = tmp_path_factory.mktemp("large")
    image = make_ntfs(folder / "large.img", 48 << 20, "large")
    names = made_names()
    with fuse_mount(folder / "mnt", "ntfs-3g", "-o", "no_detach", image, folder / "mnt") as root:
        (root / "large").mkdir()
        for name in names:
            os.close(os.open(root / "large" / name, os.O_CREAT | os.O_WRONLY))
        for name in names[::7]:
            (root / "large" / name).unlink()
    return image


@pytest.fixture(scope="module")
def inodes(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Return what ntfs-3g lists."""
    mount = tmp_path_factory.mktemp("ntfs3g") / "mnt"
    with fuse_mount(mount, "ntfs-3g", "-o", "no_detach,ro,norecover", image, mount) as root:
        return {entry.name: entry.inode() for entry in os.scandir(root / "large")}


@pytest.fixture
def volume(image: Path) -> Iterator[NtfsFileSystem]:
    with FileReader(image) as reader:
        yield NtfsFileSystem(reader)


class Counting(BlockReader):
    """A reader that counts what is read."""

    def __init__(self, lower: BlockReader) -> None:
        super().__init__(lower.size)
        self.lower = lower
        self.read = 0

    def _read(self, offset: int, length: int) -> bytes:
        self.read += length
        return self.lower.read_at(offset, length)


def large(volume: NtfsFileSystem) -> int:
    return volume.lookup(volume.root, "large")


def test_listing(volume: NtfsFileSystem, inodes: dict[str, int]) -> None:
    assert len(inodes) > 3000
    assert {entry.name: entry.inode for entry in volume.entries(large(volume))} == inodes


def test_every_name_is_found_by_descent(volume: NtfsFileSystem, inodes: dict[str, int]) -> None:
    inode, find = large(volume), volume._directories.stored
    for name, number in inodes.items():
        found = find(inode, name)
        assert found is not None
        assert (found[0], found[1] & (1 << 48) - 1) == (name, number)
    for name in set(made_names()) - inodes.keys():
        found = find(inode, name)
        assert found is None or (found[0] != name and found[0].casefold() == name.casefold())
    for name in ("", "file", "~", "\x01", "file number 00001 ", "😀😀", "\udc80", "a\udced\udca0\udc80"):
        assert find(inode, name) is None


def test_without_regard_to_case_descent_and_listing_agree(
    volume: NtfsFileSystem, inodes: dict[str, int]
) -> None:
    inode = large(volume)
    listing = volume._directories.listing(inode)
    upcase = volume._directories.upcase()
    assert upcase is not None
    differing = 0
    for name in inodes:
        for other in (name.swapcase(), name.upper(), name.lower()):
            found = volume._directories.stored(inode, other)
            assert (found and found[1]) == listing.reference(other, upcase), other
            differing += found is not None and found[0] != other
    assert differing > 1000
    pairs = [n for n in range(150) if {f"pair {n} x", f"pair {n} X"} <= inodes.keys()]
    assert len(pairs) > 50
    for number in pairs:  # the first of two
        assert volume._directories.stored(inode, f"PAIR {number} x") == (
            f"pair {number} X",
            listing.reference(f"pair {number} X", upcase),
        )


def test_a_name_costs_few_blocks(image: Path, inodes: dict[str, int]) -> None:
    with FileReader(image) as reader:
        counting = Counting(reader)
        volume = NtfsFileSystem(counting)
        inode = large(volume)
        with pytest.raises(FileNotFoundError):
            volume.lookup(inode, "not there")
        before = counting.read
        name = next(iter(inodes))
        assert volume.lookup(inode, name) == inodes[name]
        assert counting.read - before <= 3 * BLOCK + 65536  # and a chunk of $MFT
        for number in range(3000):
            with pytest.raises(FileNotFoundError):
                volume.lookup(inode, f"not there {number}")
        index = open_index(volume._mft, inode, BLOCK)
        assert index.blocks is not None
        assert index.blocks.size > 64 * BLOCK
        assert counting.read - before < index.blocks.size * 3  # many searches: it is read whole once


def test_blocks_at_once_are_blocks_one_by_one(volume: NtfsFileSystem) -> None:
    index = open_index(volume._mft, large(volume), BLOCK)
    assert index.blocks is not None
    compared = 0
    for number in range(index.blocks.size // BLOCK):
        if not index.is_used(number):
            continue
        changed = bytearray(index.blocks.read_at(number * BLOCK, BLOCK))
        changed[24 + struct.unpack_from("<I", changed, 24)[0] + 81] = number % 4  # 2: an 8.3 name
        raw = bytes(changed)
        quick = names_of_blocks(raw, BLOCK, number, 1)
        assert quick is not None
        block = apply_fixups(raw, b"INDX", "")
        slow = Names.of(parse_index_entries(block, 24, ""))
        assert (list(quick[0].names), quick[0].references.tolist()) == (slow.names, slow.references.tolist())
        assert quick[0].file_attributes.tolist() == slow.file_attributes.tolist()
        assert quick[1] == parse_children(block, 24, "")
        compared += len(slow.names)
    assert compared > 3000


# damage


class Patched(BlockReader):
    """A volume with bytes changed."""

    def __init__(self, lower: BlockReader, changes: dict[int, bytes]) -> None:
        super().__init__(lower.size)
        self.lower = lower
        self.changes = changes

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(self.lower.read_at(offset, length))
        for at, new in self.changes.items():
            for place, byte in enumerate(new, at - offset):
                if 0 <= place < length:
                    data[place] = byte
        return bytes(data)


def places(volume: NtfsFileSystem) -> list[int]:
    """Return where the index blocks of the directory lie."""
    index = open_index(volume._mft, large(volume), BLOCK)
    assert index.blocks is not None
    numbers = [number for number in range(index.blocks.size // BLOCK) if index.is_used(number)]
    found = [index.blocks.place(number * BLOCK) for number in numbers]  # type: ignore[attr-defined]
    assert None not in found
    return found


def inner_place(volume: NtfsFileSystem, image: Path) -> int:
    """Return where an index block lies that has others below it."""
    with image.open("rb") as file:
        for place in places(volume):
            file.seek(place)
            if file.read(BLOCK)[36] & 1:
                return place
    raise AssertionError("no inner block")


def test_a_loop_is_damage(volume: NtfsFileSystem, image: Path) -> None:
    place = inner_place(volume, image)
    with FileReader(image) as reader:
        block = reader.read_at(place, BLOCK)
        changes = {}
        position = 24 + struct.unpack_from("<I", block, 24)[0]
        while True:
            length, flags = struct.unpack_from("<8xH2xH", block, position)
            if (position + length) % 512:  # else it lies under a fixup
                changes[place + position + length - 8] = block[16:24]
            if flags & 2:
                break
            position += length
        broken = NtfsFileSystem(Patched(reader, changes))
        upcase = broken._directories.upcase()
        assert upcase is not None
        failed = 0
        for name in made_names()[:300]:
            started = time.monotonic()
            try:
                Descents(broken._mft, BLOCK).find(large(broken), name, upcase, ignore_case=True)
            except DamagedError:
                failed += 1
            assert time.monotonic() - started < 1
        assert failed > 10


def test_children_in_each_others_place_are_damage(
    volume: NtfsFileSystem, image: Path, inodes: dict[str, int]
) -> None:
    place = inner_place(volume, image)
    with FileReader(image) as reader:
        block = reader.read_at(place, BLOCK)
        position = 24 + struct.unpack_from("<I", block, 24)[0]
        links: list[int] = []
        while len(links) < 8:
            length, flags = struct.unpack_from("<8xH2xH", block, position)
            if flags & 2:
                break
            position += length
            if position % 512:  # else it lies under a fixup
                links.append(position - 8)
        changes = {
            place + at: block[other : other + 8] for at, other in zip(links, reversed(links), strict=True)
        }
        broken = NtfsFileSystem(Patched(reader, changes))
        upcase = broken._directories.upcase()
        assert upcase is not None
        descents, failed = Descents(broken._mft, BLOCK), 0
        for name, number in inodes.items():
            try:
                found = descents.find(large(broken), name, upcase, ignore_case=True)
            except DamagedError:
                failed += 1
                continue
            assert found is not None, name
            assert found[1] & (1 << 48) - 1 == number
        assert failed > 10


def test_damage_elsewhere_does_not_hinder(
    volume: NtfsFileSystem, image: Path, inodes: dict[str, int]
) -> None:
    with FileReader(image) as reader:
        torn = Patched(reader, {places(volume)[-1]: b"torn"})
        broken = NtfsFileSystem(torn)
        found = 0
        for name in list(inodes)[:200]:
            try:
                assert NtfsFileSystem(torn).lookup(large(broken), name) == inodes[name]
                found += 1
            except DamagedError:  # never "no such file"
                continue
        assert found > 150


def test_a_damaged_index_is_listed_from_the_file_records(
    volume: NtfsFileSystem, image: Path, inodes: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    torn = dict.fromkeys(places(volume)[3:6], b"torn")
    with FileReader(image) as reader:
        broken = NtfsFileSystem(Patched(reader, torn))
        sound = {entry.name: entry for entry in volume.entries(large(volume))}
        assert {entry.name: entry for entry in broken.entries(large(broken))} == sound
        assert "is listed from $MFT" in caplog.text
        for name in list(inodes)[:50]:
            assert broken.lookup(large(broken), name) == inodes[name]
        with pytest.raises(FileNotFoundError):
            broken.lookup(large(broken), "not there")
        used = min(inodes.values())
        bits = volume._mft.value(find(volume._mft.record(0).attributes, AttributeType.BITMAP), "")
        free = next(
            number
            for number in range(used, bits.size * 8)
            if not bits.read_at(number // 8, 1)[0] >> number % 8 & 1
        )
        for record, is_damage in ((used, True), (free, False)):
            place = volume._mft.data.place(record * 1024)  # type: ignore[attr-defined]
            worse = NtfsFileSystem(Patched(reader, torn | {place: b"BAAD"}))
            if is_damage:
                with pytest.raises(DamagedError, match="in place of b'INDX'"):
                    worse.entries(large(worse))
            else:
                assert len(worse.entries(large(worse))) == len(inodes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_told_or_harmless(
    fuzzed: tuple[BytesReader, list[int], dict[str, int]], data: st.DataObject
) -> None:
    reader, blocks, inodes = fuzzed
    changes = {
        data.draw(st.sampled_from(blocks))
        + data.draw(st.integers(0, 120) | st.integers(0, BLOCK - 1)): data.draw(
            st.binary(min_size=1, max_size=8)
        )
        for _ in range(data.draw(st.integers(1, 3)))
    }
    volume = NtfsFileSystem(Patched(reader, changes))
    started = time.monotonic()
    inode = large(volume)
    for name in data.draw(st.lists(st.sampled_from(sorted(inodes)), min_size=1, max_size=5)):
        try:
            volume.lookup(inode, name)
        except (FormatError, FileNotFoundError):  # a name of its own may be what was changed
            continue
    try:
        entries = volume.entries(inode)
    except FormatError:
        entries = []
    for entry in entries[:50]:
        os.fsencode(entry.name)
    assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def fuzzed(image: Path, inodes: dict[str, int]) -> tuple[BytesReader, list[int], dict[str, int]]:
    reader = BytesReader(image.read_bytes())
    return reader, places(NtfsFileSystem(reader)), inodes
