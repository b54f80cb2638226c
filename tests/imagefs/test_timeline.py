"""The timeline against fls and mactime of The Sleuth Kit on the raw volume, and what these can't tell."""

import csv
import io
import json
import os
import random
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

import imagefs
from fixtures.mrimgx_writer import SetWriter
from fixtures.partition_tables import MIB, Volume, gpt_disk
from fixtures.tools import run
from fixtures.volumes import make_ntfs, mounted_ntfs, set_xattr
from imagefs import timeline
from imagefs.tree import ImageTree
from mounters.tree import Attributes, Entry, NodeType
from tests.conftest import run_imagefs
from tests.imagefs.built import BuiltSet

Line = tuple[bytes, bytes, bytes]  # name, inode, times
DISK = "6A1B8F0E-2C55-4F8E-9A53-1E3C5C1D7A10"
ODD_NAMES = ("pipe|in it", 'comma, "quotes"', "line\nend", "back\\slash", "semi;colon")
EPOCH = 116_444_736_000_000_000  # 1970 in 100 ns since 1601
TIMES = (1_111_111_111, 1_222_222_222, 1_333_333_333, 1_444_444_444)  # created, modified, changed, accessed


def lines_of(body: bytes, prefix: bytes = b"/") -> set[Line]:
    """Return what a body file says; of inode numbers like fls's 64-128-1 the first part."""
    found = set()
    for line in body.splitlines():
        _, name, inode, *_, accessed, modified, changed, created = line.split(b"|")
        if name.startswith(prefix):
            times = b" ".join((accessed, modified, changed, created))
            found.add((name.removeprefix(prefix), inode.partition(b"-")[0], times))
    return found


def said_by_fls(volume: Path, sector: int = 0) -> set[Line]:
    """Return fls's lines without its own files and what is deleted."""
    lines = lines_of(run("fls", "-m", "/", "-r", "-o", str(sector), volume))
    return {line for line in lines if not line[0].endswith((b" (deleted)", b" (Volume Label Entry)"))}


def even_seconds(lines: set[Line]) -> set[Line]:
    return {
        (name, inode, b" ".join(b"%d" % (int(time) & ~1) for time in times.split()))
        for name, inode, times in lines
    }


def told(*arguments: str | Path) -> bytes:
    done = run_imagefs("timeline", *arguments)
    assert (done.code, done.errors) == (0, "")
    return done.output


def names(lines: set[Line]) -> set[bytes]:
    return {name for name, _, _ in lines}


@pytest.mark.parametrize("recipe", ["ntfs", "fat32", "fat16", "exfat", "ext4"])
def test_as_fls_says(built_set: Callable[[str], BuiltSet], recipe: str) -> None:
    """(name, inode, times) are those of fls, apart from what is listed here."""
    written = built_set(recipe).full
    (disk,) = written.disks
    ours = lines_of(told(written.path, "disk1/p1"), b"/disk1/p1/")
    theirs = said_by_fls(disk.path, disk.partitions[0].offset // disk.sector_size)
    targets = {f"{name} -> ".encode() for name in disk.partitions[0].links}
    if recipe != "ext4":  # where TSK does not know links
        ours = {
            (name.partition(b" -> ")[0] if name.startswith(tuple(targets)) else name, inode, times)
            for name, inode, times in ours
        }
    if recipe == "exfat":  # whose modification times TSK reads to two seconds
        ours, theirs = even_seconds(ours), even_seconds(theirs)
    only_theirs, only_ours = names(theirs - ours), names(ours - theirs)
    hard = {name for pair in disk.partitions[0].hard_links.items() for name in pair}
    if recipe == "ntfs":
        # fls calls index attributes streams, has no times of $MFT but the remainder of 1601, and one
        # $FILE_NAME for all names of a file.
        assert only_ours - {f"{name} ($FILE_NAME)".encode() for name in hard} == {
            b"$MFT", b"$Secure", b"$Extend/$ObjId", b"$Extend/$Quota", b"$Extend/$Reparse",
        }  # fmt: skip
        assert only_theirs - {f"{name} ($FILE_NAME)".encode() for name in hard} == {
            b"$MFT", b"$OrphanFiles", b"$Secure:$SDH", b"$Secure:$SII", b"$Extend/$ObjId:$O",
            b"$Extend/$Quota:$O", b"$Extend/$Quota:$Q", b"$Extend/$Reparse:$R",
        }  # fmt: skip
        assert {b"streams/host.txt:big", b"streams/host.txt:small", b"streams/host.txt"} <= names(ours)
    elif recipe == "ext4":
        # fls cuts targets above 60 bytes off, and writes bytes that are no UTF-8.
        assert {name.partition(b" ->")[0] for name in only_ours} == {
            b"links/long", b"names/not-utf8-^^.txt",
        }  # fmt: skip
        assert only_theirs == {b"$OrphanFiles", b"links/long", b"names/not-utf8-\xff\xfe.txt"}
    else:
        assert not only_ours
        assert {name[:1] for name in only_theirs} == {b"$"}  # TSK's own
    assert {name.encode() for name in disk.partitions[0].files if name.isascii()} <= names(ours)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an image, and its raw NTFS volume: odd names, names with times of their own."""
    folder = tmp_path_factory.mktemp("odd")
    volume = make_ntfs(folder / "odd.volume", 12 * MIB, "odd")
    with mounted_ntfs(volume) as root:
        for name in ODD_NAMES:
            (root / name).write_bytes(b"x")
        (root / "folder").mkdir()
        (root / "folder/a long name.txt").write_bytes(b"long")
        set_xattr(root / "folder/a long name.txt", "system.ntfs_dos_name", b"ALONGN~1.TXT")
        (root / "first").write_bytes(b"two names")
        os.link(root / "first", root / "folder/second")
        set_xattr(root / "folder", "user.of a folder", b"stream")
        (root / "before").write_bytes(b"1960")
        set_xattr(root / "before", "system.ntfs_times_be", struct.pack(">4Q", *4 * [EPOCH - 10**16 + 7]))
    data = bytearray(volume.read_bytes())
    for number, name in enumerate(("ALONGN~1.TXT", "second")):
        set_name_times(data, name, [time + number for time in TIMES])
    volume.write_bytes(data)
    kept = folder / "raw.volume"
    os.link(volume, kept)
    disk = gpt_disk(folder / "disk.raw", [Volume(volume, 12 * MIB, "NTFS", "odd")], DISK)
    return SetWriter(folder, image_id="00000000000000DD", name="odd").full([disk]).path, kept


def set_name_times(volume: bytearray, name: str, seconds: Sequence[int]) -> None:
    """Give the $FILE_NAME of a name times of its own, in the file's record alone."""
    units = name.encode("utf-16-le")
    places = [found.start() for found in re.finditer(re.escape(units), volume)]
    (place,) = (at for at in places if struct.unpack_from("<I", volume, at - 66 - 24) == (0x30,))
    struct.pack_into("<4Q", volume, place - 58, *(EPOCH + second * 10**7 for second in seconds))


def test_each_name_has_times_of_its_own(odd: tuple[Path, Path]) -> None:
    image, volume = odd
    entries = {entry["path"]: entry for entry in json.loads(told(image, "--json"))["entries"]}
    for number, (path, inode_path) in enumerate(
        (("folder/a long name.txt", "a long name.txt"), ("folder/second", "second"))
    ):
        entry = entries[f"disk1/p1/{path}"]
        said = run("ntfsinfo", "-v", "-i", str(entry["inode"]), volume).decode()
        wanted = [datetime.fromtimestamp(time + number, UTC) for time in TIMES]
        assert all(f"{time:%a %b %e %H:%M:%S %Y}" in said for time in wanted)  # the tool reads them so
        by_name = {times.get("name"): times for times in entry["times"]}
        name = "ALONGN~1.TXT" if not number else inode_path
        times = by_name[name]
        assert times["source"] == "$FILE_NAME"
        assert [times[key] for key in ("created", "modified", "changed", "accessed")] == [
            f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in wanted
        ]
    assert [times.get("name") for times in entries["disk1/p1/first"]["times"]] == [None, "first"]
    assert [times.get("name") for times in entries["disk1/p1/folder/a long name.txt"]["times"]] == [
        None, "a long name.txt", "ALONGN~1.TXT",
    ]  # fmt: skip
    assert "disk1/p1/folder:of a folder" in entries
    body = lines_of(told(image, "disk1/p1"))
    assert b"disk1/p1/folder/ALONGN~1.TXT ($FILE_NAME)" in names(body)


def test_mactime_reads_the_body_file(odd: tuple[Path, Path], tmp_path: Path) -> None:
    image, _ = odd
    body = told(image, "disk1/p1")
    (tmp_path / "body").write_bytes(body)
    rows = list(csv.reader(io.StringIO(run("mactime", "-b", tmp_path / "body", "-d", "-y").decode())))[1:]
    moments = {
        (datetime.fromtimestamp(int(time), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), b"/" + name)
        for name, _, times in lines_of(body)
        for time in times.split()
        if time != b"0"
    }
    rows = [row for row in rows if not row[0].startswith("0000")]  # what lies before 1970
    assert {(row[0], row[-1].encode()) for row in rows} == moments
    shown = {row[-1].removeprefix("/disk1/p1/") for row in rows}
    assert {"pipe^in it", 'comma, "quotes"', "line^end", "back\\slash", "semi;colon"} <= shown


def test_csv(odd: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are the events of the JSON, sorted; also where they go through a file, in whatever order."""
    image, _ = odd
    output = told(image, "--format", "csv")
    rows = list(csv.reader(io.StringIO(output.decode(), newline="")))
    assert output.count(b"\r\n") == len(rows)
    assert rows[0] == ["time", "macb", "source", "type", "size", "inode", "path"]
    assert [row[0] for row in rows[1:]] == sorted(row[0] for row in rows[1:])
    events = set()
    for entry in json.loads(told(image, "--json"))["entries"]:
        for times in entry["times"]:
            path = entry["path"]
            if times.get("name", "").startswith("ALONGN"):
                path = path.replace("a long name.txt", times["name"])
            for flag, key in zip("macb", ("modified", "accessed", "changed", "created"), strict=True):
                if times[key]:
                    events.add((times[key], flag, times["source"], path))
    found = {
        (row[0][:-1].rstrip("0").rstrip(".") + "Z", flag, row[2], row[6])
        for row in rows[1:]
        for flag in row[1]
        if flag != "."
    }
    assert found == events
    assert {f"disk1/p1/{name}" for name in ODD_NAMES} <= {row[6] for row in rows}
    assert rows[1][0] == "1938-04-24T22:13:20.000000700Z"  # 10^16 ticks before 1970, and 7
    monkeypatch.setattr(timeline, "_ROWS", 7)
    monkeypatch.setattr(timeline, "_BATCH", 3)
    with imagefs.open(image) as source:
        lines: list[bytes] = []
        entries = list(timeline.timeline(source.tree(), "", _fail))
        timeline.write_csv(entries, lines.append)
        assert b"".join(lines) == output
        random.Random(5).shuffle(entries)
        again: list[bytes] = []
        timeline.write_csv(entries, again.append)
        assert sorted(again) == sorted(lines)
        assert [line[:30] for line in again[1:]] == [line[:30] for line in lines[1:]]


def test_a_damaged_record(odd: tuple[Path, Path], tmp_path: Path) -> None:
    """What can't be read is told, with exit code 7; everything else is there."""
    image, volume = odd
    before = lines_of(told(image, "disk1/p1"))
    data = bytearray(volume.read_bytes())
    place = data.index("back\\slash".encode("utf-16-le")) // 1024 * 1024
    assert data[place : place + 4] == b"FILE"
    data[place : place + 4] = b"BAAD"
    (tmp_path / "v").write_bytes(data)
    disk = gpt_disk(
        tmp_path / "d",
        [Volume(tmp_path / "v", len(data), "NTFS", "")],
        DISK,
    )
    path = SetWriter(tmp_path, image_id="00000000000000DE", name="odd").full([disk]).path
    for arguments in ((), ("--format", "csv"), ("--json",)):
        done = run_imagefs("timeline", path, "disk1/p1", *arguments)
        assert done.code == 7
        assert done.errors.count("\n") == 1
        assert "disk1/p1/back\\slash: " in done.errors
        if not arguments:
            gone = names(before - lines_of(done.output))
            assert gone == {b"disk1/p1/back\\slash", b"disk1/p1/back\\slash ($FILE_NAME)"}


def test_a_path(odd: tuple[Path, Path]) -> None:
    image, _ = odd
    assert names(lines_of(told(image, "disk1/p1/folder/second"))) == {
        b"disk1/p1/folder/second", b"disk1/p1/folder/second ($FILE_NAME)",
    }  # fmt: skip
    assert all(
        name.startswith(b"disk1/p1/folder") for name in names(lines_of(told(image, "disk1/p1/folder/")))
    )
    assert run_imagefs("timeline", image, "disk1/p1/none").code == 2


class _LoopingTree(ImageTree):
    """A volume whose root lies in itself, as damage can have it."""

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        found = list(super().entries_with_attributes(inode))
        if inode >> 48:
            found.append((Entry("again", self.resolve("disk1/p1"), NodeType.DIRECTORY), None))
        return found


def test_a_loop_ends(odd: tuple[Path, Path]) -> None:
    image, _ = odd
    with imagefs.open(image) as source:
        assert source.point is not None
        usual = [entry.path for entry in timeline.timeline(source.tree(), "", _fail)]
        told: list[str] = []
        looping = _LoopingTree.of_point(source.point)
        found = timeline.timeline(looping, "", lambda path, error: told.append(path))
        paths = [entry.path for entry in found if not entry.path.endswith("/again")]
    assert paths == usual
    assert "disk1/p1/again" in told
    assert all(path.endswith("/again") for path in told)


def test_deleted_files_of_fat(built_set: Callable[[str], BuiltSet]) -> None:
    written = built_set("fat32").full
    theirs = lines_of(run("fls", "-m", "/", "-r", "-o", "2048", written.disks[0].path))
    output = told(written.path, "disk1/p1", "--deleted")
    assert lines_of(output, b"/disk1/p1/$Deleted/") == {
        line for line in theirs if line[0].endswith(b" (deleted)") and not line[0].startswith(b"$Orphan")
    }


def _fail(path: str, error: Exception) -> None:
    raise AssertionError(path) from error


def test_deleted_files(tmp_path: Path) -> None:
    """What fls calls deleted, with its names and times, below $Deleted; without --deleted nothing of it."""
    volume = make_ntfs(tmp_path / "volume", 8 * MIB, "gone")
    with mounted_ntfs(volume) as root:
        (root / "docs/sub").mkdir(parents=True)
        for name in "abc":
            (root / f"docs/{name}.txt").write_bytes(name.encode() * 5000)
        (root / "docs/sub/deep.txt").write_bytes(b"deep")
        os.sync()
        (root / "docs/b.txt").unlink()
        (root / "docs/sub/deep.txt").unlink()
        (root / "docs/sub").rmdir()
    raw = tmp_path / "raw"
    os.link(volume, raw)
    disk = gpt_disk(tmp_path / "d", [Volume(volume, 8 * MIB, "NTFS", "")], DISK)
    image = SetWriter(tmp_path, image_id="00000000000000DF", name="gone").full([disk]).path
    theirs = {line for line in lines_of(run("fls", "-m", "/", "-r", raw)) if line[0].endswith(b" (deleted)")}
    theirs = {line for line in theirs if not line[0].startswith(b"$Orphan")}
    usual, output = told(image, "disk1/p1"), told(image, "disk1/p1", "--deleted")
    assert lines_of(output, b"/disk1/p1/$Deleted/") == theirs
    assert len(theirs) == 6
    assert output.startswith(usual)
    assert output.count(b"\n") == usual.count(b"\n") + 6
