"""What a device that is to be written is, on every system."""

from pathlib import Path
from typing import Protocol


class TargetDevice(Protocol):
    """A disk or partition of this machine."""

    @property
    def address(self) -> int | None:
        """Where a partition starts on its disk, bytes; None for a whole disk."""

    def partition(self, number: int) -> Path | None:
        """Return what a disk's partition is opened by, as a target of its own; None where there is none."""
