"""mfusepy on Windows: what is asked of WinFsp's FUSE layer, and what its requests are answered with."""

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from mounters.errors import MountError
from mounters.session import MountOptions
from tests.mounters.memory_tree import MemoryTree

try:
    from mounters.fusepy_windows import Operations, _Loop, fuse_options, open_session, tree_path
except (ImportError, OSError) as error:  # no mfusepy, or no library for it
    pytest.skip(str(error), allow_module_level=True)

FILETIME_1970 = 116_444_736_000_000_000  # [MS-DTYP] 2.3.3 counts 100 ns from 1601


@pytest.fixture
def tree() -> MemoryTree:
    return MemoryTree()


@pytest.fixture
def operations(tree: MemoryTree) -> Iterator[Operations]:
    loop = _Loop(SimpleNamespace(_libfuse=None))
    made = Operations(tree, loop)
    try:
        yield made
    finally:
        made.close_all()
        assert tree.opened == []


def test_options() -> None:
    options = MountOptions(source="imagefs:a.mrimgx", label="Data, C\\D", serial=0xCAFE1234, created=10**9)
    given = fuse_options(options)
    assert (given["uid"], given["gid"], given["umask"]) == (-1, -1, "277")
    assert given["volname"] == "Data_ C_D"
    assert given["VolumeSerialNumber"] == "cafe1234"
    assert given["VolumeCreationTime"] == FILETIME_1970 + 10**7
    assert given["FileInfoTimeout"] == -1
    assert not {"allow_other", "VolumePrefix", "ro", "use_ino"} & set(given)
    assert all("," not in str(value) and "\\" not in str(value) for value in given.values())
    network = fuse_options(MountOptions(network="\\\\imagefs\\disk", allow_other=True, label="x" * 40))
    assert network["VolumePrefix"] == "/imagefs/disk"
    assert network["umask"] == "222"
    assert network["volname"] == "x" * 32
    assert "VolumeCreationTime" not in network
    assert int(str(network["VolumeSerialNumber"]), 16) != 0


def test_original_security_is_another_mechanism_s(tree: MemoryTree) -> None:
    with pytest.raises(MountError, match="winfsp") as caught:
        open_session(tree, "X:", MountOptions(original_security=True))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "\\"),
        ("/a/b", "\\a\\b"),
        ("/a:b/c\\d", "\\a\uf03ab\\c\uf05cd"),
        ("/con/name. ", "\\co\uf06e\\name\uf02e\uf020"),
        ("/bytes\udcff", "\\bytes\uf0ff"),
        ("/a\uf03ab", "\\a\uf03ab"),
    ],
)
def test_paths(path: str, expected: str) -> None:
    assert tree_path(path) == expected


def listed(operations: Operations, path: str) -> list[str]:
    number = operations.opendir(path)
    try:
        return operations.readdir(path, number)
    finally:
        operations.releasedir(path, number)


def test_every_file_is_found_by_the_name_that_is_listed(tree: MemoryTree, operations: Operations) -> None:
    """As the layer has it: it lists, asks for each name's attributes, and opens by path."""

    def walk(path: str) -> int:
        count = 0
        for name in listed(operations, path or "/"):
            if name in (".", ".."):
                continue
            shown = operations.getattr(f"{path}/{name}")
            if shown["st_mode"] & 0o170000 == 0o040000:
                count += walk(f"{path}/{name}") if path.count("/") < 5 else 0
                continue
            try:
                number = operations.open(f"{path}/{name}", os.O_RDONLY)
            except OSError as error:
                assert error.errno in (errno.EACCES, errno.EIO)
                continue
            with closing(SimpleNamespace(close=lambda n=number: operations.release("", n))):
                if shown["st_size"] < 1 << 20 and name != "stuck.bin":
                    count += len(read(operations, number, 0, 1 << 20)) == shown["st_size"]
        return count

    assert walk("") > 3
    number = operations.open("/ONE.bin", os.O_RDONLY)  # whatever the case
    assert read(operations, number, 0, 1 << 16) == tree.bytes_of("one.bin")[: 1 << 16]
    assert operations.release("/ONE.bin", number) == 0


def read(operations: Operations, number: int, offset: int, size: int) -> bytes:
    try:
        return operations.read("", size, offset, number)
    except OSError as error:
        assert error.errno == errno.EIO
        return b""


def test_reads_at_any_place(tree: MemoryTree, operations: Operations) -> None:
    expected = tree.bytes_of("big.bin")
    number = operations.open("/big.bin", os.O_RDONLY)
    for offset, size in ((0, 1), (65535, 2), (len(expected) - 3, 100), (len(expected), 10), (1 << 40, 1)):
        assert operations.read("/big.bin", size, offset, number) == expected[offset : offset + size]
    assert tree.opened != []
    operations.release("/big.bin", number)
    assert tree.opened == []


def test_refusals(operations: Operations) -> None:
    def check(number: int, call: Any, *arguments: Any) -> None:
        with pytest.raises(OSError) as caught:
            call(*arguments)
        assert caught.value.errno == number

    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT):
        check(errno.EROFS, operations.open, "/one.bin", flags)
    check(errno.EISDIR, operations.open, "/dir", os.O_RDONLY)
    check(errno.ENOTDIR, operations.opendir, "/one.bin")
    check(errno.ENOENT, operations.getattr, "/nothing")
    check(errno.ENOENT, operations.getattr, "/nothing/at/all")
    check(errno.ENOENT, operations.open, "/dir/nothing", os.O_RDONLY)
    for name in ("write", "create", "unlink", "rename", "mkdir", "chmod", "setxattr", "readlink"):
        assert getattr(getattr(operations, name), "libfuse_ignore", False), f"{name} would be offered"


def test_what_cannot_be_read_is_listed_all_the_same(tree: MemoryTree, operations: Operations) -> None:
    """The layer leaves out names whose attributes fail, and damage is never "not there"."""
    tree.nodes[tree.resolve("one.bin")].lost = True
    assert "one.bin" in listed(operations, "/")
    shown = operations.getattr("/one.bin")
    assert (shown["st_mode"] & 0o170000, shown["st_size"]) == (0o100000, 0)
    with pytest.raises(OSError) as caught:
        operations.open("/one.bin", os.O_RDONLY)
    assert caught.value.errno == errno.EIO


def test_the_volume(tree: MemoryTree, operations: Operations) -> None:
    sizes = operations.statfs("/")
    assert sizes["f_frsize"] * sizes["f_blocks"] >= tree.size()
    assert sizes["f_namemax"] == 255
    assert listed(operations, "/dir")[:2] == [".", ".."]
    assert "." not in listed(operations, "/")


class FakeLibrary:
    """The layer's calls that end its loop."""

    def __init__(self) -> None:
        self.ended: list[int | None] = []
        self._libfuse = self

    def fuse_get_context(self) -> Any:
        return SimpleNamespace(contents=SimpleNamespace(fuse=0x1000))

    def fuse_exit(self, fuse: Any) -> None:
        self.ended.append(fuse.value)


def test_the_loop_is_told_to_end_only_while_it_is_there(tree: MemoryTree) -> None:
    library = FakeLibrary()
    operations = Operations(tree, _Loop(library))
    connection = SimpleNamespace(want=0)
    operations.init_with_config(connection, None)
    assert connection.want == 1 << 22 | 1 << 29  # FSP_FUSE_CAP_READ_ONLY, FSP_FUSE_CAP_CASE_INSENSITIVE
    operations.loop.end()
    operations.destroy("/")
    operations.loop.end()  # it has been freed
    assert library.ended == [0x1000]


def test_an_end_before_the_beginning(tree: MemoryTree) -> None:
    library = FakeLibrary()
    operations = Operations(tree, _Loop(library))
    operations.loop.end()
    assert library.ended == []
    operations.init_with_config(SimpleNamespace(want=0), None)
    assert library.ended == [0x1000]
