"""FormatError and its kinds: what can be wrong with an image, each with its exit code.

Every error that leaves this package is one of these. A message is one line that names the file, says
what is wrong and, where something helps, what to try. Two class attributes translate it for callers:
``exit_code`` for a command line, ``errno`` for a mounted file system.
"""

import errno as _errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar


class ReportedError(Exception):
    """What is told in one line: the file at fault, what is wrong, and in brackets what to try.

    ``path`` is the file at fault where there is one, ``hint`` what to try.
    """

    exit_code: ClassVar[int]

    def __init__(self, what: str, *, path: Path | None = None, hint: str = "") -> None:
        self.what = what
        self.path = path
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        name = str(self.path)
        if name.startswith("\\\\.\\"):
            name = name.rstrip("\\")  # which Windows' pathlib puts behind a device
        place = f"{name}: " if self.path is not None else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{hint}"


class FormatError(ReportedError):
    """An image can't be read as asked; the base of all errors of this package."""

    exit_code: ClassVar[int] = 3
    errno: ClassVar[int] = _errno.EIO


class NotAnImageError(FormatError):
    """The file is no image of any known format."""


class UnsupportedError(FormatError):
    """The file is recognised, but in a version or with a feature that can't be read."""


class DamagedError(FormatError):
    """The bytes contradict the format or their own hashes."""


class DamagedBlockError(DamagedError):
    """One stored block is not what its index says.

    ``partition`` is named as in the tree ("disk4/p1"), ``block`` counts from 0 in its own array.
    """

    def __init__(self, reason: str, *, path: Path, partition: str, block: int) -> None:
        self.reason = reason
        self.partition = partition
        self.block = block
        super().__init__(f"{partition} block {block}: {reason}", path=path)


class ForgedError(DamagedError):
    """A file of an authenticated set is not the one that was written there, or not as it was written.

    Nothing of it is read. Who did that, a failing disk or an attacker, can't be told.
    """

    def __init__(self, reason: str, *, path: Path) -> None:
        self.reason = reason
        super().__init__(
            f"not authentic: {reason}",
            path=path,
            hint="put the file there that belongs there, or take this one out of the folder",
        )


class DuplicateMemberError(DamagedError):
    """Two files of one set claim the same file number; neither is chosen."""

    def __init__(self, image_id: str, number: int, paths: Sequence[Path]) -> None:
        self.image_id = image_id
        self.number = number
        self.paths = tuple(paths)
        names = " and ".join(str(path) for path in self.paths)
        super().__init__(
            f"set {image_id}: file number {number} is claimed by {names}",
            hint="move the one that does not belong out of the folder",
        )


class IncompleteSetError(FormatError):
    """Files that a backup point needs are not in its folder.

    ``missing`` holds their file numbers in ascending order, ``folder`` is where they were looked for.
    """

    exit_code: ClassVar[int] = 4

    def __init__(
        self, image_id: str, missing: Iterable[int], folder: Path, *, path: Path | None = None
    ) -> None:
        self.image_id = image_id
        self.missing = tuple(sorted(missing))
        self.folder = folder
        plural = "s" if len(self.missing) > 1 else ""
        numbers = ", ".join(str(number) for number in self.missing)
        super().__init__(
            f"set {image_id} is incomplete: file number{plural} {numbers} not found in {folder}",
            path=path,
            hint="put the missing files of the set into that folder",
        )


class PasswordError(FormatError):
    """The image is encrypted and no password, or a wrong one, was given."""

    exit_code: ClassVar[int] = 5
    errno: ClassVar[int] = _errno.EACCES


class ReadError(FormatError):
    """The operating system failed to read an image file."""

    exit_code: ClassVar[int] = 7
