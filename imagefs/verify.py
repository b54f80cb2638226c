"""Verification of a point or of a folder's sets on all cores."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from formats.container import (
    BadBlock,
    Check,
    CheckResult,
    Container,
    FileAuthentication,
    FileState,
    Point,
    UnreadableSource,
)
from formats.errors import ForgedError, FormatError, PasswordError, UnsupportedError
from imagefs.source import Source

_IN_FLIGHT = 64  # checks handed out at a time, 4 MiB each: what bounds memory
_TOLD = 16  # bad blocks of a forged file that are told one by one: none of its blocks may be right


@dataclass
class Verification:
    """What a verification covered and found."""

    blocks_checked: int = 0
    bytes_checked: int = 0
    bad: list[BadBlock] = field(default_factory=list)
    incomplete: list[FormatError] = field(default_factory=list)  # what of a folder could not be checked
    authentication: list[FileAuthentication] = field(default_factory=list)  # of the files of encrypted sets
    unreadable: list[tuple[Path, UnreadableSource]] = field(default_factory=list)  # by the points' files

    @property
    def ok(self) -> bool:
        """Whether everything was there and as it should be."""
        return not self.bad and not self.incomplete


def verify(source: Source, progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Check every metadata block and every data block of a point, or of all points of a folder.

    ``progress`` is called with the blocks done and their number at the most. Raises FormatError when an
    image file's point is incomplete or locked; of a folder, incomplete points and locked sets are told
    in the result and the rest is checked.
    """
    result = Verification()
    if source.point is not None:
        if source.point.problem is not None:
            raise source.point.problem
        with suppress(ForgedError):  # told by the checks
            source.point.require_key()
        result.authentication += source.point.authentication()
        result.unreadable += _unreadable([source.point])
        return check_all(source.point.checks(), progress, source.point.blocks_to_check(), result)
    unlocked = []
    for container in source.sets:
        result.incomplete += [point.problem for point in container.points if point.problem is not None]
        locked = _locked(container)
        if locked is None:
            unlocked.append(container)
            result.authentication += container.authentication()
            result.unreadable += _unreadable(container.points)
        else:
            result.incomplete.append(locked)
    for path, error in source.unreadable.items():
        if isinstance(error, UnsupportedError):  # not ours to judge
            result.incomplete.append(error)
        else:
            result.bad.append(BadBlock(path, None, None, error.what))
    checks = (check for container in unlocked for check in container.checks())
    total = sum(container.blocks_to_check() for container in unlocked)
    return check_all(checks, progress, total, result)


def _locked(container: Container) -> FormatError | None:
    """Return why a set can't be decrypted now."""
    for point in container.points:
        try:
            point.require_key()
        except PasswordError as error:
            return error
        except ForgedError:
            continue  # told by the checks
    return None


def _unreadable(points: Iterable[Point]) -> Iterator[tuple[Path, UnreadableSource]]:
    """Yield what of their sources points have as zeros, since it could not be read."""
    for point in points:
        with suppress(FormatError):  # told by the checks
            yield from ((point.path, entry) for entry in point.unreadable)


def check_all(
    checks: Iterator[Check],
    progress: Callable[[int, int], None],
    total: int,
    result: Verification | None = None,
) -> Verification:
    """Run checks on all cores, a bounded number at a time, in order of their making.

    What they find is added to ``result``; ``progress`` is called with the blocks done and ``total``.
    """
    result = result if result is not None else Verification()
    running: deque[Future[CheckResult]] = deque()
    forged = {entry.file for entry in result.authentication if entry.state is FileState.FORGED}
    told: Counter[Path] = Counter()

    def collect() -> None:
        done = running.popleft().result()
        result.blocks_checked += done.blocks
        result.bytes_checked += done.bytes
        for bad in done.bad:
            if bad.file in forged and bad.block is not None:
                told[bad.file] += 1
                if told[bad.file] > _TOLD:
                    continue
            result.bad.append(bad)
        progress(result.blocks_checked, total)

    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        try:
            for check in checks:
                running.append(pool.submit(check.run))
                if len(running) >= _IN_FLIGHT:
                    collect()
            while running:
                collect()
            for path in sorted(path for path in told if told[path] > _TOLD):
                result.bad.append(BadBlock(path, None, None, f"{told[path] - _TOLD} more bad blocks"))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return result
