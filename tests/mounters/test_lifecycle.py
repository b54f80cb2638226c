"""Mounting and unmounting: refusals, signals, forced ends, killed processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from pathlib import Path

import pytest

from mounters.controller import (
    MountError,
    MountOptions,
    MountPointError,
    mechanisms,
    mount,
    serve,
    start_in_background,
    unmount,
    wait_ready,
)
from mounters.mountpoints import find_mount, is_dead, is_mounted
from tests.conftest import missing
from tests.mounters.memory_tree import MemoryTree
from tests.mounters.mounting import ROOT, argv, memory_mount, process_runs

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty directory whose name needs escaping in the kernel's table."""
    path = tmp_path / "a b\\c\td"
    path.mkdir()
    return path


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Hold a file open; closing it fails where its mount has gone."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        with suppress(OSError):
            os.close(fd)


def test_mount_and_unmount(mechanism: str, folder: Path) -> None:
    with memory_mount(folder, mechanism) as mounted:
        wait_ready(mounted.path, 5)
        found = find_mount(str(mounted.path))
        assert found is not None
        assert found.kind == "fuse.imagefs"
        unmount(mounted.path)
        assert not is_mounted(str(mounted.path))
        assert mounted.wait_ended()
        assert list(mounted.path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_unmount(mechanism: str, tmp_path: Path, number: signal.Signals) -> None:
    with memory_mount(tmp_path, mechanism) as mounted:
        os.kill(mounted.pid, number)
        assert mounted.wait_ended()
        assert not is_mounted(str(mounted.path))
        assert "Traceback" not in mounted.log.read_text()


def test_a_signal_ends_a_mount_in_use(mechanism: str, tmp_path: Path) -> None:
    with memory_mount(tmp_path, mechanism) as mounted, opened(mounted.path / "big.bin") as fd:
        os.kill(mounted.pid, signal.SIGTERM)
        assert mounted.wait_ended()
        assert not is_mounted(str(mounted.path))
        with pytest.raises(OSError, match=r"connect|aborted"):
            os.pread(fd, 4096, 5 << 20)


def test_a_signal_ends_a_mount_whose_tree_is_stuck(mechanism: str, tmp_path: Path) -> None:
    with memory_mount(tmp_path, mechanism) as mounted:
        with subprocess.Popen(["cat", mounted.path / "stuck.bin"], stderr=subprocess.DEVNULL) as reader:
            time.sleep(0.5)
            assert reader.poll() is None
            os.kill(mounted.pid, signal.SIGTERM)
            assert mounted.wait_ended()
            assert reader.wait(10) != 0
        assert not is_mounted(str(mounted.path))


def test_a_mount_in_use_is_not_unmounted_without_force(mechanism: str, tmp_path: Path) -> None:
    with memory_mount(tmp_path, mechanism) as mounted, opened(mounted.path / "big.bin") as fd:
        with pytest.raises(MountError, match="force") as caught:
            unmount(mounted.path)
        assert caught.value.exit_code == 7
        assert os.pread(fd, 100, 0) == mounted.tree.bytes_of("big.bin")[:100]


def test_forced_unmount_under_load(mechanism: str, tmp_path: Path) -> None:
    """Twenty readers at once get right bytes, then errors; nobody waits for ever."""
    with memory_mount(tmp_path, mechanism) as mounted:
        command = [sys.executable, "-m", "tests.mounters.read_on", str(mounted.path)]
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as readers:
            try:
                assert readers.stdout is not None
                assert readers.stdout.readline() == b"reading\n"
                time.sleep(2)
                assert readers.poll() is None
                unmount(mounted.path, force=True)
                assert readers.wait(20) == 0
            finally:
                readers.kill()
        assert mounted.wait_ended()


def test_a_killed_process_leaves_a_mount_that_unmount_clears(mechanism: str, tmp_path: Path) -> None:
    with memory_mount(tmp_path, mechanism) as mounted:
        os.kill(mounted.pid, signal.SIGKILL)
        assert mounted.wait_ended()
        assert is_dead(str(mounted.path))
        with pytest.raises(MountPointError, match=r"dead mount.*imagefs umount"):
            mount(MemoryTree(), mounted.path, MountOptions(mechanism=mechanism))
        with pytest.raises(MountError):
            wait_ready(mounted.path, 5)
        unmount(mounted.path)
        assert not is_mounted(str(mounted.path))


def test_a_dead_mount_in_use_is_cleared(mechanism: str, tmp_path: Path) -> None:
    with memory_mount(tmp_path, mechanism) as mounted, opened(mounted.path / "big.bin"):
        os.kill(mounted.pid, signal.SIGKILL)
        assert mounted.wait_ended()
        unmount(mounted.path)
        assert not is_mounted(str(mounted.path))


def test_refused_mount_points(mechanism: str, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_bytes(b"")
    refused = {"no such directory": tmp_path / "absent", "not empty": full, "not a directory": full / "file"}
    for message, path in refused.items():
        with pytest.raises(MountError, match=message) as caught:
            start_in_background(argv(path, mechanism), 30, environment=ENVIRONMENT)
        assert caught.value.exit_code == 6


def test_a_mount_point_in_use_is_refused(mechanism: str, tmp_path: Path) -> None:
    with memory_mount(tmp_path, mechanism) as mounted:
        with pytest.raises(MountError, match="mounted here already"):
            start_in_background(argv(mounted.path, mechanism), 30, environment=ENVIRONMENT)
        assert (mounted.path / "one.bin").read_bytes() == mounted.tree.bytes_of("one.bin")


def test_nothing_to_unmount(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MountPointError, match="nothing is mounted"):
            unmount(path)


def test_through_a_symbolic_link(mechanism: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "mnt")
    with memory_mount(tmp_path, mechanism):
        assert (tmp_path / "link/one.bin").exists()
        unmount(tmp_path / "link")
        assert not is_mounted(str(tmp_path / "mnt"))


def test_mounted_by_this_process(mechanism: str, tmp_path: Path) -> None:
    """A script can mount for the length of a block; the working directory stays what it is."""
    tree, before = MemoryTree(), Path.cwd()
    with mount(tree, tmp_path, MountOptions(mechanism=mechanism)) as mounted:
        assert mounted.mechanism == mechanism
        assert (tmp_path / "one.bin").read_bytes() == tree.bytes_of("one.bin")
        assert Path.cwd() == before
    assert not is_mounted(str(tmp_path))
    assert mounted.wait(5)
    assert tree.opened == []


_MOUNT_THEN_WRITE = """
import os, sys, tempfile
from mounters.controller import MountOptions, mount
from tests.conftest import missing
from tests.mounters.memory_tree import MemoryTree

with tempfile.TemporaryDirectory() as mountpoint:
    with mount(MemoryTree(), mountpoint, MountOptions(mechanism=sys.argv[1])) as mounted:
        pass
    mounted.wait(5)
reading, writing = os.pipe()
os.close(reading)
try:
    os.write(writing, b"x")
except BrokenPipeError:
    print("an error")
"""


def mount_then_write(mechanism: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MOUNT_THEN_WRITE, mechanism],
        capture_output=True, text=True, check=False, env=environment, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("an error\n", 0), done.stderr


def test_a_mount_leaves_broken_pipes_an_error(mechanism: str) -> None:
    """A write to what nobody reads must not end a process that has mounted something."""
    mount_then_write(mechanism, ENVIRONMENT)


@pytest.mark.parametrize("library", ["fuse", "fuse3"])
def test_broken_pipes_with_every_library(library: str) -> None:
    if find_library(library) is None:
        missing(f"lib{library} is not installed")
    mount_then_write("mfusepy", {**ENVIRONMENT, "FUSE_LIBRARY_NAME": library})


def test_a_tree_without_a_readable_root_is_not_mounted(mechanism: str, tmp_path: Path) -> None:
    tree = MemoryTree()
    tree.nodes[tree.root].lost = True
    with pytest.raises(MountError, match="cannot read the root"):
        mount(tree, tmp_path, MountOptions(mechanism=mechanism))
    assert not is_mounted(str(tmp_path))


def test_one_mechanism_mounts_twice_in_turn(mechanism: str, tmp_path: Path) -> None:
    for _ in range(2):
        with mount(MemoryTree(), tmp_path, MountOptions(mechanism=mechanism)):
            assert (tmp_path / "one.bin").exists()
        assert not is_mounted(str(tmp_path))


def test_a_mechanism_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="devfuse, winfsp, mfusepy") as caught:
        mount(MemoryTree(), tmp_path, MountOptions(mechanism="smoke"))
    assert caught.value.exit_code == 2


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the messages of Linux")
    monkeypatch.setitem(sys.modules, "mounters.fusepy_mount", None)
    assert "imagefs[fuse]" in mechanisms()["mfusepy"]
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(MountError, match="/dev/fuse is missing"):
        serve(MemoryTree(), tmp_path)


# Starting in the background, without a mount


def python(code: str) -> list[str]:
    return [sys.executable, "-c", "from mounters.controller import *; import sys, time, os\n" + code]


def test_background_reports_ready(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "fd = ready_fd(); print(sys.stdin.read(), os.environ.get('IMAGEFS_READY_FD')); report_ready(fd)"
    pid = start_in_background(python(code), 30, stdin=b"secret", log=log, environment=ENVIRONMENT).pid
    deadline = time.monotonic() + 10
    while process_runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.read_text() == "secret None\n"


def test_background_passes_a_failure_on() -> None:
    code = "report_failure(ready_fd(), 4, 'set incomplete'); sys.exit(4)"
    with pytest.raises(MountError, match=r"^set incomplete$") as caught:
        start_in_background(python(code), 30, environment=ENVIRONMENT)
    assert caught.value.exit_code == 4


def test_background_tells_of_an_unexpected_end() -> None:
    with pytest.raises(MountError, match="status 3: the last words") as caught:
        start_in_background(
            python("print('the last words', flush=True); sys.exit(3)"), 30, environment=ENVIRONMENT
        )
    assert caught.value.exit_code == 7


def test_background_ends_what_is_not_ready_in_time(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(MountError, match="not ready after 2 seconds"):
        start_in_background(python(code), 2, environment=ENVIRONMENT)
    assert not process_runs(int((tmp_path / "pid").read_text()))


def test_background_of_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="cannot start"):
        start_in_background([str(tmp_path / "absent")], 5)
