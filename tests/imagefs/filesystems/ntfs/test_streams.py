"""Named streams against ntfs-3g and the bytes that were written."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.ntfs_metadata import (
    MANY_STREAMS,
    ODD_STREAMS,
    SCATTERED,
    SCATTERED_STEP,
    STREAM_SIZES,
    metadata_volume,
    stream_content,
)
from fixtures.tools import run
from formats.errors import DamagedError
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import Attribute
from imagefs.filesystems.ntfs.streams import NodeNumbers, StreamNode, describe, split_name
from mounters.tree import NodeType
from tests.imagefs.filesystems.ntfs.metadata import (
    mounted_by_ntfs3g,
    opened,
    patched,
    place_in_record,
    resolve,
    walk,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return metadata_volume(tmp_path_factory.mktemp("streams"))


@pytest.fixture
def volume(path: Path) -> Iterator[NtfsFileSystem]:
    with opened(path) as volume:
        yield volume


def content(volume: NtfsFileSystem, inode: int, name: str) -> bytes:
    reader = volume.open_stream(inode, name)
    return reader.read_at(0, reader.size)


def test_as_ntfs3g_lists_and_reads_them(path: Path, volume: NtfsFileSystem, tmp_path: Path) -> None:
    compared = 0
    with mounted_by_ntfs3g(path, tmp_path / "mnt") as root:
        for name, inode in walk(volume):
            if name in ("streams/wof", "streams/not-wof"):
                continue  # see test_what_wof_compressed_is_not_listed
            theirs = set(os.listxattr(root / name, follow_symlinks=False))  # which has one for each extent
            ours = [stream for stream in volume.streams(inode) if not stream.name.startswith("ntfs-3g.")]
            assert sorted(f"user.{stream.name}" for stream in ours) == sorted(theirs), name
            for stream in ours:
                data = content(volume, inode, stream.name)
                assert len(data) == stream.size
                if stream.size <= 65536:
                    assert data == os.getxattr(root / name, f"user.{stream.name}"), (name, stream)
                    compared += 1
    assert compared > MANY_STREAMS


@pytest.mark.parametrize("size", STREAM_SIZES)
def test_all_sizes(volume: NtfsFileSystem, size: int) -> None:
    host = resolve(volume, "streams/host.txt")
    (known,) = [stream for stream in volume.streams(host) if stream.name == str(size)]
    assert known.size == size
    assert content(volume, host, str(size)) == stream_content(size)
    node = resolve(volume, f"streams/host.txt:{size}")
    reader = volume.open(node)
    assert (reader.size, reader.read_at(0, size)) == (size, stream_content(size))
    assert known.allocated in ({0} if size < 2 else {0, -(-size // 4096) * 4096})


def test_many_streams_are_behind_an_attribute_list(volume: NtfsFileSystem) -> None:
    host = resolve(volume, "streams/many.txt")
    assert any(attribute.type == 0x20 for attribute in volume._mft.record(host).attributes)
    assert len(volume.streams(host)) == MANY_STREAMS


def test_a_stream_in_many_pieces(path: Path, volume: NtfsFileSystem) -> None:
    host = resolve(volume, "streams/host.txt")
    extents = [a for a in volume._mft.attributes(volume._mft.record(host)) if a.name == "scattered"]
    assert len(extents) > 1
    reader = volume.open_stream(host, "scattered")
    assert reader.size == (SCATTERED - 1) * SCATTERED_STEP + 1000
    for number in range(SCATTERED):
        assert reader.read_at(number * SCATTERED_STEP, 1000) == noise(number, 0, 1000)
    stored = sum(extent.length for extent in reader.extents() if extent.is_data)
    assert stored < reader.size // 3
    assert reader.read_at(0, reader.size) == run("ntfscat", "-i", str(host), "-n", "scattered", path)


def test_a_stream_is_found_without_regard_to_case(path: Path, volume: NtfsFileSystem) -> None:
    host = resolve(volume, "streams/folder")
    node = resolve(volume, "streams/folder:on a folder")
    assert resolve(volume, "STREAMS/FOLDER:ON A Folder") == node
    assert resolve(volume, "streams/folder:On A Folder:$DATA") == node
    assert content(volume, host, "ON A FOLDER") == b"a folder's stream"
    with pytest.raises(OSError, match="No such"):
        volume.lookup(volume.root, "streams:on a folder")
    with pytest.raises(OSError, match="No data"):  # ntfs-3g's attributes differ by case
        volume.extended_attribute(host, "user.ON A FOLDER")
    place = place_in_record(volume, path, host, "on a folder".encode("utf-16-le"))
    with patched(path, {place: b"\0\0"}) as odd:  # a name that can't be
        with pytest.raises(OSError, match="No such"):
            odd.lookup(resolve(odd, "streams"), "folder:on a folder")
        assert resolve(odd, "streams/folder:70000")


def test_a_stream_is_a_node(volume: NtfsFileSystem) -> None:
    host = resolve(volume, "streams/host.txt")
    node = resolve(volume, "streams/host.txt:700")
    assert 1 << 47 <= node < 1 << 48
    assert resolve(volume, "streams/host.txt:700") == node
    assert resolve(volume, "streams/host.txt:700:$DATA") == node
    assert resolve(volume, "streams/host.txt:700:$data") == node
    assert resolve(volume, "streams/host.txt::$DATA") == host
    known, other = volume.attributes(node), volume.attributes(host)
    assert (known.inode, known.type, known.size, known.links) == (node, NodeType.FILE, 700, 1)
    assert (known.modified, known.accessed, known.changed, known.created) == (
        other.modified,
        other.accessed,
        other.changed,
        other.created,
    )
    assert not volume.streams(node)
    assert not volume.extended_attributes(node)
    for name in ODD_STREAMS:
        reader = volume.open(resolve(volume, f"streams/host.txt:{name}"))
        assert reader.read_at(0, reader.size) == name.encode()
    with pytest.raises(NotADirectoryError):
        volume.entries(node)
    with pytest.raises(OSError, match="Invalid"):
        volume.read_link(node)
    with pytest.raises(FileNotFoundError):
        volume.open_stream(node, "700")
    with pytest.raises(OSError, match="No data"):
        volume.extended_attribute(node, "system.ntfs_acl")


def test_streams_of_directories(volume: NtfsFileSystem) -> None:
    folder = resolve(volume, "streams/folder")
    assert {stream.name: stream.size for stream in volume.streams(folder)} == {
        "on a folder": 17,
        "70000": 70000,
    }
    node = resolve(volume, "streams/folder:70000")
    assert volume.attributes(node).type is NodeType.FILE
    assert volume.open(node).read_at(0, 70000) == stream_content(70000)
    assert (
        volume.open(volume.lookup(folder, ":70000")).read_at(69_000, 1000) == stream_content(70000)[69_000:]
    )
    root = volume.open(volume.lookup(volume.root, ":on the root"))
    assert root.read_at(0, root.size) == b"the root's stream"


def test_a_name_with_a_colon_wins(volume: NtfsFileSystem) -> None:
    for name, wanted in (
        ("colon:x", b"colon:x"),
        ("colon:only", b"colon:only"),
        ("colon:y", b"a stream of its own"),
        ("colon:x:$DATA", b"a stream in the shadow of a file"),
    ):
        reader = volume.open(resolve(volume, f"streams/{name}"))
        assert reader.read_at(0, reader.size) == wanted, name


@pytest.mark.parametrize(
    "name",
    [
        "host.txt:", "host.txt:nothing", "nothing:700", ":nothing", ":", "::", "::$DATA x", "host.txt:700:",
        "host.txt:700:x", "host.txt:700:$DATA:$DATA", "host.txt:70", "host.txt:" + ":" * 5000,
    ],
)  # fmt: skip
def test_streams_that_are_not_there(volume: NtfsFileSystem, name: str) -> None:
    folder = resolve(volume, "streams")
    started = time.monotonic()
    with pytest.raises(FileNotFoundError):
        volume.lookup(folder, name)
    with pytest.raises(FileNotFoundError):
        volume.open_stream(folder, name)
    assert time.monotonic() - started < 2


def test_what_wof_compressed_is_not_listed(volume: NtfsFileSystem) -> None:
    for name, listed in (("wof", ["other"]), ("not-wof", ["other", "WofCompressedData"])):
        host = resolve(volume, f"streams/{name}")
        assert [stream.name for stream in volume.streams(host)] == listed
        assert content(volume, host, "WofCompressedData") == b"stored bytes"
        node = volume.open(resolve(volume, f"streams/{name}:WofCompressedData"))
        assert node.read_at(0, node.size) == b"stored bytes"


def test_system_files(path: Path, volume: NtfsFileSystem) -> None:
    descriptors = volume.open(resolve(volume, "$Secure:$SDS"))
    assert descriptors.read_at(0, descriptors.size) == run("ntfscat", "-i", "9", "-n", "$SDS", path)
    bad = volume.open(resolve(volume, "$BadClus:$Bad"))
    said = run("ntfsinfo", "--inode", "8", "--verbose", path).decode()
    assert bad.size > 40 << 20
    assert f"Data size:\t\t {bad.size} (" in said
    assert [extent.is_data for extent in bad.extents()] == [False]


def test_random_parts_of_a_large_stream(volume: NtfsFileSystem) -> None:
    reader = volume.open_stream(resolve(volume, "streams/host.txt"), "70000")
    whole = stream_content(70000)
    for offset in range(0, 70_000, 1733):
        for length in (1, 4096, 5000):
            assert reader.read_at(offset, min(length, 70_000 - offset)) == whole[offset : offset + length]


def test_damage_of_one_stream_is_its_own(path: Path, volume: NtfsFileSystem) -> None:
    host = resolve(volume, "streams/folder")
    (broken,) = [a for a in volume._mft.attributes(volume._mft.record(host)) if a.name == "70000"]
    mapping = broken.mapping.rstrip(b"\0")
    at = place_in_record(volume, path, host, mapping)
    outside = mapping[:1] + mapping[1:-1] + b"\x7f"  # the last byte of the place: far beyond the volume
    with patched(path, {at: outside}) as damaged:
        assert content(damaged, host, "on a folder") == b"a folder's stream"
        assert [stream.size for stream in damaged.streams(host)] == [70000, 17]
        assert list(damaged.entries(host)) == []
        with pytest.raises(DamagedError):
            damaged.open_stream(host, "70000")


def test_absurd_sizes() -> None:
    for attribute in (
        Attribute(0x80, "x", 0, 1, None, size=1 << 63),
        Attribute(0x80, "x", 0, 1, None, first_vcn=7, size=5),
    ):
        with pytest.raises(DamagedError):
            describe("x", [attribute], "file 1")


def test_numbers_are_the_same_for_all_threads() -> None:
    numbers = NodeNumbers()
    nodes = [StreamNode(record, f"{record % 7}") for record in range(300)] * 4
    with ThreadPoolExecutor(8) as pool:
        given = dict(zip(nodes, pool.map(numbers.number, nodes), strict=True))
    assert len(set(given.values())) == 300
    for node, number in given.items():
        assert numbers.node(number) == node
        assert numbers.number(node) == number
    assert numbers.node(64) is None
    assert numbers.node((1 << 47) + 300) is None


def test_what_a_name_may_mean() -> None:
    assert list(split_name("a:b")) == [("a", "b")]
    assert list(split_name("a:b:c")) == [("a", "b:c"), ("a:b", "c")]
    assert ("a", "") in list(split_name("a::$DATA"))
    assert not list(split_name("a:"))
