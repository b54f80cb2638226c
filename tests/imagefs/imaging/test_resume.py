"""When an unfinished backup can be gone on with, and why not."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fixtures.disks import ext_disk
from fixtures.partition_tables import MIB
from formats.blockreader import ZeroReader
from formats.errors import PasswordError
from imagefs.errors import ImagingError, RefusedError, UsageError
from imagefs.imaging import backup, discard, resume
from imagefs.imaging.options import BackupReport, Listener
from imagefs.imaging.tasks import BlockArray, plan_tasks
from tests.conftest import run_imagefs
from tests.imagefs.imaging.sources_of_noise import (
    PASSWORD,
    NoiseDisk,
    files_of,
    noise_disk,
    restored,
    unfinished_in,
)
from tests.imagefs.imaging.stopping import QUICK, change_json, state_of, stopped, stopped_again

SIZES = (6 * MIB + 4096, MIB)


@pytest.fixture
def disk(tmp_path: Path) -> NoiseDisk:
    return noise_disk(tmp_path / "source", SIZES)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def check(report: BackupReport, disk: NoiseDisk, password: str | None = None) -> None:
    """Check that an image is what the source is, and that nothing is left of its making."""
    folder = report.path.parent
    assert restored(folder, report.image_id, report.file_number, disk, password) == disk.contents()
    assert not unfinished_in(folder)
    assert not list(folder.glob("*.lock"))


@pytest.mark.parametrize("password", [None, PASSWORD])
@pytest.mark.parametrize("split", [0, MIB])
def test_goes_on_several_times(disk: NoiseDisk, target: Path, password: str | None, split: int) -> None:
    options = dataclasses.replace(QUICK, split=split, name="mine", comment="kept")
    left = stopped(disk, target, options, password=password)
    before = state_of(left)
    assert before["next"] > [0, 0]
    assert not list(target.glob("*.mrimgx"))
    report = resume(left, password=password)
    check(report, disk, password)
    assert report.blocks_written == sum(-(-size // 65536) for size in SIZES)
    assert all("-mine-" in path.name for path in report.paths)
    assert (len(report.paths) > 1) == bool(split)


def test_a_set_is_gone_on_with(disk: NoiseDisk, target: Path) -> None:
    full = backup(disk.path, target, QUICK)
    before, kept = disk.contents(), files_of(target)
    disk.overwrite(0, 10_000, 4 * MIB, seed=5)
    left = stopped(disk, target)
    assert files_of(target) == kept
    report = resume(target)
    assert (report.role, report.image_id) == ("inc", full.image_id)
    check(report, disk)
    assert restored(target, full.image_id, 0, disk) == before
    assert not left.exists()


def test_a_change_of_what_was_read_is_refused(disk: NoiseDisk, target: Path) -> None:
    left = stopped(disk, target, at=2 * MIB)
    block = state_of(left)["next"][1]
    disk.overwrite(0, block * 65536 - 1, 1, seed=6)
    with pytest.raises(
        RefusedError, match=rf"partition 1 .*block {block - 1} \({(block - 1) * 65536}\+65536"
    ):
        resume(target)
    assert left.exists()
    assert discard(target) == left
    assert not list(target.iterdir())


def test_a_change_of_what_was_not_read_is_taken(disk: NoiseDisk, target: Path) -> None:
    left = stopped(disk, target, at=2 * MIB)
    array, block = state_of(left)["next"]
    assert array == 0
    disk.overwrite(0, block * 65536, 100_000, seed=7)
    disk.overwrite(1, 0, 100_000, seed=8)
    check(resume(target), disk)


def test_other_partitions_are_refused(disk: NoiseDisk, target: Path, tmp_path: Path) -> None:
    left = stopped(disk, target)
    other = noise_disk(tmp_path / "other", (6 * MIB, MIB))
    other.path.replace(disk.path)
    with pytest.raises(RefusedError, match="partitions are no longer"):
        resume(target)
    assert left.exists()


def test_a_source_that_is_gone(disk: NoiseDisk, target: Path) -> None:
    left = stopped(disk, target)
    disk.path.rename(disk.path.with_name("elsewhere"))
    with pytest.raises(UsageError, match="no such file"):
        resume(target)
    assert left.exists()


def test_passwords(disk: NoiseDisk, target: Path) -> None:
    stopped(disk, target, password=PASSWORD)
    with pytest.raises(PasswordError, match="encrypted"):
        resume(target)
    with pytest.raises(PasswordError, match="wrong"):
        resume(target, password="not it")
    done = run_imagefs("backup", "--resume", target, password="not it")
    assert done.code == 5
    assert "--resume" in done.errors
    check(resume(target, password=PASSWORD), disk, PASSWORD)


def test_no_password_is_kept(disk: NoiseDisk, target: Path) -> None:
    left = stopped(disk, target, password=PASSWORD)
    assert PASSWORD not in (left / "job.json").read_text() + (left / "state.json").read_text()


def damage_data(left: Path) -> None:
    with (left / "data-0").open("r+b") as stream:
        stream.truncate(100_000)


def damage_first_part(left: Path) -> None:
    assert (left / "data-1").exists()
    damage_data(left)


def drop_data(left: Path) -> None:
    (left / "data-0").unlink()


def damage_elements(left: Path) -> None:
    with (left / "elements").open("r+b") as stream:
        stream.truncate(34 * 15)


def drop_elements(left: Path) -> None:
    (left / "elements").unlink()


def break_state(left: Path) -> None:
    (left / "state.json").write_text('{"version": 1, "next": [0')


def other_version(left: Path) -> None:
    change_json(left / "state.json", version=2)


def no_lengths(left: Path) -> None:
    change_json(left / "state.json", lengths=None)


def break_job(left: Path) -> None:
    (left / "job.json").write_bytes(b"")


def no_list(left: Path) -> None:
    (left / "job.json").write_text("[]")


def no_options(left: Path) -> None:
    change_json(left / "job.json", options={"type": "none such"})


def no_numbers(left: Path) -> None:
    change_json(left / "job.json", disk_numbers=None)


DAMAGE = (
    damage_data, damage_first_part, drop_data, damage_elements, drop_elements, break_state, other_version,
    no_lengths, break_job, no_list, no_options, no_numbers,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_refused_and_can_be_dropped(disk: NoiseDisk, target: Path, damage: object) -> None:
    split = MIB if damage is damage_first_part else 0
    left = stopped(disk, target, dataclasses.replace(QUICK, split=split), at=3 * MIB)
    assert callable(damage)
    damage(left)
    with pytest.raises(RefusedError, match="--discard") as caught:
        resume(target)
    assert caught.value.exit_code == 6
    assert discard(left) == left
    assert not list(target.iterdir())


def test_a_set_that_grew_meanwhile_is_refused(disk: NoiseDisk, target: Path) -> None:
    backup(disk.path, target, QUICK)
    left = stopped(disk, target)
    away = left.rename(target.parent / left.name)
    backup(disk.path, target, QUICK)
    away.rename(left)
    kept = files_of(target)
    with pytest.raises(RefusedError, match="has got files meanwhile"):
        resume(target)
    assert files_of(target) == kept
    discard(target)
    assert files_of(target) == kept


def test_several_unfinished_are_told(disk: NoiseDisk, target: Path, tmp_path: Path) -> None:
    first = stopped(disk, target)
    other = noise_disk(tmp_path / "other", (2 * MIB,), seed=40)
    second = stopped(other, target)
    with pytest.raises(UsageError, match="several") as caught:
        resume(target)
    assert first.name in str(caught.value) and second.name in str(caught.value)
    with pytest.raises(UsageError, match="several"):
        discard(target)
    report = resume(second)
    assert restored(target, report.image_id, 0, other) == other.contents()
    check(resume(target), disk)


def test_nothing_unfinished(tmp_path: Path) -> None:
    foreign = tmp_path / "letters.unfinished"
    foreign.mkdir()
    (foreign / "state.json").touch()
    for path in (tmp_path, foreign, tmp_path / "missing"):
        with pytest.raises(UsageError, match="no unfinished backup"):
            resume(path)
        with pytest.raises(UsageError, match="no unfinished backup"):
            discard(path)
    assert foreign.exists()


def test_backup_beside_an_unfinished_one(disk: NoiseDisk, target: Path, tmp_path: Path) -> None:
    left = stopped(disk, target)
    done = run_imagefs("backup", disk.path, target)
    assert done.code == 6
    assert "--resume" in done.errors and "--discard" in done.errors and str(left) in done.errors
    other = noise_disk(tmp_path / "other", (2 * MIB,), seed=40)
    report = backup(other.path, target, QUICK)
    assert restored(target, report.image_id, 0, other) == other.contents()
    assert left.exists()
    check(resume(target), disk)


def test_what_an_interrupted_start_left_is_swept(disk: NoiseDisk, target: Path) -> None:
    left = stopped(disk, target)
    (left / "state.json").unlink()
    foreign = target / "letters.unfinished"
    foreign.mkdir()
    report = backup(disk.path, target, QUICK)
    assert unfinished_in(target) == [foreign]
    assert restored(target, report.image_id, 0, disk) == disk.contents()


@pytest.mark.parametrize("how", ["resume", "backup", "discard"])
@pytest.mark.parametrize("moved", [0, 1, 2])
def test_complete_but_not_renamed(disk: NoiseDisk, target: Path, how: str, moved: int) -> None:
    """A split's parts, some of which have their names: completed, or taken back as a whole."""
    full = backup(disk.path, target, QUICK)
    kept = files_of(target)
    disk.overwrite(0, 0, 3 * MIB, seed=12)
    report = backup(disk.path, target, dataclasses.replace(QUICK, split=MIB))
    count = len(report.paths)
    assert count > 3
    left = target / f"{full.image_id}-01-01.unfinished"
    left.mkdir()
    moves = [(f"data-{part}", path.name) for part, path in enumerate(report.paths)]
    for here, there in moves[moved:]:
        (target / there).rename(left / here)
    if moved == 1:  # linked, but not yet gone from here
        (left / moves[0][0]).hardlink_to(target / moves[0][1])
    write_job(left, disk, full.image_id, moves)
    if how == "discard":
        discard(target)
        assert files_of(target) == kept
        return
    heard: list[str] = []
    if how == "resume":
        assert resume(target).paths == report.paths
    else:
        again = backup(disk.path, target, QUICK, listener=Listener(say=heard.append))
        assert again.file_number == report.file_number + 1
        assert any("completed" in line for line in heard)
    check(report, disk)


def test_complete_and_renamed_but_its_folder_is_there(disk: NoiseDisk, target: Path) -> None:
    report = backup(disk.path, target, QUICK)
    kept = files_of(target)
    for end in (resume, discard):
        left = target / f"{report.image_id}-00-00.unfinished"
        left.mkdir()
        write_job(left, disk, report.image_id, [("data-0", report.path.name)])
        end(target)
        assert files_of(target) == kept
        assert not unfinished_in(target)


def write_job(left: Path, disk: NoiseDisk, image_id: str, moves: list[tuple[str, str]]) -> None:
    job = {
        "version": 1, "source": str(disk.path), "image_id": image_id, "file_number": 1, "increment": 1,
        "role": "inc", "created": 0, "set_created": 0, "guid": "", "name": "", "compression": "medium",
        "encryption": None, "parent": 0, "disk_numbers": [0], "options": QUICK.document(), "fingerprint": "",
    }  # fmt: skip
    (left / "job.json").write_text(json.dumps(job))
    state = {"version": 1, "lengths": [0], "elements": [], "next": [0, 0], "unreadable": [], "counts": {}}
    (left / "state.json").write_text(json.dumps(state | {"moves": moves}))


def test_missing_parts_are_told(disk: NoiseDisk, target: Path) -> None:
    left = stopped(disk, target)
    change_json(left / "state.json", moves=[["data-7", "not there"]])
    with pytest.raises(ImagingError, match="data-7 of an unfinished backup is missing"):
        resume(target)


def test_many_interruptions_of_a_disk_with_holes(tmp_path: Path) -> None:
    """Each run's tasks begin elsewhere than those of the runs before it."""
    built = ext_disk(tmp_path, size=48 * MIB, big=6 * MIB, many=300)
    whole = backup(built.path, tmp_path / "whole", QUICK)
    target = tmp_path / "target"
    left = stopped(NoiseDisk(built), target)
    stops = 1
    while stopped_again(left, 2):
        stops += 1
    assert stops > 3
    (path,) = target.iterdir()
    numbered = path.name.split("-")[0]
    assert restored(target, numbered, 0, NoiseDisk(built)) == restored(
        tmp_path / "whole", whole.image_id, 0, NoiseDisk(built)
    )


def test_tasks_up_to_a_place_hold_what_is_used_before_it() -> None:
    chance = random.Random(31)
    for _ in range(30):
        count = chance.randrange(1, 3000)
        states = np.array([chance.random() < 0.3 for _ in range(count)])
        array = BlockArray(
            "", (0, 0), False, 0, 1, ZeroReader(count * 512), 0, count * 512, 512, runs_of(states)
        )
        stop = chance.randrange(count + 1)
        begin = chance.randrange(stop + 1)
        found = [
            block
            for task in plan_tasks([array, array], (0, begin), (0, stop))
            for first, length in task.runs
            for block in range(first, first + length)
        ]
        assert found == (np.flatnonzero(states[begin:stop]) + begin).tolist()


def runs_of(states: npt.NDArray[np.bool_]) -> Callable[[int, int], npt.NDArray[np.int64]]:
    """Return what tells the used bytes of blocks of 512 bytes."""

    def runs(offset: int, length: int) -> npt.NDArray[np.int64]:
        first, end = offset // 512, (offset + length) // 512
        edges = np.flatnonzero(np.diff(np.concatenate([[False], states[first:end], [False]]).astype(np.int8)))
        return ((edges + first) * 512).reshape(-1, 2).astype(np.int64)

    return runs
