"""Mounting as Windows' Python does it, short of the driver: in the background, events, consoles, refusals."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.imagefs.built import BuiltSet
from tests.running import run_imagefs
from tests.wine.environment import ROOT, windows_path
from tests.wine.windows import Windows


@pytest.fixture
def image(built_set: Callable[[str], BuiltSet]) -> Path:
    return built_set("fourk").full.path


def test_what_only_windows_has(wine: Windows) -> None:
    """The tests that need Windows' own calls, run by its Python."""
    path = ROOT / "tests/mounters/test_windows_background.py"
    options = ["-q", "-rs", "--tb=short", "-p", "no:cacheprovider"]
    with wine.started("-m", "pytest", *options, windows_path(path), folder=ROOT) as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, (output + errors).decode(errors="replace")
    assert b"SKIPPED" not in output


def test_nothing_to_unmount(wine: Windows, tmp_path: Path) -> None:
    for form in ("Q:", "q:\\", "\\\\.\\Q:", "Q:/"):
        done = wine.run("umount", form)
        assert (done.code, done.errors) == (6, "imagefs: Q: nothing is mounted here\n")
    done = wine.run("umount", "C:")
    assert (done.code, done.errors) == (6, "imagefs: C: is no mount of imagefs\n")
    assert wine.run("umount", tmp_path / "absent").code == 6


def test_mounting_without_winfsp(wine: Windows, image: Path) -> None:
    for place in ((), ("Q:",), ("--letter", "q")):
        done = wine.run("mount", image, *place)
        assert done.code == 7
        assert "https://winfsp.dev" in done.errors
        assert done.errors.count("\n") == 1


def test_usage(wine: Windows, image: Path) -> None:
    for arguments in (["--letter", "QQ"], ["--letter", "Q:", "R:"]):
        assert wine.run("mount", image, *arguments).code == 2
    done = wine.run("ls", 'Q:" disk1/p1')  # what ls "Q:\" disk1/p1 becomes
    assert done.code == 2
    assert 'Q:" disk1/p1 has a quote in it' in done.errors


def test_help_and_version_tell_of_winfsp(wine: Windows) -> None:
    for arguments in (["--version"], ["mount", "--help"]):
        done = wine.run(*arguments)
        assert done.code == 0
        text = " ".join(done.text.split())
        assert "WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos" in text
        assert "https://github.com/winfsp/winfsp" in text or "https://winfsp.dev" in text
    assert "[mountpoint]" in wine.run("mount", "--help").text.casefold()


def test_paths_with_backslashes(wine: Windows, image: Path) -> None:
    expected = run_imagefs("cat", image, "disk1/p1/big.bin").output
    assert wine.run("cat", image, "disk1\\p1\\big.bin").output == expected
    listed = wine.run("ls", "--json", image, "\\disk1\\p1\\sizes\\")
    assert json.loads(listed.output) == json.loads(
        run_imagefs("ls", "--json", image, "disk1/p1/sizes").output
    )


def test_patterns_and_variables_are_not_expanded(wine: Windows, image: Path) -> None:
    """There is a file that the pattern fits, and a variable of that name."""
    done = wine.run("ls", image, "disk1/p1/*", folder=image.parent)
    assert done.code == 2
    assert "*: No such file or directory" in done.errors
    done = wine.run("ls", image, "disk1/p1/%PATH%/$PATH")
    assert "disk1/p1/%PATH%/$PATH" in done.errors


def test_names_in_a_pipe(wine: Windows, built_set: Callable[[str], BuiltSet]) -> None:
    """UTF-8 with line feeds, as elsewhere, whatever the code page."""
    image = built_set("ntfs").full.path
    for options in ([], ["--json"]):
        done = wine.run_afresh("ls", *options, image, "disk1/p1/names")
        assert (done.code, done.errors) == (0, "")
        assert done.output == run_imagefs("ls", *options, image, "disk1/p1/names").output
        assert b"\r" not in done.output


def test_a_pipe_that_nobody_reads(wine: Windows, image: Path) -> None:
    for command, path in (("cat", "disk1.raw"), ("ls", "disk1/p1/many")):
        with wine.started("-m", "imagefs", command, image, path) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(60) == 0


def test_a_password_file_of_notepad(wine: Windows, tmp_path: Path) -> None:
    source = tmp_path / "disk"
    source.write_bytes(os.urandom(1 << 20))
    sets = tmp_path / "sets"
    sets.mkdir()
    for name, encoding in (("notepad", "utf-8-sig"), ("powershell", "utf-16")):
        (tmp_path / name).write_bytes("pässword\r\n".encode(encoding))
    done = wine.run("backup", source, sets, "--encrypt", password="pässword")
    assert done.code == 0, done.errors
    for name in ("notepad", "powershell"):
        done = wine.run("verify", sets, "--password-file", tmp_path / name)
        assert done.code == 0, done.errors
