"""Restores that are killed, interrupted, or out of room: nothing half done looks whole; a delta ends it."""

from __future__ import annotations

import hashlib
import itertools
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures import partition_tables
from fixtures.content import noise
from fixtures.partition_tables import MIB, BuiltDisk, Volume
from fixtures.tools import run
from fixtures.volumes import ext_volume
from imagefs.imaging import backup
from imagefs.restore.job import restore
from imagefs.restore.options import RestoreOptions
from imagefs.restore.target import Target
from tests.conftest import run_imagefs
from tests.imagefs.imaging.attached import attached, mounted_on, need_root
from tests.imagefs.restore.chains import Saved
from tests.imagefs.restore.held import bytes_of, check_same, check_tables, without_free
from tests.imagefs.restore.places import digest
from tests.warm import Warm

TRIES = 20


@dataclass(frozen=True)
class Pair:
    """Two disks of one size, of which each has in use where the other is free; and their images."""

    one: Saved
    other: Saved


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(*(_disk(tmp_path_factory.mktemp("disk"), ext_first) for ext_first in (True, False)))


def _disk(folder: Path, ext_first: bool) -> Saved:
    path = folder / "noise.volume"
    path.write_bytes(noise(1 + ext_first, 0, 48 * MIB))
    filled = Volume(path, 48 * MIB, "unknown")
    files = ext_volume(folder, size=16 * MIB, big=MIB, many=20)
    volumes = [files, filled] if ext_first else [filled, files]
    guid = f"0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E4{int(ext_first):02}"
    disk = partition_tables.gpt_disk(folder / "disk.raw", volumes, guid)
    return Saved(disk, backup(disk.path, folder / "set").path)


def has_table(target: Path) -> bool:
    """Whether sfdisk finds any partition table."""
    return bool(run("sfdisk", "--dump", target, accept=(0, 1)).strip())


def is_disk(target: Path, disk: BuiltDisk) -> bool:
    return digest(target) == _digest_of(disk.path, lambda: without_free(disk, bytes_of(disk.path)).tobytes())


_digests: dict[Path, str] = {}


def _digest_of(path: Path, read: Callable[[], bytes]) -> str:
    if path not in _digests:
        _digests[path] = hashlib.sha256(read()).hexdigest()
    return _digests[path]


def test_killed_on_a_device(pair: Pair, warm: Warm, tmp_path: Path) -> None:
    """At random moments: all of the old disk, all of the new one, or no table; a delta restore ends it.

    Each second restore is a delta itself, over a disk that has data where the new one is free.
    """
    need_root()
    chance = random.Random(4)
    target = tmp_path / "target"
    restore(pair.one.image, target)
    untold = 0
    with attached(target, partitions=False) as node:
        start = time.monotonic()
        assert warm.run("restore", pair.other.image, node, "--yes") == 0, warm.errors
        duration = time.monotonic() - start
        old, new = pair.other, pair.one
        for attempt in range(TRIES // 2):
            how = ("--delta", "--yes") if attempt % 2 else ("--yes",)
            after = chance.uniform(0.2, 1) * duration
            code = warm.run("restore", new.image, node, *how, after=after)
            assert code in (0, -signal.SIGKILL), warm.errors
            duration *= 1.15 if code else 0.6  # the machine is busier at times than at others
            if has_table(node):
                assert is_disk(node, new.disk) or (code and is_disk(node, old.disk)), attempt
            else:
                untold += 1
            assert warm.run("restore", new.image, node, "--delta", "--yes") == 0, warm.errors
            assert is_disk(node, new.disk), attempt
            old, new = new, old
        check_tables(node, "gpt")
    assert untold


def test_killed_while_a_file_is_made(pair: Pair, warm: Warm, tmp_path: Path) -> None:
    """Its name is that of an unfinished one until it is complete; what was there before stays till then."""
    chance = random.Random(5)
    target = tmp_path / "target"
    unfinished = tmp_path / "target.unfinished"
    start = time.monotonic()
    assert warm.run("restore", pair.one.image, target) == 0, warm.errors
    duration = time.monotonic() - start
    target.unlink()
    left = 0
    for attempt in range(TRIES // 2):
        code = warm.run("restore", pair.one.image, target, after=chance.uniform(0.2, 1) * duration)
        assert code in (0, -signal.SIGKILL), warm.errors
        duration *= 1.15 if code else 0.6
        assert target.exists() == (not code) or is_disk(target, pair.one.disk)
        if unfinished.exists():
            assert not target.exists()
            assert not has_table(unfinished) or is_disk(unfinished, pair.one.disk)
            left += 1
        assert warm.run("restore", pair.one.image, target, "--delta", "--yes") == 0, warm.errors
        assert is_disk(target, pair.one.disk), attempt
        assert not unfinished.exists()
        target.unlink()
    assert left


@pytest.mark.parametrize("method", ["discard", "write"])
def test_a_delta_is_interrupted_early(
    method: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old table is gone before anything of the old disk is: also what is only free here."""
    target = tmp_path / "target"
    restore(pair.one.image, target)

    def stop(*_: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with attached(target, partitions=False) as node:
        real = getattr(Target, method)
        calls = itertools.count()

        def second(*arguments: object, **options: object) -> object:
            return (real if next(calls) == 0 else stop)(*arguments, **options)

        monkeypatch.setattr(Target, method, stop if method == "discard" else second)
        with pytest.raises(KeyboardInterrupt):
            restore(pair.other.image, node, RestoreOptions(delta=True))
        assert not has_table(node)
        monkeypatch.undo()
        restore(pair.other.image, node, RestoreOptions(delta=True))
        assert is_disk(node, pair.other.disk)


def _interrupt(image: Path, target: Path, *arguments: str) -> tuple[int, str]:
    """Restore, interrupt it with the first progress of writing, and return the exit code and what it said."""
    command = [sys.executable, "-m", "imagefs", "restore", str(image), str(target), "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = list(itertools.takewhile(lambda line: '"writing"' not in line, process.stderr))
            process.send_signal(signal.SIGINT)
            said += list(process.stderr)
            return process.wait(60), "".join(said)
        finally:
            process.kill()


def test_an_interruption_says_what_is_left(pair: Pair, tmp_path: Path) -> None:
    target = tmp_path / "target"
    code, said = _interrupt(pair.one.image, target)
    assert code == 130, said
    assert f"{target}.unfinished is not complete; --delta goes on with it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["target.unfinished"]
    assert not has_table(tmp_path / "target.unfinished")
    report = restore(pair.one.image, target, RestoreOptions(delta=True))
    assert report.blocks_unchanged > 0
    assert is_disk(target, pair.one.disk)
    code, said = _interrupt(pair.other.image, target, "--yes")
    assert code == 130
    assert is_disk(target, pair.one.disk)  # what was there stays until the new one is complete


def test_an_interrupted_device_says_so(pair: Pair, tmp_path: Path) -> None:
    target = tmp_path / "target"
    restore(pair.one.image, target)
    with attached(target, partitions=False) as node:
        code, said = _interrupt(pair.other.image, node, "--yes")
        assert code == 130
        assert f"{node} is not complete; --delta goes on with it" in said
        assert not has_table(node)


def test_no_room(gpt: Saved, tmp_path: Path) -> None:
    """Exit code 7, a line that says so, nothing under the final name; with more room it goes on."""
    need_root()
    with mounted_on(tmp_path / "small", "-t", "tmpfs", "-o", "size=6m", "none") as folder:
        target = folder / "disk.raw"
        done = run_imagefs("restore", gpt.image, target)
        assert done.code == 7, done.errors
        assert "No space left" in done.errors
        assert "free some room there" in done.errors
        assert "--delta goes on with it" in done.errors
        assert len(done.errors.strip().splitlines()) == 1
        assert [path.name for path in folder.iterdir()] == ["disk.raw.unfinished"]
        assert not has_table(folder / "disk.raw.unfinished")
        run("mount", "-o", "remount,size=100m", folder)
        done = run_imagefs("restore", gpt.image, target, "--delta")
        assert done.code == 0, done.errors
        check_same(target, gpt.disk)
        assert [path.name for path in folder.iterdir()] == ["disk.raw"]


def test_two_restores_of_one_file(gpt: Saved, tmp_path: Path) -> None:
    """The second is refused while the first one writes, and leaves it alone."""
    target = tmp_path / "disk.raw"
    command = [sys.executable, "-c", _HOLD, str(target.with_name("disk.raw.unfinished"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        done = run_imagefs("restore", gpt.image, target)
        process.communicate(b"\n", timeout=60)
    assert done.code == 6
    assert "another restore writes it now" in done.errors
    assert not target.exists()


_HOLD = """
import fcntl, sys
with open(sys.argv[1], "wb") as stream:
    fcntl.flock(stream, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""
