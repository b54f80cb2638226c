"""Which shadow copies are ours: a file for each set of them, in a folder of the machine.

A record is written before the shadow copy that it tells of is made, with what was there before, because the
copy has no id until then: whatever interrupts, the next start knows what may have been left.
"""

import contextlib
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from formats.files import open_stream, replace_file, sync
from imagefs.errors import SnapshotError

_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A shadow copy of ours."""

    id: str
    volume: str
    name: str  # of the volume, for messages


@dataclass(frozen=True, slots=True)
class Pending:
    """A shadow copy that is being made, and has no id yet."""

    volume: str
    name: str
    since: str  # ISO 8601
    before: tuple[str, ...]  # the ids of all that were there


@dataclass
class Record:
    """A set of shadow copies. ``needed_by`` is a file: while it exists, an unfinished backup needs them."""

    path: Path
    owner: dict[str, Any]  # see wmi.System.myself
    copies: list[Recorded] = field(default_factory=list)
    pending: Pending | None = None
    needed_by: str = ""

    @classmethod
    def new(cls, folder: Path, owner: dict[str, Any]) -> "Record":
        """Return a record of no copies yet, not written."""
        return cls(folder / f"{secrets.token_hex(8)}.json", owner)

    @classmethod
    def named(cls, folder: Path, name: str) -> "Record":
        """Read the one that an unfinished backup names; raises as ``read`` does.

        Who can write to that backup's folder must not make us believe a file of another place.
        """
        if not _ID.fullmatch(name):
            raise SnapshotError(
                f"{name!r} names no shadow copies", hint="--discard drops the unfinished backup"
            )
        return cls.read(folder / f"{name}.json")

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read one; raises OSError, or SnapshotError where it is damaged."""
        with open_stream(path) as stream:  # its owner may replace or remove it meanwhile
            data = stream.read()
        try:
            found = json.loads(data)
            pending = found["pending"]
            if pending is not None:
                pending = Pending(**pending | {"before": tuple(map(str, pending["before"]))})
                datetime.fromisoformat(pending.since)
            owner = {"pid": int(found["owner"]["pid"]), "started": str(found["owner"]["started"])}
            copies = [Recorded(**copy) for copy in found["copies"]]
            return cls(path, owner, copies, pending, str(found["needed_by"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SnapshotError(
                f"this record of shadow copies is damaged ({error!r}): some may have been left",
                path=path,
                hint="vssadmin list shadows shows them; remove those of imagefs, and this file",
            ) from error

    @property
    def id(self) -> str:
        """The set's name."""
        return self.path.stem

    def save(self) -> None:
        """Write it as a whole, durably; raises SnapshotError."""
        found = {key: value for key, value in asdict(self).items() if key != "path"}
        temporary = self.path.with_suffix(".new")
        try:
            with open_stream(temporary, "wb") as stream:
                stream.write(json.dumps(found, indent=1).encode())
                stream.flush()
                sync(stream.fileno())
            replace_file(temporary, self.path)
        except OSError as error:
            raise SnapshotError(
                f"the record of shadow copies can't be written: {error.strerror}", path=self.path
            ) from error

    def remove(self) -> None:
        """Remove it; raises SnapshotError."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise SnapshotError(
                f"the record of shadow copies can't be removed: {error.strerror}", path=self.path
            ) from error


def read_all(folder: Path) -> Iterator[Record | SnapshotError]:
    """Yield the records of a folder, and for one that is damaged its error."""
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # its owner was done meanwhile
            try:
                yield Record.read(path)
            except SnapshotError as error:
                yield error
            except FileNotFoundError:
                raise
            except OSError as error:
                yield SnapshotError(f"can't be read: {error.strerror}", path=path)
