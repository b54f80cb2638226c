"""One writer for a set: who holds it, who is gone, and what is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fixtures.partition_tables import MIB
from formats.files import lock_file
from imagefs.errors import RefusedError
from imagefs.imaging import lock, resume
from imagefs.imaging.lock import SetLock, remove_stale
from tests.conftest import run_imagefs
from tests.imagefs.imaging.sources_of_noise import noise_disk, restored, unfinished_in

SET = "0123456789ABCDEF"
ROOT = Path(__file__).parents[3]
NAMES_LAST = pytest.mark.skipif(sys.platform == "win32", reason="the name of an open file may last there")


@contextmanager
def holder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Have another process hold the lock."""
    code = (
        "import sys; from pathlib import Path; from imagefs.imaging.lock import SetLock\n"
        f"with SetLock(Path(sys.argv[1]), {SET!r}): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def says(folder: Path, **changes: object) -> Path:
    """Leave a lock file that names this process, but for some changes."""
    path = folder / f"{SET}.lock"
    path.write_text(json.dumps(lock._self() | changes))
    return path


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file system without locks."""

    def refuse(fd: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock, "lock_file", refuse)
    monkeypatch.setattr(lock, "_SETTLE_SECONDS", 0.0)


def check_free(folder: Path) -> None:
    """Check that the lock can be had, and is gone after."""
    with SetLock(folder, SET.lower()) as held:
        assert json.loads(held.path.read_bytes())["pid"] == os.getpid()
    assert not list(folder.iterdir())


def test_free(tmp_path: Path) -> None:
    check_free(tmp_path)
    with pytest.raises(ZeroDivisionError), SetLock(tmp_path, SET):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_held_by_another_process(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(RefusedError) as caught, SetLock(tmp_path, SET):
            pass
        assert f"process {process.pid} on {socket.gethostname()}" in str(caught.value)
        assert caught.value.exit_code == 6
        with SetLock(tmp_path, "F" * 16):  # another set
            pass
        remove_stale(tmp_path)
        assert (tmp_path / f"{SET}.lock").exists()
        process.kill()
        process.wait()
        check_free(tmp_path)


def test_held_by_another_process_without_locks(tmp_path: Path, no_flock: None) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(RefusedError, match=f"process {process.pid} on"), SetLock(tmp_path, SET):
            pass
        process.kill()
        process.wait()
        check_free(tmp_path)


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize("without_locks", [False, True])
@pytest.mark.parametrize(
    "left",
    [
        b"", b"{", b"[]", b'{"pid": "x", "host": "y"}', {"pid": -1}, {"started": "1"}, {"boot": "another"},
    ],
)  # fmt: skip
def test_what_holds_nothing(
    tmp_path: Path, left: bytes | dict[str, object], without_locks: bool, request: pytest.FixtureRequest
) -> None:
    if without_locks:
        request.getfixturevalue("no_flock")
    if isinstance(left, bytes):
        (tmp_path / f"{SET}.lock").write_bytes(left)
    else:
        says(tmp_path, **(left | {"pid": dead_pid()} if "pid" in left else left))
    check_free(tmp_path)


def test_a_live_holder_decides_where_there_are_no_locks(tmp_path: Path, no_flock: None) -> None:
    path = says(tmp_path)
    with pytest.raises(RefusedError, match=f"process {os.getpid()} on"), SetLock(tmp_path, SET):
        pass
    assert path.exists()


def test_a_holder_whose_start_is_not_told_may_live(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows another user's processes may not be asked."""
    says(tmp_path, started="133")
    monkeypatch.setattr(lock, "started", lambda _: "")
    with pytest.raises(RefusedError, match=f"process {os.getpid()} on"), SetLock(tmp_path, SET):
        pass


def test_a_holder_on_another_machine(tmp_path: Path) -> None:
    path = says(tmp_path, host="elsewhere", pid=1)
    kept = path.read_bytes()
    with (
        pytest.raises(RefusedError, match=f"process 1 on elsewhere .*remove {SET}.lock"),
        SetLock(tmp_path, SET),
    ):
        pass
    remove_stale(tmp_path)
    assert path.read_bytes() == kept
    path.unlink()
    check_free(tmp_path)


@NAMES_LAST
def test_removed_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, path = lock_file, tmp_path / f"{SET}.lock"
    calls = 0

    def flock(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls <= 2:
            path.unlink()
        if calls == 2:
            path.touch()
        real(fd)

    monkeypatch.setattr(lock, "lock_file", flock)
    check_free(tmp_path)
    assert calls == 3


def test_another_was_faster_where_there_are_no_locks(
    tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", lambda _: says(tmp_path, pid=1))
        with pytest.raises(RefusedError, match="process 1 on"), SetLock(tmp_path, SET):
            pass
    assert json.loads((tmp_path / f"{SET}.lock").read_bytes())["pid"] == 1


@NAMES_LAST
def test_another_s_lock_is_not_removed(tmp_path: Path) -> None:
    with SetLock(tmp_path, SET) as held:
        held.path.unlink()
        path = says(tmp_path, pid=1)
    assert path.exists()


def test_stale_locks_are_removed(tmp_path: Path) -> None:
    says(tmp_path, pid=dead_pid())
    foreign = tmp_path / "apt.lock"
    foreign.touch()
    remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [foreign]


@contextmanager
def running(*arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """Have a backup running until the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "imagefs", "backup", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def wait_for(folder: Path, pattern: str) -> None:
    end = time.monotonic() + 30
    while not any(folder.glob(pattern)):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_and_a_second_run(tmp_path: Path, number: signal.Signals) -> None:
    disk, target = noise_disk(tmp_path / "source", (12 * MIB,)), tmp_path / "target"
    with running(disk.path, target, "--rate-limit", "256K") as process:
        wait_for(target, "*.unfinished/data-0")
        if number == signal.SIGINT:
            for second in ((disk.path, target), ("--resume", target), ("--discard", target)):
                done = run_imagefs("backup", *second)
                assert done.code == 6
                assert f"process {process.pid} on {socket.gethostname()}" in done.errors
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    (left,) = unfinished_in(target)
    assert f"--resume {left}" in errors
    assert list(target.iterdir()) == [left]
    change_rate(left)
    report = resume(target)
    assert restored(target, report.image_id, 0, disk) == disk.contents()
    assert not list(target.glob("*.lock"))


def change_rate(left: Path) -> None:
    """Let what goes on do so at full speed."""
    job: dict[str, Any] = json.loads((left / "job.json").read_bytes())
    job["options"]["rate_limit"] = 0
    (left / "job.json").write_text(json.dumps(job))
