"""``imagefs cp`` on Windows itself: long paths, names, what is open or read-only, attributes, times.

What wine 8.0 lacks is skipped there: symbolic links are made without an error and without a link, there are
no streams, last accesses are not set.
"""

import ctypes
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

if sys.platform != "win32":
    pytest.skip("for Windows", allow_module_level=True)

from formats.blockreader import BlockReader, BytesReader, Extent
from imagefs import copies_windows
from imagefs.copying import CopyResult, copy_out
from imagefs.filesystems import Stream
from imagefs.tree import ImageTree
from mounters.tree import Attributes, Entry, NodeType, not_found

MODIFIED, ACCESSED, CREATED, CHANGED = (
    1_300_000_000_123_456_700, 1_400_000_000_765_432_100, 1_200_000_000_000_000_100, 1_350_000_000_000_000_000
)  # fmt: skip
HIDDEN, SYSTEM, READ_ONLY, ARCHIVE = 2, 4, 1, 0x20
UNDER_WINE = hasattr(ctypes.windll.ntdll, "wine_get_version")


class Holes(BytesReader):
    """A mebibyte of a file of three."""

    def __init__(self) -> None:
        super().__init__(bytes(1 << 20) + b"data" * (1 << 18) + bytes(1 << 20))

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        assert (offset, length) == (0, None)
        for number in range(3):
            yield Extent(number << 20, 1 << 20, number == 1)


class Model(ImageTree):
    """A tree of what is given: bytes, a str for a link, a dict for a directory, a reader."""

    def __init__(self, content: dict[str, object], flags: dict[str, int] | None = None) -> None:
        super().__init__()
        self.nodes: list[tuple[str, object]] = [("", content)]
        self.flags = flags or {}
        self.root = 0
        self._listed: dict[int, list[Entry]] = {}
        self._known: dict[int, int] = {}
        self._number("", content)

    def _number(self, name: str, content: object) -> int:
        if id(content) in self._known and not isinstance(content, dict):
            return self._known[id(content)]
        number = len(self._known)
        self._known[id(content)] = number
        if number:
            self.nodes.append((name, content))
        if isinstance(content, dict):
            children = [(child, self._number(child, below), below) for child, below in content.items()]
            self._listed[number] = [Entry(child, inode, _type(below)) for child, inode, below in children]
        return number

    def attributes(self, inode: int) -> Attributes:
        name, content = self.nodes[inode]
        kind = _type(content)
        size = self.open_reader(inode).size if kind is NodeType.FILE else 0
        names = sum(entry.inode == inode for entries in self._listed.values() for entry in entries)
        return Attributes(
            inode, kind, size, links=max(names, 1), modified=MODIFIED, accessed=ACCESSED, changed=CHANGED,
            created=CREATED, file_attributes=self.flags.get(name),
        )  # fmt: skip

    def entries(self, inode: int) -> Sequence[Entry]:
        return self._listed[inode]

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        return [(entry, self.attributes(entry.inode)) for entry in self.entries(inode)]

    def lookup(self, inode: int, name: str) -> int:
        for entry in self._listed.get(inode, ()):
            if entry.name == name:
                return entry.inode
        raise not_found(name)

    def read_link(self, inode: int) -> str:
        return str(self.nodes[inode][1])

    def open_reader(self, inode: int) -> BlockReader:
        content = self.nodes[inode][1]
        assert isinstance(content, bytes | BlockReader)
        return content if isinstance(content, BlockReader) else BytesReader(content)

    def streams(self, inode: int) -> Sequence[Stream]:
        return [Stream("zone", 5, 5)] if self.nodes[inode][0] == "with a stream" else ()

    def open_stream(self, inode: int, name: str) -> BlockReader:
        return BytesReader(b"12345")


def _type(content: object) -> NodeType:
    if isinstance(content, dict):
        return NodeType.DIRECTORY
    return NodeType.LINK if isinstance(content, str) else NodeType.FILE


def copy(content: dict[str, object], target: Path, *, overwrite: bool = False, **flags: int) -> CopyResult:
    return copy_out(Model(content, flags), [""], target, overwrite=overwrite, streams=True)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_long_paths(tmp_path: Path) -> None:
    content: dict[str, object] = {"file": b"deep"}
    for number in range(12):
        content = {f"{number:02}" + "x" * 40: content}
    assert copy(content, tmp_path).failures == []
    deep = copies_windows.target_path(tmp_path)
    for number in reversed(range(12)):
        deep /= f"{number:02}" + "x" * 40
    assert len(str(deep)) > 500
    assert (deep / "file").read_bytes() == b"deep"
    assert (deep / "file").stat().st_mtime_ns == MODIFIED


def test_names_that_windows_has_not(tmp_path: Path) -> None:
    given = ["CON", "nul.txt", "dot.", "space ", "a:b", "q?", "back\\slash", "Makefile", "makefile", "plain"]
    result = copy({name: name.encode() for name in given}, tmp_path)
    wanted = {
        "CON": "CO\uf04e", "nul.txt": "nu\uf06c.txt", "dot.": "dot\uf02e", "space ": "space\uf020",
        "a:b": "a\uf03ab", "q?": "q\uf03f", "back\\slash": "back\uf05cslash", "makefile": "makefile~2",
    }  # fmt: skip
    assert {path.strip("/"): name for path, name in result.renamed} == wanted
    assert (result.failures, result.files) == ([], len(given))
    for name in given:
        assert (tmp_path / wanted.get(name, name)).read_bytes() == name.encode()


@pytest.mark.parametrize("name", ["nul", "con.txt", "x.", "x ", "com1"])
def test_a_target_that_windows_has_not(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="no file of Windows"):
        copy_out(Model({"a": b"1"}), ["a"], f"{tmp_path}\\{name}")
    assert not names(tmp_path)


def test_attributes_and_times(tmp_path: Path) -> None:
    content: dict[str, object] = {"hidden": b"1", "system": b"2", "locked": b"3", "plain": b"4", "dir": {}}
    flags = {"hidden": HIDDEN | ARCHIVE, "system": SYSTEM, "locked": READ_ONLY, "dir": HIDDEN | 0x10}
    for overwrite in (False, True):
        assert copy(content, tmp_path, overwrite=overwrite, **flags).failures == []
        for name in content:
            status = (tmp_path / name).lstat()
            known = status.st_file_attributes & (HIDDEN | SYSTEM | READ_ONLY)
            assert known == flags.get(name, 0) & (HIDDEN | SYSTEM | READ_ONLY), name
            assert status.st_mtime_ns == MODIFIED, name
            if not UNDER_WINE:
                assert status.st_atime_ns == ACCESSED, name
                assert status.st_ctime_ns == CREATED, name
    assert names(tmp_path) == set(content)


def test_what_is_there_and_read_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "file").chmod(stat.S_IREAD)
    (failure,) = copy({"file": b"new"}, tmp_path).failures
    assert "--overwrite" in failure
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert copy({"file": b"new"}, tmp_path, overwrite=True).failures == []
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == {"file"}


def test_what_another_program_has_open_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "locked").write_bytes(b"mine")
    (tmp_path / "locked").chmod(stat.S_IREAD)
    with (tmp_path / "file").open("rb"), (tmp_path / "locked").open("rb"):
        content: dict[str, object] = {"file": b"new", "locked": b"new", "other": b"new"}
        result = copy(
            content, tmp_path, overwrite=True, file=READ_ONLY
        )  # what was made goes again all the same
    assert len(result.failures) == 2
    assert all("another program has it open" in failure for failure in result.failures)
    assert (tmp_path / "file").read_bytes() == (tmp_path / "locked").read_bytes() == b"mine"
    assert (tmp_path / "locked").stat().st_file_attributes & READ_ONLY
    assert (tmp_path / "other").read_bytes() == b"new"
    assert names(tmp_path) == {"file", "locked", "other"}


def test_what_came_in_between_stays(tmp_path: Path) -> None:
    made, target = tmp_path / "made", tmp_path / "target"
    made.write_bytes(b"new")
    target.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        copies_windows.put(made, target, overwrite=False)
    assert (made.read_bytes(), target.read_bytes()) == (b"new", b"mine")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("C:\\a folder\\x", "\\\\?\\C:\\a folder\\x"),
        ("C:/a/../b", "\\\\?\\C:\\b"),
        ("\\\\server\\share\\x", "\\\\?\\UNC\\server\\share\\x"),
        ("\\\\?\\C:\\x", "\\\\?\\C:\\x"),
        ("\\\\?\\UNC\\server\\share\\x", "\\\\?\\UNC\\server\\share\\x"),
    ],
)
def test_the_form_of_a_target(given: str, wanted: str) -> None:
    """As Microsoft's "Maximum Path Length Limitation" and "File path formats on Windows systems" have it."""
    assert str(copies_windows.target_path(given)) == wanted


def test_a_file_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (failure,) = copy({"file": b"new"}, tmp_path, overwrite=True).failures
    assert "directory" in failure.lower()
    assert names(tmp_path) == {"file"}


def test_several_names_of_one_file(tmp_path: Path) -> None:
    content = b"one file"
    result = copy({"first": content, "second": content}, tmp_path, first=READ_ONLY)
    assert (result.failures, result.files) == ([], 2)
    assert (tmp_path / "first").samefile(tmp_path / "second")
    assert names(tmp_path) == {"first", "second"}


def test_holes(tmp_path: Path) -> None:
    assert copy({"holes": Holes()}, tmp_path).failures == []
    assert (tmp_path / "holes").read_bytes() == Holes().read_at(0, 3 << 20)
    if not UNDER_WINE:
        assert (tmp_path / "holes").stat().st_file_attributes & stat.FILE_ATTRIBUTE_SPARSE_FILE


def test_streams(tmp_path: Path) -> None:
    failures = copy({"with a stream": b"data"}, tmp_path).failures
    assert (tmp_path / "with a stream").read_bytes() == b"data"
    assert (tmp_path / "with a stream").stat().st_mtime_ns == MODIFIED
    if UNDER_WINE:
        assert failures == ["/with a stream:zone: the target's file system keeps no streams"]
    else:
        assert failures == []
        assert Path(f"{tmp_path}\\with a stream:zone").read_bytes() == b"12345"


@pytest.mark.skipif(UNDER_WINE, reason="wine 8.0 makes no symbolic links, and says that it did")
def test_links(tmp_path: Path) -> None:
    content: dict[str, object] = {
        "folder": {"a:b": b"1"}, "to folder": "folder", "to file": "folder/a:b",
    }  # fmt: skip
    result = copy(content, tmp_path)
    if result.failures:
        assert all("Developer Mode" in failure for failure in result.failures)
        return
    assert os.readlink(tmp_path / "to file") == "folder\\a\uf03ab"  # noqa: PTH115  (its text, not a path)
    assert (tmp_path / "to file").read_bytes() == b"1"
    assert names(tmp_path / "to folder") == {"a\uf03ab"}
    assert (tmp_path / "to folder").lstat().st_mtime_ns == MODIFIED


def test_a_link_without_the_right_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(22, "A required privilege is not held by the client", None, 1314)

    monkeypatch.setattr(os, "symlink", refuse)
    (failure,) = copy({"link": "file"}, tmp_path).failures
    assert failure == "/link: making a symbolic link takes Windows' Developer Mode, or an administrator"
    assert not names(tmp_path)


def test_parts_of_a_descriptor() -> None:
    import struct

    def made(control: int, owner: int, group: int) -> bytes:
        return struct.pack("<BBH4I", 1, 0, control, owner, group, 0, 0)

    assert copies_windows.settable(made(0x8004, 20, 0)) == (1 | 4, made(0x8004, 20, 0))
    assert copies_windows.settable(made(0x9010, 0, 32)) == (2 | 8, made(0x9010, 0, 32))
    # SE_DACL_AUTO_INHERITED asks for SE_DACL_AUTO_INHERIT_REQ, the same of the system's list.
    assert copies_windows.settable(made(0x8C14, 20, 32)) == (15, made(0x8F14, 20, 32))


def test_times_that_windows_has_not(tmp_path: Path) -> None:
    path = copies_windows.target_path(tmp_path / "file")
    path.write_bytes(b"")
    before = path.stat().st_mtime_ns
    known = Attributes(1, NodeType.FILE, modified=-(2**64))
    copies_windows.set_attributes(path, known, None, None)
    copies_windows.set_attributes(path, replace(known, modified=2**80), None, None)
    assert path.stat().st_mtime_ns == before
