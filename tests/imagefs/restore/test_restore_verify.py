"""What reading back finds, and what a damaged image gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fixtures.partition_tables import MIB
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions
from imagefs.restore.job import restore
from imagefs.restore.options import RestoreOptions
from imagefs.restore.target import Target
from tests.conftest import run_imagefs
from tests.imagefs.imaging.attached import attached
from tests.imagefs.restore.chains import Saved
from tests.imagefs.restore.held import bytes_of, check_same, without_free
from tests.imagefs.restore.places import noisy

BLOCK = 65536

FLIPPING = """
import sys
from imagefs.cli import main
from imagefs.restore.target import Target

write, place = Target.write, int(sys.argv.pop(1))

def flip(target, offset, view):
    if offset <= place < offset + len(view) and any(view):
        view[place - offset] ^= 1
    write(target, offset, view)

Target.write = flip
sys.argv[0] = "imagefs"
main()
"""


def used_blocks(saved: Saved, number: int) -> list[int]:
    """Return where the blocks of a partition without a reserved area start that hold more than zeros."""
    part = saved.disk.partition(number)
    data = without_free(saved.disk, bytes_of(saved.disk.path))[part.offset : part.offset + part.size]
    return [at for at in range(0, part.size, BLOCK) if data[at : at + BLOCK].any()]


@pytest.mark.parametrize("on_device", [False, True])
def test_flipped_bytes_are_found(
    on_device: bool, gpt: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, by the blocks that they are in, whatever lies between these."""
    chance = np.random.default_rng(11)
    wanted = []
    for number in (1, 2, 4):
        first = gpt.disk.partition(number).offset
        starts = used_blocks(gpt, number)
        chosen = {starts[0], starts[-1], *chance.choice(starts, 3).tolist()}
        wanted += [(number, at, first + at + int(chance.integers(100))) for at in sorted(chosen)]
    places = [place for _, _, place in wanted]
    real = Target.write

    def flip(target: Target, offset: int, view: memoryview) -> None:
        for place in places:
            if offset <= place < offset + len(view):
                view[place - offset] ^= 1
        real(target, offset, view)

    monkeypatch.setattr(Target, "write", flip)
    options = RestoreOptions(verify=True)
    if on_device:
        with attached(noisy(tmp_path / "disk.raw", gpt.disk.size), partitions=False) as node:
            report = restore(gpt.image, node, options)
    else:
        report = restore(gpt.image, tmp_path / "disk.raw", options)
    assert report.verified is False
    assert report.different == [f"disk0/p{number} at {at}" for number, at, _ in wanted]
    if not on_device:  # what reads back differently is not complete
        assert [path.name for path in tmp_path.iterdir()] == ["disk.raw.unfinished"]
        assert not any((tmp_path / "disk.raw.unfinished").read_bytes()[:512])
    monkeypatch.undo()
    again = restore(gpt.image, tmp_path / "disk.raw", RestoreOptions(delta=True, verify=True))
    assert (again.verified, again.different, again.blocks_written) == (True, [], len(wanted))
    check_same(tmp_path / "disk.raw", gpt.disk)


@pytest.mark.parametrize(("place", "what"), [(512, "record at 0"), (MIB + 70_000, "disk0/p1 at 65536")])
def test_the_command_says_where(place: int, what: str, gpt: Saved, tmp_path: Path) -> None:
    """Exit code 1, the place on the output."""
    arguments = ["restore", str(gpt.image), str(tmp_path / "disk.raw"), "--verify"]
    done = subprocess.run(
        [sys.executable, "-c", FLIPPING, str(place), *arguments], capture_output=True, check=False, text=True
    )
    assert done.returncode == 1, done.stderr
    assert f"differs {what}\n" in done.stdout
    assert "reads back" not in done.stdout


def test_a_damaged_image(gpt: Saved, tmp_path: Path) -> None:
    """It is said which block is damaged; no file is made, a device gets no partition table."""
    image = backup(gpt.disk.path, tmp_path / "set", BackupOptions(compression="none")).path
    data = bytearray(image.read_bytes())
    block = gpt.disk.path.read_bytes()[MIB + 3 * BLOCK :][:BLOCK]  # used whole: the MFT is here
    place = data.find(block[:4096])
    assert place > 0
    data[place + 100] ^= 1
    image.write_bytes(data)
    done = run_imagefs("restore", image, tmp_path / "new.raw")
    assert done.code == 3, done.errors
    assert "disk0/p1 block" in done.errors
    assert str(image) in done.errors
    assert not list(tmp_path.glob("new.raw*"))
    there = noisy(tmp_path / "there.raw", gpt.disk.size)
    before = there.read_bytes()
    done = run_imagefs("restore", image, there, "--yes")
    assert done.code == 3
    assert there.read_bytes() == before  # it is replaced when the new one is complete
    with attached(there, partitions=False) as node:
        done = run_imagefs("restore", image, node, "--yes")
        assert done.code == 3
        with node.open("rb") as stream:
            assert not any(stream.read(MIB))
