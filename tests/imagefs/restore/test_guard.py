"""What must not be overwritten: real loop devices, mounts, links and swap. Nothing is ever written."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB, create_file
from fixtures.tools import MissingToolError, find_tool, run
from fixtures.volumes import detach, make_ntfs, mounted_ntfs
from imagefs.errors import RefusedError
from imagefs.machine import devices
from imagefs.machine.mounts import Uses
from imagefs.restore.guard import refuse_unsafe
from tests.imagefs.imaging.attached import (
    attached,
    make_file_system,
    mounted_on,
    need_root,
    partition_node,
    swapped_on,
)

TWO = b"label: gpt\nstart=2048, size=16384\nstart=18432, size=16384\n"
FIRST, SECOND = (MIB, 9 * MIB), (9 * MIB, 17 * MIB)


def disk_file(path: Path, script: bytes = TWO, size: int = 20 * MIB) -> Path:
    create_file(path, size)
    if script:
        run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, stdin=script)
    return path


@contextmanager
def two_partitions(path: Path, *, format_them: bool = True) -> Iterator[Path]:
    """Attach a disk with two ext4 partitions."""
    with attached(disk_file(path)) as node:
        if format_them:
            for number in (1, 2):
                make_file_system("ext4", partition_node(node, number))
        yield node


def digest(path: Path) -> str:
    """Return the hash of a target's bytes, "" where there are none, or the kernel may write them itself."""
    if not path.is_file() and not path.is_block_device():
        return ""
    if any(mount.writable and mount.source.startswith("/dev/loop") for mount in Uses().mounts):
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refused(target: Path, *, protected: Sequence[Path] = (), span: tuple[int, int] | None = None) -> str:
    """Return the line of a refusal; the target's bytes are what they were."""
    before = digest(target)
    with pytest.raises(RefusedError) as caught:
        refuse_unsafe(target, protected=protected, span=span)
    assert caught.value.exit_code == 6
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert "" in (before, after := digest(target)) or after == before  # tests beside this one mount, too
    return str(caught.value)


def allowed(target: Path, *, protected: Sequence[Path] = (), span: tuple[int, int] | None = None) -> None:
    was_there = target.exists()
    before = digest(target)
    refuse_unsafe(target, protected=protected, span=span)
    assert target.exists() == was_there
    assert "" in (before, after := digest(target)) or after == before  # tests beside this one mount, too


# --- Kinds of targets ---


def test_files(tmp_path: Path) -> None:
    allowed(disk_file(tmp_path / "there.raw"))
    allowed(tmp_path / "to be made.raw")
    (tmp_path / "link").symlink_to("there.raw")
    allowed(tmp_path / "link")


def test_what_is_neither_a_disk_nor_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert "is a pipe" in refused(tmp_path / "pipe")
    assert "is a folder" in refused(tmp_path / "folder")
    assert "link to something that is not there" in refused(tmp_path / "dangling")
    assert "symbolic links" in refused(tmp_path / "loop")
    assert "is a character device" in refused(Path("/dev/null"))
    assert "its folder is not there" in refused(tmp_path / "none/disk.raw")
    assert "no such device" in refused(Path("/dev/sdzzz"))
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        assert "is a socket" in refused(tmp_path / "socket")
    file = disk_file(tmp_path / "file")
    assert "Not a directory" in refused(file / "below")


def test_a_device_without_a_medium() -> None:
    need_root()
    free = Path(run("losetup", "--find").decode().strip())
    if not free.exists():
        pytest.skip("no free loop device")
    with pytest.raises(RefusedError, match="no medium"):
        refuse_unsafe(free)


def test_a_node_of_no_device(tmp_path: Path) -> None:
    need_root()
    node = tmp_path / "node"
    os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(240, 77))
    with pytest.raises(RefusedError, match="no such block device"):
        refuse_unsafe(node)


def test_read_only_devices(tmp_path: Path) -> None:
    with two_partitions(tmp_path / "disk", format_them=False) as node:
        allowed(node)
        run("blockdev", "--setro", node)
        assert "is read-only" in refused(node)
        assert f"blockdev --setrw {node}" in refused(partition_node(node, 1))
        run("blockdev", "--setrw", node)


def test_read_only_file_systems(tmp_path: Path) -> None:
    with two_partitions(tmp_path / "disk") as node, mounted_on(tmp_path / "mnt", partition_node(node, 1)):
        disk_file(tmp_path / "mnt/old", b"", MIB)
        run("mount", "-o", "remount,ro", tmp_path / "mnt")
        assert "mounted read-only" in refused(tmp_path / "mnt/old")
        assert "mounted read-only" in refused(tmp_path / "mnt/new")


def test_an_ordinary_user(tmp_path: Path) -> None:
    """Who may not write is told so before anything happens; who may is not asked to be root."""
    need_root()
    if shutil.which("setpriv") is None:
        raise MissingToolError("setpriv", "util-linux")
    folder = tmp_path / "folder"
    folder.mkdir()
    create_file(tmp_path / "own", MIB)
    os.chown(tmp_path / "own", 65534, 65534)
    create_file(tmp_path / "closed", MIB).chmod(0o644)
    os.chown(create_file(tmp_path / "used", MIB), 65534, 65534)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and parent.stat().st_mode & 0o5 != 0o5:
            parent.chmod(parent.stat().st_mode | 0o5)
    script = """
import sys
from pathlib import Path
from imagefs.errors import RefusedError
from imagefs.restore.guard import refuse_unsafe
for target in sys.argv[1:]:
    try:
        refuse_unsafe(Path(target))
        print("allowed")
    except RefusedError as error:
        print(error)
"""
    with attached(tmp_path / "used", partitions=False) as node:
        targets = [tmp_path / "own", tmp_path / "closed", folder / "new", node, tmp_path / "used"]
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", script,
             *map(str, targets)],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own, closed, new, device, used = done.stdout.splitlines()
    assert own == "allowed"
    assert closed.startswith(f"{tmp_path / 'closed'}: can't be written by this user")
    assert new.startswith(f"{folder / 'new'}: this user can't make files")
    assert device == f"{node}: can't be written by this user (writing to a device needs root)"
    assert f"the loop device {node} is made of it" in used


# --- In use ---


@pytest.mark.parametrize("option", ["rw", "ro"])
def test_mounted(tmp_path: Path, option: str) -> None:
    point = tmp_path / "a mount"
    with two_partitions(tmp_path / "disk") as node:
        first, second = (partition_node(node, number) for number in (1, 2))
        with mounted_on(point, "-o", option, first):
            how = {"rw": "read-write", "ro": "read-only"}[option]
            assert refused(first) == f"{first}: is mounted {how} on {point} (umount '{point}')"
            line = f"{node}: {first}, which it holds, is mounted {how} on {point} (umount '{point}')"
            assert refused(node) == line
            assert f"{first}, which it holds" in refused(tmp_path / "disk")
            allowed(second)
            allowed(node, span=SECOND)
            assert "is mounted" in refused(node, span=FIRST)
            assert "is mounted" in refused(node, span=(9 * MIB - 1, 9 * MIB))
        allowed(first)
        allowed(node)


def test_all_mounts_are_named_the_last_first(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with (
        two_partitions(tmp_path / "disk") as node,
        mounted_on(one, partition_node(node, 1)),
        mounted_on(two, "--bind", one),
    ):
        assert refused(node).endswith(f"(umount {two} {one})")


def test_a_disk_that_is_mounted_as_a_whole(tmp_path: Path) -> None:
    with (
        attached(disk_file(tmp_path / "disk", b""), partitions=False) as node,
    ):
        make_file_system("ext4", node)
        with mounted_on(tmp_path / "mnt", node):
            assert f"is mounted read-write on {tmp_path / 'mnt'}" in refused(node, span=(0, 512))


def test_swap(tmp_path: Path) -> None:
    with attached(disk_file(tmp_path / "disk")) as node:
        first = partition_node(node, 1)
        with swapped_on(first):
            assert refused(first) == f"{first}: is used as swap (swapoff {first})"
            assert f"{first}, which it holds, is used as swap" in refused(node)
            allowed(partition_node(node, 2))


def test_a_swap_file(tmp_path: Path) -> None:
    need_root()
    path = tmp_path / "a file"
    path.write_bytes(bytes(16 * MIB))
    path.chmod(0o600)
    with swapped_on(path):
        assert refused(path) == f"{path}: is used as swap (swapoff '{path}')"
    allowed(path)


def test_ntfs_3g(tmp_path: Path) -> None:
    """A mount by a program: of a device, and of a file, which no loop device shows."""
    volume = make_ntfs(tmp_path / "file", 8 * MIB, "x")
    with mounted_ntfs(volume) as root:
        assert f"is mounted on {root}" in refused(volume)
    allowed(volume)
    with attached(volume, partitions=False) as node:
        (tmp_path / "node").symlink_to(node)
        with mounted_ntfs(tmp_path / "node") as root:
            assert f"is mounted read-write on {root}" in refused(node)


def test_a_file_that_is_attached(tmp_path: Path) -> None:
    """Mounted or not: whoever opens the loop device reads and writes the file."""
    path = disk_file(tmp_path / "disk")
    os.link(path, tmp_path / "other name")
    (tmp_path / "link").symlink_to("disk")
    with attached(path) as node:
        for name in ("disk", "other name", "link"):
            line = f"{tmp_path / name}: the loop device {node} is made of it (losetup --detach {node})"
            assert refused(tmp_path / name) == line
        allowed(node)
        with attached(node, partitions=False) as above:
            assert f"the loop device {above} is made of it" in refused(node)
            allowed(above)
    allowed(path)


def test_a_loop_device_elsewhere_on_a_disk(tmp_path: Path) -> None:
    with attached(disk_file(tmp_path / "disk"), partitions=False) as node:
        above = run("losetup", "--find", "--show", "--offset", str(SECOND[0]), node).decode().strip()
        try:
            assert "is made of it" in refused(node)
            assert "is made of it" in refused(node, span=SECOND)
            allowed(node, span=FIRST)
        finally:
            detach(Path(above))


def test_held_by_something_unseen(tmp_path: Path) -> None:
    """As md, dm and ZFS hold their devices, and the kernel what is mounted in another namespace."""
    with two_partitions(tmp_path / "disk", format_them=False) as node:
        first, second = (partition_node(node, number) for number in (1, 2))
        fd = os.open(first, os.O_RDONLY | os.O_EXCL)
        try:
            assert "is held by another program" in refused(first)
            assert "held by another program" in refused(node)
            assert f"{first}, which it holds, is held" in refused(node, span=FIRST)
            allowed(second)
            allowed(node, span=SECOND)
            allowed(node, span=(17 * MIB, 18 * MIB))
        finally:
            os.close(fd)
        fd = os.open(node, os.O_RDONLY | os.O_EXCL)
        try:
            assert "held by another program" in refused(second)
            assert "held by another program" in refused(node, span=SECOND)
            assert "held by another program" in refused(node, span=(17 * MIB, 18 * MIB))
        finally:
            os.close(fd)
        allowed(node)


@contextmanager
def served(target: Path, folder: Path) -> Iterator[None]:
    """Let QEMU's block layer have a disk open, as a virtual machine does."""
    command = [
        find_tool("qemu-nbd"),
        "--format=raw",
        "--persistent",
        f"--socket={folder / 'socket'}",
        str(target),
    ]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 20
            while not (folder / "socket").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield
        finally:
            process.terminate()


def test_disks_of_a_virtual_machine(tmp_path: Path) -> None:
    path = disk_file(tmp_path / "disk")
    with served(path, tmp_path):
        assert "is locked by another program, as a virtual machine" in refused(path)
    allowed(path)
    with two_partitions(tmp_path / "other", format_them=False) as node:
        with served(node, tmp_path):
            assert "is locked by another program, as a virtual machine" in refused(node)
            line = f"{node}, which shares its bytes, is locked by another program"
            assert line in refused(partition_node(node, 1))
        allowed(node)
        with served(partition_node(node, 1), tmp_path):
            assert f"{partition_node(node, 1)}, which shares its bytes, is locked" in refused(node)
            allowed(node, span=SECOND)


def test_mounted_in_another_namespace(tmp_path: Path) -> None:
    need_root()
    (tmp_path / "mnt").mkdir()
    with two_partitions(tmp_path / "disk") as node:
        first = partition_node(node, 1)
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", 'mount -o ro "$0" "$1" && echo done && read line', first,
             tmp_path / "mnt"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            if process.stdout.readline() != b"done\n":
                pytest.skip("no other namespace of mounts")
            assert "can't be seen from here" in refused(first)
            assert "can't be seen from here" in refused(node)
            allowed(node, span=SECOND)
            process.communicate(b"\n")


# --- The source ---


def test_the_source_itself(tmp_path: Path) -> None:
    path = disk_file(tmp_path / "disk")
    os.link(path, tmp_path / "other name")
    (tmp_path / "link").symlink_to("disk")
    for name in ("disk", "other name", "link"):
        assert "is the source itself" in refused(tmp_path / name, protected=[path])
    other = disk_file(tmp_path / "other")
    allowed(other, protected=[path, tmp_path])
    allowed(tmp_path / "new", protected=[path, tmp_path])
    assert "can't tell" in refused(other, protected=[tmp_path / "gone"])


def test_a_source_that_lies_on_the_target(tmp_path: Path) -> None:
    """An image on a mounted partition: its disk and the file behind that are refused for the image."""
    point = tmp_path / "mnt"
    with two_partitions(tmp_path / "disk") as node:
        first, second = (partition_node(node, number) for number in (1, 2))
        with mounted_on(point, first):
            image = point / "set/image.mrimgx"
            image.parent.mkdir()
            image.write_bytes(noise(1, 0, 1000))
            for protected in ([image], [image.parent], [second, image]):
                for target in (node, first, tmp_path / "disk"):
                    if target is first or protected != [second, image]:
                        line = f"the source, {protected[-1]}, lies on it"
                        assert line in refused(target, protected=protected)
            assert f"the source, {image}, lies on it" in refused(node, protected=[image], span=FIRST)
            allowed(second, protected=[image, image.parent])
            allowed(node, protected=[image], span=SECOND)
            allowed(point / "new.raw", protected=[image, image.parent])
            with attached(disk_file(point / "below", size=2 * MIB, script=b""), partitions=False) as above:
                allowed(above, protected=[image, image.parent])
                assert f"lies on the source, {first}" in refused(above, protected=[first])
                assert f"the source, {above}, lies on it" in refused(first, protected=[above])


def test_disks_and_their_partitions(tmp_path: Path) -> None:
    with two_partitions(tmp_path / "disk", format_them=False) as node:
        first, second = (partition_node(node, number) for number in (1, 2))
        assert "is the source itself" in refused(node, protected=[node])
        assert f"the source, {first}, lies on it" in refused(node, protected=[first])
        assert f"lies on the source, {node}" in refused(first, protected=[node])
        assert f"the source, {node}, lies on it" in refused(tmp_path / "disk", protected=[node])
        assert f"lies on the source, {tmp_path / 'disk'}" in refused(node, protected=[tmp_path / "disk"])
        assert f"lies on the source, {tmp_path / 'disk'}" in refused(second, protected=[tmp_path / "disk"])
        allowed(second, protected=[first])
        allowed(node, protected=[first], span=SECOND)
        assert f"the source, {first}, lies on it" in refused(node, protected=[first], span=FIRST)
        with attached(first, partitions=False) as above:
            assert f"the source, {above}, lies on it" in refused(node, protected=[above])
            assert f"lies on the source, {node}" in refused(above, protected=[node])
            allowed(second, protected=[above])
            allowed(above, protected=[second])


def test_a_clone_into_a_file_on_its_source(tmp_path: Path) -> None:
    with (
        two_partitions(tmp_path / "disk") as node,
        mounted_on(tmp_path / "mnt", partition_node(node, 1)),
    ):
        new = tmp_path / "mnt/new"
        assert f"lies on the source, {node}" in refused(new, protected=[node])
        allowed(new, protected=[partition_node(node, 2)])


def test_the_disk_of_the_running_system() -> None:
    """Whatever holds / here, where it is a disk of this machine."""
    root = devices.by_number(devices.split_number(Path("/").stat().st_dev))
    if root is None or not root.parent.node.exists():
        pytest.skip("/ is on no device that is seen from here")
    with pytest.raises(RefusedError, match=r"the running system lies on it \(/\)"):
        refuse_unsafe(root.parent.node)
