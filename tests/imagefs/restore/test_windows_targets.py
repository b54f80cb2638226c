"""Restoring onto disks and volumes of Windows, at the boundary of its calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from imagefs.errors import RefusedError, TargetWriteError, UsageError
from imagefs.imaging import backup
from imagefs.restore import job, windows_disks, windows_guard
from imagefs.restore.described import lines
from imagefs.restore.job import RestoreJob, plan_restore
from imagefs.restore.options import RestoreOptions, RestoreReport
from imagefs.restore.windows_guard import Needed
from imagefs.restore.windows_target import open_target
from tests.imagefs.imaging.sources_of_noise import noise_disk
from tests.imagefs.machine.windows.model import Disk
from tests.imagefs.restore.chains import Saved
from tests.imagefs.restore.held import bytes_of, check_same, check_tables, check_volumes
from tests.imagefs.restore.places import PART, digest, noisy, partitioned, signatures
from tests.imagefs.restore.windows_model import Target, WritableWindows, name_of, volumes_of

DISK = r"\\.\PhysicalDrive1"
WINDOWS = Needed(r"C:\Windows", "Windows runs from it")


class Machine:
    """Windows on disk 0 (C: and a start partition), and disk 1 with two old volumes, X: and Y:."""

    def __init__(self, folder: Path, size: int, *, is_noisy: bool = True) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.system = partitioned(create_file(folder / "system", 16 * MIB), "gpt", PART)
        if is_noisy:
            self.target = noisy(folder / "target", size, table="gpt")
        else:
            self.target = partitioned(create_file(folder / "target", size), "gpt", PART)
        self.old = digest(self.target)
        self.windows = WritableWindows(
            {0: Disk(self.system), 1: Disk(self.target, product=b"Target Disk    ", bus=7)},
            [
                *volumes_of(0, self.system, 1, ("", "C:\\")),
                *volumes_of(1, self.target, 11, ("X:\\", "Y:\\")),
            ],
        )
        self.windows.places = {"/": "C:\\"}
        self.needed = [WINDOWS]
        self.waits: list[float] = []

    @contextmanager
    def plan(self, image: Path, target: str, options: RestoreOptions | None = None) -> Iterator[RestoreJob]:
        api = self.windows
        chosen: dict[str, Any] = {
            "target_path": lambda text: windows_disks.target_path(api, text) or Path(text).absolute(),
            "find_device": partial(windows_disks.find_device, api),
            "open_device": partial(open_target, api, sleep=self.waits.append),
            "describe": partial(windows_disks.describe_device, api),
            "same_id": partial(windows_guard.same_id, api),
            "refuse_unsafe": partial(windows_guard.refuse_unsafe_device, api, needed=self.needed),
        }
        with patch.multiple(job, **chosen), plan_restore(image, target, options) as planned:
            yield planned

    def restore(
        self, image: Path, target: str = "disk1", options: RestoreOptions | None = None
    ) -> RestoreReport:
        with self.plan(image, target, options) as planned:
            return planned.run()


@pytest.fixture
def machine(tmp_path: Path, gpt: Saved) -> Machine:
    return Machine(tmp_path, gpt.disk.size, is_noisy=False)


@pytest.fixture
def noisy_machine(tmp_path: Path, gpt: Saved) -> Machine:
    return Machine(tmp_path, gpt.disk.size)


@pytest.mark.parametrize("verify", [False, True])
def test_a_disk(noisy_machine: Machine, gpt: Saved, tmp_path: Path, verify: bool) -> None:
    report = noisy_machine.restore(gpt.image, options=RestoreOptions(verify=verify))
    assert report.verified is (True if verify else None)
    check_same(noisy_machine.target, gpt.disk, tables=False)
    check_tables(noisy_machine.target, "gpt")
    assert signatures(noisy_machine.target) == {"gpt", "PMBR"}
    check_volumes(noisy_machine.target, gpt.disk, tmp_path)
    noisy_machine.windows.assert_let_go()


def test_another_scheme_on_a_larger_disk(mbr: Saved, tmp_path: Path) -> None:
    machine = Machine(tmp_path, mbr.disk.size + 3 * MIB)
    machine.restore(mbr.image, DISK)
    assert signatures(machine.target) == {"dos"}
    check_tables(machine.target, "mbr")
    check_volumes(machine.target, mbr.disk, tmp_path)
    assert not bytes_of(machine.target)[-MIB:].any()  # where a table could be found


def test_the_order_of_things(machine: Machine, gpt: Saved) -> None:
    with machine.plan(gpt.image, "disk1") as planned:
        assert digest(machine.target) == machine.old
        assert not [event for event in machine.windows.events if event.startswith(("write", "dismount"))]
        machine.windows.assert_let_go()  # looking keeps nothing
        machine.windows.events.clear()
        planned.run()
    events = machine.windows.events
    writes = [at for at, event in enumerate(events) if event.startswith("write")]
    assert set(events[:2]) == {f"lock {name_of(11)}", f"lock {name_of(12)}"}
    assert set(events[2:4]) == {f"dismount {name_of(11)}", f"dismount {name_of(12)}"}
    assert events[4] == "delete layout"
    assert events[5].startswith("write 0+")  # the head is wiped before anything else …
    assert events[6] == "flush"
    assert events[writes[-1]].startswith("write 0+")  # … and written when all else is safe
    assert events[writes[-1] - 1] == "flush"
    assert events[writes[-1] + 1 : writes[-1] + 3] == ["flush", "update"]
    assert set(events[writes[-1] + 3 :]) == {f"unlock {name_of(11)}", f"unlock {name_of(12)}"}


def test_what_is_shown(machine: Machine, gpt: Saved) -> None:
    with machine.plan(gpt.image, "disk1") as planned:
        assert planned.overwrites
        assert planned.before is not None
        shown = "\n".join(lines(planned.before))
    assert "Target Disk" in shown
    assert "MODEL-SERIAL-7" in shown
    assert "usb" in shown
    assert "GPT, 2 partition(s)" in shown
    assert "shown as X:" in shown
    assert "shown as Y:" in shown


# --- Names ---


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("disk1", DISK),
        ("DISK0", r"\\.\PhysicalDrive0"),
        (r"\\.\PhysicalDrive1", DISK),
        (r"\\?\physicaldrive1", DISK),
        ("X:", name_of(11)[:-1]),
        ("y:\\", name_of(12)[:-1]),
        (r"\\.\X:", name_of(11)[:-1]),
        (name_of(12), name_of(12)[:-1]),
        ("./disk1", None),
        ("disk1.raw", None),
        ("disk", None),
        ("X:\\image.raw", None),
    ],
)
def test_names(machine: Machine, text: str, meant: str | None) -> None:
    found = windows_disks.target_path(machine.windows, text)
    assert found == (None if meant is None else Path(meant))
    if found is not None:
        assert windows_disks.find_device(machine.windows, found) is not None


@pytest.mark.parametrize("text", ["disk7", r"\\.\PhysicalDrive7", "Q:"])
def test_names_of_what_is_not_there(machine: Machine, text: str) -> None:
    with pytest.raises(UsageError, match=r"no such disk|no volume"):
        windows_disks.target_path(machine.windows, text)


@pytest.mark.parametrize("text", ["disk1", "Disk1/p2", r"disk1\p2"])
def test_what_may_be_a_file_is_not_overwritten_as_a_disk(
    machine: Machine, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(machine.folder)
    Path("disk1").touch()
    with pytest.raises(UsageError, match="file") as caught:
        windows_disks.target_path(machine.windows, text)
    assert f"./{text}" in caught.value.hint


# --- Volumes ---


def place_of(machine: Machine, number: int) -> slice:
    """Return where the old volumes of the target lie."""
    (volume,) = [one for one in machine.windows.all_volumes if one.name == name_of(number)]
    ((_, offset, size),) = volume.extents
    return slice(offset, offset + size)


@pytest.mark.parametrize("by", ["Y:", "number"])
def test_a_volume(noisy_machine: Machine, gpt: Saved, by: str) -> None:
    part = min(gpt.disk.partitions, key=lambda one: one.size)
    place = place_of(noisy_machine, 12)
    assert part.size <= place.stop - place.start
    before = bytes_of(noisy_machine.target)
    options = RestoreOptions(partition=part.number, to_partition=2 if by == "number" else None, verify=True)
    report = noisy_machine.restore(gpt.image, "disk1" if by == "number" else by, options)
    assert report.verified
    after = bytes_of(noisy_machine.target)
    assert np.array_equal(after[: place.start], before[: place.start])
    assert np.array_equal(after[place.stop :], before[place.stop :])
    wanted = bytes_of(gpt.disk.path)[part.offset : part.offset + part.size]
    found = after[place.start : place.start + part.size]
    assert np.array_equal(found[found != 0], wanted[found != 0])  # what is free in it became zeros
    writes = [event for event in noisy_machine.windows.events if event.startswith("write")]
    assert writes[0].startswith(f"write {place.start}+")
    assert writes[-1].startswith(f"write {place.start}+")
    assert not [event for event in noisy_machine.windows.events if "layout" in event or name_of(11) in event]
    noisy_machine.windows.assert_let_go()


def test_a_partition_that_is_not_there(machine: Machine, gpt: Saved) -> None:
    with pytest.raises(UsageError, match="has no partition 9; there are: 1, 2"):
        machine.restore(gpt.image, "disk1", RestoreOptions(partition=1, to_partition=9))


def test_a_partition_without_a_volume(machine: Machine, gpt: Saved) -> None:
    machine.windows.all_volumes = [one for one in machine.windows.all_volumes if one.name != name_of(12)]
    with pytest.raises(RefusedError, match="no volume for partition 2"):
        machine.restore(gpt.image, "disk1", RestoreOptions(partition=1, to_partition=2))


# --- Refused ---


def refused(
    machine: Machine, image: Path, match: str, target: str = "disk1", partition: int | None = None
) -> RefusedError:
    """Check that a restore is refused, and that nothing happened."""
    with pytest.raises(RefusedError, match=match) as caught:
        machine.restore(image, target, RestoreOptions(partition=partition))
    assert digest(machine.target) == machine.old
    assert not [event for event in machine.windows.events if not event.startswith(("lock", "unlock"))]
    machine.windows.assert_let_go()
    assert caught.value.hint
    assert caught.value.exit_code == 6
    return caught.value


def test_one_that_is_in_use(machine: Machine, gpt: Saved) -> None:
    machine.windows.all_volumes[-1].in_use = True
    error = refused(machine, gpt.image, "Y: is in use, and can't be locked")
    assert "close the programs" in error.hint
    assert 1 < len(machine.waits) < 50
    assert sum(machine.waits) <= 30  # seconds


def test_a_lock_is_tried_again(machine: Machine, gpt: Saved) -> None:
    machine.windows.refused_locks = 3
    machine.restore(gpt.image)
    assert len(machine.waits) == 3
    check_same(machine.target, gpt.disk, tables=False)


def test_no_administrator(machine: Machine, gpt: Saved) -> None:
    machine.windows.is_admin = False
    machine.windows.is_administrator = lambda: False  # type: ignore[method-assign]
    assert "administrator" in refused(machine, gpt.image, "can't be written by this user").hint


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        (Needed("X:\\Windows", "Windows runs from it"), r"Windows runs from it \(X:\)"),
        (Needed("Y:\\pagefile.sys", "it has a page file"), r"it has a page file \(Y:\)"),
        (Needed("\\Device\\HarddiskVolume3", "Windows starts from it"), r"Windows starts from it \(X:\)"),
        (Needed("Q:\\lost", "this program runs from it"), "can't tell what Windows needs"),
    ],
)
def test_what_windows_needs(machine: Machine, gpt: Saved, needed: Needed, said: str) -> None:
    machine.needed = [WINDOWS, needed]
    refused(machine, gpt.image, said)
    if "Y:" in said:
        refused(machine, gpt.image, said, "Y:", partition=1)


def test_what_is_needed_elsewhere_hinders_nothing(machine: Machine, gpt: Saved) -> None:
    machine.windows.remote = {"Z:\\"}
    machine.needed = [
        WINDOWS,
        Needed("Z:\\python", "on the network"),
        Needed(r"\\server\share", "so is this"),
    ]
    machine.restore(gpt.image)
    check_same(machine.target, gpt.disk, tables=False)


def test_the_disk_of_windows(machine: Machine, gpt: Saved) -> None:
    before = digest(machine.system)
    machine.windows.places, machine.windows.remote = {}, {"/t\\"}  # the set is on the network
    for target in ("disk0", "C:"):
        refused(machine, gpt.image, "Windows runs from it", target, 1 if ":" in target else None)
    machine.needed.append(Needed("\\Device\\HarddiskVolume1", "Windows starts from it"))
    refused(machine, gpt.image, "Windows starts from it", name_of(1), partition=1)
    assert digest(machine.system) == before


@pytest.mark.parametrize("target", ["disk1", "Y:"])
def test_the_set_lies_on_it(machine: Machine, gpt: Saved, target: str) -> None:
    machine.windows.places = {str(gpt.image.parent): "Y:\\", "/": "C:\\"}
    refused(machine, gpt.image, "lies on it", target, 1 if target == "Y:" else None)


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (DISK, DISK, "is the source itself"),
        (name_of(11)[:-1], name_of(11)[:-1], "is the source itself"),
        (name_of(11)[:-1], DISK, "lies on it"),
        (DISK, name_of(11)[:-1], "lies on the source"),
    ],
)
def test_a_clone_onto_its_source(machine: Machine, source: str, target: str, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        windows_guard.refuse_unsafe_device(
            machine.windows, Path(target), protected=[Path(source)], needed=[WINDOWS]
        )
    windows_guard.refuse_unsafe_device(
        machine.windows, Path(target), protected=[Path(r"\\.\PhysicalDrive0")], needed=[WINDOWS]
    )


def test_a_file_on_the_source(machine: Machine) -> None:
    folder = machine.folder  # which is on C:
    for source in (r"\\.\PhysicalDrive0", name_of(2)[:-1]):
        with pytest.raises(RefusedError, match="lies on the source"):
            windows_guard.refuse_on_source(machine.windows, folder / "new", folder, [Path(source)])
    windows_guard.refuse_on_source(machine.windows, folder / "new", folder, [Path(DISK), folder])


def test_a_file_on_a_source_that_is_written_in_capitals(machine: Machine) -> None:
    letters = "{abcdef00-0000-0000-0000-000000000001}"
    (there,) = [one for one in machine.windows.all_volumes if one.roots == ("C:\\",)]
    there.name = rf"\\?\Volume{letters}" + "\\"
    folder = machine.folder
    with pytest.raises(RefusedError, match="lies on the source"):
        source = Path(rf"\\?\VOLUME{letters.upper()}")
        windows_guard.refuse_on_source(machine.windows, folder / "new", folder, [source])


@pytest.mark.parametrize(
    ("source", "is_refused"),
    [
        (r"\\?\Q:\set.mrimgx", True),
        (r"\\?\T:\set.mrimgx", False),
        (r"\\?\unc\server\share\set.mrimgx", False),
        (r"\\server\share\set.mrimgx", False),
    ],
)
def test_a_source_of_which_it_is_not_known_where_it_lies(
    machine: Machine, source: str, is_refused: bool
) -> None:
    machine.windows.places, machine.windows.remote = {"C:": "C:\\"}, {"T:\\"}

    def look() -> None:
        guard = windows_guard.refuse_unsafe_device
        guard(machine.windows, Path(DISK), protected=[Path(source)], needed=[WINDOWS])

    if is_refused:
        with pytest.raises(RefusedError, match="can't tell where the source lies"):
            look()
    else:
        look()


def test_read_only_disks(machine: Machine, gpt: Saved) -> None:
    machine.windows.attributes[1] = 2  # DISK_ATTRIBUTE_READ_ONLY
    assert "diskpart" in refused(machine, gpt.image, "is set read-only").hint
    machine.windows.attributes.clear()
    machine.windows.write_protected = {1}
    refused(machine, gpt.image, "write-protected")
    machine.windows.disks[1].removable = True  # then it has no attributes
    refused(machine, gpt.image, "write-protected")


def test_no_medium(machine: Machine, gpt: Saved) -> None:
    machine.windows.disks[1].path = None
    machine.windows.all_volumes = [one for one in machine.windows.all_volumes if one.extents[0][0] == 0]
    refused(machine, gpt.image, "can't be written: no medium")


def test_a_volume_of_two_disks(machine: Machine, gpt: Saved) -> None:
    machine.windows.all_volumes.append(Target(name_of(99), ("S:\\",), ((0, MIB, MIB), (1, MIB, MIB)), "NTFS"))
    refused(machine, gpt.image, "S: lies on it, and on other disks as well")


def test_a_disk_of_a_pool(tmp_path: Path, gpt: Saved) -> None:
    machine = Machine(tmp_path, gpt.disk.size, is_noisy=False)
    pool = "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D"
    run("sfdisk", "--quiet", "--no-tell-kernel", "--part-type", machine.target, "2", pool)
    machine.old = digest(machine.target)
    refused(machine, gpt.image, "its partition 2 belongs to a storage pool")


def test_too_small(tmp_path: Path, gpt: Saved) -> None:
    machine = Machine(tmp_path, gpt.disk.size - 4 * MIB, is_noisy=False)
    refused(machine, gpt.image, "too small")


def test_a_locked_volume_of_bitlocker(machine: Machine, gpt: Saved) -> None:
    machine.windows.all_volumes[-1].problems["GetVolumeInformationW"] = 0x80310000
    refused(machine, gpt.image, "locked by BitLocker", "Y:", partition=1)
    machine.restore(gpt.image)  # its whole disk can be overwritten
    check_same(machine.target, gpt.disk, tables=False)


# --- Ids ---


def test_an_id_that_another_disk_has(machine: Machine, gpt: Saved, tmp_path: Path) -> None:
    machine.windows.disks[4] = Disk(gpt.disk.path)
    with machine.plan(gpt.image, "disk1") as planned:
        assert any("PhysicalDrive4" in line and "offline" in line for line in planned.warnings)
    with machine.plan(gpt.image, "disk1", RestoreOptions(new_ids=True)) as planned:
        assert not [line for line in planned.warnings if "offline" in line]


def test_no_other_disk_has_its_id(machine: Machine, gpt: Saved) -> None:
    with machine.plan(gpt.image, "disk1") as planned:
        assert not [line for line in planned.warnings if "offline" in line]


# --- Interrupted ---


def test_each_call_fails_in_turn(tmp_path: Path) -> None:
    """However far it came: no table unless all of it is there, all let go, and --delta finishes it."""
    disk = noise_disk(tmp_path / "source", (MIB, MIB))
    image = backup(disk.path, tmp_path / "set").path

    def contents(path: Path) -> list[bytes]:
        data = path.read_bytes()
        return [data[part.offset : part.offset + part.size] for part in disk.built.partitions]

    size = 10 * MIB
    one = Machine(tmp_path / "0", size, is_noisy=False)
    one.restore(image)
    total = one.windows.calls
    left = {"untouched": 0, "without a table": 0, "whole": 0}
    for number in sorted({*range(1, total, 3), *range(total - 6, total + 1)}):
        one = Machine(tmp_path / str(number), size, is_noisy=False)
        one.windows.fail_at = number
        with suppress(RefusedError, TargetWriteError):
            one.restore(image)
        one.windows.assert_let_go()
        if digest(one.target) == one.old:
            left["untouched"] += 1
        elif "gpt" in signatures(one.target):
            assert contents(one.target) == disk.contents(), number
            left["whole"] += 1
        else:
            left["without a table"] += 1
        if number % 4 == 0:
            one.windows.fail_at = None
            one.restore(image, options=RestoreOptions(delta=True))
            assert contents(one.target) == disk.contents()
            check_tables(one.target, "gpt")
    assert min(left.values()) > 0, left


def test_one_that_is_pulled_out(machine: Machine, gpt: Saved) -> None:
    with machine.plan(gpt.image, "disk1") as planned:
        machine.windows.fail_at = machine.windows.calls + 40
        with pytest.raises(TargetWriteError) as caught:
            planned.run()
    assert "--delta" in caught.value.hint
    assert signatures(machine.target) == set()
    machine.windows.assert_let_go()


def test_one_that_becomes_write_protected(machine: Machine, gpt: Saved) -> None:
    with machine.plan(gpt.image, "disk1") as planned:
        machine.windows.write_protected = {1}
        with pytest.raises(TargetWriteError) as caught:
            planned.run()
    assert "write-protected" in caught.value.hint


def test_one_that_is_another_meanwhile(machine: Machine, gpt: Saved) -> None:
    with machine.plan(gpt.image, "disk1") as planned:
        with machine.target.open("r+b") as stream:
            stream.truncate(gpt.disk.size + MIB)
        with pytest.raises(RefusedError, match="no more the device"):
            planned.run()
    machine.windows.assert_let_go()


def test_a_name_that_pathlib_ends_with_a_backslash(machine: Machine) -> None:
    """So it does on Windows, where the name is that of a share; CreateFile would open a folder by it."""
    with open_target(machine.windows, Path(DISK + "\\")) as target:
        assert target.size == machine.target.stat().st_size
    machine.windows.assert_let_go()
