"""What can be asked of a backup, and what it reports."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from imagefs.errors import UsageError

TYPES = ("auto", "full", "diff", "inc")
COMPRESSIONS = ("none", "medium", "high")
CIPHERS = ("aes-128", "aes-192", "aes-256")
KEY_ITERATIONS = 600_000  # of PBKDF2, as Reflect
SMALLEST_SPLIT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """How an image is to be made. What a run that goes on needs is kept with it; the password never is."""

    type: str = "auto"
    compression: str | None = None  # None: as the set has it, else "medium"
    aes: str | None = None  # None: as the set has it, else "aes-256"
    split: int = 0  # bytes of a file at the most; 0: as the target's file system allows
    exact: bool = False  # every byte, not used blocks only
    partitions: tuple[int, ...] = ()  # numbers; none: all
    name: str = ""  # goes into the file names
    comment: str = ""
    exclude: tuple[str, ...] = ()  # patterns of files whose contents are left out
    live: bool = False  # take the risk of a source that is written to
    snapshot: bool = True
    direct: bool = False  # read past the system's cache
    sector_size: int | None = None  # of a disk file; None: found out
    skip_bad: bool = False
    verify: bool = False
    rate_limit: int = 0  # bytes of the source a second; 0: none
    checkpoint_seconds: float = 30.0
    retries: int = 5
    retry_seconds: float = 1.0
    key_iterations: int = KEY_ITERATIONS

    def __post_init__(self) -> None:
        """Refuse what contradicts itself; raises UsageError."""
        if self.type not in TYPES:
            raise UsageError(f"there is no backup type {self.type!r}", hint=f"one of {', '.join(TYPES)}")
        if self.compression not in (None, *COMPRESSIONS):
            raise UsageError(f"there is no compression {self.compression!r}")
        if self.aes not in (None, *CIPHERS):
            raise UsageError(f"there is no cipher {self.aes!r}", hint=f"one of {', '.join(CIPHERS)}")
        if self.split and self.split < SMALLEST_SPLIT:
            raise UsageError(f"files of {self.split} bytes are too small", hint=f"{SMALLEST_SPLIT} at least")
        if any(char in self.name for char in '/\\:*?"<>|\0') or not self.name.isprintable():
            raise UsageError(f"{self.name!r} can't be part of a file name")

    def document(self) -> dict[str, Any]:
        """Return the options as JSON has them."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "BackupOptions":
        """Return the options that a document tells; raises UsageError, KeyError or TypeError."""
        known = {entry.name for entry in fields(cls)}
        values = {key: value for key, value in document.items() if key in known}
        for key in ("partitions", "exclude"):
            values[key] = tuple(values[key])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    phase: str  # "checking" what an interrupted run has read, "reading", "finishing", "verifying"
    done: int  # bytes of the source
    total: int  # bytes of the source that are read in all
    stored: int  # bytes in the image so far


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told of a run while it goes on."""

    progress: Callable[[Progress], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None  # a line for people: warnings, decisions


@dataclass
class BackupReport:
    """What a backup wrote."""

    path: Path  # of the file with the index
    paths: list[Path]  # of all files, in a split's order
    image_id: str
    role: str  # full, diff, inc
    file_number: int
    increment: int
    blocks_written: int
    blocks_unchanged: int
    blocks_freed: int
    bytes_read: int
    bytes_stored: int  # of the files
    seconds: float
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unreadable: list[dict[str, int]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the report's JSON document."""
        return asdict(self) | {
            "path": str(self.path),
            "paths": [str(path) for path in self.paths],
            "seconds": round(self.seconds, 3),
        }
