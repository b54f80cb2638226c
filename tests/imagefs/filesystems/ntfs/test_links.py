"""Links of Windows, WSL and Interix: where they lead in the tree, held against ntfs-3g's mount."""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.tools import fuse_mount
from fixtures.volumes import make_ntfs, ntfs_reparse
from formats.blockreader import FileReader
from formats.errors import DamagedError, FormatError, UnsupportedError
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.reparse import INTX_LINK, LinkKind, StoredLink, parse_intx, parse_link
from mounters.tree import NodeType

MIB = 1 << 20
JUNCTION, SYMLINK, WSL = 0xA0000003, 0xA000000C, 0xA000001D
GUID = "Volume{28E8F8E1-94E4-49dd-a54b-4babc99677dd}"
OWN = frozenset({"C:", GUID.upper()})


def windows(target: str, shown: str = "", *, relative: bool = False, tag: int = SYMLINK) -> bytes:
    return ntfs_reparse(tag, target, shown or target.removeprefix("\\??\\"), relative)


def junction(target: str, shown: str = "") -> bytes:
    return windows(target, shown, tag=JUNCTION)


def wsl(target: str) -> bytes:
    data = struct.pack("<I", 2) + target.encode()
    return struct.pack("<IHH", WSL, len(data), 0) + data


# path, reparse data, the link's target or (in bytes) the data it is shown as, whether ntfs-3g follows it
CASES: list[tuple[str, bytes, str | bytes, bool]] = [
    ("folder/junction/", junction("\\??\\C:\\Real Dir"), "../Real Dir", True),
    ("folder/deep/other case/", junction("\\??\\c:\\REAL dir\\sUB\\"), "../../Real Dir/sub", True),
    ("to the root/", junction("\\??\\C:\\"), ".", False),
    ("folder/to the root/", junction("\\??\\C:\\"), "..", False),
    ("folder/volume/", junction(f"\\??\\{GUID.lower()}\\Real Dir\\"), "../Real Dir", False),
    ("folder/other volume/", junction("\\??\\Volume{" + "0" * 8 + GUID[15:] + "\\x"), b"Volume{000", False),
    ("folder/other drive/", junction("\\??\\D:\\Real Dir", "D:\\Real Dir"), b"D:\\Real Dir", False),
    ("folder/unc/", junction("\\??\\UNC\\server\\share"), b"UNC\\server\\share", False),
    ("folder/device/", junction("\\Device\\HarddiskVolume3\\x"), b"\\Device\\HarddiskVolume3\\x", False),
    ("folder/rel", windows("..\\Real Dir\\file.txt", relative=True), "../Real Dir/file.txt", True),
    ("folder/rel case", windows("..\\real DIR\\FILE.TXT", relative=True), "../Real Dir/file.txt", True),
    ("folder/rooted", windows("\\Real Dir\\file.txt", relative=True), "../Real Dir/file.txt", True),
    ("folder/absolute", windows("\\??\\C:\\Real Dir\\file.txt"), "../Real Dir/file.txt", True),
    ("folder/long form", windows("\\\\?\\C:\\Real Dir\\file.txt"), "../Real Dir/file.txt", False),
    ("folder/bare", windows("C:\\Real Dir\\file.txt"), "../Real Dir/file.txt", False),
    ("folder/dangling", windows("..\\real dir\\Nowhere\\x", relative=True), "../Real Dir/Nowhere/x", False),
    ("folder/collapsed", windows("no\\..\\..\\real dir\\.", relative=True), "../Real Dir", False),
    ("folder/climbs", windows("..\\..\\etc", relative=True), b"..\\..\\etc", False),
    ("folder/climbs inside", windows("a\\..\\..\\..\\etc", relative=True), b"a\\..\\..\\..\\etc", False),
    ("folder/share", windows("\\\\server\\share", relative=True), b"\\\\server\\share", False),
    ("folder/through", windows("junction\\SUB", relative=True), "junction/SUB", False),
    ("folder/through up", wsl("junction/../x"), b"junction/../x", False),
    ("folder/real up", wsl("deep/../rel"), "deep/../rel", False),
    ("folder/wsl", wsl("../Real Dir/file.txt"), "../Real Dir/file.txt", False),
    ("folder/wsl drive", wsl("/mnt/c/Real Dir/file.txt"), "../Real Dir/file.txt", False),
    ("folder/wsl other drive", wsl("/mnt/d/x"), b"/mnt/d/x", False),
    ("folder/wsl elsewhere", wsl("/etc/ä"), "/etc/ä".encode(), False),
    ("folder/wsl climbs", wsl("../../etc"), b"../../etc", False),
    ("linux/rootfs/usr/bin/wsl", wsl("/etc/hosts"), "../../etc/hosts", False),
    ("linux/rootfs/wsl up", wsl("/etc/../../x"), b"/etc/../../x", False),
    ("folder/too long", wsl("x/" * 2100), ("x/" * 2100).encode(), False),
]
SHOWN = [(path.rstrip("/"), shown) for path, _, shown, _ in CASES]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a volume with the links of ``CASES``, two of Interix and one with names of two depths."""
    folder = tmp_path_factory.mktemp("links")
    image = make_ntfs(folder / "links.img", 24 * MIB, "links")
    with fuse_mount(folder / "mnt", "ntfs-3g", "-o", "no_detach", image, folder / "mnt") as root:
        for name in ("Real Dir/sub", "folder/deep", "linux/rootfs/usr/bin", "linux/rootfs/etc"):
            (root / name).mkdir(parents=True)
        for name in ("Real Dir/file.txt", "Real Dir/sub/inner", "linux/rootfs/etc/hosts"):
            (root / name).write_bytes(name.encode())
        for path, data, _, _ in CASES:
            if path.endswith("/"):
                (root / path).mkdir()
            else:
                (root / path).write_bytes(b"")
            os.setxattr(root / path.rstrip("/"), "system.ntfs_reparse_data", data, follow_symlinks=False)
        (root / "folder/interix").symlink_to("../Real Dir/file.txt")
        (root / "folder/interix absolute").symlink_to("/somewhere/else/ä")
        (root / "twice").write_bytes(b"")
        os.link(root / "twice", root / "folder/deep/twice")
        os.setxattr(root / "twice", "system.ntfs_reparse_data", windows("\\??\\C:\\Real Dir"))
    return image


@pytest.fixture
def volume(image: Path) -> Iterator[NtfsFileSystem]:
    with FileReader(image) as reader:
        yield NtfsFileSystem(reader, known_as=lambda: OWN)


def resolve(volume: NtfsFileSystem, path: str) -> int:
    inode = volume.root
    for name in filter(None, path.split("/")):
        inode = volume.lookup(inode, name)
    return inode


def followed(volume: NtfsFileSystem, path: str) -> str:
    """Return the path that a path leads to, as a kernel goes it; nothing may lead above the root."""
    found: list[str] = []
    waiting, links = path.split("/"), 0
    while waiting:
        name = waiting.pop(0)
        if name == "..":
            found.pop()
        elif name not in ("", "."):
            inode = resolve(volume, "/".join([*found, name]))
            if volume.attributes(inode).type is NodeType.LINK:
                links += 1
                assert links < 40
                waiting = volume.read_link(inode).split("/") + waiting
            else:
                found.append(name)
    return "/".join(found)


@pytest.mark.parametrize(("path", "shown"), SHOWN, ids=[path for path, _ in SHOWN])
def test_shown(volume: NtfsFileSystem, path: str, shown: str | bytes) -> None:
    folder, _, name = path.rpartition("/")
    inode = resolve(volume, path)
    known = volume.attributes(inode)
    (listed,) = [
        (entry, attributes)
        for entry, attributes in volume.entries_with_attributes(resolve(volume, folder))
        if entry.name == name
    ]
    assert listed[1] == known
    assert listed[0].type is known.type
    assert {e.name: e.type for e in volume.entries(resolve(volume, folder))}[name] is known.type
    if isinstance(shown, str):
        assert known.type is NodeType.LINK
        assert volume.read_link(inode) == shown
        assert known.size == len(shown.encode())
        return
    assert known.type is NodeType.FILE
    reader = volume.open(inode)
    assert reader.size == known.size
    assert reader.read_at(0, reader.size).startswith(shown)
    with pytest.raises(OSError, match="Invalid") as caught:
        volume.read_link(inode)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(NotADirectoryError):
        volume.entries(inode)


def test_interix(volume: NtfsFileSystem) -> None:
    assert volume.read_link(resolve(volume, "folder/interix")) == "../Real Dir/file.txt"
    absolute = volume.open(resolve(volume, "folder/interix absolute"))
    assert absolute.read_at(0, absolute.size) == "/somewhere/else/ä".encode()


def test_names_of_two_depths(volume: NtfsFileSystem) -> None:
    reader = volume.open(resolve(volume, "folder/deep/twice"))
    assert reader.read_at(0, reader.size) == b"C:\\Real Dir"


def test_they_lead_where_those_of_ntfs3g_do(volume: NtfsFileSystem, image: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mnt"
    with fuse_mount(mount, "ntfs-3g", "-o", "no_detach,ro,norecover", image, mount) as root:
        for path, _, _, is_followed in CASES:
            if is_followed:
                theirs = (root / path.rstrip("/")).resolve(strict=True)
                assert followed(volume, path) == str(theirs.relative_to(root)).removeprefix("."), path


@pytest.mark.parametrize("known", [frozenset(), frozenset({"D:"})])
def test_letters_of_other_volumes(image: Path, known: frozenset[str]) -> None:
    with FileReader(image) as reader:
        volume = NtfsFileSystem(reader, known_as=lambda: known)
        data = volume.open(resolve(volume, "folder/junction"))
        assert data.read_at(0, data.size) == b"C:\\Real Dir"
        own = resolve(volume, "folder/other drive")
        assert (volume.attributes(own).type is NodeType.LINK) == ("D:" in known)


def test_without_letters_windows_is_on_c(image: Path, tmp_path: Path) -> None:
    with FileReader(image) as reader:
        assert NtfsFileSystem(reader).open(resolve(NtfsFileSystem(reader), "folder/junction")).size == 11
    mount = tmp_path / "mnt"
    copy = tmp_path / "copy.img"
    copy.write_bytes(image.read_bytes())
    with fuse_mount(mount, "ntfs-3g", "-o", "no_detach", copy, mount) as root:
        (root / "WINDOWS/system32").mkdir(parents=True)
    with FileReader(copy) as reader:
        volume = NtfsFileSystem(reader)
        assert volume.read_link(resolve(volume, "folder/junction")) == "../Real Dir"
        assert volume.attributes(resolve(volume, "folder/other drive")).type is NodeType.FILE


def test_a_directory_above_that_has_gone(volume: NtfsFileSystem) -> None:
    attributes = volume._mft.attributes(volume._mft.record(resolve(volume, "folder/rel")))
    (name,) = [at for at, item in enumerate(attributes) if item.type == 0x30]
    value = attributes[name].value
    assert value is not None
    for parent in (99 << 48 | 5, 1 << 40, 1 << 48 | resolve(volume, "folder/rel")):
        attributes[name] = attributes[name]._replace(value=struct.pack("<Q", parent) + value[8:])
        with pytest.raises(FormatError):
            volume._links.shown(attributes, StoredLink(LinkKind.RELATIVE, "x", "x"), "link")
    with pytest.raises(DamagedError, match="no name"):
        volume._links.shown([], StoredLink(LinkKind.RELATIVE, "x", "x"), "link")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<IHH", WSL, 4, 0) + struct.pack("<I", 2),
        wsl("a\0b"),
        junction(""),
        junction("a")[:-6],
        struct.pack("<IHH", SYMLINK, 12, 0) + bytes(12),
        struct.pack("<IHHHHHH", JUNCTION, 11, 0, 0, 3, 0, 0) + b"abc",
    ],
)
def test_damaged_reparse_data(data: bytes) -> None:
    with pytest.raises(DamagedError):
        parse_link(data, "link")


@pytest.mark.parametrize("version", [0, 1, 3, 1 << 24])
def test_links_of_wsl_in_other_versions(version: int) -> None:
    """ntfs-3g refuses them too; what they hold need not be a target."""
    data = struct.pack("<I", version) + b"target"
    with pytest.raises(UnsupportedError, match=f"in version {version}$"):
        parse_link(struct.pack("<IHH", WSL, len(data), 0) + data, "link")


@settings(max_examples=400, deadline=None)
@given(
    tag=st.sampled_from([JUNCTION, SYMLINK, WSL]),
    data=st.binary(max_size=80),
    length=st.none() | st.integers(0, 99),
)
def test_any_reparse_data(tag: int, data: bytes, length: int | None) -> None:
    raw = struct.pack("<IHH", tag, len(data) if length is None else length, 0) + data
    for parse, given_ in ((parse_link, raw), (parse_intx, INTX_LINK + data)):
        try:
            link = parse(given_, "link")
        except FormatError:
            continue
        assert link.target
        assert "\0" not in link.target
        os.fsencode(link.target)


PARTS = st.sampled_from(
    ["..", ".", "", "folder", "FOLDER", "deep", "junction", "C:", "c", "mnt", "??", "Real Dir", "ä"]
)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(LinkKind),
    parts=st.lists(PARTS, min_size=1, max_size=8),
    separator=st.sampled_from("\\/"),
    start=st.sampled_from(["", "\\", "/", "\\??\\C:\\", "/mnt/c/"]),
    path=st.sampled_from(["folder/rel", "to the root", "linux/rootfs/usr/bin/wsl"]),
)
def test_any_target_stays_inside(
    fuzzed: NtfsFileSystem, kind: LinkKind, parts: list[str], separator: str, start: str, path: str
) -> None:
    target = start + separator.join(parts)
    record = fuzzed._mft.record(int(fuzzed._directories.stored(*_place(fuzzed, path))[1] & 0xFFFFFFFF))  # type: ignore[index]
    shown = fuzzed._links.shown(fuzzed._mft.attributes(record), StoredLink(kind, target, target), "link")
    if shown.target is None:
        assert shown.text == target.encode()
        return
    assert not shown.target.startswith("/")
    depth = path.count("/")
    is_real = True
    for part in shown.target.split("/"):
        assert part
        depth += -1 if part == ".." else part != "."
        assert depth >= 0
        if part == "..":
            assert is_real  # never ".." behind a link, which would lead elsewhere
        is_real = part in ("..", ".", "folder", "deep", "Real Dir")


def _place(volume: NtfsFileSystem, path: str) -> tuple[int, str]:
    folder, _, name = path.rpartition("/")
    return resolve(volume, folder), name


@pytest.fixture(scope="module")
def fuzzed(image: Path) -> Iterator[NtfsFileSystem]:
    with FileReader(image) as reader:
        yield NtfsFileSystem(reader, known_as=lambda: OWN)
