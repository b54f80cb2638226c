"""What is written where an encoding lacks a letter, closed pipes, a console's end, Windows' command lines."""

import codecs
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from imagefs.cli import common
from imagefs.cli import mount as mount_command
from imagefs.cli.common import given_password
from imagefs.cli.console import console_event, is_console, output_error, swallowed_argument, utf8_output
from tests.imagefs.built import BuiltSet

STRANGE = "日本 😀 \udcff \x85"


def test_output_is_utf8_with_line_feeds(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="cp1252", newline="\r\n") as file:
        stream = utf8_output(file)
        stream.write(f"{STRANGE}\n")
        stream.flush()
        stream.buffer.write(b"\x00\r\n\xff")
        stream.flush()
    assert path.read_bytes() == "日本 😀 \\udcff \x85\n".encode() + b"\x00\r\n\xff"


def test_an_encoding_that_was_chosen_stays(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="cp437") as file:
        stream = utf8_output(file, chosen=True)
        stream.write("ä日\n")
        stream.flush()
    assert path.read_bytes() == b"\x84\\u65e5\n"  # CP437 has ä at 0x84


def test_a_pipe_that_nobody_reads_is_one_error(tmp_path: Path) -> None:
    """Windows says EINVAL for it, which of a file is an error like others."""
    error = OSError(errno.EINVAL, "Invalid argument")
    reading, writing = os.pipe()
    try:
        assert isinstance(output_error(error, writing), BrokenPipeError)
        full = OSError(errno.ENOSPC, "No space left on device")
        assert output_error(full, writing) is full
    finally:
        os.close(reading)
        os.close(writing)
    with (tmp_path / "file").open("wb") as file:
        assert output_error(error, file.fileno()) is error


def test_listings_in_a_poor_encoding(built_set: Callable[[str], BuiltSet]) -> None:
    """A name that the terminal's encoding lacks is shown with escapes, and ends no command."""
    image = built_set("ntfs").full.path
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for options in (["--json"], []):
        done = subprocess.run(
            [sys.executable, "-m", "imagefs", "ls", *options, image, "disk1/p1/names"],
            capture_output=True, check=False, timeout=60, env=environment,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\u" in done.stdout
        done.stdout.decode("ascii")


def test_what_is_a_console(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert not is_console(file)


@pytest.mark.parametrize("kind", [2, 5, 6])  # CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT
def test_the_end_of_a_console_interrupts_and_waits(kind: int) -> None:
    """The handler runs in a thread of Windows', and returns only once everything is put away."""
    ended, answers = threading.Event(), []
    handler = threading.Thread(target=lambda: answers.append(console_event(kind, ended)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            handler.start()
            time.sleep(5)
        assert handler.is_alive()
        ended.set()
        handler.join(5)
        assert answers == [True]
    finally:
        signal.signal(signal.SIGINT, before)


def test_keys() -> None:
    """Ctrl-C is Python's own; Ctrl-Break interrupts as well, and nothing waits for the end."""
    assert console_event(0, threading.Event()) is False
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            assert console_event(1, threading.Event()) is True
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["backup", "disk0", 'E:" --type full'], 'E:" --type full'),  # backup disk0 "E:\" --type full
        (["backup", "disk0", 'D:\\my folder"'], 'D:\\my folder"'),
        (["ls", '\\\\server\\share"'], '\\\\server\\share"'),
        (["ls", "E:\\", "disk1/p1"], ""),
        (["cat", "E:\\a.mrimgx", 'disk1/p1/say "hi".txt'], ""),
    ],
)
def test_a_quote_that_swallowed_arguments(arguments: list[str], found: str) -> None:
    assert swallowed_argument(arguments) == found


@pytest.mark.parametrize(
    "data",
    [
        "pässword\r\nmore".encode(),
        codecs.BOM_UTF8 + "pässword\r\n".encode(),  # Notepad
        codecs.BOM_UTF16_LE + "pässword\r\n".encode("utf-16-le"),  # "pässword" > file, PowerShell 5.1
    ],
)
def test_password_files_made_on_windows(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "password").write_bytes(data)
    assert given_password(tmp_path / "password") == "pässword"


def test_paths_in_the_tree_with_backslashes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert common.tree_path("disk1\\p1\\a") == "disk1\\p1\\a"
    monkeypatch.setattr(sys, "platform", "win32")
    assert common.tree_path("disk1\\p1\\a") == "disk1/p1/a"


@pytest.mark.parametrize(
    ("mountpoint", "letter", "place"),
    [("", "", ""), ("X:", "", "X:"), ("C:\\mnt", "", "C:\\mnt"), ("", "x", "X:"), ("", "x:\\", "X:")],
)
def test_where_windows_mounts(
    monkeypatch: pytest.MonkeyPatch, mountpoint: str, letter: str, place: str
) -> None:
    monkeypatch.setattr(mount_command, "ON_WINDOWS", True)
    assert mount_command._place(mountpoint, letter) == place


@pytest.mark.parametrize(("mountpoint", "letter"), [("Y:", "X:"), ("", "XY"), ("", "1:"), ("", "ä:")])
def test_where_windows_does_not_mount(monkeypatch: pytest.MonkeyPatch, mountpoint: str, letter: str) -> None:
    monkeypatch.setattr(mount_command, "ON_WINDOWS", True)
    with pytest.raises(typer.BadParameter):
        mount_command._place(mountpoint, letter)


def test_the_serving_command() -> None:
    texts = [("--mechanism", "auto"), ("--volume", ""), ("--network", "\\\\imagefs\\disk")]
    command = mount_command.serving_command("-a b.mrimgx", "", flags=["--deleted"], texts=texts)
    assert command == [
        *(sys.executable, "-P", "-m", "imagefs", "mount", "--foreground", "--deleted", "--mechanism", "auto"),
        *("--network", "\\\\imagefs\\disk", "--", "-a b.mrimgx"),
    ]
    assert mount_command.serving_command("a", "X:", flags=[], texts=[])[-3:] == ["--", "a", "X:"]


def test_what_serves_loads_nothing_from_where_it_is_started(tmp_path: Path) -> None:
    """A folder of downloads may hold anything."""
    for name in ("imagefs.py", "typer.py", "mounters.py"):
        (tmp_path / name).write_text("raise SystemExit(99)\n")
    command = mount_command.serving_command("absent.mrimgx", "nowhere", flags=[], texts=[])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"absent.mrimgx" in done.stderr
