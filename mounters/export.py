"""The Export contract: what a network client is shown as a disk. It knows nothing of images.

Offsets and lengths are bytes. A method that fails raises an exception whose ``errno``, where it has one, is
what the client is told (EIO where it has none).
"""

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple


class Run(NamedTuple):
    """Neighbouring bytes with one state: data, or a hole that reads as zeros."""

    length: int
    is_data: bool


class Handle(ABC):
    """One client's view of an export. Every method may be called from several threads at once."""

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; the range lies inside the export."""

    @abstractmethod
    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield the data and holes of a range in order, without gaps, neighbours merged."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes; only of a writable export."""
        raise OSError(errno.EPERM, "the export is read-only")

    def zero(self, offset: int, length: int, *, hole: bool) -> None:
        """Make a range zeros, as a hole where that is allowed (a trim is this too)."""
        raise OSError(errno.EPERM, "the export is read-only")

    def flush(self) -> None:  # noqa: B027
        """Return once everything that was written is on stable storage."""

    def close(self) -> None:  # noqa: B027
        """End the view; nothing is read or written any more."""


class Export(ABC):
    """A disk by its name."""

    name: str  # what a client asks for, at most 4096 bytes of UTF-8
    description: str  # a line for people
    size: int
    writable: bool = False
    smallest_block: int = 1  # requests are multiples of it; a power of two
    preferred_block: int = 65536

    @abstractmethod
    def open(self) -> Handle:
        """Return a view for one client; raises where the export can't be opened now."""
