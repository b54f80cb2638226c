"""What the commands say and how they end: exit codes, one line for an error, whole output in pipes."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import imagefs
from fixtures.content import sha256_file
from fixtures.damage import truncate
from fixtures.disks import plain_disk
from fixtures.mrimgx_writer import SetWriter
from fixtures.tools import run
from imagefs.cli.common import columns, name_text, natural
from tests.conftest import mounted, run_imagefs
from tests.imagefs.built import BuiltSet, with_files

COMMAND = [sys.executable, "-m", "imagefs"]
ESCAPES = "red\x1b[31m\nline :bomb: [bold]x[b].txt"


@pytest.fixture
def image(built_set: Callable[[str], BuiltSet]) -> Path:
    return built_set("fourk").full.path


def check_refused(code: int, *arguments: str | Path, says: str = "") -> None:
    """Check that a command ends with a code, one line on standard error and nothing else."""
    done = run_imagefs(*arguments)
    assert (done.code, done.output) == (code, b""), done.errors
    assert done.errors.startswith("imagefs: ")
    assert done.errors.count("\n") == 1
    assert says in done.errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ls", "NOWHERE"], "no such file or folder"),
        (["ls"], "Missing argument"),
        (["frobnicate"], "No such command"),
        (["ls", "IMAGE", "--frobnicate"], "No such option"),
        (["ls", "IMAGE", "disk1/p1/not there"], "disk1/p1/not there: No such file or directory"),
        (["ls", "IMAGE", "disk9"], "disk9: No such file or directory"),
        (["cat", "IMAGE", "disk1/p1"], "disk1/p1: Is a directory"),
        (["cat", "IMAGE", "disk1/p1/big.bin", "disk1/p1/nothing"], "nothing: No such file or directory"),
        (["cat", "IMAGE", "disk1/p1/big.bin/x"], "disk1/p1/big.bin/x: Not a directory"),
        (["cp", "IMAGE", "disk1/p1/nothing", "FOLDER"], "disk1/p1/nothing: No such file or directory"),
        (["cp", "IMAGE", "disk1/p1/big.bin", "NOWHERE/x"], "NOWHERE: No such file or directory"),
        (["cp", "IMAGE", "disk1/p1/big.bin", "NOWHERE/"], "NOWHERE: there is no such folder"),
        (["cp", "IMAGE", "disk1/p1/big.bin", "disk1/p1/names", "NOWHERE"], "only be copied into a folder"),
        (["cp", "IMAGE", "disk1"], "at least one path"),
        (["mount", "IMAGE"], "Missing argument"),
        (["mount", "IMAGE", "FOLDER", "--letter", "X:"], "--letter is for Windows"),
        (["mount", "IMAGE", "--letter", "X:"], "Missing argument"),
        (["mount", "IMAGE", "FOLDER", "--network", "\\\\a\\b"], "are for Windows"),
        (["mount", "IMAGE", "FOLDER", "--original-security"], "are for Windows"),
        (["mount", "IMAGE", "FOLDER", "--volume", "disk1/p9"], "disk1/p9: No such file or directory"),
        (["mount", "IMAGE", "FOLDER", "--volume", "disk1.raw"], "disk1.raw: Not a directory"),
        (["mount", "IMAGE", "FOLDER", "--volume", "disk1/p1/names"], "not a directory in one"),
        (["mount", "IMAGE", "FOLDER", "--mechanism", "smoke"], "no such mechanism: smoke"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_usage(image: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    places = {"IMAGE": str(image), "FOLDER": str(tmp_path), "NOWHERE": str(tmp_path / "NOWHERE")}
    given = [places.get(arg, arg.replace("NOWHERE/", f"{tmp_path}/NOWHERE/")) for arg in arguments]
    check_refused(2, *given, says=says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["info", "points", "ls", "verify", "mount"])
def test_not_an_image(tmp_path: Path, command: str) -> None:
    (tmp_path / "text.mrimgx").write_text("no image\n" * 1000)
    (tmp_path / "mnt").mkdir()
    rest = [tmp_path / "mnt"] if command == "mount" else []
    check_refused(3, command, tmp_path / "text.mrimgx", *rest, says="text.mrimgx")
    (tmp_path / "empty").write_bytes(b"")
    check_refused(3, command, tmp_path / "empty", *rest, says="empty")


def test_a_cut_off_image(image: Path, tmp_path: Path) -> None:
    copy = tmp_path / image.name
    shutil.copy(image, copy)
    truncate(copy, by=1000)
    check_refused(3, "ls", copy, says=str(copy))


def test_refused_mount_points(image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_refused(6, "mount", image, tmp_path, says="is not empty")
    check_refused(6, "mount", image, tmp_path / "file", says="is not a directory")
    check_refused(6, "mount", image, tmp_path / "nowhere", says="mkdir")
    check_refused(6, "umount", tmp_path, says="nothing is mounted")
    with mounted(image, tmp_path / "mnt") as root:
        check_refused(6, "mount", image, root, says="something is mounted here already")
        with (root / "disk1.raw").open("rb"):
            check_refused(7, "umount", root, says="force")
        assert (root / "disk1.raw").exists()


def test_input_output_errors(image: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        for command in (["cat", str(image), "disk1.raw"], ["ls", str(image)], ["info", "--json", str(image)]):
            done = subprocess.run(
                [*COMMAND, *command], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
            )
            assert done.returncode == 7
            assert b"No space left on device" in done.stderr
            assert done.stderr.count(b"\n") == 1


def test_debug_shows_the_traceback(image: Path) -> None:
    done = run_imagefs("--debug", "cat", image, "disk1/nothing")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.errors
    assert done.errors.endswith("imagefs: disk1/nothing: No such file or directory\n")


def test_help_without_a_command() -> None:
    done = run_imagefs()
    assert done.code == 2
    assert "Usage: " in done.text
    assert done.errors == ""
    for name in ("info", "points", "ls", "cat", "cp", "mount", "umount", "verify"):
        assert f" {name} " in done.text
    for name in ("cp", "verify"):
        shown = run_imagefs(name, "--help")
        assert shown.code == 0
        assert "Exit codes: 0" in shown.text


@pytest.mark.parametrize(
    "command", [["cat", "IMAGE", "disk1.raw"], ["ls", "IMAGE", "disk1/p1/many", "--json"]]
)
def test_a_pipe_that_is_closed(image: Path, command: list[str]) -> None:
    arguments = [str(image) if argument == "IMAGE" else argument for argument in command]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if command[0] == "cat":
            assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_closed_standard_streams(image: Path, tmp_path: Path) -> None:
    """What is opened must not take the place of a closed standard stream and get what is printed."""
    target = tmp_path / "copy"
    script = 'exec "$@" <&- >&- 2>&-'
    for paths in (["disk1/p1/big.bin"], ["disk1/p1/big.bin"]):
        command = ["sh", "-c", script, "sh", *COMMAND, "cp", str(image), *paths, str(target)]
        done = subprocess.run(command, timeout=60, check=False)
        assert done.returncode == (0 if not (tmp_path / "again").exists() else 7)
        (tmp_path / "again").touch()
    assert run_imagefs("cat", image, "disk1/p1/big.bin").output == target.read_bytes()


@pytest.fixture(scope="module")
def long_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image of 48 MiB of noise, which takes a moment to copy."""
    folder = tmp_path_factory.mktemp("long")
    disk = plain_disk(folder, sizes=(96 << 20,))
    return SetWriter(folder / "set", compression="none").full([disk]).path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_copy(long_image: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [*COMMAND, "cp", str(long_image), "disk1/p1.raw", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob(".*.imagefs")):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    # Nothing of it is left, or all where the signal came when the last byte was written.
    assert {(path.name, path.stat().st_size) for path in tmp_path.iterdir()} <= {("p1.raw", 96 << 20)}


def test_interrupted_verify(long_image: Path) -> None:
    with subprocess.Popen([*COMMAND, "verify", long_image], stdout=subprocess.PIPE) as process:
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (130, -signal.SIGINT)  # the latter before our first line has run


@pytest.fixture(scope="module")
def named_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image of an ext4 with names that a terminal, a console library or a sort may stumble on."""
    folder = tmp_path_factory.mktemp("named")
    tree = folder / "tree"
    tree.mkdir()
    for name in (ESCAPES, os.fsdecode(b"bytes\xff.txt"), "file10", "file9", "File2", "trailing ", "a" * 255):
        (tree / name).write_text(name, errors="surrogateescape")
    (tree / "link").symlink_to("to\x1b[0m:bomb:")
    disk = plain_disk(folder, sizes=(8 << 20,))
    (part,) = disk.partitions
    volume = folder / "volume"
    with volume.open("wb") as file:
        file.truncate(part.size)
    run("mke2fs", "-q", "-t", "ext4", "-d", tree, volume)
    with disk.path.open("r+b") as file:
        file.seek(part.offset)
        file.write(volume.read_bytes())
    return SetWriter(folder / "set").full([disk]).path


def test_names_in_listings(named_image: Path) -> None:
    done = run_imagefs("ls", named_image, "disk1/p1")
    lines = done.text.splitlines()
    names = [re.split(r"\d\d:\d\d:\d\d  ", line, maxsplit=1)[1] for line in lines]
    shown = r"red\x1b[31m\nline :bomb: [bold]x[b].txt"
    assert [name.strip() for name in names] == [
        "a" * 255, r"bytes\udcff.txt", "File2", "file9", "file10", r"link -> to\x1b[0m:bomb:",
        "lost+found", shown, "trailing",
    ]  # fmt: skip
    assert lines[-1].endswith("trailing ")
    entries = json.loads(run_imagefs("ls", "--json", named_image, "disk1/p1").output)["entries"]
    by_name = {entry["name"]: entry for entry in entries}
    assert by_name[ESCAPES]["size"] == len(ESCAPES)
    assert by_name[os.fsdecode(b"bytes\xff.txt")]["type"] == "file"
    assert by_name["link"]["target"] == "to\x1b[0m:bomb:"
    assert run_imagefs("cat", named_image, f"disk1/p1/{ESCAPES}").text == ESCAPES
    check_refused(2, "cat", named_image, "disk1/p1/no\x1b[0m", says=r"disk1/p1/no\x1b[0m: No such file")


def test_names_on_a_terminal(named_image: Path) -> None:
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "ls", named_image, "disk1/p1"], stdout=secondary, stderr=secondary, stdin=secondary
    ) as process:
        os.close(secondary)
        received = b""
        while True:
            try:
                part = os.read(primary, 65536)
            except OSError:
                break
            received += part
            if not part:
                break
        assert process.wait(30) == 0
    os.close(primary)
    assert b"\x1b[31m" not in received
    assert rb"red\x1b[31m\nline :bomb: [bold]x[b].txt" in received
    assert b"a" * 255 in received  # neither cut nor wrapped


def test_columns_are_aligned_by_what_is_shown() -> None:
    rows = [("日本", "1", "x"), ("a", "100", "[b]"), ("😀", "20", "y ")]
    assert list(columns(rows, right=(1,))) == ["日本    1  x", "a     100  \\[b]", "😀     20  y "]
    assert list(columns([])) == []


def test_natural_order() -> None:
    names = ["b", "a10", "A9", "a9", "01-x", "1-x", "100-x", "99-x", ""]
    assert sorted(names, key=natural) == ["", "01-x", "1-x", "99-x", "100-x", "A9", "a9", "a10", "b"]
    assert name_text("a\u202eb\x00é😀") == "a\\u202eb\\x00é😀"


def test_info_in_a_pipe(built_set: Callable[[str], BuiltSet]) -> None:
    written = built_set("multi").incremental
    done = run_imagefs("info", written.path)
    assert (done.code, done.errors) == (0, "")
    (disk,) = written.disks
    for part in disk.partitions:
        row = next(line for line in done.text.splitlines() if line.startswith(f"p{part.number} "))
        assert f" {part.offset} " in row
        if part.label:
            assert part.label in row
    document = json.loads(run_imagefs("info", "--json", written.path).output)
    assert document["role"] == "inc"
    assert [part["offset"] for part in document["disks"][0]["partitions"]] == [
        p.offset for p in disk.partitions
    ]


def test_ls_tells_what_is_there(built_set: Callable[[str], BuiltSet]) -> None:
    written = built_set("fourk").full
    (part,) = with_files(written)
    (disk,) = written.disks
    entries = json.loads(run_imagefs("ls", "--json", written.path, "disk1/p1/sizes").output)["entries"]
    assert {f"sizes/{entry['name']}" for entry in entries} == {
        n for n in part.files if n.startswith("sizes/")
    }
    assert all(entry["size"] == int(entry["name"].removesuffix(".bin")) for entry in entries)
    assert all(entry["type"] == "file" for entry in entries)
    (raw,) = json.loads(run_imagefs("ls", "--json", written.path, "disk1.raw").output)["entries"]
    assert (raw["name"], raw["size"]) == ("disk1.raw", disk.size)
    plain = next(e for e in entries if e["name"] == "600.bin")
    assert plain["modified"] == "2009-02-13T23:31:30.1234568Z"  # KNOWN_TIME and one tick of 100 ns


def test_library_as_the_documentation_shows_it(image: Path, tmp_path: Path) -> None:
    with imagefs.open(image) as source:
        tree = source.tree()
        with tree.open(tree.resolve("disk1/p1/big.bin")) as file:
            (tmp_path / "big.bin").write_bytes(file.read(0, file.size))
    other = run_imagefs("cat", image, "disk1/p1/big.bin")
    assert other.output == (tmp_path / "big.bin").read_bytes()
    assert sha256_file(tmp_path / "big.bin")


def test_version() -> None:
    done = run_imagefs("--version")
    assert (done.code, done.text) == (0, f"imagefs {version('imagefs')}\n")


def test_what_is_neither_a_file_nor_a_folder(tmp_path: Path) -> None:
    """A pipe is not opened: whoever did would wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    done = run_imagefs("info", tmp_path / "pipe", timeout=30)
    assert done.code == 3
    assert done.errors.count("\n") == 1
