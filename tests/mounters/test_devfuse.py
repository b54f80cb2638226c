"""The kernel's protocol without a kernel, and what only this mechanism can do."""

import errno
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mounters import devfuse_device
from mounters.controller import MountError, MountOptions, mount, start_in_background
from mounters.devfuse_operations import Operations
from mounters.mountpoints import is_mounted
from mounters.tree import Attributes, Entry, NodeType
from tests.mounters.memory_tree import MemoryTree, content
from tests.mounters.mounting import ROOT, argv, need, skip_or_fail

LOOKUP, FORGET, OPEN, READ, GETXATTR, READDIR, READDIRPLUS = 1, 2, 14, 15, 22, 28, 44
NO_ANSWER = (FORGET, 42)  # BATCH_FORGET


@pytest.fixture(scope="module")
def tree() -> MemoryTree:
    return MemoryTree()


def request_of(opcode: int, node: int, body: bytes = b"", unique: int = 7) -> bytes:
    """Return a request as linux/fuse.h has it."""
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 0, 0, 0) + body


def answer_of(operations: Operations, request: bytes) -> tuple[int, bytes]:
    """Return an answer's errno and body; its header says how long it is and what it answers."""
    answer = operations.answer(request)
    assert answer is not None
    length, error, unique = struct.unpack("=IiQ", answer[0])
    assert length == len(answer[0]) + len(answer[1])
    assert unique == struct.unpack_from("=8xQ", request)[0]
    assert -512 < error <= 0
    assert not error or not answer[1]
    return -error, answer[1]


def read_body(handle: int, offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", handle, offset, size, 0, 0, 0, 0)


def listed(data: bytes, extra: int = 0) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield name, inode, cookie and type of the records that READDIR (PLUS: ``extra`` bytes before) gives."""
    at = 0
    while at < len(data):
        inode, cookie, length, kind = struct.unpack_from("=QQII", data, at + extra)
        start = at + extra + 24
        yield data[start : start + length], inode, cookie, kind
        at = start + -(-length // 8) * 8
    assert at == len(data)


BODIES = st.one_of(
    st.binary(max_size=100),
    st.builds(read_body, st.integers(0, 3), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
    st.text(max_size=20).map(lambda text: text.encode() + b"\0"),
    st.builds(
        lambda size, name: struct.pack("=II", size, 0) + name, st.integers(0, 99), st.binary(max_size=20)
    ),
)


@settings(deadline=None, max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    opcode=st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1)),
    node=st.one_of(st.integers(0, 120), st.integers(0, 2**64 - 1)),
    body=BODIES,
)
def test_every_request_is_answered_once(tree: MemoryTree, opcode: int, node: int, body: bytes) -> None:
    request = request_of(opcode, node, body)
    operations = Operations(tree)
    try:
        if opcode in NO_ANSWER:
            assert operations.answer(request) is None
        else:
            answer_of(operations, request)
    finally:
        operations.close_all()


@given(st.binary(max_size=200))
def test_noise_is_answered_or_dropped(tree: MemoryTree, noise: bytes) -> None:
    answer = Operations(tree).answer(noise)
    assert (answer is None) == (len(noise) < 40 or struct.unpack_from("=4xI", noise)[0] in NO_ANSWER)


def test_what_is_wrong_with_requests(tree: MemoryTree) -> None:
    operations = Operations(tree)
    wrong = {
        (LOOKUP, b"without an end"): errno.EIO,
        (LOOKUP, b""): errno.EIO,
        (GETXATTR, b"\0" * 8 + b"user.x"): errno.EIO,
        (READ, read_body(99, 0, 4096)): errno.EIO,
        (READ, read_body(1, 0, (1 << 20) + 1)): errno.EINVAL,
        (READ, b"short"): errno.EIO,
        (OPEN, struct.pack("=II", os.O_RDWR, 0)): errno.EROFS,
        (36, bytes(8)): errno.ENOSYS,  # INTERRUPT
        (9999, b""): errno.ENOSYS,
    }
    for (opcode, body), number in wrong.items():
        assert answer_of(operations, request_of(opcode, 1, body)) == (number, b"")
    assert tree.opened == []


@pytest.mark.parametrize(("opcode", "extra"), [(READDIR, 0), (READDIRPLUS, 128)])
@pytest.mark.parametrize("folder", ["", "odd", "many", "empty directory"])
def test_listing_in_small_pieces(tree: MemoryTree, folder: str, opcode: int, extra: int) -> None:
    """Each name comes once, however little is asked for at a time; from any cookie on it goes on the same."""
    operations, inode = Operations(tree), tree.resolve(folder)
    node = 1 if inode == tree.root else inode
    found: list[tuple[bytes, int, int, int]] = []
    while True:
        body = read_body(0, found[-1][2] if found else 0, 4096)
        number, data = answer_of(operations, request_of(opcode, node, body))
        assert number == 0
        assert len(data) <= 4096
        if not data:
            break
        found += listed(data, extra)
    entries = tree.entries(inode)
    assert [name for name, *_ in found] == [os.fsencode(entry.name) for entry in entries]
    kinds = {
        NodeType.FILE: 8,
        NodeType.DIRECTORY: 4,
        NodeType.LINK: 10,
        NodeType.OTHER: 12,
    }  # DT_… of dirent.h
    assert [kind for *_, kind in found] == [kinds[entry.type] for entry in entries]
    assert len({number for _, number, *_ in found} - {0}) == len(found)
    if len(found) > 5:
        _, data = answer_of(operations, request_of(opcode, node, read_body(0, found[3][2], 4096)))
        assert next(listed(data, extra)) == found[4]
    for beyond in (len(entries) + 1, 2**63):
        assert answer_of(operations, request_of(opcode, node, read_body(0, beyond, 4096))) == (0, b"")


def test_attributes_are_told_to_who_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels ask for them where any listing begins; they are read for who has been seen to use them."""
    tree = MemoryTree()
    asked: list[int] = []
    attributes = tree.attributes

    def count(inode: int) -> Attributes:
        asked.append(inode)
        return attributes(inode)

    monkeypatch.setattr(tree, "attributes", count)
    operations = Operations(tree)
    many, odd = tree.resolve("many"), tree.resolve("odd")

    def told(node: int, cookie: int = 0) -> list[int]:
        _, data = answer_of(operations, request_of(READDIRPLUS, node, read_body(0, cookie, 32768)))
        numbers, at = [], 0
        while at < len(data):
            number, length = struct.unpack_from("=Q136xI", data, at)
            numbers.append(number)
            at += 152 + -(-length // 8) * 8
        return numbers

    def list_names(node: int) -> None:
        cookie, count = len(told(node)), 1
        while count:
            _, data = answer_of(operations, request_of(READDIR, node, read_body(0, cookie, 32768)))
            count = len(list(listed(data)))
            cookie += count
        assert cookie == len(tree.nodes[node].children)

    list_names(many)
    list_names(odd)
    answer_of(operations, request_of(LOOKUP, 1, b"many\0"))  # to go into it
    asked.clear()
    assert set(told(many)) == {0}
    assert asked == []
    answer_of(operations, request_of(LOOKUP, many, b"file 00001\0"))
    assert told(odd) == list(tree.nodes[odd].children.values())
    first = told(many)
    assert first == list(tree.nodes[many].children.values())[: len(first)]
    assert 100 < len(first) < 300
    assert len(asked) < 300  # no more than were told
    assert told(many, len(first))[0] == first[-1] + 1
    by_name = sum(set(told(odd)) == {0} for _ in range(100))
    assert by_name > 60  # nobody has looked for what was not told


def test_attributes_are_those_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a damaged directory calls a file may be another one's number by now: a lookup tells."""
    tree = MemoryTree()
    many = tree.resolve("many")
    lookup = tree.lookup

    def refuse(inode: int, name: str) -> int:
        if name == "file 00003":
            raise OSError(errno.EIO, name)
        return lookup(inode, name)

    monkeypatch.setattr(tree, "lookup", refuse)
    operations = Operations(tree)
    for _ in range(2):  # who asks for a name's attributes is told them with the next listing
        _, data = answer_of(operations, request_of(READDIRPLUS, many, read_body(0, 0, 4096)))
        answer_of(operations, request_of(LOOKUP, many, b"file 00001\0"))
    told, at = {}, 0
    while at < len(data):
        number, length = struct.unpack_from("=Q136xI", data, at)
        told[data[at + 152 : at + 152 + length].decode()] = number
        at += 152 + -(-length // 8) * 8
    assert told.pop("file 00003") == 0
    assert told == {name: number for name, number in tree.nodes[many].children.items() if name in told}
    assert len(told) > 5


def test_attributes_go_on_being_told_to_who_uses_them() -> None:
    tree = MemoryTree()
    operations, odd = Operations(tree), tree.resolve("odd")
    by_name = 0
    for _ in range(100):
        _, data = answer_of(operations, request_of(READDIRPLUS, odd, read_body(0, 0, 32768)))
        if not struct.unpack_from("=Q", data)[0]:  # nothing but names: they are looked up
            by_name += 1
            answer_of(operations, request_of(LOOKUP, odd, b"two words\0"))
    assert 3 < by_name < 10


def test_names_that_cannot_be_shown_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tree = MemoryTree()
    good = [Entry(name, 100 + at, NodeType.FILE) for at, name in enumerate(("a", "\udcff", "z"))]
    for bad in ("", ".", "..", "a/b", "a\0b", "\ud800", "x" * 1025):
        tree.entries = lambda inode, bad=bad: [good[0], Entry(bad, 99, NodeType.FILE), *good[1:]]  # type: ignore[method-assign, misc]
        _, data = answer_of(Operations(tree), request_of(READDIR, 1, read_body(0, 0, 4096)))
        assert [name for name, *_ in listed(data)] == [b"a", b"\xff", b"z"]
        assert repr(bad) in caplog.text


def test_several_mounts_in_a_process(tmp_path: Path) -> None:
    need("devfuse")
    trees = [MemoryTree() for _ in range(3)]
    with ExitStack() as stack:
        for number, tree in enumerate(trees):
            path = tmp_path / str(number)
            path.mkdir()
            mounted = stack.enter_context(mount(tree, path, MountOptions(mechanism="devfuse")))
            assert mounted.mechanism == "devfuse"
        for number, tree in enumerate(trees):
            assert (tmp_path / str(number) / "big.bin").read_bytes() == tree.bytes_of("big.bin")
    assert not any(is_mounted(str(tmp_path / str(number))) for number in range(3))
    assert all(tree.opened == [] for tree in trees)


def test_an_end_in_use_leaves_neither_threads_nor_files(tmp_path: Path) -> None:
    """Readers get right bytes or an error; afterwards nothing of the mount is left in the process."""
    need("devfuse")
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    tree = MemoryTree()
    wrong: list[object] = []
    inode = tree.resolve("big.bin")
    with mount(tree, tmp_path, MountOptions(mechanism="devfuse")) as mounted:
        fds = [os.open(tmp_path / "big.bin", os.O_RDONLY) for _ in range(4)]

        def read(fd: int) -> None:
            try:
                for offset in range(0, 10**9, 4096):
                    at = offset * 37 % (8 << 20)
                    os.posix_fadvise(fd, at, 4096, os.POSIX_FADV_DONTNEED)
                    if os.pread(fd, 4096, at) != content(inode, at, 4096):
                        wrong.append(at)
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                    wrong.append(error)

        readers = [threading.Thread(target=read, args=(fd,)) for fd in fds]
        for reader in readers:
            reader.start()
        mounted.unmount()
        for reader in readers:
            reader.join(20)
            assert not reader.is_alive()
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
    assert wrong == []
    assert tree.opened == []
    assert mounted.wait(5)
    for thread in threading.enumerate():
        if thread.name.startswith("mount"):
            thread.join(5)
            assert not thread.is_alive()
    assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_an_end_while_a_file_is_open(tmp_path: Path) -> None:
    """Nobody asks for anything, and still all threads end at once."""
    need("devfuse")
    tree = MemoryTree()
    with mount(tree, tmp_path, MountOptions(mechanism="devfuse")) as mounted:
        fd = os.open(tmp_path / "big.bin", os.O_RDONLY)
        begun = time.monotonic()
        mounted.unmount()
        assert mounted.wait(0)
        assert time.monotonic() - begun < 3
    try:
        with pytest.raises(OSError, match=r"connect|aborted"):
            os.pread(fd, 4096, 5 << 20)
    finally:
        with suppress(OSError):
            os.close(fd)
    assert tree.opened == []


def test_an_end_while_the_tree_is_stuck_frees_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread in the tree goes on to its own end; the reader does not wait for it."""
    need("devfuse")
    monkeypatch.setattr("mounters.devfuse_mount._GRACE", 0.3)
    tree, entered, release = MemoryTree(), threading.Event(), threading.Event()
    node = tree.nodes[tree.resolve("big.bin")]

    def read(offset: int, length: int) -> bytes:
        entered.set()
        return bytes(length * release.wait(30))

    node.read = read
    mounted = mount(tree, tmp_path, MountOptions(mechanism="devfuse"))
    try:
        reader = subprocess.Popen(["cat", tmp_path / "big.bin"], stderr=subprocess.DEVNULL)
        assert entered.wait(30)
        mounted._session.stop()
        assert reader.wait(10) != 0
        assert not is_mounted(str(tmp_path))
        assert not mounted.wait(0)
    finally:
        release.set()
        mounted.unmount()
    assert mounted.wait(5)
    assert tree.opened == []


def test_without_rights_the_reason_is_told(tmp_path: Path) -> None:
    """As in a container: the device is there, mounting is forbidden."""
    need("devfuse")
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        skip_or_fail("giving up a right takes root and setpriv")
    command = ["setpriv", "--bounding-set=-sys_admin", *argv(tmp_path, "devfuse")]
    with pytest.raises(MountError, match=r"does not let this process mount.*SYS_ADMIN") as caught:
        start_in_background(command, 60, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    assert caught.value.exit_code == 7
    assert not is_mounted(str(tmp_path))


def test_a_device_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("devfuse")
    monkeypatch.setattr(devfuse_device, "_DEVICE", str(tmp_path / "absent"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(MountError, match=r"cannot open .*absent: No such file"):
        mount(MemoryTree(), tmp_path, MountOptions(mechanism="devfuse"))
    assert not is_mounted(str(tmp_path))
