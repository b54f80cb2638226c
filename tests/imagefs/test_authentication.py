"""What the commands tell of authenticated and forged files, and of what a backup could not read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import imagefs
from fixtures import damage, disks
from fixtures.mrimgx_writer import SetWriter, WrittenFile, every_block
from formats.container import FileState
from imagefs.report import points_document
from imagefs.verify import verify
from tests.conftest import run_imagefs

PASSWORD = "pässword"
UNREADABLE = {"unreadable": [{"disk": 0, "partition": 0, "offset": 8192, "length": 4096}]}


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD)
    return path


def write_set(
    folder: Path, source: Path, *, seed: int = 0, own: dict[str, Any] | None = None
) -> list[WrittenFile]:
    """Write a full and two deltas of a small disk, all of whose blocks are stored in the full."""
    source.mkdir(exist_ok=True)
    states = [disks.plain_disk(source, f"{folder.name}0", sizes=(50 * 4096,))]
    for number in (1, 2):
        states.append(disks.change_disk(states[-1], source, f"{folder.name}{number}", seed=seed + number))
    writer = SetWriter(
        folder, password=PASSWORD, aes="aes-256", authenticate=True, block_size=4096, used=every_block
    )
    return [
        writer.full([states[0]]),
        writer.incremental([states[1]]),
        writer.incremental([states[2]], own=own),
    ]


def test_verify_tells_what_is_authenticated(tmp_path: Path, password_file: Path) -> None:
    folder = tmp_path / "set"
    written = write_set(folder, tmp_path / "disks", own=UNREADABLE)
    done = run_imagefs("verify", "--password-file", password_file, folder)
    assert done.code == 0
    assert "authenticated: 3 files" in done.text
    assert f"{written[2].path}: disk1/p1: 4096 bytes at 8192 could not be read" in done.text
    assert "all good" in done.text
    document = json.loads(run_imagefs("verify", "--json", "--password-file", password_file, folder).output)
    assert document["ok"]
    assert document["authentication"] == [
        {"file": str(file.path), "state": "authenticated", "reason": None} for file in written
    ]
    assert document["unreadable"] == [
        {"file": str(written[2].path), "partition": "disk1/p1", "offset": 8192, "length": 4096}
    ]
    # Of one point: the files that it uses, and its own source.
    with imagefs.open(written[1].path, PASSWORD) as source:
        result = verify(source)
    assert [entry.file for entry in result.authentication] == [file.path for file in written[:2]]
    assert (result.ok, result.unreadable) == (True, [])


def test_verify_tells_what_is_forged(tmp_path: Path, password_file: Path) -> None:
    folder = tmp_path / "set"
    written = write_set(folder, tmp_path / "disks")
    old = write_set(tmp_path / "old", tmp_path / "disks", seed=50)
    shutil.copy(old[1].path, written[1].path)
    done = run_imagefs("verify", "--password-file", password_file, folder)
    assert done.code == 1
    assert f"forged: 1 file: {written[1].path.name}" in done.text
    assert "authenticated: 2 files" in done.text
    assert f"bad {written[1].path}: not authentic: {written[2].path.name} knows another file" in done.text
    with imagefs.open(folder, PASSWORD) as source:
        result = verify(source)
    assert not result.ok
    assert [entry.state for entry in result.authentication] == [
        FileState.AUTHENTICATED,
        FileState.FORGED,
        FileState.AUTHENTICATED,
    ]
    assert {bad.file for bad in result.bad} == {written[1].path}
    # A point that needs it: verified all the same, not read, not listed, and told why when asked for.
    for command, code in ((("verify",), 1), (("ls",), 3), (("cat", "disk1/p1"), 3)):
        name, *rest = command
        done = run_imagefs(name, "--password-file", password_file, written[2].path, *rest)
        assert done.code == code
        assert "not authentic" in done.text + done.errors
    with imagefs.open(folder, PASSWORD) as source:
        told = points_document(source)["sets"][0]["points"]
        assert len(source.left_out) == 2
        assert len(source.tree().entries(source.tree().root)) == 1
    assert [point["authentication"] for point in told] == ["authenticated", "forged", "authenticated"]
    assert [point["reason"] is None for point in told] == [True, False, False]
    assert "not authentic" in told[2]["reason"]


def test_a_forged_file_does_not_flood(tmp_path: Path) -> None:
    """None of its blocks is right; some are told, the others counted."""
    folder = tmp_path / "set"
    written = write_set(folder, tmp_path / "disks")
    full = written[0]
    with full.path.open("r+b") as stream:
        whole = stream.read(full.data_length)
        stream.seek(0)
        stream.write(bytes(byte ^ 1 for byte in whole))
    # Only with the tags of the blocks gone too it is forged; else each block is told by itself.
    damage.flip_byte(full.path, damage.metadata_offset(full.path, b"$IFSTAGS") + 33)
    with imagefs.open(folder, PASSWORD) as source:
        result = verify(source)
    assert next(entry.state for entry in result.authentication) is FileState.FORGED
    mine = [bad for bad in result.bad if bad.file == full.path]
    assert len([bad for bad in mine if bad.block is not None]) == 16
    assert f"{len(full.blocks[0, 0]) - 16} more bad blocks" in {bad.reason for bad in mine}
    assert any("$IFSTAGS" in bad.reason for bad in mine)
    assert not result.ok


def test_what_is_not_encrypted_or_locked_says_nothing(tmp_path: Path, password_file: Path) -> None:
    disk = disks.plain_disk(tmp_path, "plain", sizes=(50 * 4096,))
    full = SetWriter(tmp_path / "open").full([disk], own=UNREADABLE)
    with imagefs.open(full.path) as source:
        result = verify(source)
    assert (result.ok, result.authentication, len(result.unreadable)) == (True, [], 1)
    write_set(tmp_path / "set", tmp_path / "disks")
    with imagefs.open(tmp_path / "set") as source:
        told = points_document(source)["sets"][0]["points"]
    assert [point["authentication"] for point in told] == [None] * 3
    # Others wrote this one: nothing is known of it, and it is good.
    other = SetWriter(tmp_path / "other", password=PASSWORD, aes="aes-256").full([disk])
    done = run_imagefs("verify", "--password-file", password_file, other.path)
    assert done.code == 0
    assert f"not authenticated: 1 file: {other.path.name}" in done.text


def test_info_tells_what_was_not_taken(tmp_path: Path) -> None:
    disk = disks.plain_disk(tmp_path, "plain", sizes=(50 * 4096,))
    own = {**UNREADABLE, "excluded": ["*.iso"], "left_out": ["/a.iso", "/b.iso"]}
    full = SetWriter(tmp_path / "set").full([disk], own=own)
    document = json.loads(run_imagefs("info", "--json", full.path).output)
    assert document["unreadable"] == [{"partition": "disk1/p1", "offset": 8192, "length": 4096}]
    assert (document["excluded"], document["left_out"]) == (["*.iso"], ["/a.iso", "/b.iso"])
    text = run_imagefs("info", full.path).text
    for line in (
        "unreadable   disk1/p1: 4096 bytes at 8192 could not be read",
        "excluded     *.iso",
        "left out     2 files",
    ):
        assert line in text
    damage.break_metadata(full.path, b"$IMAGEFS")
    done = run_imagefs("info", full.path)
    assert done.code == 0
    assert "damaged" in done.text
