"""NTFS structures that no tool at hand writes, or that damage makes: built here record by record."""

import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from fixtures.tools import MissingToolError, fuse_mount, run
from fixtures.volumes import ntfs_reparse
from formats.blockreader import BytesReader
from formats.errors import DamagedError
from imagefs.filesystems import FileSystem, open_file_system
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import parse_children
from imagefs.filesystems.upcase import UpCase

CLUSTER = 1024  # of the volumes built here, and the size of their records
TIMES = struct.pack("<QQQQI", *[116_444_736_000_000_000 + 10_000_000 * n for n in range(4)], 0x20) + bytes(12)


def attribute(kind: int, number: int, value: bytes, name: str = "") -> bytes:
    """Return a resident attribute."""
    offset = 24 + (2 * len(name) + 7) // 8 * 8
    body = name.encode("utf-16-le").ljust(offset - 24, b"\0") + value
    length = (24 + len(body) + 7) // 8 * 8
    head = struct.pack("<IIBBHHHIHH", kind, length, 0, len(name), 24, 0, number, len(value), offset, 0)
    return (head + body).ljust(length, b"\0")


def runs(kind: int, number: int, first_vcn: int, places: Sequence[tuple[int, int]], size: int) -> bytes:
    """Return a non-resident attribute of (LCN, clusters)."""
    mapping, before = b"", 0
    for lcn, count in places:
        mapping += struct.pack("<BHh", 0x22, count, lcn - before)
        before = lcn
    mapping += b"\0"
    length = (64 + len(mapping) + 7) // 8 * 8
    last = first_vcn + sum(count for _, count in places) - 1
    sizes = struct.pack("<QQQ", size, size, size) if not first_vcn else bytes(24)
    head = struct.pack("<IIBBHHH", kind, length, 1, 0, 64, 0, number)
    return (head + struct.pack("<QQHHI", first_vcn, last, 64, 0, 0) + sizes + mapping).ljust(length, b"\0")


def record(attributes: Sequence[bytes], flags: int = 1, base: int = 0, sequence: int = 1) -> bytes:
    """Return a file record with its fixups."""
    body = b"".join(attributes) + b"\xff\xff\xff\xff\0\0\0\0"
    head = struct.pack(
        "<4sHHQHHHHIIQHHI", b"FILE", 48, 3, 0, sequence, 1, 56, flags, 56 + len(body), 1024, base, 9, 0, 0
    )
    raw = bytearray((head + b"\x07\0" + bytes(6) + body).ljust(1024, b"\0"))
    for sector in (1, 2):
        end = sector * 512
        raw[48 + 2 * sector : 50 + 2 * sector] = raw[end - 2 : end]
        raw[end - 2 : end] = b"\x07\0"
    return bytes(raw)


def listed(kind: int, vcn: int, number: int, identity: int) -> bytes:
    """Return an entry of an attribute list."""
    return struct.pack("<IHBBQQH6x", kind, 32, 0, 26, vcn, number | 1 << 48, identity)


def name_entry(number: int, name: str, sequence: int = 1) -> bytes:
    key = bytes(64) + struct.pack("<BB", len(name), 1) + name.encode("utf-16-le")
    length = (16 + len(key) + 7) // 8 * 8
    head = struct.pack("<QHHI", number | sequence << 48, length, len(key), 0)
    return (head + key).ljust(length, b"\0")


def name_value(name: str, directory: int = 5) -> bytes:
    """Return a $FILE_NAME of a file in a directory, by its number."""
    return (
        struct.pack("<Q", directory | 1 << 48) + bytes(56) + bytes([len(name), 1]) + name.encode("utf-16-le")
    )


def index_root(entries: bytes) -> bytes:
    entries += struct.pack("<QHHI", 0, 16, 0, 2)
    node = struct.pack("<IIII", 16, 16 + len(entries), 16 + len(entries), 0)
    return struct.pack("<IIIB3x", 0x30, 1, 4096, 4) + node + entries


def volume_of(records: dict[int, tuple[int, bytes]], data: dict[int, bytes]) -> bytearray:
    """Return a volume of 256 clusters with records (by number: cluster, bytes) and data clusters."""
    volume = bytearray(256 * CLUSTER)
    volume[:512] = (
        b"\xeb\x52\x90NTFS    "
        + struct.pack("<HB", 512, 2)
        + bytes(26)
        + struct.pack("<QQQb3xb3x", 511, records[0][0], 100, 1, 4)
    ).ljust(512, b"\0")
    for cluster, raw in [*records.values(), *data.items()]:
        volume[cluster * CLUSTER : cluster * CLUSTER + len(raw)] = raw
    return volume


def build(*, list_of_file: bytes | None = None) -> bytearray:
    """Return a volume whose $MFT has its runs in three records, the third in what only the second maps."""
    places = {number: 10 + 7 * number for number in range(32)}  # every record somewhere else
    first, second, third = range(16), range(16, 24), range(24, 32)

    def mapped(numbers: range, identity: int) -> bytes:
        return runs(0x80, identity, numbers[0], [(places[n], 1) for n in numbers], 32 * 1024)

    mft_list = (
        listed(0x10, 0, 0, 0) + listed(0x80, 0, 0, 1) + listed(0x80, 16, 15, 4) + listed(0x80, 24, 17, 5)
    )
    standard = attribute(0x10, 0, TIMES)
    file_list = (listed(0x10, 0, 25, 0) + listed(0x80, 0, 26, 3)) if list_of_file is None else list_of_file
    names = name_entry(25, "file") + name_entry(27, "stale", 9) + name_entry(28, "sound")
    records = {
        0: record([standard, attribute(0x20, 2, mft_list), mapped(first, 1)]),
        3: record([standard, attribute(0x60, 1, "built".encode("utf-16-le"))]),
        5: record([standard, attribute(0x90, 1, index_root(names), "$I30")], flags=3),
        15: record([mapped(second, 4)], base=0 | 1 << 48),
        17: record([mapped(third, 5)], base=0 | 1 << 48),
        25: record([standard, attribute(0x20, 1, file_list)]),
        26: record(
            [attribute(0x80, 2, b"of no list"), runs(0x80, 3, 0, [(250, 2)], 2000)], base=25 | 1 << 48
        ),
        27: record([standard, attribute(0x80, 1, b"of another file")]),
        28: record([standard, attribute(0x80, 1, b"resident")]),
    }
    content = random.Random(1).randbytes(2048)
    return volume_of({n: (places[n], raw) for n, raw in records.items()}, {250: content})


def opened(data: bytes | bytearray) -> FileSystem:
    volume = open_file_system(BytesReader(bytes(data)))
    assert volume is not None
    return volume


def test_mft_runs_that_only_a_continuation_maps() -> None:
    volume = opened(build())
    assert volume.label == "built"
    assert [entry.name for entry in volume.entries(volume.root)] == ["file", "stale", "sound"]
    file = volume.open(volume.lookup(volume.root, "file"))
    assert file.read_at(0, file.size) == random.Random(1).randbytes(2048)[:2000]


def test_a_reused_record_is_no_file_of_the_old_name() -> None:
    volume = opened(build())
    found = {entry.name: (entry.inode, known) for entry, known in volume.entries_with_attributes(volume.root)}
    inode, known = found["stale"]
    assert known is None
    assert found["sound"][1] == volume.attributes(28)
    for ask in (volume.attributes, volume.open):
        with pytest.raises(DamagedError, match="record 27 has become another"):
            ask(inode)


def test_data_that_is_there_twice() -> None:
    """Neither is the file's for sure, and the size must be that of what is read."""
    data = build()
    twice = [(attribute(0x80, n, b"one" * n), attribute(0x80, n, b"one" * n, "s")) for n in (1, 2)]
    for at, (first, second) in {27: (twice[0][0], twice[1][0]), 28: (twice[0][1], twice[1][1])}.items():
        start = (10 + 7 * at) * CLUSTER
        data[start : start + CLUSTER] = record([attribute(0x10, 0, TIMES), first, second])
    volume = opened(data)
    for ask in (volume.attributes, volume.open):
        with pytest.raises(DamagedError, match="there twice"):
            ask(27)
    assert volume.open(28).size == 0
    for call in (lambda: volume.streams(28), lambda: volume.open_stream(28, "s")):
        with pytest.raises(DamagedError, match="there twice"):
            call()


@pytest.mark.parametrize(
    ("target", "stored", "shown"),
    [
        ("..\u2215..\u2215etc", "../../etc", "..\u2215..\u2215etc"),
        ("\u2024\u2024\\etc", "..", "\u2024\u2024/etc"),
        ("a\u2215b", "A\0B", "a\u2215b"),
        ("sOuND", "sound", "sound"),
    ],
)
def test_names_of_a_hostile_upper_case_are_no_part_of_links(target: str, stored: str, shown: str) -> None:
    """A volume may say that a letter's capital is "/": what is stored under such a name leads nowhere."""
    data = build()
    standard = attribute(0x10, 0, TIMES)

    def put(number: int, content: bytes) -> None:
        start = (10 + 7 * number) * CLUSTER
        data[start : start + CLUSTER] = content

    names = name_entry(28, stored) + name_entry(25, "zzz")
    root = [standard, attribute(0x30, 2, name_value(".")), attribute(0x90, 1, index_root(names), "$I30")]
    put(5, record(root, flags=3))
    point = ntfs_reparse(0xA000000C, target, target, True)
    put(25, record([standard, attribute(0x30, 1, name_value("zzz")), attribute(0xC0, 2, point)]))
    volume = opened(data)
    assert isinstance(volume, NtfsFileSystem)
    table = [chr(unit) for unit in range(1 << 16)]
    table[97:123] = table[65:91]
    table[0x2215], table[0x2024] = "\0" if "\0" in stored else "/", "."
    upcase = UpCase("".join(table))
    volume._directories.upcase = lambda: upcase  # type: ignore[method-assign]
    assert volume.read_link(25) == shown


@pytest.mark.parametrize("listed_too", [22, 25])
@pytest.mark.parametrize("also_in_root", [False, True])
def test_what_lies_elsewhere_is_damage(listed_too: int, *, also_in_root: bool) -> None:
    """The root lists a link, or a directory, three levels up from where its record says that it lies."""
    data = build()
    standard = attribute(0x10, 0, TIMES)

    def put(number: int, names: list[bytes], last: bytes, flags: int = 1) -> None:
        values = [attribute(0x30, 1 + at, name) for at, name in enumerate(names)]
        start = (10 + 7 * number) * CLUSTER
        data[start : start + CLUSTER] = record([standard, *values, last], flags=flags)

    def listing(*entries: bytes) -> bytes:
        return attribute(0x90, 9, index_root(b"".join(entries)), "$I30")

    second = [name_value("too")] if also_in_root and listed_too == 22 else []
    put(5, [name_value(".")], listing(name_entry(20, "a"), name_entry(listed_too, "too")), flags=3)
    put(20, [name_value("a")], listing(name_entry(21, "b")), flags=3)
    put(21, [name_value("b", 20)], listing(name_entry(22, "c")), flags=3)
    put(22, [name_value("c", 21), *second], listing(name_entry(25, "link")), flags=3)
    point = ntfs_reparse(0xA000000C, "..\\..\\..\\etc", "", True)
    put(25, [name_value("link", 22)], attribute(0xC0, 9, point))
    volume = opened(data)
    with pytest.raises(DamagedError, match=r"too: its file record .* lies elsewhere"):
        volume.lookup(volume.root, "too")
    found = {entry.name: (entry.inode, known) for entry, known in volume.entries_with_attributes(volume.root)}
    inode, known = found["too"]
    assert (known, found["a"][1]) == (None, volume.attributes(20))
    with pytest.raises(DamagedError, match="lies elsewhere"):
        volume.attributes(inode)
    inside = volume.lookup(volume.lookup(volume.root, "a"), "b")
    if not second:
        assert volume.read_link(volume.lookup(volume.lookup(inside, "c"), "link")) == "../../../etc"
    else:
        with pytest.raises(DamagedError, match="lies elsewhere"):
            volume.lookup(inside, "c")


@pytest.mark.parametrize(
    "entries",
    [
        b"",
        listed(0x10, 0, 25, 0) + listed(0x80, 0, 26, 7),  # no attribute of that number
        listed(0x10, 0, 25, 0) + listed(0x80, 0, 25, 3),  # not in that record
        listed(0x10, 0, 25, 0) + listed(0x80, 0, 28, 1),  # in another file's record
        listed(0x10, 0, 25, 0) + listed(0x80, 0, 99, 1),
        listed(0x10, 0, 25, 0)[:-8] + b"\0" * 40,
    ],
)
def test_lists_of_what_is_not_there(entries: bytes) -> None:
    volume = opened(build(list_of_file=entries))
    with pytest.raises(DamagedError):
        volume.open(25)
    found = {entry.name: known for entry, known in volume.entries_with_attributes(volume.root)}
    assert found["file"] is None
    assert found["sound"]


def test_absurd_sizes_take_no_memory() -> None:
    data = build()
    at = (10 + 7 * 25) * CLUSTER
    clusters, size = 1 << 38, 1 << 48
    huge = struct.pack("<IIBBHHH", 0x20, 72, 1, 0, 64, 0, 1)
    huge += struct.pack("<QQHHIQQQ", 0, clusters - 1, 64, 0, 0, size, size, size)
    huge += b"\x05" + clusters.to_bytes(5, "little") + bytes(2)
    data[at : at + 1024] = record([attribute(0x10, 0, TIMES), huge])
    volume = opened(data)
    with pytest.raises(DamagedError):
        volume.attributes(25)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a volume with a directory of 10,000 names, most of them deleted again, and an emptied one."""
    folder = tmp_path_factory.mktemp("ntfs")
    image, mount = folder / "ntfs.img", folder / "mnt"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    try:
        run("mkntfs", "-q", "-F", "-f", image)
        with fuse_mount(mount, "ntfs-3g", "-o", "no_detach", image, mount) as root:
            for name, step in (("large", 7), ("emptied", 20_000)):
                (root / name).mkdir()
                for number in range(10_000 if name == "large" else 500):
                    (root / name / f"entry number {number:05}").write_bytes(b"%d" % number)
                for number in range(10_000 if name == "large" else 500):
                    if number % step != 1:
                        (root / name / f"entry number {number:05}").unlink()
    except MissingToolError as error:
        pytest.skip(str(error))
    return image


def test_large_directories_with_old_blocks(large: Path) -> None:
    data = large.read_bytes()
    volume = opened(data)
    names = [entry.name for entry in volume.entries(volume.lookup(volume.root, "large"))]
    assert sorted(names) == [f"entry number {number:05}" for number in range(10_000) if number % 7 == 1]
    emptied = [entry.name for entry in volume.entries(volume.lookup(volume.root, "emptied"))]
    assert emptied == ["entry number 00001"]


def test_the_same_names_as_sleuthkit(large: Path) -> None:
    """Of the large directory: of the emptied one sleuthkit shows what old index blocks held, ntfs-3g not."""
    try:
        said = run("fls", "-u", "-r", "-p", large).decode()
    except MissingToolError as error:
        pytest.skip(str(error))
    theirs = {line.split("\t", 1)[1] for line in said.splitlines() if "\tlarge/" in line}
    volume = opened(large.read_bytes())
    ours = {f"large/{entry.name}" for entry in volume.entries(volume.lookup(volume.root, "large"))}
    assert ours == theirs


def test_index_blocks_that_are_called_unused(large: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(large.read_bytes())
    blocks = []
    for at in range(0, len(data), 4096):
        if data[at : at + 4] == b"INDX" and parse_children(data[at : at + 4096], 24, ""):
            blocks.append(at)
    bitmap = attribute(0xB0, 0, b"", "$I30")[24:32]  # the name; its value follows
    places = [at for at in range(0, len(data) - 8, 8) if data[at : at + 8] == bitmap and data[at + 8] & 0x80]
    changed = 0
    for at in places:
        broken = bytearray(data)
        broken[at + 8] &= 0x7F
        volume = opened(broken)
        assert volume.entries(volume.lookup(volume.root, "large"))  # from $MFT
        changed += "is said to be unused" in caplog.text
    assert changed
    assert blocks or changed


def test_what_a_used_blocks_image_leaves_out(large: Path) -> None:
    """Free clusters and the last sector are zeros there; every file stays what it was."""
    data = bytearray(large.read_bytes())
    volume = opened(data)
    bitmap = volume.open(volume.lookup(volume.root, "$Bitmap"))
    used = bitmap.read_at(0, bitmap.size)
    for cluster in range(len(data) // 4096):
        if not used[cluster >> 3] >> (cluster & 7) & 1:
            data[cluster * 4096 : (cluster + 1) * 4096] = bytes(4096)
    reduced = opened(bytes(data[:-512]) + bytes(512))
    for folder in ("large", "emptied"):
        inode = volume.lookup(volume.root, folder)
        assert reduced.entries_with_attributes(inode) == volume.entries_with_attributes(inode)
        for entry in volume.entries(inode):
            ours, theirs = reduced.open(entry.inode), volume.open(entry.inode)
            assert ours.read_at(0, ours.size) == theirs.read_at(0, theirs.size)
