"""Container → Point → Disk → Partition: what an image of any format offers.

A container is what its path belongs to: one image of a foreign format, or a whole backup set. A foreign
format has one point. Opening reads headers only; nothing here reads data before a reader is asked for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Self

from formats.blockreader import BlockReader
from formats.errors import FormatError


class Role(StrEnum):
    """What a backup point's own file holds."""

    FULL = "full"
    DIFFERENTIAL = "diff"
    INCREMENTAL = "inc"


class BadBlock(NamedTuple):
    """Something a check found wrong; ``block`` is None for metadata."""

    file: Path
    partition: str | None
    block: int | None
    reason: str


class FileState(StrEnum):
    """What is known of an encrypted image file's origin."""

    AUTHENTICATED = "authenticated"  # written by someone with the password, and unchanged
    UNAUTHENTICATED = "not authenticated"  # by a program that does not say so; nothing is known
    FORGED = "forged"  # not as it was written, or not the file that the set knows; it is not read


class FileAuthentication(NamedTuple):
    """The state of one image file; ``reason`` only of one that is forged."""

    file: Path
    state: FileState
    reason: str | None = None


class UnreadableSource(NamedTuple):
    """Bytes of a backup's source that could not be read and are zeros in the image."""

    partition: str  # as in the tree: "disk4/p1"
    offset: int  # bytes from the partition's start
    length: int  # bytes


class CheckResult(NamedTuple):
    """What one check covered and found."""

    blocks: int
    bytes: int
    bad: tuple[BadBlock, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """A piece of verification: independent of every other, to be run in any thread."""

    blocks: int  # data blocks that it covers, for progress
    run: Callable[[], CheckResult]


class Partition(ABC):
    """A partition at a point."""

    number: int  # as recorded in the image
    name: str  # "p1": its name in the tree
    offset: int  # bytes from the start of the disk
    size: int  # bytes
    file_system: str  # as recorded: "NTFS", "FAT32", …; "unknown"
    label: str
    block_size: int  # bytes
    block_count: int
    drive_letter: str = ""  # under which the system that was imaged knew it, "C"; "" if none is recorded
    volume_guid: str = ""  # the same, \\?\Volume{…} or \??\Volume{…}

    @abstractmethod
    def stored_blocks(self) -> int:
        """Count the blocks that are stored at this point."""

    @abstractmethod
    def reader(self) -> BlockReader:
        """Return the partition's bytes; raises FormatError when the point can't be opened."""


class Disk(ABC):
    """A disk at a point."""

    number: int  # as recorded in the image
    name: str  # "disk4": its name in the tree
    scheme: str  # "gpt", "mbr" or as recorded
    sector_size: int  # bytes
    partitions: Sequence[Partition]

    @property
    @abstractmethod
    def size(self) -> int:
        """The disk's bytes."""

    @abstractmethod
    def reader(self) -> BlockReader:
        """Return the whole disk's bytes; raises FormatError when the point can't be opened."""


class Point(ABC):
    """A moment that can be opened: one image file and what it needs."""

    path: Path
    image_id: str
    file_number: int
    increment: int
    created: datetime  # UTC
    encrypted: bool
    compression: str  # "none", "medium", "high"
    stored_bytes: int  # of its own file

    @property
    @abstractmethod
    def role(self) -> Role:
        """What the point's own file holds."""

    @property
    @abstractmethod
    def disks(self) -> Sequence[Disk]:
        """The disks, as the point's own file records them."""

    @property
    def name(self) -> str:
        """The point's name in the tree: increment, UTC time with dots, role."""
        time = self.created.strftime("%Y-%m-%dT%H.%M.%SZ")
        return f"{self.increment:02}-{time}-{self.role}"

    @property
    @abstractmethod
    def problem(self) -> FormatError | None:
        """Why the point can't be read (members missing, two of one number), or None.

        A missing password is no problem in this sense: it can be given.
        """

    @property
    @abstractmethod
    def missing_files(self) -> Sequence[int]:
        """The file numbers that the point needs and its folder lacks."""

    @abstractmethod
    def require_key(self) -> None:
        """Raise PasswordError while the point is locked, ForgedError when it needs a file that is forged."""

    @property
    def unreadable(self) -> Sequence[UnreadableSource]:
        """What of the source could not be read when the point was made; raises DamagedError.

        Empty where the format or the program that made the point does not tell.
        """
        return ()

    @property
    def holds_free_space(self) -> bool:
        """Whether free clusters are as they were on the source; False also where that is not known."""
        return False

    @property
    def is_made_by_imagefs(self) -> bool:
        """Whether imagefs made the point and all that it builds upon; raises FormatError."""
        return False

    @property
    def excluded(self) -> Sequence[str]:
        """The patterns of files whose contents were left out as asked; raises DamagedError."""
        return ()

    @property
    def left_out(self) -> Sequence[str]:
        """Paths of files whose contents were left out, not all where they are many; raises DamagedError."""
        return ()

    def authentication(self) -> Sequence[FileAuthentication]:
        """Return the state of each encrypted file that the point uses; none while it is locked."""
        return ()

    @abstractmethod
    def blocks_to_check(self) -> int:
        """Count the data blocks that ``checks`` covers."""

    @abstractmethod
    def checks(self) -> Iterator[Check]:
        """Yield checks that together cover every metadata block and every data block.

        Raises FormatError when the point is incomplete.
        """


class Container(ABC):
    """An opened image or backup set. Used in a ``with`` statement, or closed."""

    format: str  # "mrimgx", …
    image_id: str
    points: Sequence[Point]  # in ascending order of time
    point: Point | None  # the one that the opened path names; None for a folder's set

    @property
    @abstractmethod
    def paths(self) -> Sequence[Path]:
        """The files that it consists of."""

    @property
    @abstractmethod
    def is_encrypted(self) -> bool:
        """Whether a password is needed to read data."""

    @abstractmethod
    def unlock(self, password: str) -> None:
        """Make the data readable; raises PasswordError when the password is wrong."""

    def authentication(self) -> Sequence[FileAuthentication]:
        """Return the state of each file of an encrypted set; none while it is locked."""
        return ()

    @abstractmethod
    def blocks_to_check(self) -> int:
        """Count the data blocks that ``checks`` covers at the most."""

    @abstractmethod
    def checks(self) -> Iterator[Check]:
        """Yield checks that cover every point, each stored block once."""

    @abstractmethod
    def close(self) -> None:
        """Close what opening opened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
