"""The command line of a backup: exit codes, what is printed, and the JSON for programs."""

import json
from pathlib import Path

import pytest

from fixtures.disks import plain_disk
from fixtures.partition_tables import MIB, BuiltDisk
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions
from tests.conftest import Ran, run_imagefs
from tests.fixtures import plain_reader

REPORT = {
    "path": str, "role": str, "file_number": int, "blocks_written": int, "blocks_unchanged": int,
    "bytes_read": int, "bytes_stored": int, "seconds": float,
}  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> BuiltDisk:
    return plain_disk(tmp_path, sizes=(MIB + 4096, 600_064))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "set"


def made(*arguments: str | Path, password: str | None = None) -> Ran:
    done = run_imagefs("backup", *arguments, password=password)
    assert done.code == 0, done.errors
    return done


def check_refused(done: Ran, code: int, says: str) -> None:
    """One line on standard error, nothing on standard output."""
    assert (done.code, done.output) == (code, b""), done.errors
    assert done.errors.startswith("imagefs: ")
    assert done.errors.count("\n") == 1
    assert says in done.errors


def test_json(disk: BuiltDisk, folder: Path) -> None:
    """One document at the end; events, one on each line, on standard error."""
    reports = [json.loads(made(disk.path, folder, "--json").output) for _ in range(2)]
    for number, report in enumerate(reports):
        assert {key: type(report[key]) for key in REPORT} == REPORT
        assert report["file_number"] == number
        assert Path(report["path"]).is_file()
        assert report["paths"] == [report["path"]]
        assert report["bytes_stored"] == Path(report["path"]).stat().st_size
    assert [report["role"] for report in reports] == ["full", "inc"]
    assert reports[0]["blocks_written"] == reports[1]["blocks_unchanged"] == 27
    assert reports[0]["bytes_read"] == reports[1]["bytes_read"] == MIB + 4096 + 600_064


def test_events(disk: BuiltDisk, folder: Path) -> None:
    made(disk.path, folder)
    done = made(disk.path, folder, "--json", "--verify", password="secret")
    events = [json.loads(line) for line in done.errors.splitlines()]
    assert {event["event"] for event in events} == {"progress", "message"}
    messages = [event for event in events if event["event"] == "message"]
    assert [set(event) for event in messages] == [{"event", "text"}]
    assert messages[0]["text"].endswith("is not encrypted: a new full is made")
    progress = [event for event in events if event["event"] == "progress"]
    assert {frozenset(event) for event in progress} == {
        frozenset(("event", "phase", "done", "total", "stored"))
    }
    assert {"finishing", "verifying"} <= {event["phase"] for event in progress}
    assert all(0 <= event["done"] <= event["total"] for event in progress)


def test_what_people_see(disk: BuiltDisk, folder: Path) -> None:
    lines = made(disk.path, folder, "--name", "home", "--split", "1M").text.splitlines()
    assert [Path(line).name[16:] for line in lines[:-1]] == ["-home-00-00.mrimgx", "-home-00-01.mrimgx"]
    assert lines[-1].startswith("full, increment 0: 27 blocks written, 0 unchanged, 0 freed; ")
    lines = made(disk.path, folder).text.splitlines()
    assert [Path(line).name[16:] for line in lines[:-1]] == ["-home-01-02.mrimgx"]
    assert lines[-1].startswith("inc, increment 1: 0 blocks written, 27 unchanged, 0 freed; ")


def test_options_reach_the_image(disk: BuiltDisk, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from a file\n")
    options = ["--compression", "high", "--encrypt", "--cipher", "aes-128", "--comment", "said so", "-p", "2"]
    done = made(disk.path, folder, *options, "--exact", "--password-file", tmp_path / "password", "--json")
    document = plain_reader.open_file(Path(json.loads(done.output)["path"])).document
    definition = document["_auxiliary_data"]["backup_definition"]
    assert document["_compression"]["compression_level"] == "high"
    assert document["_encryption"]["aes_type"] == "aes-128"
    assert (definition["comment"], definition["intelligent_sector_copy"]) == ("said so", False)
    assert [part["_header"]["partition_number"] for part in document["disks"][0]["partitions"]] == [2]
    plain_reader.restore(folder, 0, password="from a file")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["DISK"], 2, "a source and a folder are needed"),
        (["NOWHERE", "SET"], 2, "no such file or device"),
        (["DISK", "SET", "--type", "some"], 2, "there is no backup type 'some'"),
        (["DISK", "SET", "--cipher", "aes-256"], 2, "encryption needs a password"),
        (["DISK", "SET", "--encrypt"], 2, "no password is given"),
        (["DISK", "SET", "--split", "many"], 2, "is no size"),
        (["DISK", "SET", "--split", "1000"], 2, "too small"),
        (["DISK", "SET", "--exact", "-x", "*.iso"], 2, "nothing can be excluded"),
        (["DISK", "SET", "-p", "7"], 2, "there is no partition 7; there are 1, 2"),
        (["DISK", "SET", "--resume"], 2, "takes the folder alone"),
        (["SET", "--resume"], 2, "there is no unfinished backup"),
        (["DISK", "SET", "--type", "inc"], 6, "no set of this source is here"),
        (["DISK", "DISK"], 7, "File exists"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_refused(disk: BuiltDisk, folder: Path, arguments: list[str], code: int, says: str) -> None:
    places = {"DISK": str(disk.path), "SET": str(folder), "NOWHERE": str(folder / "nowhere")}
    folder.mkdir()
    check_refused(run_imagefs("backup", *(places.get(arg, arg) for arg in arguments)), code, says)
    assert not list(folder.iterdir())


def test_passwords(disk: BuiltDisk, folder: Path) -> None:
    backup(disk.path, folder, BackupOptions(key_iterations=1000), password="secret")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    check_refused(run_imagefs("backup", disk.path, folder), 5, "is encrypted (give its password)")
    check_refused(run_imagefs("backup", disk.path, folder, password="wrong"), 5, "the password is wrong")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_set_that_lacks_files(disk: BuiltDisk, folder: Path) -> None:
    """Nothing can be built upon it; ``auto`` begins a new set, and says why."""
    reports = [backup(disk.path, folder) for _ in range(3)]
    reports[1].path.unlink()
    done = run_imagefs("backup", disk.path, folder, "--type", "inc")
    check_refused(done, 4, f"set {reports[0].image_id} is incomplete: file number 1 not found")
    done = made(disk.path, folder)
    assert done.text.splitlines()[-1].startswith("full, increment 0: ")
    assert "can't be built upon" in done.errors
    assert "a new full is made" in done.errors
