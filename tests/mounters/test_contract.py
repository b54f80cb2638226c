"""What a mount shows, held against the tree in memory; every mechanism passes the same tests."""

import ctypes
import errno
import hashlib
import os
import random
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mounters.tree import NodeType
from tests.mounters.memory_tree import DAMAGE, MANY, MIB, ODD_NAMES, UNLISTED, VALUES, content
from tests.mounters.mounting import Mounted, skip_or_fail

HEALTHY = ("one.bin", "zero.bin", "huge number.bin", "empty", "big.bin", "cached.bin", "setuid.bin")
REFUSALS = (errno.EROFS, errno.EACCES, errno.EPERM)
TYPES = {
    NodeType.FILE: stat.S_IFREG,
    NodeType.DIRECTORY: stat.S_IFDIR,
    NodeType.LINK: stat.S_IFLNK,
    NodeType.OTHER: stat.S_IFSOCK,
}


def error_of(action: Callable[[], object]) -> int | None:
    """Return the errno an action fails with."""
    with pytest.raises(OSError) as caught:
        action()
    return caught.value.errno


@pytest.mark.parametrize("name", HEALTHY)
def test_contents(mounted: Mounted, name: str) -> None:
    expected = hashlib.sha256(mounted.tree.bytes_of(name)).hexdigest()
    assert hashlib.sha256((mounted.path / name).read_bytes()).hexdigest() == expected


@pytest.mark.parametrize("name", ["big.bin", "cached.bin"])
def test_random_reads(mounted: Mounted, name: str) -> None:
    whole = mounted.tree.bytes_of(name)
    dice = random.Random(20240710)
    with (mounted.path / name).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in range(300):
            offset = dice.randrange(len(whole) + 5000)
            length = dice.choice((1, 511, 4096, 70_000, 2 * MIB))
            if dice.random() < 0.5:
                offset = max(0, offset // 65536 * 65536 - dice.randrange(300))
            assert os.pread(file.fileno(), length, offset) == whole[offset : offset + length]


def test_attributes(mounted: Mounted) -> None:
    paths = [*HEALTHY, "", "dir", "dir/sub/leaf.txt", "link", "socket", "sparse.bin", f"odd/{ODD_NAMES[0]}"]
    shown_numbers = set()
    for path in paths:
        expected = mounted.tree.attributes(mounted.tree.resolve(path))
        shown = (mounted.path / path).lstat()
        assert shown.st_mode == TYPES[expected.type] | expected.mode, path
        assert shown.st_size == expected.size, path
        assert shown.st_nlink == expected.links, path
        assert (shown.st_uid, shown.st_gid) == (expected.uid, expected.gid), path
        assert shown.st_mtime_ns == expected.modified, path
        assert shown.st_ctime_ns == expected.changed, path
        assert shown.st_atime_ns == expected.accessed, path
        stored = expected.size if expected.allocated is None else expected.allocated
        assert shown.st_blocks == (stored + 511) // 512, path
        if expected.inode not in (0, 1, mounted.tree.root):
            assert shown.st_ino == expected.inode, path
        shown_numbers.add(shown.st_ino)
    assert len(shown_numbers) == len(paths)
    assert mounted.path.stat().st_ino == 1


def test_attributes_in_a_listing(mounted: Mounted) -> None:
    """A directory entry tells the number and type that stat tells, also for the odd numbers."""
    with os.scandir(mounted.path) as entries:
        for entry in entries:
            if entry.name == "lost.bin":
                continue
            shown = (mounted.path / entry.name).lstat()
            assert entry.inode() == shown.st_ino, entry.name
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(shown.st_mode)
            assert entry.is_symlink() == stat.S_ISLNK(shown.st_mode)


def test_links(mounted: Mounted) -> None:
    assert (mounted.path / "link").readlink() == Path("dir/sub/leaf.txt")
    assert (mounted.path / "dangling").readlink() == Path("nowhere/\udcff")
    assert (mounted.path / "link").read_bytes() == mounted.tree.bytes_of("dir/sub/leaf.txt")
    assert error_of((mounted.path / "dangling").read_bytes) == errno.ENOENT
    assert error_of((mounted.path / "big.bin").readlink) == errno.EINVAL


@pytest.mark.parametrize("folder", ["", "dir", "odd", "empty directory"])
def test_listing(mounted: Mounted, folder: str) -> None:
    expected = [entry.name for entry in mounted.tree.entries(mounted.tree.resolve(folder))]
    assert sorted(os.listdir(mounted.path / folder)) == sorted(expected)  # noqa: PTH208


def test_odd_names(mounted: Mounted) -> None:
    for name in ODD_NAMES:
        assert (mounted.path / "odd" / name).read_bytes() == mounted.tree.bytes_of(f"odd/{name}"), name


def test_many_entries(mounted: Mounted) -> None:
    folder = mounted.path / "many"
    begun = time.monotonic()
    names = os.listdir(folder)  # noqa: PTH208
    assert time.monotonic() - begun < 10
    assert sorted(names) == [f"file {number:05}" for number in range(MANY)]
    for number in (0, 1, 4711, MANY - 1):
        assert (folder / f"file {number:05}").stat().st_size == number


def test_listing_twice_from_one_handle(mounted: Mounted) -> None:
    """Rewinding a directory starts from its first entry again."""
    fd = os.open(mounted.path / "odd", os.O_RDONLY)
    try:
        first = os.listdir(fd)  # noqa: PTH208
        assert len(first) == len(ODD_NAMES)
        assert os.listdir(fd) == first  # noqa: PTH208
    finally:
        os.close(fd)


def test_absent_names(mounted: Mounted) -> None:
    for _ in range(2):
        assert error_of((mounted.path / "absent").stat) == errno.ENOENT
        assert error_of((mounted.path / "dir/absent/below").stat) == errno.ENOENT
    assert error_of((mounted.path / "big.bin/below").stat) == errno.ENOTDIR


def test_damage_is_an_error_there_and_only_there(mounted: Mounted) -> None:
    path = mounted.path / "damaged.bin"
    inode = mounted.tree.resolve("damaged.bin")
    with path.open("rb", buffering=0) as file:
        fd = file.fileno()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for offset in (DAMAGE.start, DAMAGE.start + 4096, DAMAGE.stop - 4096):
            assert error_of(lambda at=offset: os.pread(fd, 4096, at)) == errno.EIO  # type: ignore[misc]
        for offset in (0, DAMAGE.start - 4096, DAMAGE.stop, 3 * MIB):
            assert os.pread(fd, 4096, offset) == content(inode, offset, 4096)
    assert error_of(path.read_bytes) == errno.EIO
    assert path.stat().st_size == 4 * MIB


@pytest.mark.parametrize(
    "name", ["broken.bin", "short.bin", "mismatched.bin", "strange number.bin", "lost.bin"]
)
def test_faults_of_the_tree_are_input_output_errors(mounted: Mounted, name: str) -> None:
    """Never zeros for bytes that are missing, and the mount goes on."""
    assert error_of((mounted.path / name).read_bytes) == errno.EIO
    assert (mounted.path / "one.bin").read_bytes() == mounted.tree.bytes_of("one.bin")


def test_faults_are_logged(mounted: Mounted) -> None:
    for name in ("damaged.bin", "broken.bin"):
        assert error_of((mounted.path / name).read_bytes) == errno.EIO
    log = mounted.log.read_text()
    assert "RuntimeError: a fault of the tree" in log
    damaged = f"inode {mounted.tree.resolve('damaged.bin')} offset "
    assert any(damaged in line and "bad hash" in line for line in log.splitlines())


def test_an_unreadable_entry_is_listed(mounted: Mounted) -> None:
    assert "lost.bin" in os.listdir(mounted.path)  # noqa: PTH208
    assert error_of((mounted.path / "lost.bin").stat) == errno.EIO


def test_a_socket_cannot_be_opened(mounted: Mounted) -> None:
    assert error_of((mounted.path / "socket").read_bytes) == errno.ENXIO


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda root: (root / "big.bin").open("r+b"),
    "append": lambda root: (root / "big.bin").open("ab"),
    "truncate": lambda root: os.truncate(root / "big.bin", 0),
    "create": lambda root: (root / "new").open("xb"),
    "mkdir": lambda root: (root / "new").mkdir(),
    "unlink": lambda root: (root / "big.bin").unlink(),
    "rmdir": lambda root: (root / "empty directory").rmdir(),
    "rename": lambda root: (root / "big.bin").rename(root / "new"),
    "symlink": lambda root: (root / "new").symlink_to("x"),
    "link": lambda root: (root / "new").hardlink_to(root / "big.bin"),
    "chmod": lambda root: (root / "big.bin").chmod(0o777),
    "chown": lambda root: os.chown(root / "big.bin", 0, 0),
    "utime": lambda root: os.utime(root / "big.bin", (1, 1)),
    "mknod": lambda root: os.mkfifo(root / "new"),
    "setxattr": lambda root: os.setxattr(root / "big.bin", "user.x", b"1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_refused(mounted: Mounted, change: str) -> None:
    assert error_of(lambda: CHANGES[change](mounted.path)) in REFUSALS


@pytest.mark.parametrize("name", ["attributes.bin", "dir"])
def test_extended_attributes(mounted: Mounted, name: str) -> None:
    shown = {name: value for name, value in VALUES.items() if "\0" not in name}
    path = mounted.path / name
    assert os.listxattr(path) == list(shown)
    assert {name: os.getxattr(path, name) for name in shown} == shown
    assert os.getxattr(path, UNLISTED) == b"told"
    assert repr("user.a\0b") in mounted.log.read_text()


def test_extended_attributes_that_are_not_there(mounted: Mounted) -> None:
    for path in (mounted.path / "attributes.bin", mounted.path / "big.bin", mounted.path):
        for name in ("user.absent", "security.capability"):
            assert error_of(lambda path=path, name=name: os.getxattr(path, name)) == errno.ENODATA  # type: ignore[misc]
        for name in ("security.selinux", "system.posix_acl_access"):
            assert error_of(lambda path=path, name=name: os.getxattr(path, name)) == errno.EOPNOTSUPP  # type: ignore[misc]
    assert os.listxattr(mounted.path / "big.bin") == []
    assert error_of(lambda: os.getxattr(mounted.path / "big.bin", "user.damaged")) == errno.EIO


def test_extended_attributes_into_small_buffers(mounted: Mounted) -> None:
    """The size is told to who asks with an empty buffer; one that is too small is an error."""
    library = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(mounted.path / "attributes.bin")
    buffer = ctypes.create_string_buffer(65536)
    names = sum(len(os.fsencode(name)) + 1 for name in VALUES if "\0" not in name)
    for size, expected in ((0, 4096), (4095, -1), (4096, 4096), (65536, 4096)):
        assert library.getxattr(path, b"user.binary", buffer, size) == expected
        assert expected > 0 or ctypes.get_errno() == errno.ERANGE
    for size, expected in ((0, names), (names - 1, -1), (names, names)):
        assert library.listxattr(path, buffer, size) == expected
        assert expected > 0 or ctypes.get_errno() == errno.ERANGE


def test_extended_attributes_as_tools_read_them(mounted: Mounted) -> None:
    if shutil.which("getfattr") is None:
        skip_or_fail("getfattr is not installed (attr)")
    command = ["getfattr", "--dump", "--match=-", "--encoding=hex", "--absolute-names"]
    done = subprocess.run([*command, mounted.path / "dir"], check=True, capture_output=True, timeout=60)
    assert b"user.binary=0x" + VALUES["user.binary"].hex().encode() in done.stdout.splitlines()
    assert b"system.ntfs_attrib=0x20000000" in done.stdout.splitlines()


def test_holes(mounted: Mounted) -> None:
    """What tells no holes tells a file of data alone; either is true."""
    tells = mounted.mechanism == "devfuse"
    with (mounted.path / "holes.bin").open("rb", buffering=0) as file:
        fd, size, data = file.fileno(), 3 * MIB, range(MIB, 2 * MIB + 100) if tells else range(3 * MIB)
        for offset in (0, 1, MIB - 1, MIB, MIB + 4097, data.stop - 1):
            assert os.lseek(fd, offset, os.SEEK_DATA) == max(offset, data.start)
            assert os.lseek(fd, offset, os.SEEK_HOLE) == (data.stop if offset in data else offset)
        assert error_of(lambda: os.lseek(fd, size, os.SEEK_DATA)) == errno.ENXIO
        assert error_of(lambda: os.lseek(fd, size + 1, os.SEEK_HOLE)) == errno.ENXIO
        if tells:
            assert error_of(lambda: os.lseek(fd, data.stop, os.SEEK_DATA)) == errno.ENXIO
            assert os.lseek(fd, size - 1, os.SEEK_HOLE) == size - 1
        assert os.lseek(fd, 0, os.SEEK_END) == size
        assert os.pread(fd, 100, 5) == content(mounted.tree.resolve("holes.bin"), 5, 100)


def test_the_time_of_creation(mounted: Mounted) -> None:
    if mounted.mechanism != "devfuse":
        pytest.skip("libfuse 3.14 asks nobody for it")
    command = ["stat", "--format=%W %w", str(mounted.path / "big.bin")]
    told = subprocess.run(command, check=True, capture_output=True, env={"TZ": "UTC"}, timeout=60).stdout
    created = mounted.tree.attributes(mounted.tree.resolve("big.bin")).created
    assert int(told.split()[0]) == created // 10**9
    assert told.split()[2].endswith(b".%09d" % (created % 10**9))


def test_size_of_the_file_system(mounted: Mounted) -> None:
    shown = os.statvfs(mounted.path)
    assert shown.f_blocks * shown.f_frsize == mounted.tree.size()
    assert shown.f_bfree == 0
    assert shown.f_flag & os.ST_RDONLY


def test_copies_of_a_folder(mounted: Mounted, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", mounted.path / "odd", tmp_path / "copy"], check=True, timeout=60)
    for name in ODD_NAMES:
        assert (tmp_path / "copy" / name).read_bytes() == mounted.tree.bytes_of(f"odd/{name}")


def test_slow_reads_hold_nothing_up(mounted: Mounted) -> None:
    """While readers wait for a slow file, others are served."""
    (mounted.path / "dir").stat()

    def read_slowly(part: int) -> None:
        with (mounted.path / "slow.bin").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(file.fileno(), 4096, part * 4 * MIB)

    readers = [threading.Thread(target=read_slowly, args=(part,)) for part in range(6)]
    begun = time.monotonic()
    for reader in readers:
        reader.start()
    time.sleep(0.1)
    os.listdir(mounted.path / "odd")  # noqa: PTH208
    assert (mounted.path / "dir/sub/leaf.txt").read_bytes() == mounted.tree.bytes_of("dir/sub/leaf.txt")
    served = time.monotonic() - begun
    for reader in readers:
        reader.join()
    assert served < time.monotonic() - begun
    assert served < 2
