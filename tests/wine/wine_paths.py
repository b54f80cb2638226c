"""Names and places as Windows has them, and files that are in use."""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.disks import fat_disk
from fixtures.partition_tables import BuiltDisk
from tests.fixtures import plain_reader
from tests.imagefs.built import BuiltSet
from tests.wine.environment import windows_path
from tests.wine.windows import Windows

LONG = "/".join(["a folder whose name alone is long enough, five of them are too long for the old calls"] * 5)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> BuiltDisk:
    return fat_disk(tmp_path_factory.mktemp("disk"))


def hashes(done: bytes) -> set[bytes]:
    return {line.split(b"  ")[0] for line in done.splitlines()}


@pytest.mark.parametrize("place", ["Ünïcode  日本語 😀", LONG, "100% (1) & 'x' [y]^!"])
def test_folders(wine: Windows, disk: BuiltDisk, tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    source = tmp_path / f"{place[:12]}.raw"
    shutil.copy(disk.path, source)
    for _ in range(2):
        done = wine.run("backup", source, folder, "--exact", timeout=300)
        assert done.code == 0, done.errors
    assert len(list(folder.iterdir())) == 2
    assert plain_reader.restore(folder, 1) == disk.path.read_bytes()
    image = max(folder.iterdir())
    done = wine.run("cp", image, "disk0.raw", folder / "copy.raw")
    assert done.code == 0, done.errors
    assert (folder / "copy.raw").read_bytes() == disk.path.read_bytes()
    done = wine.run("restore", image, folder / "restored.raw")
    assert done.code == 0, done.errors
    assert (folder / "restored.raw").read_bytes() == disk.path.read_bytes()


@pytest.mark.parametrize("prefix", ["\\\\?\\", "\\\\.\\", "\\\\?\\unix"])
def test_other_ways_to_name_a_place(
    wine: Windows, built_set: Callable[[str], BuiltSet], disk: BuiltDisk, tmp_path: Path, prefix: str
) -> None:
    """Wine has no file server; what begins as its names do is what it calls the system's own paths."""
    made = built_set("fat32")

    def named(path: Path) -> str:
        return prefix + (str(path).replace("/", "\\") if "unix" in prefix else windows_path(path))

    expected = wine.run("hash", made.full.path)
    done = wine.run("hash", named(made.full.path))
    assert (done.code, done.output) == (0, expected.output), done.errors
    done = wine.run("backup", named(disk.path), named(tmp_path))
    assert done.code == 0, done.errors
    assert len(list(tmp_path.glob("*.mrimgx"))) == 1
    assert wine.run("verify", named(tmp_path)).code == 0


def test_relative_paths_and_another_case(wine: Windows, disk: BuiltDisk, tmp_path: Path) -> None:
    (tmp_path / "Set").mkdir()
    shutil.copy(disk.path, tmp_path / "Disk.raw")
    done = wine.run("backup", "disk.RAW", "SET", "--exact", folder=tmp_path)
    assert done.code == 0, done.errors
    done = wine.run("backup", ".\\disk.raw", "set\\..\\Set", "--exact", folder=tmp_path)
    assert done.code == 0, done.errors
    assert len(list((tmp_path / "Set").iterdir())) == 2
    assert plain_reader.restore(tmp_path / "Set", 1) == disk.path.read_bytes()


def test_a_set_that_is_open_elsewhere(wine: Windows, disk: BuiltDisk, tmp_path: Path) -> None:
    """One that reads does not keep a backup from adding to the set, nor is it disturbed."""
    assert wine.run("backup", disk.path, tmp_path, "--exact").code == 0
    (image,) = tmp_path.iterdir()
    with wine.started("-m", "imagefs", "cat", image, "disk0.raw") as reading:
        assert reading.stdout is not None
        first = reading.stdout.read(1 << 20)
        done = wine.run("backup", disk.path, tmp_path, "--exact")
        assert done.code == 0, done.errors
        rest = reading.stdout.read()
        assert reading.wait(60) == 0
    assert first + rest == disk.path.read_bytes()
    assert plain_reader.restore(tmp_path, 1) == disk.path.read_bytes()


def test_two_backups_at_once(wine: Windows, disk: BuiltDisk, tmp_path: Path) -> None:
    """The second is told that the set is being written to."""
    slow = ("-m", "imagefs", "backup", disk.path, tmp_path, "--exact", "--rate-limit", "4M")
    with wine.started(*slow) as first:
        _wait(lambda: any(tmp_path.glob("*.unfinished/state.json")))
        second = wine.run("backup", disk.path, tmp_path, "--exact")
        assert second.code == 6, (second.code, second.errors)
        assert first.poll() is None
    _wait(lambda: first.poll() is not None)


def test_one_that_was_ended_is_gone_on_with(wine: Windows, disk: BuiltDisk, tmp_path: Path) -> None:
    slow = ("backup", disk.path, tmp_path, "--exact", "--rate-limit", "20M", "--checkpoint", "0.2")
    with wine.started("-m", "imagefs", *slow) as process:
        _wait(lambda: any(tmp_path.glob("*.unfinished/state.json")))
        time.sleep(1)
    assert not list(tmp_path.glob("*.mrimgx"))
    done = wine.run("backup", "--resume", tmp_path)
    assert done.code == 0, done.errors
    assert process.returncode
    assert plain_reader.restore(tmp_path, 0) == disk.path.read_bytes()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mrimgx"]


def test_control_c(wine: Windows, disk: BuiltDisk, tmp_path: Path) -> None:
    """As the console's own thread tells Python; wine 8.0 sends no such event where there is no console."""
    program = (
        "import sys, threading, time, signal, pathlib\n"
        "from imagefs.cli import main\n"
        "def interrupt():\n"
        "    while not list(pathlib.Path(sys.argv[3]).glob('*.unfinished/state.json')): time.sleep(0.05)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "main()\n"
    )
    arguments = ("backup", disk.path, tmp_path, "--exact", "--rate-limit", "4M")
    with wine.started("-c", program, *arguments) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in errors
    assert not list(tmp_path.glob("*.mrimgx"))
    assert wine.run("backup", "--resume", tmp_path).code == 0
    assert plain_reader.restore(tmp_path, 0) == disk.path.read_bytes()


def test_a_target_that_is_there(wine: Windows, built_set: Callable[[str], BuiltSet], tmp_path: Path) -> None:
    made = built_set("fat32")
    (tmp_path / "disk.raw").write_bytes(b"precious")
    for command in ("cp", "restore"):
        words = ["disk1.raw"] if command == "cp" else []
        done = wine.run(command, made.full.path, *words, tmp_path / "disk.raw")
        assert done.code, command
        assert (tmp_path / "disk.raw").read_bytes() == b"precious", command
    done = wine.run("cp", "--overwrite", made.full.path, "disk1.raw", tmp_path / "disk.raw")
    assert done.code == 0, done.errors
    wanted = hashlib.sha256(made.full.disks[0].path.read_bytes()).hexdigest()
    assert hashlib.sha256((tmp_path / "disk.raw").read_bytes()).hexdigest() == wanted


def test_what_is_not_there(wine: Windows, tmp_path: Path) -> None:
    done = wine.same("info", tmp_path / "absent.mrimgx")
    assert done.code == 2
    assert done.errors.count("\n") == 1
    assert "absent.mrimgx" in done.errors


def _wait(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)
