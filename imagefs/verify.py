"""Verification of a point or of a folder's sets on all cores."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from formats.container import BadBlock, Check, CheckResult, Container
from formats.errors import FormatError, UnsupportedError
from imagefs.source import Source

_IN_FLIGHT = 64  # checks handed out at a time, 4 MiB each: what bounds memory


@dataclass
class Verification:
    """What a verification covered and found."""

    blocks_checked: int = 0
    bytes_checked: int = 0
    bad: list[BadBlock] = field(default_factory=list)
    incomplete: list[FormatError] = field(default_factory=list)  # what of a folder could not be checked

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
        source.point.require_key()
        _run(source.point.checks(), result, progress, source.point.blocks_to_check())
        return result
    unlocked = []
    for container in source.sets:
        result.incomplete += [point.problem for point in container.points if point.problem is not None]
        locked = _locked(container)
        if locked is None:
            unlocked.append(container)
        else:
            result.incomplete.append(locked)
    for path, error in source.unreadable.items():
        if isinstance(error, UnsupportedError):  # not ours to judge
            result.incomplete.append(error)
        else:
            result.bad.append(BadBlock(path, None, None, error.what))
    checks = (check for container in unlocked for check in container.checks())
    _run(checks, result, progress, sum(container.blocks_to_check() for container in unlocked))
    return result


def _locked(container: Container) -> FormatError | None:
    """Return why a set can't be decrypted now."""
    for point in container.points:
        try:
            point.require_key()
        except FormatError as error:
            return error
    return None


def _run(
    checks: Iterator[Check], result: Verification, progress: Callable[[int, int], None], total: int
) -> None:
    """Run checks on all cores, a bounded number at a time, in order of their making."""
    running: deque[Future[CheckResult]] = deque()

    def collect() -> None:
        done = running.popleft().result()
        result.blocks_checked += done.blocks
        result.bytes_checked += done.bytes
        result.bad += done.bad
        progress(result.blocks_checked, total)

    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        try:
            for check in checks:
                running.append(pool.submit(check.run))
                if len(running) >= _IN_FLIGHT:
                    collect()
            while running:
                collect()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
