"""What exists survives a run that is killed at any moment, and --resume makes of the rest what was wanted."""

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.partition_tables import MIB
from imagefs.imaging import backup
from imagefs.imaging.lock import remove_stale
from imagefs.imaging.options import BackupOptions
from tests.imagefs.imaging.sources_of_noise import (
    PASSWORD,
    NoiseDisk,
    copied,
    files_of,
    newest,
    noise_disk,
    restored,
    unfinished_in,
)
from tests.warm import Warm, warm_process

QUICK_KEY = BackupOptions(key_iterations=1000)


@dataclass(frozen=True)
class Situation:
    """A set, and the run that is to be interrupted."""

    disk: NoiseDisk
    base: Path  # a folder with the point that was there before
    before: list[bytes]  # the contents of that point
    old: tuple[str, int]
    arguments: tuple[str, ...]
    password: str | None

    def check_old(self, folder: Path) -> None:
        """Check that the older point is as it was, to the byte and to the reader."""
        now = files_of(folder)
        assert {name: now.get(name) for name in files_of(self.base)} == files_of(self.base)
        assert restored(folder, *self.old, self.disk, self.password) == self.before

    def check_new(self, folder: Path) -> None:
        """Check that the newest point is what the source is, and that nothing else is left."""
        found = newest(folder)
        assert found != self.old
        assert restored(folder, *found, self.disk, self.password) == self.disk.contents()
        assert not unfinished_in(folder)
        assert not list(folder.glob("*.lock"))


def situation(folder: Path, kind: str, sizes: tuple[int, ...] = (3 * MIB + 4096, MIB)) -> Situation:
    """Make a set of one full; ``kind`` names what comes next."""
    disk = noise_disk(folder, sizes)
    password = PASSWORD if "encrypted" in kind else None
    report = backup(disk.path, folder / "base", QUICK_KEY, password=password)
    before = disk.contents()
    disk.overwrite(0, 0, sizes[0] - 70_000, seed=77)
    disk.overwrite(len(sizes) - 1, 100_000, 800_000, seed=78)
    arguments = ["--type", "full" if "full" in kind else "inc"]
    if "split" in kind:
        arguments += ["--split", "1M"]
    old = report.image_id, report.file_number
    return Situation(disk, folder / "base", before, old, tuple(arguments), password)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with warm_process(tmp_path_factory.mktemp("warm") / "log") as started:
        yield started


def go_on(warm: Warm, chosen: Situation, target: Path) -> None:
    """Do what a user would after an interruption."""
    left = unfinished_in(target)
    if any((path / "state.json").exists() for path in left):
        code = warm.run("backup", "--resume", target, password=chosen.password)
    elif newest(target) == chosen.old:
        code = warm.run("backup", chosen.disk.path, target, *chosen.arguments, password=chosen.password)
    else:
        code = 0  # it was complete but for its folder, which the next run sweeps
        for path in left:
            assert not {each.name for each in path.iterdir()} & {"state.json"}
            assert warm.run("backup", "--discard", target) == 0
        remove_stale(target)  # as the next run does
    assert code == 0, warm.errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "moments"), [("full", 8), ("full split", 7), ("inc", 8), ("inc encrypted split", 7)]
)
def test_killed_at_any_moment(tmp_path: Path, warm: Warm, kind: str, moments: int) -> None:
    chosen = situation(tmp_path, kind)
    chance = random.Random(kind)
    target = copied(chosen.base, tmp_path / "target")
    slow = (*chosen.arguments, "--checkpoint", "0.03", "--rate-limit", "8M")
    start = time.monotonic()
    assert warm.run("backup", chosen.disk.path, target, *slow, password=chosen.password) == 0, warm.errors
    duration = time.monotonic() - start
    chosen.check_new(target)
    killed = gone_on = 0
    for moment in range(moments):
        # Every third at any moment, the others while blocks are stored, which takes about half a second.
        anywhere = moment % 3 == 0
        begun = None if anywhere else target
        copied(chosen.base, target)
        run: tuple[str | Path, ...] = ("backup", chosen.disk.path, target, *slow)
        for _ in range(2):
            after = chance.uniform(0.01, duration if anywhere else 0.5)
            code = warm.run(*run, password=chosen.password, after=after, begun=begun)
            assert code in (0, -signal.SIGKILL), warm.errors
            killed += code != 0
            chosen.check_old(target)
            if not any((path / "state.json").exists() for path in unfinished_in(target)):
                break
            run = ("backup", "--resume", target)
            gone_on += 1
        if newest(target) == chosen.old or unfinished_in(target):
            go_on(warm, chosen, target)
        remove_stale(target)  # as the next run does, where the last one was killed with its work done
        chosen.check_new(target)
        chosen.check_old(target)
    assert killed >= moments // 2
    assert gone_on >= moments // 3


@pytest.mark.slow
def test_killed_at_every_step_of_the_finish(tmp_path: Path, warm: Warm) -> None:
    chosen = situation(tmp_path, "inc encrypted split", (2 * MIB + 4096,))
    target = tmp_path / "target"
    step, code = 0, -signal.SIGKILL
    while code:
        step += 1
        copied(chosen.base, target)
        code = warm.run(
            "backup", chosen.disk.path, target, *chosen.arguments, password=chosen.password, die_at=step
        )
        assert code in (0, -signal.SIGKILL), warm.errors
        chosen.check_old(target)
        if code and step % 3 == 0 and '"moves": []' not in states(target):
            # Another run completes what only lacks its names, and then makes its own.
            assert warm.run("backup", chosen.disk.path, target, password=chosen.password) == 0, warm.errors
        elif code:
            go_on(warm, chosen, target)
        chosen.check_new(target)
    chosen.check_old(target)
    assert step > 30


def states(folder: Path) -> str:
    """Return the states of the unfinished runs; nothing counts as begun."""
    found = "".join(path.read_text() for path in folder.glob("*.unfinished/state.json"))
    return found or '"moves": []'
