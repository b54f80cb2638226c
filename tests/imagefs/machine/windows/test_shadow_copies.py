"""Shadow copies: made as a set, removed whatever happens, found again, never somebody else's."""

import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from formats.blockreader import BlockReader, FileReader
from imagefs.errors import SnapshotError, SourceReadError
from imagefs.machine.windows import shadow_copies, shadow_records
from imagefs.machine.windows.shadow_copies import (
    ShadowReader,
    ShadowSet,
    remove_leftovers,
    take,
    take_again,
)
from imagefs.machine.windows.shadow_records import Pending, Record, Recorded
from tests.imagefs.machine.windows.wmi_model import ComError, Machine, failure

OLD, NEW = b"before the copy " * 4096, b"after it        " * 4096


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no disk: processes die here, not machines."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(shadow_records, "sync", lambda _: None)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def volumes(machine: Machine) -> dict[str, str]:
    return {machine.add_volume(OLD): "C:", machine.add_volume(OLD): "D:"}


def records(machine: Machine) -> list[Path]:
    return sorted(machine.records_folder().iterdir())


def taken(machine: Machine, volumes: dict[str, str]) -> ShadowSet:
    return take(volumes, machine, sleep=lambda _: None)


def test_copies_hold_what_was_there_when_they_were_made(machine: Machine, volumes: dict[str, str]) -> None:
    shadows = taken(machine, volumes)
    for volume in volumes:
        machine.file_of(volume).write_bytes(NEW)
    for volume, name in volumes.items():
        copy = shadows.of(volume)
        assert copy.name == name
        assert not copy.device.endswith("\\")  # with one it would be the root folder
        with FileReader(machine.device_file(copy.device)) as lower:
            reader = ShadowReader(lower, shadows)
            assert reader.read_at(0, len(OLD)) == OLD
            buffer = memoryview(bytearray(100))
            reader.read_into(50, buffer)
            assert bytes(buffer) == OLD[50:150]
    shadows.check()
    shadows.close()
    assert machine.shadows == []
    assert records(machine) == []


def test_all_are_made_before_anything_else_is_done(machine: Machine, volumes: dict[str, str]) -> None:
    shadows = taken(machine, volumes)
    made = [at for at, call in enumerate(machine.calls) if call == "Create"]
    assert len(made) == 2
    assert {one["VolumeName"] for one in machine.shadows} == set(volumes)
    assert any("each of its own moment" in line for line in shadows.warnings)
    assert any("as they were just then" in line for line in shadows.warnings)
    shadows.close()


# --- What Windows says ---


@pytest.mark.parametrize(
    ("code", "said"),  # "Create method of the Win32_ShadowCopy class", Return value
    [
        (1, "administrators alone"),
        (2, "name of a volume"),
        (3, "no such volume"),
        (4, "file system"),
        (5, "no persistent shadow copies"),
        (6, "too little room"),
        (7, "in use"),
        (8, "as many shadow copies as it can have"),
        (9, "another program"),
        (10, "refused"),
        (11, "not registered"),
        (12, "failed"),
        (13, "reason that it doesn't know"),
        (4711, "code 4711"),
    ],
)
def test_each_code_is_told(machine: Machine, volumes: dict[str, str], code: int, said: str) -> None:
    machine.returned = [0, *[code] * 100]
    with pytest.raises(SnapshotError, match=said) as caught:
        taken(machine, volumes)
    assert caught.value.hint
    assert caught.value.path == Path("D:")
    assert caught.value.exit_code == 7
    assert machine.shadows == []
    assert records(machine) == []


@pytest.mark.parametrize(
    ("code", "said"),  # "WMI Error Constants"; vss.h; winerror.h
    [
        (0x80041003, "administrators alone"),  # WBEM_E_ACCESS_DENIED
        (0x80070005, "administrators alone"),  # E_ACCESSDENIED
        (0x80070422, "switched off"),  # ERROR_SERVICE_DISABLED
        (0x80041010, "not there"),  # WBEM_E_INVALID_CLASS
        (0x80041013, "can't load"),  # WBEM_E_PROVIDER_LOAD_FAILURE
        (0x800706BA, "does not answer"),  # RPC_S_SERVER_UNAVAILABLE
        (0x8004230C, "file system"),  # VSS_E_VOLUME_NOT_SUPPORTED
        (0x80042313, "timed out"),  # VSS_E_FLUSH_WRITES_TIMEOUT
        (0x80042314, "timed out"),  # VSS_E_HOLD_WRITES_TIMEOUT
        (0x80042319, "did not answer"),  # VSS_E_WRITER_NOT_RESPONDING
        (0x80042317, "as many shadow copies"),  # VSS_E_MAXIMUM_NUMBER_OF_SNAPSHOTS_REACHED
        (0x8004231F, "too little room"),  # VSS_E_INSUFFICIENT_STORAGE
        (0x8000FFFF, "0x8000ffff: what it says"),  # E_UNEXPECTED
    ],
)
def test_each_failure_is_told(machine: Machine, volumes: dict[str, str], code: int, said: str) -> None:
    machine.faults = dict.fromkeys(range(1, 200), failure(code, "what it says "))
    with pytest.raises(SnapshotError, match=said) as caught:
        taken(machine, volumes)
    assert caught.value.hint
    assert machine.shadows == []


def test_an_error_that_is_not_wrapped_counts_as_well(machine: Machine, volumes: dict[str, str]) -> None:
    machine.faults = {1: ComError(0x80070005 - (1 << 32), "Access is denied.", None)}
    with pytest.raises(SnapshotError, match="administrators alone"):
        taken(machine, volumes)


def test_a_windows_without_shadow_copies(machine: Machine, volumes: dict[str, str]) -> None:
    machine.has_vss = False
    with pytest.raises(SnapshotError, match="not there"):
        taken(machine, volumes)
    assert records(machine) == []


def test_fat_has_none_and_the_others_go(machine: Machine, volumes: dict[str, str]) -> None:
    volumes |= {machine.add_volume(OLD, "FAT32"): "E:"}
    with pytest.raises(SnapshotError, match="file system") as caught:
        taken(machine, volumes)
    assert caught.value.path == Path("E:")
    assert machine.shadows == []


def test_another_program_is_waited_for_but_not_for_ever(machine: Machine, volumes: dict[str, str]) -> None:
    waits: list[float] = []
    machine.returned = [9, 9, 9]
    take(volumes, machine, sleep=waits.append).close()
    assert len(waits) == 3
    machine.returned = [9] * 100
    waits.clear()
    with pytest.raises(SnapshotError, match="another program"):
        take(volumes, machine, sleep=waits.append)
    assert 3 < len(waits) < 50
    assert sum(waits) <= 120  # seconds
    assert machine.shadows == []


def test_what_another_program_makes_meanwhile_is_not_taken_for_ours(
    machine: Machine, volumes: dict[str, str]
) -> None:
    volume = next(iter(volumes))
    machine.returned = [9] * 100
    machine.faults = dict.fromkeys(range(1, 400), lambda: machine.add_shadow(volume, accessible=False))
    with pytest.raises(SnapshotError, match="another program") as caught:
        taken(machine, volumes)
    assert not hasattr(caught.value, "__notes__")
    assert records(machine) == []


def test_the_oldest_of_somebody_else_is_not_pushed_out(machine: Machine, volumes: dict[str, str]) -> None:
    volume = next(iter(volumes))
    for _ in range(shadow_copies.MOST_ACCESSIBLE):
        machine.add_shadow(volume)
    with pytest.raises(SnapshotError, match="remove the oldest"):
        taken(machine, volumes)
    assert len(machine.shadows) == shadow_copies.MOST_ACCESSIBLE


# --- A copy that vanishes ---


class Failing(BlockReader):
    """What a device is whose shadow copy is gone: every read fails."""

    def _read(self, offset: int, length: int) -> bytes:
        raise SourceReadError("the device is gone", path=None, offset=offset, length=length)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        self._read(offset, len(buffer))


def test_a_lost_copy_is_an_error_of_its_own(machine: Machine, volumes: dict[str, str]) -> None:
    shadows = taken(machine, volumes)
    reader = ShadowReader(Failing(4096), shadows)
    with pytest.raises(SourceReadError):  # a medium that can't be read: the copies are there
        reader.read_at(0, 512)
    machine.lose(shadows.copies[1].id)
    for read in (lambda: reader.read_at(0, 512), lambda: reader.read_into(0, memoryview(bytearray(512)))):
        with pytest.raises(SnapshotError, match="gone") as caught:
            read()
        assert caught.value.path == Path("D:")
    with pytest.raises(SnapshotError, match="gone"):
        shadows.check()
    shadows.close()
    assert machine.shadows == []
    assert records(machine) == []


def test_lost_copies_are_not_kept_for_an_unfinished_backup(
    machine: Machine, volumes: dict[str, str], tmp_path: Path
) -> None:
    shadows = taken(machine, volumes)
    state = unfinished(tmp_path)
    shadows.needed_by(state)
    machine.lose(shadows.copies[0].id)
    with pytest.raises(SnapshotError):
        shadows.check()
    shadows.close()
    assert machine.shadows == []


# --- Going on ---


def unfinished(folder: Path) -> Path:
    """Return the state of an unfinished backup."""
    state = folder / "sets" / "x.unfinished" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    return state


def test_an_unfinished_backup_gets_the_same_copies_again(
    machine: Machine, volumes: dict[str, str], tmp_path: Path
) -> None:
    shadows = taken(machine, volumes)
    state = unfinished(tmp_path)
    shadows.needed_by(state)
    shadows.close()
    assert len(machine.shadows) == 2
    for volume in volumes:
        machine.file_of(volume).write_bytes(NEW)
    machine.restart()
    again = Machine(machine.root, "another")
    again.dead = {"this"}
    assert remove_leftovers(again) == []
    assert len(machine.shadows) == 2
    later = take_again(shadows.id, again)
    for volume in volumes:
        assert later.of(volume).device != shadows.of(volume).device  # its number is of this start
        assert again.device_file(later.of(volume).device).read_bytes() == OLD
    state.unlink()  # complete
    later.close()
    assert machine.shadows == []
    assert records(machine) == []


def test_copies_that_are_read_again_have_an_owner(
    machine: Machine, volumes: dict[str, str], tmp_path: Path
) -> None:
    shadows = taken(machine, volumes)
    state = unfinished(tmp_path)
    shadows.needed_by(state)
    shadows.close()
    machine.dead = {"this"}
    machine.process = "second"
    later = take_again(shadows.id, machine)
    state.unlink()  # complete, and not yet closed
    machine.process = "third"
    remove_leftovers(machine)
    assert len(machine.shadows) == 2
    later.close()
    assert machine.shadows == []


def test_copies_that_are_gone_can_not_be_gone_on_with(
    machine: Machine, volumes: dict[str, str], tmp_path: Path
) -> None:
    shadows = taken(machine, volumes)
    shadows.needed_by(unfinished(tmp_path))
    shadows.close()
    machine.lose(shadows.copies[0].id)
    with pytest.raises(SnapshotError, match="gone") as caught:
        take_again(shadows.id, machine)
    assert "--discard" in caught.value.hint
    assert machine.shadows == []
    with pytest.raises(SnapshotError, match="gone"):
        take_again(shadows.id, machine)


def test_a_discarded_backup_releases_them(machine: Machine, volumes: dict[str, str], tmp_path: Path) -> None:
    shadows = taken(machine, volumes)
    state = unfinished(tmp_path)
    shadows.needed_by(state)
    shadows.close()
    state.unlink()
    shadow_copies.release(shadows.id, machine)
    assert machine.shadows == []
    shadow_copies.release(shadows.id, machine)  # nothing is left to be done


def test_they_are_kept_while_the_folder_can_not_be_reached(
    machine: Machine, volumes: dict[str, str], tmp_path: Path
) -> None:
    shadows = taken(machine, volumes)
    state = unfinished(tmp_path)
    shadows.needed_by(state)
    shadows.close()
    machine.dead = {"this"}
    state.parents[1].rename(tmp_path / "unplugged")
    lines = remove_leftovers(machine)
    assert len(machine.shadows) == 2
    assert any("can't be reached" in line for line in lines)


@pytest.mark.parametrize("of", ["state.json", "sets"])
def test_they_are_kept_while_the_folder_can_not_be_asked(
    machine: Machine, volumes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    shadows = taken(machine, volumes)
    state = unfinished(tmp_path)
    shadows.needed_by(state)
    refused = state if of == "state.json" else state.parents[1]
    there = Path.exists

    def exists(path: Path) -> bool:
        if path == refused:
            raise OSError(22, "The user name or password is incorrect")  # ERROR_LOGON_FAILURE, of a share
        return there(path)

    monkeypatch.setattr(Path, "exists", exists)
    shadows.close()
    machine.dead = {"this"}
    remove_leftovers(machine)
    assert len(machine.shadows) == 2


@pytest.mark.parametrize("use", [take_again, shadow_copies.release])
def test_a_name_leads_to_no_other_folder(
    machine: Machine, tmp_path: Path, volumes: dict[str, str], use: Callable[[str, Machine], Any]
) -> None:
    shadow = machine.add_shadow(next(iter(volumes)))
    record = Record(tmp_path / "0011223344556677.json", machine.myself(), [Recorded(shadow, "v", "C:")])
    record.save()
    with pytest.raises(SnapshotError, match="names no shadow copies"):
        use("../../0011223344556677", machine)
    assert len(machine.shadows) == 1


# --- Whatever fails, whenever ---


def calls_of(machine: Machine, work: Callable[[], Any]) -> int:
    before = len(machine.calls)
    work()
    return len(machine.calls) - before


def whole_life(machine: Machine, volumes: dict[str, str]) -> None:
    shadows = taken(machine, volumes)
    shadows.check()
    shadows.close()


def fresh(folder: Path) -> tuple[Machine, dict[str, str], str]:
    """Return a machine with two volumes, and a shadow copy of somebody else's."""
    machine = Machine(folder)
    volumes = {machine.add_volume(OLD): "C:", machine.add_volume(OLD): "D:"}
    return machine, volumes, machine.add_shadow(next(iter(volumes)))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [failure(0x80042302), KeyboardInterrupt()])
def test_each_call_fails_in_turn_and_nothing_is_left(
    tmp_path: Path, error: BaseException, after: bool
) -> None:
    machine, volumes, others = fresh(tmp_path / "m0")
    total = calls_of(machine, lambda: whole_life(machine, volumes))
    assert total > 10
    failed = 0
    for number in range(1, total + 1):
        machine, volumes, others = fresh(tmp_path / f"m{number}")
        faults = {number: error}
        machine.faults, machine.faults_after = ({}, faults) if after else (faults, {})
        try:
            whole_life(machine, volumes)
        except (SnapshotError, KeyboardInterrupt) as caught:
            failed += 1
            told = "".join([str(caught), *getattr(caught, "__notes__", [])])
        machine.faults = machine.faults_after = {}
        left = {one["ID"] for one in machine.shadows} - {others}
        if left:  # what could not be removed then is recorded, unless its id was never told
            machine.dead = {"this"}
            lines = remove_leftovers(machine)
            left = {one["ID"] for one in machine.shadows} - {others}
            assert all(one in told and one in "".join(lines) for one in left), (number, left)
            assert not left or machine.calls[number - 1] == "Create"
        assert others in {one["ID"] for one in machine.shadows}
    assert failed


def steps(die_at: int) -> Iterator[int]:
    """Yield numbers; at ``die_at`` the process is gone."""
    number = 0
    while True:
        number += 1
        if number == die_at:
            os._exit(9)
        yield number


def run_and_die(machine: Machine, volumes: dict[str, str], die_at: int) -> int:
    """Run in a process of its own that dies at a step; returns how it ended."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        with pytest.MonkeyPatch.context() as patched:
            counted = steps(die_at)
            for owner, name in (
                (machine, "call"), (machine, "called"), (Record, "save"), (Record, "remove"),
            ):  # fmt: skip
                real = getattr(owner, name)

                def stepped(*args: Any, real: Any = real) -> Any:
                    next(counted)
                    result = real(*args)
                    next(counted)
                    return result

                patched.setattr(owner, name, stepped)
            whole_life(machine, volumes)
            code = 0
    finally:
        os._exit(code)


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_a_process_dies_at_each_step_and_the_next_start_cleans_up(tmp_path: Path) -> None:
    ended, told = 9, 0
    for step in range(1, 1000):
        machine, volumes, others = fresh(tmp_path / f"m{step}")
        ended = run_and_die(machine, volumes, step)
        if ended != 9:
            break
        next_one = Machine(machine.root, "next")
        next_one.dead = {"this"}
        lines = remove_leftovers(next_one)
        left = {one["ID"] for one in machine.shadows} - {others}
        assert others in {one["ID"] for one in machine.shadows}, step
        if left:  # made, and its process died before it was told the id: shown, and not touched
            assert len(left) == 1
            assert next(iter(left)) in "".join(lines)
            told += 1
            machine.lose(left.pop())
            assert remove_leftovers(next_one) == []
        assert records(machine) == [], step
    assert ended == 0
    assert 0 < told <= 6


def test_what_a_dying_process_may_have_left_is_told_until_it_is_gone(
    machine: Machine, volumes: dict[str, str]
) -> None:
    volume, other = volumes
    now = datetime.now(UTC)
    before = machine.add_shadow(volume, made=now - timedelta(seconds=1))
    record = Record.new(machine.records_folder(), machine.myself())
    record.pending = Pending(volume, "C:", now.isoformat(), (before,))
    record.save()
    elsewhere = machine.add_shadow(other)
    much_later = machine.add_shadow(volume, made=now + timedelta(hours=1))
    known = taken(Machine(machine.root, "living"), {volume: "C:"})
    perhaps = machine.add_shadow(volume)
    machine.dead = {"this"}
    for _ in range(2):
        (line,) = remove_leftovers(machine)
        assert perhaps in line
    assert {one["ID"] for one in machine.shadows} == {
        before, elsewhere, much_later, perhaps, known.copies[0].id
    }  # fmt: skip
    machine.lose(perhaps)
    assert remove_leftovers(machine) == []
    known.close()
    assert records(machine) == []


def test_the_copies_of_a_living_run_are_left_alone(machine: Machine, volumes: dict[str, str]) -> None:
    shadows = taken(machine, volumes)
    other = taken(Machine(machine.root, "another"), volumes)
    assert len(machine.shadows) == 4
    shadows.check()
    other.close()
    shadows.close()
    assert machine.shadows == []


def test_one_that_can_not_be_removed_is_told_and_tried_again(
    machine: Machine, volumes: dict[str, str]
) -> None:
    shadows = taken(machine, volumes)
    first = shadows.copies[0].id
    # Of the next calls connect, Get and Get again come before Delete.
    machine.faults = {len(machine.calls) + 4: failure(0x80042306)}
    with pytest.raises(SnapshotError, match="can't be removed") as caught:
        shadows.close()
    assert first in caught.value.hint
    assert [one["ID"] for one in machine.shadows] == [first]
    machine.dead = {"this"}
    assert remove_leftovers(machine) == []
    assert machine.shadows == []


def test_a_damaged_record_hinders_nothing_and_is_told(machine: Machine, volumes: dict[str, str]) -> None:
    (machine.records_folder() / "0011223344556677.json").write_text('{"copies": 3}')
    shadows = taken(machine, volumes)
    assert any("damaged" in line for line in shadows.warnings)
    shadows.close()
    assert machine.shadows == []


def test_a_record_never_makes_anything_but_a_shadow_copy_go(machine: Machine) -> None:
    record = Record.new(machine.records_folder(), machine.myself())
    record.copies = [Recorded("x' or ID like '%", "v", "C:")]
    record.save()
    machine.dead = {"this"}
    lines = remove_leftovers(machine)
    assert "no shadow copy's id" in lines[0]
    assert "Delete" not in machine.calls
