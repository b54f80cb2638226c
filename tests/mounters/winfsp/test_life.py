"""How a volume begins and ends, where it is, what it says of itself."""

import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mounters.errors import MountError, MountPointError
from tests.mounters.memory_tree import MIB
from tests.mounters.winfsp.adapting import CountingTree, Mounting, SmallTree, as_user, file_with, mounted
from tests.mounters.winfsp.fake_driver import Volume
from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.nt import Status

FILETIME_OF_2001 = 126_227_808_000_000_000  # 2001-01-01T00:00:00Z; 365 * 400 days and 97 leap days since 1601
SECONDS_OF_2001 = 978_307_200


class LateError(OSError):
    winerror = 995


def start(library: FakeLibrary, *arguments: Any, **options: Any) -> Volume:
    with as_user():
        return Mounting(library, SmallTree(), *arguments, **options).start()


def test_without_the_driver(library: FakeLibrary) -> None:
    library.driver_is_there = False
    with pytest.raises(MountError, match="WinFsp"):
        start(library)


def test_the_driver_goes_before_the_volume_is_made(
    library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mounters import winfsp_mount

    monkeypatch.setattr(winfsp_mount, "preflight", lambda *_, **__: True)
    library.driver_is_there = False
    with pytest.raises(MountError, match=r"NO_SUCH_DEVICE.*WinFsp"):
        start(library)


def test_a_letter_taken_at_the_last_moment(library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting fails after it began: nothing stays behind."""
    from mounters import winfsp_mount

    monkeypatch.setattr(winfsp_mount, "preflight", lambda *_, **__: True)
    library.letters_in_use = {"C:", "X:"}
    with pytest.raises(MountPointError):
        start(library)
    assert not library.volumes


def test_a_root_that_cannot_be_read(library: FakeLibrary) -> None:
    tree = SmallTree()
    tree.nodes[tree.root].lost = True
    with as_user(), pytest.raises(MountError, match="root"):
        Mounting(library, tree).start()
    assert not library.volumes


def test_a_volume_that_does_not_answer_at_once(library: FakeLibrary) -> None:
    """Winfspy asks again; ERROR_OPERATION_ABORTED is 995."""
    library.failures_of_stat += [LateError(22, "aborted"), LateError(22, "aborted")]
    with mounted(library, SmallTree()) as volume:
        volume.stat("\\one.bin")


def test_what_is_open_at_the_end_is_released(library: FakeLibrary) -> None:
    """No close comes for it: readers go all the same."""
    tree = SmallTree()
    with mounted(library, tree) as volume:
        for name in ("one.bin", "big.bin"):
            volume.read(volume.open(f"\\{name}"), 0, 10)
        assert tree.opened
    assert not tree.opened


def test_an_end_while_reads_run(library: FakeLibrary) -> None:
    tree = SmallTree()
    began, go, given = threading.Event(), threading.Event(), []
    node = file_with(tree, "late.bin", b"late" * 1000)
    whole = node.read
    assert whole is not None

    def late(offset: int, length: int) -> bytes:
        began.set()
        go.wait(10)
        assert tree.opened, "its reader was closed under it"
        return whole(offset, length)

    node.read = late
    with mounted(library, tree) as volume:
        handle = volume.open("\\late.bin")
        reader = threading.Thread(target=lambda: given.append(volume.read(handle, 0, 8)))
        reader.start()
        assert began.wait(10)
        threading.Timer(0.2, go.set).start()
    reader.join(10)
    assert given == [b"latelate"]


def test_an_end_that_the_driver_makes(library: FakeLibrary) -> None:
    """It may be uninstalled: the mount notices by the dispatcher's result."""
    with as_user():
        mounting = Mounting(library, SmallTree())
        volume = mounting.start()
        volume.native.pointer.DispatcherResult = Status.NO_SUCH_DEVICE
        mounting.wait()
    with pytest.raises(MountError, match="ended"):
        raise mounting.error or AssertionError
    assert not library.volumes


def test_two_volumes_of_one_process(library: FakeLibrary) -> None:
    with mounted(library, SmallTree(), "X:"), mounted(library, SmallTree(), "Y:") as second:
        assert second.stat("\\one.bin").size == 12_345
        assert len(library.volumes) == 2


@pytest.mark.parametrize(
    ("error", "hint"), [(ImportError("x"), "pip install"), (RuntimeError("x"), "winfsp.dev")]
)
def test_without_winfspy_or_winfsp(
    library: FakeLibrary, monkeypatch: pytest.MonkeyPatch, error: Exception, hint: str
) -> None:
    """Winfspy raises RuntimeError as it is imported where WinFsp is not installed."""
    from mounters import winfsp_binding

    def fail(_: str) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 11, 0))
        patch.setattr(importlib, "import_module", fail)
        with pytest.raises(type(error), match=hint) as caught:
            winfsp_binding.load()
        assert "'" not in str(caught.value), "cmd.exe takes a quote for a part of the name"


def test_a_letter_in_use(library: FakeLibrary) -> None:
    library.letters_in_use = {"X:"}
    with pytest.raises(MountPointError, match="in use"):
        start(library)
    assert not library.volumes, "found out before a volume was made"


def test_a_letter_of_the_whole_machine(library: FakeLibrary) -> None:
    with mounted(library, SmallTree(), r"\\.\X:") as volume:
        assert volume.native.mountpoint == r"\\.\X:"


def test_a_directory(library: FakeLibrary, tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    with mounted(library, SmallTree(), str(place)) as volume:
        assert place.is_dir()
        assert volume.native.device == "WinFsp.Disk"
    assert not place.exists()


@pytest.mark.parametrize("name", ["there", "none/mnt"])
def test_a_directory_that_cannot_be_made(library: FakeLibrary, tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(MountPointError):
        start(library, str(tmp_path / name))
    assert (tmp_path / "there").is_dir()


@pytest.mark.parametrize("name", [r"\\imagefs\backup", r"\imagefs\backup"])
def test_a_network_drive(library: FakeLibrary, name: str) -> None:
    """One backslash before the prefix, whatever was given."""
    with mounted(library, SmallTree(), network=name) as volume:
        assert volume.native.device == "WinFsp.Net"
        assert volume.parameter("Prefix") == r"\imagefs\backup"


@pytest.mark.parametrize("name", ["imagefs", r"\\imagefs", r"\\imagefs\\", "\\\\imagefs\\" + "x" * 95])
def test_a_network_name_that_is_none(library: FakeLibrary, name: str) -> None:
    with pytest.raises(MountPointError):
        start(library, network=name)


def test_a_network_drive_is_no_directory(library: FakeLibrary, tmp_path: Path) -> None:
    with pytest.raises(MountPointError, match="letter"):
        start(library, str(tmp_path / "mnt"), network=r"\\imagefs\backup")


def test_parameters(library: FakeLibrary) -> None:
    with mounted(library, SmallTree(), serial=0x12345678, created=SECONDS_OF_2001 * 10**9) as volume:
        assert volume.parameter("SectorSize") == 512
        assert volume.parameter("SectorsPerAllocationUnit") == 8
        assert volume.parameter("MaxComponentLength") == 255
        assert volume.parameter("VolumeSerialNumber") == 0x12345678
        assert volume.parameter("VolumeCreationTime") == FILETIME_OF_2001
        assert volume.parameter("FileInfoTimeout") == 0xFFFFFFFF
        assert volume.parameter("IrpTimeout") in (0, *range(60_000, 600_001))
        assert 0 < len(volume.parameter("FileSystemName")) <= 7
        assert "imagefs".startswith(volume.parameter("FileSystemName"))


@pytest.mark.parametrize(
    ("name", "on"),
    [
        ("case_sensitive_search", False),
        ("case_preserved_names", True),
        ("unicode_on_disk", True),
        ("persistent_acls", True),
        ("reparse_points", False),
        ("named_streams", False),
        ("read_only_volume", True),
        ("post_cleanup_when_modified_only", True),
        ("pass_query_directory_pattern", False),
        ("pass_query_directory_file_name", True),
        ("flush_and_purge_on_cleanup", False),
        ("um_file_context_is_user_context2", True),
        ("um_file_context_is_full_context", False),
    ],
)
def test_flags(library: FakeLibrary, name: str, on: bool) -> None:
    with mounted(library, SmallTree()) as volume:
        assert volume.flag(name) is on


def test_a_serial_number_of_its_own(library: FakeLibrary) -> None:
    """Never 0, the same for the same source, another for another."""
    numbers = []
    for source in ("a.mrimgx", "a.mrimgx", "b.mrimgx", ""):
        with mounted(library, SmallTree(), source=source) as volume:
            numbers.append(volume.parameter("VolumeSerialNumber"))
    assert numbers[0] == numbers[1] != numbers[2]
    assert all(numbers)


@pytest.mark.parametrize(
    ("label", "shown"), [("Backup ü", "Backup ü"), ("x" * 40, "x" * 32), ("😀" * 20, "😀" * 16), ("", "")]
)
def test_the_label(library: FakeLibrary, label: str, shown: str) -> None:
    """At most 32 UTF-16 units, none of them half a character."""
    with mounted(library, SmallTree(), label=label) as volume:
        total, free, said = volume.volume_info()
    assert said == shown
    assert free == 0
    assert total >= 123 * MIB


def test_a_label_that_cannot_be_encoded(library: FakeLibrary) -> None:
    with mounted(library, SmallTree(), label="half \udc80") as volume:
        assert volume.volume_info()[2].startswith("half")


def test_a_tree_without_a_size(library: FakeLibrary) -> None:
    """A disk of 0 bytes is none, to the programs that divide by it."""

    class Sizeless(SmallTree):
        def size(self) -> int:
            return 0

    with mounted(library, Sizeless()) as volume:
        assert volume.volume_info()[0] > 0


def test_mounting_reads_no_directory(library: FakeLibrary) -> None:
    tree = CountingTree()
    with mounted(library, tree):
        assert ("entries", tree.root) not in tree.asked
