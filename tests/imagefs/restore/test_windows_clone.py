"""A running Windows cloned onto another disk: read from shadow copies, written where nobody writes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from fixtures.content import noise
from imagefs.imaging import sources, windows_disks
from imagefs.restore import job, windows_guard
from imagefs.restore import windows_disks as targets
from imagefs.restore.job import plan_restore
from imagefs.restore.options import RestoreOptions
from imagefs.restore.windows_guard import Needed
from imagefs.restore.windows_target import open_target
from tests.imagefs.machine.windows.model import Disk
from tests.imagefs.machine.windows.wmi_model import Machine
from tests.imagefs.restore.chains import Saved
from tests.imagefs.restore.held import bytes_of, check_tables, check_volumes, differing, only_partitions
from tests.imagefs.restore.places import digest, noisy
from tests.imagefs.restore.windows_model import Target, WritableWindows, volumes_of

SOURCE = r"\\.\PhysicalDrive0"


@pytest.mark.parametrize("new_ids", [False, True])
def test_a_disk_in_use(gpt: Saved, tmp_path: Path, new_ids: bool) -> None:
    live = tmp_path / "live"
    live.write_bytes(gpt.disk.path.read_bytes())
    shadows = Machine(tmp_path / "shadows")
    mounted = []
    for number, root in ((1, "C:\\"), (2, "D:\\")):
        part = gpt.disk.partition(number)
        name = shadows.add_volume(live.read_bytes()[part.offset : part.offset + part.size])
        mounted.append(Target(name, (root,), ((0, part.offset, part.size),), "NTFS"))
    there = noisy(tmp_path / "target", gpt.disk.size, table="gpt")
    windows = WritableWindows(
        {0: Disk(live), 1: Disk(there)}, [*mounted, *volumes_of(1, there, 11, ("X:\\", ""))]
    )
    windows.shadows = shadows.device_file
    machine = windows_disks.Machine(windows, lambda: shadows)
    with live.open("r+b") as stream:  # what is written from now on, which the copies don't have
        for volume in mounted:
            ((_, offset, size),) = volume.extents
            stream.seek(offset)
            stream.write(noise(5, 0, size))
    before = digest(live)
    needed = [Needed("C:\\Windows", "Windows runs from it")]
    chosen = {
        "target_path": lambda text: targets.target_path(windows, text),
        "find_device": partial(targets.find_device, windows),
        "open_device": partial(open_target, windows, sleep=lambda _: None),
        "describe": partial(targets.describe_device, windows),
        "same_id": partial(windows_guard.same_id, windows),
        "refuse_unsafe": partial(windows_guard.refuse_unsafe_device, windows, needed=needed),
    }
    with (
        patch.object(sources, "is_device", windows_disks.is_device),
        patch.object(sources, "open_device", partial(windows_disks.open_device, machine=machine)),
        patch.multiple(job, **chosen),  # type: ignore[call-overload]
        plan_restore(SOURCE, "disk1", RestoreOptions(new_ids=new_ids)) as planned,
    ):
        told = [line for line in planned.warnings if "offline" in line]
        assert bool(told) is not new_ids  # the same id twice
        report = planned.run()
    assert bool(report.new_ids) is new_ids
    was, now = (only_partitions(gpt.disk, bytes_of(path)) for path in (gpt.disk.path, there))
    now[now == 0] = was[now == 0]  # what is free became zeros
    assert differing(now, was) == []
    check_tables(there, "gpt")
    check_volumes(there, gpt.disk, tmp_path, files=True)
    windows.assert_let_go()
    assert digest(live) == before
    assert not [each.path for each in windows.opened if each.access & 0x40000000 and "Drive0" in each.path]
    assert not [
        each.path for each in windows.opened if each.access & 0x40000000 and each.path + "\\" in
        {volume.name for volume in mounted}
    ]  # fmt: skip
    assert shadows.shadows == []
    assert list(shadows.records_folder().iterdir()) == []
