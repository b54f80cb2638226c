"""What can be asked of a restore or a clone, and what it reports."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from imagefs.errors import UsageError


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """How a disk, or one partition of it, is to be written."""

    disk: int | None = None  # its number, where there are several
    partition: int | None = None  # write this one alone
    to_partition: int | None = None  # where to: a partition of the target; None: all of the target
    delta: bool = False  # write only what differs
    fit: bool = False  # resize partitions to the target
    new_ids: bool = False  # a new disk id, and new ones of GPT partitions
    keep_holes: bool = False  # leave what the target has in free space
    verify: bool = False  # read everything back
    size: int = 0  # bytes of a file that is made; 0: as the disk has
    scratch: Path | None = None  # for volumes that are resized on their way; None: the system's
    live: bool = False  # of a source that is a device: as for imaging
    snapshot: bool = True

    def __post_init__(self) -> None:
        """Refuse what contradicts itself; raises UsageError."""
        if self.to_partition is not None and self.partition is None:
            raise UsageError("a partition to restore is needed", hint="--partition disk4/p1")
        if self.partition is not None and self.new_ids:
            raise UsageError("ids belong to a disk, not to the contents of one partition")
        if self.size < 0:
            raise UsageError(f"a disk can't have {self.size} bytes")


@dataclass
class RestoreReport:
    """What a restore wrote."""

    source: str
    target: str
    size: int  # bytes of the target, or of its partition
    mode: str  # "write" or "delta"
    blocks_written: int = 0
    blocks_unchanged: int = 0
    bytes_written: int = 0  # of blocks
    records_written: int = 0  # partition tables, boot records and the like that were not there already
    bytes_cleared: int = 0  # of free space that was discarded or zeroed
    partitions: list[dict[str, Any]] = field(default_factory=list)  # number, offset, size on the target
    verified: bool | None = None  # None: not asked for
    different: list[str] = field(default_factory=list)  # what verifying found
    new_ids: dict[str, str] = field(default_factory=dict)  # old to new
    references: list[str] = field(default_factory=list)  # what still names the old ones
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def document(self) -> dict[str, Any]:
        """Return the report's JSON document."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}
