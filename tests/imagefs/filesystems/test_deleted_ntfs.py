"""Deleted files of NTFS against what they held, and against what sleuthkit says of the same volume."""

import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.deleted_ntfs import COVER, TWINS, DeletedVolume, deleted_ntfs
from fixtures.tools import run
from formats.blockreader import BlockReader, BytesReader, Extent, FileReader
from formats.errors import FormatError
from imagefs.filesystems import FileSystem, GoneError, RecoveryState
from imagefs.filesystems.claims import Claims
from imagefs.filesystems.ntfs.deleted import DeletedNtfs
from imagefs.filesystems.ntfs.layout import AttributeType, parse_record
from imagefs.filesystems.remains import NOBODY
from mounters.tree import NodeType

CLUSTER = 4096
WHOLE, PARTLY, LOST = RecoveryState
LIVING = ("docs", "kept", "compressed")  # directories that lead to deleted files
SCATTERED = "docs/scattered.bin"
NAMELESS = (SCATTERED, "docs/fragmented.bin")  # ntfs-3g wiped their names


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> DeletedVolume:
    return deleted_ntfs(tmp_path_factory.mktemp("deleted"))


class WithHoles(BlockReader):
    """A volume some bytes of which an image has not."""

    def __init__(self, lower: BlockReader, *holes: tuple[int, int]) -> None:
        super().__init__(lower.size)
        self._lower = lower
        self._holes = sorted(holes)

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(self._lower.read_at(offset, length))
        for start, end in self._holes:
            low, high = max(start, offset), min(end, offset + length)
            if low < high:
                data[low - offset : high - offset] = bytes(high - low)
        return bytes(data)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        at, end = offset, offset + length
        for start, stop in self._holes:
            low, high = max(start, at), min(stop, end)
            if low < high:
                if at < low:
                    yield Extent(at, low - at, True)
                yield Extent(low, high - low, False)
                at = high
        if at < end:
            yield Extent(at, end - at, True)


def walk(volume: FileSystem, inode: int | None = None, path: str = "") -> Iterator[tuple[str, int, NodeType]]:
    for entry, attributes in volume.entries_with_attributes(volume.root if inode is None else inode):
        assert attributes is not None
        assert (entry.inode, entry.type) == (attributes.inode, attributes.type)
        yield path + entry.name, entry.inode, entry.type
        if entry.type is NodeType.DIRECTORY:
            yield from walk(volume, entry.inode, f"{path}{entry.name}/")


def files(volume: FileSystem) -> dict[str, int]:
    return {path: inode for path, inode, kind in walk(volume) if kind is NodeType.FILE}


def state(volume: FileSystem, inode: int) -> RecoveryState:
    recovery = volume.recovery(inode)
    assert recovery is not None
    return recovery.state


def original(built: DeletedVolume, inode: int) -> bytes:
    return built.contents[built.paths[inode]]


def read(reader: BlockReader) -> bytes:
    return reader.read_at(0, reader.size)


def test_same_names_as_fls(built: DeletedVolume) -> None:
    """Of names in ASCII: fls leaves out the others here."""
    listed = run("fls", "-r", "-d", "-p", built.deleted).decode()
    theirs = re.findall(r"^./(.) \* (\d+)-[^\t]*\t([^:\n]+)$", listed, re.MULTILINE)
    with FileReader(built.deleted) as reader:
        found = list(walk(DeletedNtfs(reader)))
    ours = [
        ("d" if kind is NodeType.DIRECTORY else "r", str(inode), re.sub("~.*", "", path))
        for path, inode, kind in found
        if path.isascii() and not path.startswith("$Orphans") and path not in LIVING
    ]
    assert len(ours) == 14
    assert sorted(ours) == sorted({item for item in theirs if not item[2].startswith("$OrphanFiles")})
    orphans = {inode for path, inode, _ in found if path.startswith("$Orphans/")}
    for inode in orphans:  # ntfs-3g had moved their names to other records, and wiped them there
        assert f"OrphanFile-{inode}" in {path.removeprefix("$Orphans/") for path, _, _ in found}
        assert "$FILE_NAME Attribute Values" not in run("istat", built.deleted, str(inode)).decode()


def test_all_is_whole(built: DeletedVolume) -> None:
    """Resident, fragmented, sparse and compressed files, where nothing was written since."""
    with FileReader(built.deleted) as reader:
        volume = DeletedNtfs(reader)
        found = files(volume)
        for path, inode in found.items():
            if built.paths[inode] == SCATTERED:
                continue
            assert state(volume, inode) is WHOLE, path
            assert read(volume.open(inode)) == original(built, inode), path
            assert volume.extended_attribute(inode, "user.imagefs.deleted") == b"whole"
            assert "user.imagefs.deleted" in volume.extended_attributes(inode)
    assert set(found.values()) == {inode for inode, path in built.paths.items() if path != COVER}
    twins = [inode for inode, path in built.paths.items() if "twin" in path]
    assert [found[TWINS], found[f"{TWINS}~{twins[1]}"]] == twins


def test_runs_in_several_records(built: DeletedVolume) -> None:
    """ntfs-3g forgets the last ones as it deletes: what is known is there, the rest an error."""
    with FileReader(built.deleted) as reader:
        volume = DeletedNtfs(reader)
        (inode,) = (inode for inode, path in built.paths.items() if path == SCATTERED)
        assert "ATTRIBUTE_LIST" in run("istat", built.deleted, str(inode)).decode()
        content = original(built, inode)
        assert state(volume, inode) is PARTLY
        gone = gone_clusters(volume.open(inode), content)
        assert gone == list(range(gone[0], -(-len(content) // CLUSTER)))
        assert gone[0] > 200
        assert volume.attributes(inode).size == len(content)


def gone_clusters(reader: BlockReader, content: bytes) -> list[int]:
    """Return which clusters of a file are errors; the others are what they were."""
    assert reader.size == len(content)
    gone = []
    for number, at in enumerate(range(0, len(content), CLUSTER)):
        piece = content[at : at + CLUSTER]
        try:
            assert reader.read_at(at, len(piece)) == piece
        except GoneError:
            gone.append(number)
    return gone


def test_streams(built: DeletedVolume) -> None:
    with FileReader(built.deleted) as reader:
        volume = DeletedNtfs(reader)
        docs = volume.lookup(volume.root, "docs")
        inode = volume.lookup(docs, "streams.bin")
        assert {stream.name: stream.size for stream in volume.streams(inode)} == {
            name: len(value) for name, value in built.streams.items()
        }
        for name, value in built.streams.items():
            node = volume.lookup(docs, f"streams.bin:{name}")
            assert read(volume.open_stream(inode, name)) == read(volume.open(node)) == value
            assert state(volume, node) is WHOLE


def free_clusters(volume: Path) -> set[int]:
    lines = run("blkls", "-l", volume).decode().splitlines()
    return {int(line.split("|")[0]) for line in lines if line.endswith("|f")}


def clusters_of(volume: Path, inode: int) -> list[int]:
    """Return the clusters of a file's unnamed data by sleuthkit, 0 where it is sparse."""
    text = run("istat", volume, str(inode)).decode()
    found = re.search(r"^Type: \$DATA \(128-\d+\)   Name: N/A   Non-Resident.*\n((?:[\d ]+\n)*)", text, re.M)
    return [int(number) for number in found[1].split()] if found else []


@pytest.mark.parametrize("which", ["reused", "contested"])
def test_what_is_overwritten(built: DeletedVolume, which: str) -> None:
    """By sleuthkit's map of clusters; where the one who overwrote is deleted too, he has them still."""
    taken = free_clusters(built.deleted) - free_clusters(built.reused)  # the cover file's
    seen = set()
    with FileReader(getattr(built, which)) as reader:
        volume = DeletedNtfs(reader)
        found = files(volume)
        assert (COVER in found) is (which == "contested")
        for path, inode in found.items():
            content = original(built, inode)
            seen.add(state(volume, inode))
            if path == COVER:
                assert state(volume, inode) is WHOLE
                assert read(volume.open(inode)) == content
                continue
            clusters = clusters_of(built.reused, inode)
            gone = [number for number, cluster in enumerate(clusters) if cluster in taken]
            if built.paths[inode] in (SCATTERED, "compressed/text.txt"):  # istat does not tell their clusters
                if state(volume, inode) is not LOST:
                    assert set(gone) <= set(gone_clusters(volume.open(inode), content))
                continue
            stored = sum(cluster != 0 for cluster in clusters)
            recovery = volume.recovery(inode)
            assert recovery is not None
            assert recovery.gone == len(gone) * CLUSTER, path
            assert recovery.state is (LOST if stored and len(gone) == stored else PARTLY if gone else WHOLE)
            if recovery.state is LOST:
                with pytest.raises(GoneError, match="lost"):
                    volume.open(inode)
                continue
            opened = volume.open(inode)
            assert gone_clusters(opened, content) == gone
            if gone:
                with pytest.raises(GoneError):
                    opened.read_at(0, len(content))
                assert all(extent.is_data for extent in opened.extents(gone[0] * CLUSTER, 1))
    assert seen == {WHOLE, PARTLY, LOST}


def test_directories_that_are_gone(built: DeletedVolume) -> None:
    """The record of "gone" is the cover file's now: what was in it is an orphan."""
    with FileReader(built.reused) as reader:
        paths = [path for path, _, _ in walk(DeletedNtfs(reader))]
    assert {path for path in paths if path.startswith("$Orphans")} == {
        "$Orphans",
        "$Orphans/beside.txt",
        "$Orphans/deep",
        "$Orphans/deep/inside.bin",
        *(f"$Orphans/OrphanFile-{number}" for number, path in built.paths.items() if path in NAMELESS),
    }


def test_image_without_free_clusters(built: DeletedVolume) -> None:
    """What is resident is there; what lies in free clusters is not in an image of used ones, nor zeros."""
    with FileReader(built.deleted) as reader:
        volume = DeletedNtfs(reader, is_held=False)
        found = files(volume)
        for inode in found.values():
            recovery = volume.recovery(inode)
            assert recovery is not None
            if recovery.state is WHOLE:
                assert not clusters_of(built.deleted, inode)
                assert read(volume.open(inode)) == original(built, inode)
            else:
                assert recovery.state is LOST
                with pytest.raises(GoneError, match="made of used clusters only"):
                    volume.open(inode)
        assert {state(volume, inode) for inode in found.values()} == {WHOLE, LOST}


def test_hole_of_the_image(built: DeletedVolume) -> None:
    """Clusters that the image has not are gone, though nobody has them, and never read as zeros."""
    with FileReader(built.deleted) as lower:
        inode = files(DeletedNtfs(lower))["docs/one piece.bin"]
        clusters = clusters_of(built.deleted, inode)
        volume = DeletedNtfs(WithHoles(lower, (clusters[3] * CLUSTER + 100, clusters[5] * CLUSTER)))
        recovery = volume.recovery(inode)
        assert recovery is not None
        assert (recovery.state, recovery.gone) == (PARTLY, 2 * CLUSTER)
        opened = volume.open(inode)
        content = built.contents["docs/one piece.bin"]
        assert opened.read_at(0, 3 * CLUSTER) == content[: 3 * CLUSTER]
        assert opened.read_at(5 * CLUSTER, 9000) == content[5 * CLUSTER : 5 * CLUSTER + 9000]
        for number in (3, 4):
            with pytest.raises(GoneError):
                opened.read_at(number * CLUSTER, 1)


def record_place(volume: Path, number: int) -> int:
    """Return where a file record lies, by sleuthkit's list of $MFT's clusters."""
    at = number * 1024
    return clusters_of(volume, 0)[at // CLUSTER] * CLUSTER + at % CLUSTER


def name_place(raw: bytes, number: int) -> int:
    """Return where a record's $FILE_NAME starts."""
    (value,) = [
        attribute.value
        for attribute in parse_record(raw, number).attributes
        if attribute.type == AttributeType.FILE_NAME
    ]
    assert value is not None
    return raw.index(value[:8] + value[8:40])


def test_directories_in_each_other(built: DeletedVolume) -> None:
    data = bytearray(built.deleted.read_bytes())
    with FileReader(built.deleted) as reader:
        found = {path: inode for path, inode, _ in walk(DeletedNtfs(reader))}
    at = record_place(built.deleted, found["gone"])
    raw = bytes(data[at : at + 1024])
    place = at + name_place(raw, found["gone"])
    data[place : place + 8] = struct.pack("<Q", found["gone/deep"] | 1 << 48)
    paths = {path for path, _, _ in walk(DeletedNtfs(BytesReader(bytes(data))))}
    assert {"$Orphans/gone/beside.txt", "$Orphans/gone/deep/inside.bin"} <= paths
    assert not any(path.startswith("gone") for path in paths)


@pytest.mark.parametrize(("name", "shown"), [("fir/t.bin", "fir_t.bin"), ("docs", "docs~{}"), (".", None)])
def test_names_that_cannot_be(built: DeletedVolume, name: str, shown: str | None) -> None:
    data = bytearray(built.deleted.read_bytes())
    with FileReader(built.deleted) as reader:
        inode = files(DeletedNtfs(reader))["first.bin"]
    at = record_place(built.deleted, inode)
    place = at + name_place(bytes(data[at : at + 1024]), inode) + 64
    data[place] = len(name)
    data[place + 2 : place + 2 + 2 * len(name)] = name.encode("utf-16-le")
    volume = DeletedNtfs(BytesReader(bytes(data)))
    assert volume.lookup(volume.root, (shown or "OrphanFile-{}").format(inode)) == inode


def test_sizes_that_were_cleared(built: DeletedVolume) -> None:
    """A file whose runs are gone, while its name still has a size, is lost, and no empty file."""
    data = bytearray(built.deleted.read_bytes())
    with FileReader(built.deleted) as reader:
        inode = files(DeletedNtfs(reader))["first.bin"]
    at = record_place(built.deleted, inode)
    raw = bytes(data[at : at + 1024])
    name = at + name_place(raw, inode)
    data[name + 48 : name + 56] = struct.pack("<Q", 500_000)
    (attribute,) = [item for item in parse_record(raw, inode).attributes if item.type == AttributeType.DATA]
    place = at + raw.index(struct.pack("<QQ", attribute.size, attribute.initialized)) - 24
    data[place : place + 8] = struct.pack("<q", -1)  # the last VCN
    data[place + 16 : place + 40] = bytes(24)
    data[place + 40] = 0  # the first run
    volume = DeletedNtfs(BytesReader(bytes(data)))
    assert state(volume, inode) is LOST
    with pytest.raises(GoneError, match="cleared"):
        volume.open(inode)


def read_all(volume: DeletedNtfs) -> int:
    """Read whatever there is; an entry may fail with a FormatError, the listings may not."""
    count = 0
    waiting = [volume.root]
    while waiting:
        for entry, _ in volume.entries_with_attributes(waiting.pop()):
            count += 1
            try:
                known = volume.attributes(entry.inode)
                assert known.type is entry.type
                if entry.type is NodeType.DIRECTORY:
                    waiting.append(entry.inode)
                elif entry.type is NodeType.FILE:
                    recovery = volume.recovery(entry.inode)
                    assert recovery is not None
                    for name in volume.extended_attributes(entry.inode):
                        volume.extended_attribute(entry.inode, name)
                    opened = volume.open(entry.inode)
                    opened.read_at(0, min(opened.size, 1 << 16))
                    opened.read_at(max(0, opened.size - 100), min(opened.size, 100))
                elif entry.type is NodeType.LINK:
                    volume.read_link(entry.inode)
            except FormatError:
                pass
    return count


CHANGES = st.lists(st.tuples(st.integers(24, 1021), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def target(built: DeletedVolume) -> tuple[bytes, list[int], int]:
    """Return a volume, the places of its deleted records, and how many entries they make."""
    with FileReader(built.reused) as reader:
        volume = DeletedNtfs(reader)
        numbers = sorted(set(files(volume).values()))
        return read(reader), [record_place(built.reused, number) for number in numbers], read_all(volume)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(which=st.integers(0, 1000), changes=CHANGES)
def test_damaged_records(
    target: tuple[bytes, list[int], int], which: int, changes: list[tuple[int, int]]
) -> None:
    """Whatever a deleted record says, only its own file suffers."""
    content, places, total = target
    image = bytearray(content)
    for place, value in changes:
        if place not in (510, 511):  # a record of two versions is none
            image[places[which % len(places)] + place] = value
    found = read_all(DeletedNtfs(BytesReader(bytes(image))))
    assert total - 2 <= found <= total + 3


def test_claims_against_a_slow_model() -> None:
    """Who is last by both ranks has a cluster; nobody does where they contradict each other."""
    drawn = random.Random(1)
    ranks = ({0: (5, 5), 1: (5, 6), 2: (7, 5), 3: (5, 5)}, {owner: (owner, owner) for owner in range(4)})
    for turn in range(400):
        claims, listed = Claims(), []
        for _ in range(drawn.randrange(7)):
            start, owner = drawn.randrange(30), drawn.randrange(4)
            item = (start, start + drawn.randrange(1, 12), owner, ranks[turn % 2][owner])
            claims.add(*item[:3], *item[3])
            listed.append(item)
        contested = claims.contested()
        for owner in range(-1, 4):
            first, free = 3, np.ones(40, np.bool_)
            contested.exclude(owner, first, free)
            for at, is_left in enumerate(free.tolist(), first):
                claimants = {(who, rank) for start, end, who, rank in listed if start <= at < end}
                last = [
                    who
                    for who, rank in claimants
                    if all(
                        who == other or (rank != theirs and all(map(int.__ge__, rank, theirs)))
                        for other, theirs in claimants
                    )
                ]
                assert is_left is (len(claimants) < 2 or (last == [owner] and owner != NOBODY))
