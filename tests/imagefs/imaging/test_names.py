"""What names of sources mean, and what they do not."""

from pathlib import Path

import pytest

from fixtures.partition_tables import MIB
from imagefs.errors import UsageError
from imagefs.imaging import backup, this_machine
from imagefs.imaging.names import Named, find_source
from imagefs.machine import devices
from imagefs.restore.this_machine import target_path
from tests.conftest import run_imagefs
from tests.fixtures import plain_reader
from tests.imagefs.imaging.attached import two_partitions
from tests.imagefs.machine.made_sysfs import Sysfs


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a machine of two disks."""
    made = Sysfs(tmp_path / "sys")
    monkeypatch.setattr(devices, "SYSFS", made.root)
    made.add("sdb")
    made.add("sda")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("disk0", Named(Path("/dev/sda"), ())),
        ("DISK1", Named(Path("/dev/sdb"), ())),
        ("disk1/p2", Named(Path("/dev/sdb"), (2,))),
        ("disk0\\p12", Named(Path("/dev/sda"), (12,))),
        ("./disk0", Named(Path("disk0"), ())),
        ("disk0.raw", Named(Path("disk0.raw"), ())),
        ("folder/disk0", Named(Path("folder/disk0"), ())),
        ("disk", Named(Path("disk"), ())),
        ("disk0/p1/file", Named(Path("disk0/p1/file"), ())),
        ("/dev/sda", Named(Path("/dev/sda"), ())),
        ("C:", Named(Path("C:"), ())),  # a file, where there are no letters
    ],
)
def test_names(name: str, named: Named) -> None:
    assert find_source(name) == named


def test_a_file_of_that_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "disk0").touch()
    assert find_source("disk0").note == "disk0 means the disk /dev/sda; the file of that name is ./disk0"
    assert find_source("disk1").note == ""
    assert find_source(tmp_path / "disk0") == Named(tmp_path / "disk0", ())


@pytest.mark.parametrize("name", ["disk0", "disk7", "disk1/p2"])
def test_no_target_is_called_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is it a disk, or a file") as caught:
        target_path(name)
    assert f"./{name}" in caught.value.hint
    assert target_path("./disk0") == tmp_path / "disk0"
    done = run_imagefs("clone", two_partitions(tmp_path).path, name)
    assert (done.code, "is it a disk, or a file" in done.errors) == (2, True)


def test_what_is_not_there() -> None:
    with pytest.raises(UsageError, match="there is no disk2; there are: disk0, disk1") as caught:
        find_source("disk2")
    assert caught.value.hint == "a file is named ./disk2; imagefs disks lists the disks"


def test_partitions_named_twice() -> None:
    assert find_source("disk0", (3,)) == Named(Path("/dev/sda"), (3,))
    assert find_source("disk0/p3", (3,)) == Named(Path("/dev/sda"), (3,))
    with pytest.raises(UsageError, match="others are named beside it"):
        find_source("disk0/p3", (3, 4))


def test_a_partition_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is a file here, so that nobody has to be root."""
    built = two_partitions(tmp_path)
    monkeypatch.setattr(this_machine, "disk_paths", lambda: {7: built.path})
    backup("disk7/p2", tmp_path / "sets")
    part = built.partition(2)
    restored = plain_reader.restore(tmp_path / "sets", 0)
    assert restored[part.offset :][: part.size] == built.path.read_bytes()[part.offset :][: part.size]
    assert not any(restored[MIB : MIB + built.partition(1).size])


def test_the_command_knows_the_names(tmp_path: Path) -> None:
    done = run_imagefs("backup", "disk98765", tmp_path / "sets")
    assert (done.code, "there is no disk98765" in done.errors) == (2, True)
