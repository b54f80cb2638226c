"""The power fails: what was synced is enough to go on, and nothing else is taken for an image."""

import dataclasses
import random
import shutil
from pathlib import Path

import pytest

from fixtures.partition_tables import MIB
from imagefs.imaging import backup, resume
from imagefs.imaging.options import BackupOptions
from tests.fixtures import plain_reader
from tests.imagefs.imaging.faulty_fs import faulty, logged
from tests.imagefs.imaging.power import PoweredDisk
from tests.imagefs.imaging.sources_of_noise import (
    PASSWORD,
    files_of,
    noise_disk,
    restored,
    unfinished_in,
)
from tests.imagefs.imaging.stopping import QUICK

MOMENTS = 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inc", "full encrypted split"])
def test_power_loss(tmp_path: Path, kind: str) -> None:
    is_inc = "inc" in kind
    password = PASSWORD if "encrypted" in kind else None
    options = dataclasses.replace(QUICK, checkpoint_seconds=0.0, split=MIB if "split" in kind else 0)
    disk = noise_disk(tmp_path / "source", (2 * MIB + 4096, MIB))
    base = tmp_path / "base"
    old = backup(disk.path, base / "set", BackupOptions(key_iterations=1000))
    before = disk.contents()
    disk.overwrite(0, 30_000, 2 * MIB - 30_000, seed=3)
    backing, log = shutil.copytree(base, tmp_path / "backing"), tmp_path / "log"
    options = dataclasses.replace(options, type="inc" if is_inc else "full")
    with faulty(backing, tmp_path / "mnt", log=log) as mounted:
        whole = backup(disk.path, mounted / "set", options, password=password)
    operations = logged(log)
    chance = random.Random(kind)
    turns = [at for at, operation in enumerate(operations) if operation[0] != "write"]
    moments = chance.sample(turns, MOMENTS // 2) + chance.sample(range(len(operations)), MOMENTS // 2)
    powered = PoweredDisk(base)
    published = gone_on = 0
    for at, operation in enumerate([*operations, None]):
        if at in moments or operation is None:
            left = tmp_path / f"left-{at}"
            powered.fail(chance, left)
            folder = left / "set"
            published += check_published(folder, whole.image_id, whole.file_number, disk.contents(), password)
            if any((path / "state.json").exists() for path in unfinished_in(folder)):
                report = resume(folder, password=password)
                gone_on += 1
            elif operation is None or is_published(folder, whole.image_id, whole.file_number):
                report = whole
            else:
                report = backup(disk.path, folder, options, password=password)
            found = restored(folder, report.image_id, report.file_number, disk, password)
            assert found == disk.contents(), at
            assert restored(folder, old.image_id, 0, disk) == before
            kept = files_of(base / "set")
            assert {name: (folder / name).read_bytes() for name in kept} == kept
            shutil.rmtree(left)
        if operation is not None:
            powered.do(operation)
    assert published and gone_on > MOMENTS // 3


def is_published(folder: Path, image_id: str, number: int) -> bool:
    return any(folder.glob(f"{image_id}*-{number:02}.mrimgx"))


def check_published(
    folder: Path, image_id: str, number: int, wanted: list[bytes], password: str | None
) -> bool:
    """Check that an image that has its name is whole; tell whether there is one."""
    if not is_published(folder, image_id, number):
        return False
    alone = folder.parent / "alone"
    alone.mkdir()
    for path in folder.glob(f"{image_id}*.mrimgx"):
        shutil.copy(path, alone)
    data = plain_reader.restore(alone, number, password=password)
    shutil.rmtree(alone)
    assert all(part in data for part in wanted)
    return True
