"""What can go wrong while an image is made, or put back; each kind has its exit code.

What is wrong with an existing image stays a FormatError.
"""

from pathlib import Path
from typing import ClassVar

from formats.errors import ReportedError


class ImagingError(ReportedError):
    """It can't be done as asked; the base of these errors."""

    exit_code: ClassVar[int] = 7


class UsageError(ImagingError):
    """What was asked for contradicts itself, or names what is not there."""

    exit_code: ClassVar[int] = 2


class RefusedError(ImagingError):
    """The source or the target is in a state in which going on would give a wrong copy, or do harm."""

    exit_code: ClassVar[int] = 6


class SourceReadError(ImagingError):
    """The source can't be read; ``offset`` and ``length`` are the bytes of the disk that are lost."""

    def __init__(self, what: str, *, path: Path | None, offset: int, length: int, hint: str = "") -> None:
        self.offset = offset
        self.length = length
        super().__init__(what, path=path, hint=hint)


class TargetWriteError(ImagingError):
    """The target can't be written: full, read-only, broken, gone."""


class SnapshotError(ImagingError):
    """A snapshot can't be made, read or removed."""
