"""Snapshots that an unfinished backup keeps: read again, and let go when it is unfinished no more."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB
from formats.blockreader import FileReader
from imagefs.errors import SnapshotError
from imagefs.imaging import backup, discard, job, resume, sources
from imagefs.imaging.options import BackupOptions, Listener
from imagefs.imaging.source_disk import OpenedDevice, Wanted, make_disk
from imagefs.imaging.unfinished import Unfinished
from imagefs.machine.identity import UNKNOWN
from imagefs.machine.windows import shadow_copies
from imagefs.machine.windows.shadow_copies import ShadowReader, ShadowSet
from tests.imagefs.imaging.sources_of_noise import NoiseDisk, noise_disk, restored, unfinished_in
from tests.imagefs.imaging.stopping import QUICK, stopped, stopped_again
from tests.imagefs.machine.windows.wmi_model import Machine


class Volume:
    """A volume in use, in a model of Windows, as a source."""

    def __init__(self, machine: Machine, disk: NoiseDisk) -> None:
        self.machine = machine
        self.disk = disk
        self.name = machine.add_volume(disk.path.read_bytes())
        self.taken: list[ShadowSet] = []

    def open(self, wanted: Wanted, owned: ExitStack) -> OpenedDevice:
        shadows = shadow_copies.obtain({self.name: "C:"}, wanted.snapshots, self.machine)
        owned.callback(shadows.close)
        self.taken.append(shadows)
        reader = FileReader(self.machine.device_file(shadows.of(self.name).device))
        owned.callback(reader.close)
        disk = make_disk(wanted, "C:", 0, ShadowReader(reader, shadows), (512, 512), UNKNOWN)
        return OpenedDevice("disk", disk, shadows.warnings, [shadows.check], shadows)

    def write(self, offset: int, length: int, seed: int) -> None:
        """Change the volume while it is read."""
        with self.machine.file_of(self.name).open("r+b") as stream:
            stream.seek(offset)
            stream.write(noise(seed, offset, length))

    def is_let_go(self) -> bool:
        return not self.machine.shadows and not list(self.machine.records_folder().iterdir())


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    machine = Machine(tmp_path / "machine")
    volume = Volume(machine, noise_disk(tmp_path / "source", (6 * MIB + 4096, MIB)))

    def drop(name: str) -> None:
        shadow_copies.release(name, machine)

    with (
        patch.object(sources, "open_device", volume.open),
        patch.object(sources, "is_device", lambda path: path == volume.disk.path),
        patch.object(job, "drop_snapshots", drop),
    ):
        yield volume


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def test_the_image_is_of_the_moment_of_the_copy(volume: Volume, target: Path) -> None:
    changed = False

    def progress(_: object) -> None:
        nonlocal changed
        if not changed:  # in front of what is read, and behind it
            changed = True
            for part in volume.disk.built.partitions:
                volume.write(part.offset, part.size, seed=77)

    lines: list[str] = []
    report = backup(volume.disk.path, target, QUICK, listener=Listener(progress, lines.append))
    assert changed
    assert volume.machine.file_of(volume.name).read_bytes() != volume.disk.path.read_bytes()
    assert restored(target, report.image_id, 0, volume.disk) == volume.disk.contents()
    assert any("shadow copies" in line for line in lines)
    assert volume.is_let_go()


def test_going_on_reads_the_same_copies(volume: Volume, target: Path) -> None:
    left = stopped(volume.disk, target)
    assert len(volume.machine.shadows) == 1
    for part in volume.disk.built.partitions:
        volume.write(part.offset, part.size, seed=77)
    volume.machine.restart()
    volume.machine.process = "second"
    assert stopped_again(left, 3)
    assert len(volume.machine.shadows) == 1
    volume.machine.process = "third"
    report = resume(left)
    assert restored(target, report.image_id, 0, volume.disk) == volume.disk.contents()
    assert len({taken.id for taken in volume.taken}) == 1
    assert volume.is_let_go()


def test_another_backup_leaves_the_copies_of_an_unfinished_one(volume: Volume, target: Path) -> None:
    left = stopped(volume.disk, target)
    volume.machine.dead = {"this"}
    volume.machine.process = "second"
    backup(volume.disk.path, target.with_name("elsewhere"), QUICK)
    assert len(volume.machine.shadows) == 1
    resume(left)
    assert volume.is_let_go()


def test_a_dropped_backup_lets_them_go(volume: Volume, target: Path) -> None:
    stopped(volume.disk, target)
    assert volume.machine.shadows
    discard(target)
    assert volume.is_let_go()


def test_a_backup_that_lacks_only_its_names_lets_them_go(volume: Volume, target: Path) -> None:
    with (
        patch.object(Unfinished, "move_into_set", side_effect=KeyboardInterrupt),
        suppress(KeyboardInterrupt),
    ):
        backup(volume.disk.path, target, QUICK)
    assert volume.machine.shadows
    resume(target)
    assert volume.is_let_go()


def test_a_refused_backup_keeps_nothing(volume: Volume, target: Path) -> None:
    with pytest.raises(Exception, match="password"):
        backup(volume.disk.path, target, BackupOptions(aes="aes-256"))
    assert volume.is_let_go()


def test_a_copy_that_is_lost_is_told_before_the_image_is_complete(volume: Volume, target: Path) -> None:
    def progress(_: object) -> None:
        for one in volume.machine.shadows:
            volume.machine.lose(one["ID"])  # its bytes stay readable here, as from Windows' cache

    with pytest.raises(SnapshotError, match="gone"):
        backup(volume.disk.path, target, QUICK, listener=Listener(progress))
    assert not list(target.glob("*.mrimgx"))
    assert volume.is_let_go()
    with pytest.raises(SnapshotError, match="gone") as caught:
        resume(target)
    assert "--discard" in caught.value.hint
    discard(target)
    assert not unfinished_in(target)
    report = backup(volume.disk.path, target, QUICK)
    assert restored(target, report.image_id, 0, volume.disk) == volume.disk.contents()


def test_a_backup_that_died_is_gone_on_with(volume: Volume, target: Path) -> None:
    with patch.object(ShadowSet, "close"), suppress(KeyboardInterrupt):  # as if nothing had run any more
        left = stopped(volume.disk, target)
    volume.machine.restart()
    volume.machine.process = "second"
    resume(left)
    assert volume.is_let_go()
