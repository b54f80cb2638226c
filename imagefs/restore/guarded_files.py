"""What keeps a restore from overwriting the wrong file, where nothing else is known of a machine."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from imagefs.errors import RefusedError


def refuse_other_than_file(target: Path, found: os.stat_result | None) -> None:
    """Raise RefusedError for what is there and no file."""
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise RefusedError("is a folder, neither a disk nor a file", path=target, hint="name a file")
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise RefusedError(
            "devices can be written on Linux only", path=target, hint="write to a file, and copy that"
        )


def refuse_same_file(target: Path, found: os.stat_result | None, protected: Sequence[Path]) -> None:
    """Raise RefusedError for a target that is one of the files that are read."""
    for path in protected:
        if found is not None and path.exists() and _are_one(path, path.stat(), target, found):
            raise RefusedError("is the source itself", path=target, hint="name another target")


def _are_one(path: Path, one: os.stat_result, other_path: Path, other: os.stat_result) -> bool:
    """Whether two names are one file's; by the names where a network share of Windows tells no number."""
    if one.st_ino and other.st_ino:
        return os.path.samestat(one, other)
    return os.path.normcase(path.resolve()) == os.path.normcase(other_path.resolve())
