"""A backup of a running Windows that was interrupted: gone on with from the same shadow copies."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from fixtures.content import noise
from fixtures.disks import plain_disk
from fixtures.partition_tables import MIB, BuiltDisk
from imagefs.errors import SnapshotError
from imagefs.imaging import backup, discard, job, resume, run, sources, windows_disks
from imagefs.imaging.options import Listener, Progress
from imagefs.imaging.source_disk import OpenedDevice, Wanted
from imagefs.machine.windows import shadow_copies
from tests.fixtures import plain_reader
from tests.imagefs.imaging.stopping import QUICK
from tests.imagefs.machine.windows import model
from tests.imagefs.machine.windows.wmi_model import Machine

DRIVE = Path(r"\\.\PhysicalDrive0")


def named(path: Path) -> Path:
    """Return a device's name, which only Windows takes for an absolute path."""
    return Path(path.name)


class Windows:
    """Windows with a disk of two mounted NTFS volumes, C: and D:, as far as it knows."""

    def __init__(self, folder: Path, patched: pytest.MonkeyPatch) -> None:
        self.built: BuiltDisk = plain_disk(folder, "disk", sizes=(5 * MIB, 2 * MIB), seed=5)
        self.was = self.contents(self.built.path.read_bytes())
        self.shadows = Machine(folder / "shadows")
        self.windows = model.Windows({0: model.Disk(self.built.path)})
        self.windows.shadows = self.shadows.device_file
        for root, part, data in zip(("C:\\", "D:\\"), self.built.partitions, self.was, strict=True):
            name = self.shadows.add_volume(data)
            volume = model.Volume(name, (root,), ((0, part.offset, part.size),), "NTFS")
            self.windows.all_volumes.append(volume)
        machine = windows_disks.Machine(self.windows, lambda: self.shadows)

        def open_device(wanted: Wanted, owned: ExitStack) -> OpenedDevice:
            return windows_disks.open_device(replace(wanted, path=named(wanted.path)), owned, machine)

        patched.setattr(sources, "is_device", lambda path: windows_disks.is_device(named(path)))
        patched.setattr(sources, "open_device", open_device)
        patched.setattr(job, "drop_snapshots", lambda name: shadow_copies.release(name, self.shadows))

    def contents(self, data: bytes) -> list[bytes]:
        return [data[part.offset : part.offset + part.size] for part in self.built.partitions]

    def write(self, seed: int) -> None:
        """Change all of both volumes, where they lie and as whoever copies them sees them."""
        for volume, part in zip(self.windows.all_volumes, self.built.partitions, strict=True):
            data = noise(seed, 0, part.size)
            self.shadows.file_of(volume.name).write_bytes(data)
            with self.built.path.open("r+b") as stream:
                stream.seek(part.offset)
                stream.write(data)

    def assert_clean(self) -> None:
        self.windows.assert_untouched()
        assert self.shadows.shadows == []
        assert list(self.shadows.records_folder().iterdir()) == []


@pytest.fixture
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Windows:
    return Windows(tmp_path, monkeypatch)


def interrupt(at: int) -> Listener:
    def progress(now: Progress) -> None:
        if now.phase == "reading" and now.done >= at:
            raise KeyboardInterrupt

    return Listener(progress)


@pytest.mark.parametrize("at", [1, MIB, 6 * MIB])
def test_the_image_is_of_the_moment_of_its_beginning(windows: Windows, tmp_path: Path, at: int) -> None:
    target = tmp_path / "sets"
    with patch.object(run, "_REPORT_SECONDS", 0.0), pytest.raises(KeyboardInterrupt):
        backup(DRIVE, target, QUICK, listener=interrupt(at))
    assert len(windows.shadows.shadows) == 2
    windows.windows.assert_untouched()
    windows.write(seed=66)
    windows.shadows.restart()
    windows.shadows.process = "after the restart"
    report = resume(target)
    assert windows.contents(plain_reader.restore(target, report.file_number)) == windows.was
    windows.assert_clean()


def test_another_image_afterwards_is_of_its_own_moment(windows: Windows, tmp_path: Path) -> None:
    target = tmp_path / "sets"
    backup(DRIVE, target, QUICK)
    windows.write(seed=67)
    now = windows.contents(windows.built.path.read_bytes())
    report = backup(DRIVE, target, QUICK)
    assert report.role == "inc"
    assert windows.contents(plain_reader.restore(target, report.file_number)) == now
    windows.assert_clean()


def test_copies_that_windows_removed_meanwhile(windows: Windows, tmp_path: Path) -> None:
    target = tmp_path / "sets"
    with patch.object(run, "_REPORT_SECONDS", 0.0), pytest.raises(KeyboardInterrupt):
        backup(DRIVE, target, QUICK, listener=interrupt(MIB))
    windows.shadows.lose(windows.shadows.shadows[1]["ID"])
    windows.write(seed=68)
    for _ in range(2):
        with pytest.raises(SnapshotError, match="gone") as caught:
            resume(target)
        assert "--discard" in caught.value.hint
    discard(target)
    windows.assert_clean()
