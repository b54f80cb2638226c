"""A folder with sound, encrypted and incomplete sets; passwords; verification of all of it."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import imagefs
from fixtures.damage import flip_in_block
from fixtures.mrimgx_writer import SetWriter, WrittenFile
from formats.errors import IncompleteSetError, PasswordError
from tests.conftest import mounted, run_imagefs
from tests.imagefs.built import FULL, INCREMENTAL, BuiltSet, check_directory, with_files
from tests.imagefs.mounted import serving_processes

PASSWORD = "pässword with spaces"
SOUND, LOCKED, BROKEN = "1111111111111111", "2222222222222222", "3333333333333333"


@dataclass(frozen=True)
class Three:
    folder: Path
    sound: list[WrittenFile]
    locked: list[WrittenFile]
    broken: list[WrittenFile]  # a full, an incremental whose file is gone, one that needs it

    @property
    def volume(self) -> str:
        return f"{LOCKED}/{FULL}/disk1/p1"


@pytest.fixture(scope="module")
def three(built_set: Callable[[str], BuiltSet], tmp_path_factory: pytest.TempPathFactory) -> Three:
    source = built_set("fourk")
    before, after = source.full.disks, source.incremental.disks
    folder = tmp_path_factory.mktemp("three")

    def chain(image_id: str, *states: object, password: str | None = None) -> SetWriter:
        writer = SetWriter(folder, image_id=image_id, password=password)
        writer.full(before)
        writer.incremental(after)
        return writer

    sound, locked, broken = chain(SOUND), chain(LOCKED, password=PASSWORD), chain(BROKEN)
    broken.incremental(before)
    files = Three(folder, list(sound.members), list(locked.members), list(broken.members))
    broken.remove(1)
    return files


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_bytes(PASSWORD.encode() + b"\r\nsecond line\n")
    return path


def test_points_tells_of_everything(three: Three) -> None:
    document = json.loads(run_imagefs("points", "--json", three.folder).output)
    sets = {found["image_id"]: found for found in document["sets"]}
    assert set(sets) == {SOUND, LOCKED, BROKEN}
    assert document["unreadable"] == []
    shown = {name: [point["name"] for point in found["points"]] for name, found in sets.items()}
    assert shown[SOUND] == shown[LOCKED] == [FULL, INCREMENTAL]
    assert [point["reason"] for point in sets[SOUND]["points"]] == [None, None]
    assert [point["complete"] for point in sets[LOCKED]["points"]] == [True, True]
    assert all("password" in point["reason"] for point in sets[LOCKED]["points"])
    first, last = sets[BROKEN]["points"]
    assert (first["complete"], first["reason"], first["file_number"]) == (True, None, 0)
    assert (last["complete"], last["file_number"]) == (False, 2)
    assert "file number 1 not found" in last["reason"]
    for point, written in zip(sets[SOUND]["points"], three.sound, strict=True):
        assert point["path"] == str(written.path)
        assert point["stored_bytes"] == written.path.stat().st_size


def test_points_in_a_pipe_are_whole(three: Three) -> None:
    done = run_imagefs("points", three.folder)
    assert (done.code, done.errors) == (0, "")
    assert "…" not in done.text
    assert "\x1b" not in done.text
    for written in (*three.sound, *three.locked, three.broken[0], three.broken[2]):
        assert str(written.path) in done.text
    assert "file number 1 not found" in done.text
    with_password = run_imagefs("points", "--json", three.folder, password=PASSWORD)
    assert '"reason": "set 2222' not in with_password.text


@pytest.mark.parametrize("mechanism", ["devfuse", "mfusepy"])
def test_mount_without_a_password(three: Three, tmp_path: Path, mechanism: str) -> None:
    with mounted(three.folder, tmp_path / "mnt", "--mechanism", mechanism) as root:
        assert sorted(os.listdir(root)) == [SOUND, BROKEN]  # noqa: PTH208
        assert sorted(os.listdir(root / SOUND)) == [FULL, INCREMENTAL]  # noqa: PTH208
        assert os.listdir(root / BROKEN) == [FULL]  # noqa: PTH208
        for point, written in ((FULL, three.sound[0]), (INCREMENTAL, three.sound[1])):
            check_directory(root / SOUND / point / "disk1/p1", with_files(written)[0])
        with pytest.raises(PermissionError):  # not "no such file": it is there, and locked
            (root / LOCKED).stat()
        with pytest.raises(FileNotFoundError):
            (root / "4444444444444444").stat()


def test_what_is_left_out_says_why(three: Three) -> None:
    listed = run_imagefs("ls", three.folder)
    assert listed.code == 0
    assert "3 points or files are not shown" in listed.errors
    assert listed.errors.count("\n") == 1
    locked = run_imagefs("cat", three.folder, f"{LOCKED}/{FULL}/disk1/p1/big.bin")
    assert (locked.code, locked.output) == (5, b"")
    assert "encrypted" in locked.errors
    incomplete = run_imagefs("ls", three.folder, f"{BROKEN}/02-2024-07-12T10.42.16Z-inc")
    assert incomplete.code == 4
    assert "file number 1 not found" in incomplete.errors


@pytest.mark.parametrize("how", ["variable", "file", "stdin"])
def test_mount_with_the_password(three: Three, tmp_path: Path, password_file: Path, how: str) -> None:
    (tmp_path / "mnt").mkdir()
    if how == "variable":
        done = run_imagefs("mount", three.folder, tmp_path / "mnt", password=PASSWORD)
    elif how == "file":
        done = run_imagefs("mount", three.folder, tmp_path / "mnt", "--password-file", password_file)
    else:
        arguments = ("mount", three.folder, tmp_path / "mnt", "--password-file", "-")
        done = run_imagefs(*arguments, stdin=password_file.read_bytes())
    try:
        assert done.code == 0, done.errors
        assert f"imagefs umount {tmp_path / 'mnt'}" in done.text
        check_directory(tmp_path / "mnt" / three.volume, with_files(three.locked[0])[0])
        (server,) = serving_processes(tmp_path / "mnt")
        told = b"".join(Path(f"/proc/{server}/{name}").read_bytes() for name in ("cmdline", "environ"))
        assert PASSWORD.encode() not in told
        assert b"IMAGEFS_PASSWORD" not in told
    finally:
        assert run_imagefs("umount", tmp_path / "mnt").code == 0
    assert not os.path.ismount(tmp_path / "mnt")


@pytest.mark.parametrize(
    ("command", "password"),
    [
        (["ls"], None),
        (["cat", "disk1.raw"], None),
        (["cp", "disk1.raw", "OUT"], None),
        (["verify"], None),
        (["mount", "OUT"], None),
        (["ls"], "wrong"),
        (["mount", "OUT"], "wrong"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_a_missing_or_wrong_password(
    three: Three, tmp_path: Path, command: list[str], password: str | None
) -> None:
    rest = [str(tmp_path) if argument == "OUT" else argument for argument in command[1:]]
    done = run_imagefs(command[0], three.locked[0].path, *rest, password=password)
    assert (done.code, done.output) == (5, b"")
    assert done.errors.count("\n") == 1
    assert ("the password is wrong" if password else "encrypted (give its password)") in done.errors
    assert not list(tmp_path.iterdir())


def test_info_needs_no_password(three: Three) -> None:
    done = run_imagefs("info", "--json", three.locked[1].path)
    document = json.loads(done.output)
    assert (done.code, document["encrypted"], document["complete"]) == (0, True, True)
    (part,) = document["disks"][0]["partitions"]
    blocks = three.locked[1].index[0, 0].blocks
    assert part["stored_blocks"] == sum(1 for block in blocks if block.length)
    assert part["block_count"] == len(blocks)


def test_password_files_that_are_none(three: Three, tmp_path: Path) -> None:
    image = three.locked[0].path
    missing = run_imagefs("ls", image, "--password-file", tmp_path / "nowhere")
    assert missing.code == 7
    assert "nowhere" in missing.errors
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    assert run_imagefs("ls", image, "--password-file", tmp_path / "binary").code == 5
    (tmp_path / "empty").write_bytes(b"")
    assert run_imagefs("ls", image, "--password-file", tmp_path / "empty").code == 5


def test_a_folder_without_anything_readable(three: Three, tmp_path: Path) -> None:
    for written in three.locked:
        (tmp_path / written.path.name).hardlink_to(written.path)
    listed = run_imagefs("ls", tmp_path)
    assert listed.code == 5
    assert "encrypted" in listed.errors
    with imagefs.open(tmp_path) as source, pytest.raises(PasswordError):
        source.tree()
    other = tmp_path / "other"
    other.mkdir()
    (other / three.broken[2].path.name).hardlink_to(three.broken[2].path)
    with imagefs.open(other) as source, pytest.raises(IncompleteSetError):
        source.tree()
    (tmp_path / "empty").mkdir()
    assert run_imagefs("points", tmp_path / "empty").code == 3


def test_verify_a_folder(three: Three) -> None:
    done = run_imagefs("verify", "--json", three.folder, password=PASSWORD)
    document = json.loads(done.output)
    assert (done.code, document["ok"], document["bad"]) == (4, False, [])
    assert len(document["incomplete"]) == 1
    assert "file number 1 not found" in document["incomplete"][0]
    # Each stored block once, though two points use most of them.
    present = [*three.sound, *three.locked, three.broken[0], three.broken[2]]
    assert document["blocks_checked"] == sum(len(written.blocks[0, 0]) for written in present)
    point = json.loads(run_imagefs("verify", "--json", three.sound[1].path).output)
    blocks = three.sound[1].index[0, 0].blocks
    assert (point["ok"], point["blocks_checked"]) == (True, sum(1 for block in blocks if block.length))


def test_verify_a_folder_without_the_password(three: Three) -> None:
    done = run_imagefs("verify", three.folder)
    assert done.code == 5  # what could be checked was
    assert f"set {LOCKED} is encrypted" in done.text
    assert "file number 1 not found" in done.text
    checked = [*three.sound, three.broken[0], three.broken[2]]
    assert f"{sum(len(written.blocks[0, 0]) for written in checked)} blocks" in done.text


@pytest.fixture
def damaged(three: Three, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Return a copy of the locked set with a damaged block in its full, and the block."""
    for written in three.locked:
        (tmp_path / written.path.name).write_bytes(written.path.read_bytes())
    block = max(three.locked[0].blocks[0, 0])
    flip_in_block(tmp_path / three.locked[0].path.name, 0, block)
    yield tmp_path, block


def test_verify_finds_damage_in_an_encrypted_set(damaged: tuple[Path, int]) -> None:
    folder, block = damaged
    done = run_imagefs("verify", "--json", folder, password=PASSWORD)
    document = json.loads(done.output)
    assert (done.code, document["ok"]) == (1, False)
    (bad,) = document["bad"]
    assert (bad["partition"], bad["block"]) == ("disk1/p1", block)
    assert Path(bad["file"]).parent == folder
    assert bad["file"].endswith("-00-00.mrimgx")


def test_files_that_are_no_images(three: Three, tmp_path: Path) -> None:
    (tmp_path / three.sound[0].path.name).hardlink_to(three.sound[0].path)
    (tmp_path / "garbage.mrimgx").write_bytes(os.urandom(5000))
    (tmp_path / "notes.txt").write_text("hello")
    document = json.loads(run_imagefs("points", "--json", tmp_path).output)
    assert [Path(found["path"]).name for found in document["unreadable"]] == ["garbage.mrimgx"]
    listed = run_imagefs("ls", tmp_path)
    assert (listed.code, listed.text.split()[-1]) == (0, SOUND)
    assert "1 point or file is not shown" in listed.errors
    verified = run_imagefs("verify", tmp_path)
    assert verified.code == 1
    assert "garbage.mrimgx" in verified.text
