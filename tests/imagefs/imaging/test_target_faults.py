"""A target that fails: for a moment, for good, for want of room; and names that are taken."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fixtures.partition_tables import MIB
from formats.mrimgx import writer
from imagefs.errors import TargetWriteError, UsageError
from imagefs.imaging import backup, begin, discard, resume, run, unfinished
from imagefs.imaging.options import BackupReport, Listener
from imagefs.imaging.target import Parts, Retries
from tests.conftest import missing, run_imagefs
from tests.imagefs.imaging.sources_of_noise import (
    PASSWORD,
    NoiseDisk,
    files_of,
    noise_disk,
    restored,
    unfinished_in,
)
from tests.imagefs.imaging.stopping import QUICK, state_of, stopped

SIZES = (6 * MIB + 4096, MIB)
OFTEN = dataclasses.replace(QUICK, checkpoint_seconds=0.0)


@pytest.fixture
def disk(tmp_path: Path) -> NoiseDisk:
    return noise_disk(tmp_path / "source", SIZES)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def check(report: BackupReport, disk: NoiseDisk, password: str | None = None) -> None:
    folder = report.path.parent
    assert restored(folder, report.image_id, report.file_number, disk, password) == disk.contents()
    assert not unfinished_in(folder)
    assert not list(folder.glob("*.lock"))


class Failing:
    """A function of the system that fails at some of its calls (from 1), after what ``partly`` does."""

    def __init__(self, name: str, code: int, calls: Sequence[int], partly: float = 0.0) -> None:
        self.real: Callable[..., Any] = getattr(os, name)
        self.code = code
        self.calls = calls
        self.partly = partly
        self.count = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        if self.count in self.calls:
            if self.partly:
                fd, buffers, position = arguments
                data = b"".join(buffers)
                os.pwrite(fd, data[: int(len(data) * self.partly)], position)
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*arguments, **options)


# --- Errors that pass ---


@pytest.mark.parametrize("partly", [0.0, 0.5])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_errors_that_pass(
    disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch, code: int, partly: float
) -> None:
    failing = Failing("pwritev", code, (1, 2, 4, 6, 7), partly)
    monkeypatch.setattr(os, "pwritev", failing)
    check(backup(disk.path, target, QUICK), disk)
    assert failing.count > 7


def test_writes_that_end_short(disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, real_vector = os.pwrite, os.pwritev
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: len(data) // 2 + 1], at))
    monkeypatch.setattr(
        os, "pwritev", lambda fd, parts, at: real_vector(fd, [b"".join(parts)[: len(parts[0]) + 9]], at)
    )
    check(backup(disk.path, target, OFTEN, password=PASSWORD), disk, PASSWORD)


@pytest.mark.skipif(sys.platform == "win32", reason="pwritev is of Linux")
def test_a_write_of_nothing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: 0)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    with (
        Parts(tmp_path, 0, None, Retries(1, 0.0)) as parts,
        pytest.raises(TargetWriteError, match="No space"),
    ):
        parts.append([b"some"])


@pytest.mark.skipif(sys.platform == "win32", reason="pwritev is of Linux")
def test_the_wait_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(os, "pwritev", Failing("pwritev", errno.EIO, range(100)))
    parts = Parts(tmp_path, 0, None, Retries(4, 0.5), wait=waits.append)
    with parts, pytest.raises(TargetWriteError, match="Input/output error"):
        parts.append([b"some"])
    assert waits == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_errors_that_stay(disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    full = backup(disk.path, target, QUICK)
    kept, before = files_of(target), disk.contents()
    disk.overwrite(0, 0, 6 * MIB, seed=3)
    failing = Failing("pwritev", code, range(3, 1000))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", failing)
        with pytest.raises(TargetWriteError) as caught:
            backup(disk.path, target, QUICK)
    assert failing.count == (3 + QUICK.retries if code == errno.EIO else 3)
    assert caught.value.exit_code == 7
    assert files_of(target) == kept
    (left,) = unfinished_in(target)
    assert state_of(left)["next"] != [0, 0]
    check(resume(target), disk)
    assert restored(target, full.image_id, 0, disk) == before


@pytest.mark.parametrize("end", ["passes", "stays"])
def test_errors_while_the_metadata_is_written(
    disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    real, count = writer._ListWriter._write, 0

    def write(lists: writer._ListWriter, *arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        real(lists, *arguments, **options)
        if count in (2, 4) or (end == "stays" and count > 1):
            raise OSError(errno.EIO, "failed")

    options = dataclasses.replace(QUICK, split=2 * MIB)
    with monkeypatch.context() as patched:
        patched.setattr(writer._ListWriter, "_write", write)
        if end == "passes":
            check(backup(disk.path, target, options, password=PASSWORD), disk, PASSWORD)
            return
        with pytest.raises(TargetWriteError):
            backup(disk.path, target, options, password=PASSWORD)
    assert not files_of(target)
    check(resume(target, password=PASSWORD), disk, PASSWORD)


# --- What can't be made durable ---


@pytest.mark.parametrize("call", range(1, 10))
def test_a_sync_that_fails_is_not_believed_later(
    disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The system tells once that it has lost data; the next sync of the same file would succeed."""
    states: list[dict[str, Any]] = []
    real = os.fdatasync

    def sync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name.startswith(("data-", "elements")):
            states.append(state_of(next(target.glob("*.unfinished"))))
            if len(states) == call:
                raise OSError(errno.EIO, "lost")
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", sync)
        with pytest.raises(TargetWriteError, match="lost"):
            backup(disk.path, target, dataclasses.replace(OFTEN, split=3 * MIB))
    (left,) = unfinished_in(target)
    assert state_of(left) == states[call - 1]
    check(resume(target), disk)


def test_a_result_that_can_t_be_synced(
    disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*arguments: Any, **options: Any) -> bytes:
        monkeypatch.setattr(os, "fdatasync", Failing("fdatasync", errno.EIO, [1]))
        return real(*arguments, **options)

    real = writer.finish_image
    with monkeypatch.context() as patched:
        patched.setattr("imagefs.imaging.run.finish_image", finish)
        with pytest.raises(TargetWriteError):
            backup(disk.path, target, QUICK)
    assert not files_of(target)
    check(resume(target), disk)


@pytest.mark.parametrize("password", [None, PASSWORD])
@pytest.mark.parametrize(("part", "place"), [(0, 1000), (2, 1000), (0, -5), (2, -400)])
def test_a_target_that_gives_back_other_bytes(
    disk: NoiseDisk,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: int,
    place: int,
    password: str | None,
) -> None:
    real = run.Run.finish

    def finish(this: run.Run, own: dict[str, object] | None) -> Any:
        files = real(this, own)
        (left,) = unfinished_in(target)
        with (left / f"data-{part}").open("r+b") as stream:
            at = stream.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
            byte = stream.read(1)[0]
            stream.seek(at)
            stream.write(bytes([byte ^ 1]))
        return files

    options = dataclasses.replace(QUICK, verify=True, split=2 * MIB)
    with monkeypatch.context() as patched:
        patched.setattr(run.Run, "finish", finish)
        with pytest.raises(TargetWriteError, match=r"can't be read back: .*--discard"):
            backup(disk.path, target, options, password=password)
    assert not files_of(target)
    discard(target)
    check(backup(disk.path, target, options, password=password), disk, password)


# --- No room ---


@contextmanager
def small_target(path: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Mount a file system of so many bytes; gives what changes its size."""
    path.mkdir()
    options = f"size={size}"
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "imagefs-test", path], check=False, capture_output=True
        )
    except FileNotFoundError:
        missing("mount is missing")
    if done.returncode:
        missing(f"nothing can be mounted here: {done.stderr.decode().strip()}")

    def resize(to: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={to}", path], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("size", [MIB, 2 * MIB + 12288, 3 * MIB, 4 * MIB + 32768])
def test_a_target_of_too_little_space(disk: NoiseDisk, target: Path, size: int) -> None:
    with small_target(target, size) as resize:
        done = run_imagefs("backup", disk.path, target)
        assert done.code == 7
        assert "No space left on device" in done.errors
        (left,) = unfinished_in(target)
        assert f"--resume {left}" in done.errors
        assert list(target.iterdir()) == [left]
        assert size < 2 * MIB or state_of(left)["next"] != [0, 0]
        resize(24 * MIB)
        check(resume(target), disk)


def test_a_target_without_any_space(disk: NoiseDisk, target: Path) -> None:
    with small_target(target, 16384) as resize:
        (target / "what fills it").write_bytes(bytes(16384))
        done = run_imagefs("backup", disk.path, target)
        assert done.code == 7
        assert [path.name for path in target.iterdir()] == ["what fills it"]
        resize(24 * MIB)
        check(backup(disk.path, target, QUICK), disk)


def test_no_space_for_the_metadata(disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_target(target, 24 * MIB) as resize:
        real = run.Run.finish

        def finish(this: run.Run, own: dict[str, object] | None) -> Any:
            found = os.statvfs(target)
            resize((found.f_blocks - found.f_bfree) * found.f_frsize)
            return real(this, own)

        with monkeypatch.context() as patched:
            patched.setattr(run.Run, "finish", finish)
            with pytest.raises(TargetWriteError, match=r"No space left.*--resume"):
                backup(disk.path, target, QUICK)
        assert list(target.iterdir()) == unfinished_in(target)
        resize(24 * MIB)
        check(resume(target), disk)


@pytest.mark.parametrize("call", [3, 4, 6])
def test_no_space_for_the_state(
    disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    real, count = unfinished._replace, 0

    def replace(path: Path, document: Any) -> None:
        nonlocal count
        count += 1
        if count >= call:
            path.with_suffix(".new").write_text('{"half')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, document)

    lines: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(unfinished, "_replace", replace)
        with pytest.raises(TargetWriteError, match=r"state.json: No space"):
            backup(disk.path, target, OFTEN, listener=Listener(say=lines.append))
    assert any("the last seconds could not be kept" in line for line in lines)
    check(resume(target), disk)


# --- Names ---


def test_no_hard_links(disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", Failing("link", errno.EPERM, range(100)))
    check(backup(disk.path, target, dataclasses.replace(QUICK, split=2 * MIB)), disk)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("part", [0, 2])
def test_a_name_that_is_taken(
    disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch, links: bool, part: int
) -> None:
    left = stopped(disk, target)
    name = json.loads((left / "job.json").read_bytes())["image_id"]
    taken = target / f"{name}-00-{part:02}.mrimgx"
    taken.write_bytes(b"a file of somebody else")
    document = json.loads((left / "job.json").read_bytes())
    document["options"]["split"] = 2 * MIB
    (left / "job.json").write_text(json.dumps(document))
    if not links:
        monkeypatch.setattr(os, "link", Failing("link", errno.EPERM, range(100)))
    for _ in range(2):
        with pytest.raises(TargetWriteError, match=f"{taken.name}: File exists"):
            resume(target)
        assert taken.read_bytes() == b"a file of somebody else"
        assert left.exists()
    taken.unlink()
    report = resume(target)
    assert len(report.paths) == 3
    check(report, disk)


# --- The largest file ---


def test_a_target_that_takes_no_large_files(
    disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begin, "largest_file", lambda folder: MIB)
    report = backup(disk.path, target, QUICK)
    assert len(report.paths) > 5
    assert all(path.stat().st_size <= MIB for path in report.paths)
    check(report, disk)


def test_files_that_are_too_small_for_the_index(
    disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begin, "largest_file", lambda folder: 90_000)
    with pytest.raises(UsageError, match="files of 90000 are too small"):
        backup(disk.path, target, QUICK)


def test_an_index_that_can_t_fit_is_told_before_anything_is_read(tmp_path: Path, target: Path) -> None:
    disk = tmp_path / "large.raw"
    with disk.open("wb") as stream:
        stream.truncate(4 << 40)  # an element of 30 bytes for each of 64 Mi blocks
    with pytest.raises(UsageError, match="too small"):
        backup(disk, target, dataclasses.replace(QUICK, split=1 << 30))
    assert not list(target.iterdir())


def test_a_file_that_becomes_too_large(
    disk: NoiseDisk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", Failing("pwritev", errno.EFBIG, range(4, 1000)))
        with pytest.raises(TargetWriteError, match="--split"):
            backup(disk.path, target, QUICK)
    check(resume(target), disk)
