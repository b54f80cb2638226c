"""An image that is being written: a folder beside the set, which becomes files of the set at the very end.

``{image id}-{increment}-{file}.unfinished/`` holds

    job.json      what was asked for, and what the source looked like: written once
    data-0, …     the stored blocks; data-1 and so on where the image is split
    elements      a record for each stored or freed block, in order of arrays and blocks
    state.json    how far these are durable: replaced as a whole at every checkpoint

Nothing of it is an image to any reader. Whatever happens, the state tells from where to go on.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from formats.files import move_new, open_file, open_stream, read_at, replace_file, sync, sync_folder, truncate
from formats.mrimgx.authentication import TAG_SIZE
from formats.mrimgx.index import Elements
from formats.mrimgx.layout import DELTA_ELEMENT
from imagefs.errors import RefusedError, TargetWriteError
from imagefs.imaging.target import Retries, Syncer, with_retries, write_all, write_error

SUFFIX = ".unfinished"
STATE = "state.json"
_NAME = re.compile(r"[0-9A-F]{16}-[0-9]{2,}-[0-9]{2,}\.unfinished")
TAGGED_ELEMENT = np.dtype([*((name, DELTA_ELEMENT[name]) for name in DELTA_ELEMENT.names or ()),
                           ("tag", "V16")])  # fmt: skip
assert TAGGED_ELEMENT.itemsize == DELTA_ELEMENT.itemsize + TAG_SIZE
_ROWS = 1 << 15
_MOST_PENDING = 1 << 20  # bytes of records kept in memory
_ONCE = Retries(0)
_WHEN_LOOKED_AT = Retries(4, 0.1)  # by another program, which on Windows keeps files from going
_JOB_KEYS = {
    "version": int, "source": str, "image_id": str, "file_number": int, "increment": int, "role": str,
    "created": int, "set_created": int, "guid": str, "name": str, "compression": str,
    "encryption": dict | None, "parent": int | None, "disk_numbers": list, "options": dict,
    "fingerprint": str,
}  # fmt: skip


@dataclass
class State:
    """How far a run has come, durably."""

    lengths: list[int] = field(default_factory=lambda: [0])  # bytes of data in each part
    elements: list[int] = field(default_factory=list)  # records of each array of blocks
    next: tuple[int, int] = (0, 0)  # the array and the block to go on with
    # disk, partition (their positions), offset in the partition, length
    unreadable: list[tuple[int, int, int, int]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # what the report tells of
    moves: list[tuple[str, str]] = field(default_factory=list)  # once complete: name here, name in the set

    def document(self) -> dict[str, Any]:
        """Return the state as JSON has it."""
        return {
            "version": 1,
            "lengths": self.lengths,
            "elements": self.elements,
            "next": list(self.next),
            "unreadable": [list(entry) for entry in self.unreadable],
            "counts": self.counts,
            "moves": [list(entry) for entry in self.moves],
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "State":
        """Return the state that a document tells; raises KeyError, ValueError, TypeError."""
        if document["version"] != 1:
            raise ValueError("another version")
        array, block = map(int, document["next"])
        return cls(
            lengths=[int(length) for length in document["lengths"]],
            elements=[int(count) for count in document["elements"]],
            next=(array, block),
            unreadable=[(int(a), int(b), int(c), int(d)) for a, b, c, d in document["unreadable"]],
            counts={str(key): int(value) for key, value in document["counts"].items()},
            moves=[(str(here), str(there)) for here, there in document["moves"]],
        )


class Unfinished:
    """The folder of a run. Every method raises TargetWriteError where the target fails.

    ``state`` is replaced as a whole, never changed: whatever interrupts, it is of one moment.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], state: State) -> None:
        self.folder = folder
        self.job = job
        self.state = state

    @classmethod
    def create(cls, folder: Path, job: Mapping[str, Any]) -> "Unfinished":
        """Make the folder of a new run; raises RefusedError when there is one of this name."""
        try:
            folder.mkdir(mode=0o700)
            run = cls(folder, job, State())
            _replace(folder / "job.json", job)
            run.save()
            sync_folder(folder.parent)
        except FileExistsError:
            raise RefusedError(
                "an unfinished backup is here",
                path=folder,
                hint="--resume goes on with it, --discard drops it",
            ) from None
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)  # it holds nothing
            raise write_error(error, folder) from error
        return run

    @classmethod
    def open(cls, folder: Path) -> "Unfinished":
        """Open the folder of a run that was interrupted; RefusedError when it tells nothing usable."""
        try:
            job = _read(folder / "job.json")
            _check_job(job)
            state = State.of(_read(folder / STATE))
        except OSError as error:
            raise RefusedError(
                f"this unfinished backup can't be gone on with: {error.strerror}: {error.filename}",
                path=folder,
                hint="--discard drops it",
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RefusedError(
                f"this unfinished backup can't be gone on with: its state is damaged ({error!r})",
                path=folder,
                hint="--discard drops it",
            ) from error
        return cls(folder, job, state)

    @property
    def elements(self) -> Path:
        """The file of the records."""
        return self.folder / "elements"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left but what an interrupted start or removal leaves."""
        return not (self.folder / STATE).exists()

    def save(self, retries: Retries = _ONCE) -> None:
        """Make the state durable."""
        path = self.folder / STATE
        with_retries(lambda: _replace(path, self.state.document()), retries, path)

    def move_into_set(self) -> list[Path]:
        """Give the parts their names in the set, those without an index first; then drop the folder.

        Safe to be done again where it was interrupted. Never replaces a file.
        """
        target = self.folder.parent
        paths = []
        for here, there in self.state.moves:
            paths.append(target / there)
            try:
                if (self.folder / here).exists():
                    move_new(self.folder / here, target / there)
                elif not (target / there).exists():
                    raise RefusedError(f"{here} of an unfinished backup is missing", path=self.folder)
            except OSError as error:
                raise write_error(error, target / there) from error
        self.drop()
        return paths

    def take_back(self) -> None:
        """Remove what an interruption left of ``move_into_set``, unless the set has all of it."""
        moved = [there for here, there in self.state.moves if not (self.folder / here).exists()]
        try:
            for here, there in self.state.moves:
                here_path, there_path = self.folder / here, self.folder.parent / there
                if here_path.exists() and there_path.exists() and here_path.samefile(there_path):
                    there_path.unlink()  # linked, and not yet moved
            if len(moved) < len(self.state.moves):
                for there in moved:
                    (self.folder.parent / there).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, self.folder) from error

    def drop(self) -> None:
        """Remove the folder."""
        try:
            # The state goes first: what is left of a removal that was interrupted claims nothing.
            (self.folder / STATE).unlink(missing_ok=True)
            with_retries(lambda: shutil.rmtree(self.folder), _WHEN_LOOKED_AT, self.folder)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise write_error(error, self.folder) from error


def find_unfinished(folder: Path) -> list[Path]:
    """Return the folders of unfinished runs in a folder of sets."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if is_unfinished(path))


def is_unfinished(folder: Path) -> bool:
    """Whether a path is the folder of an unfinished run, by its name."""
    return _NAME.fullmatch(folder.name) is not None and folder.is_dir()


def _read(path: Path) -> Any:
    """Read a JSON file, which may be replaced meanwhile."""
    with open_stream(path) as stream:
        return json.loads(stream.read())


def _replace(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole: either the old one or the new one is there, whatever happens."""
    temporary = path.with_suffix(".new")
    fd = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(fd, json.dumps(document, indent=1, sort_keys=True).encode(), 0)
        sync(fd)
    finally:
        os.close(fd)
    replace_file(temporary, path)


def _check_job(job: Any) -> None:
    """Raise TypeError or KeyError unless a job has all that a run needs to go on."""
    for key, kind in _JOB_KEYS.items():
        if not isinstance(job[key], kind):
            raise TypeError(f"its {key} is {job[key]!r}")


class ElementsFile:
    """The records of a run: for each array, in order, what was stored or freed, by ascending blocks.

    ``counts`` are those of the records that are there already; RefusedError where they are not.
    """

    def __init__(self, path: Path, counts: Sequence[int], *, tagged: bool, retries: Retries = _ONCE) -> None:
        self.path = path
        self.kind = TAGGED_ELEMENT if tagged else DELTA_ELEMENT
        self.counts = list(counts)  # records of each array
        self._retries = retries
        self._syncer = Syncer()
        self._pending: list[bytes] = []
        self._written = sum(self.counts) * self.kind.itemsize  # bytes
        try:
            self._fd = open_file(path, os.O_RDWR | os.O_CREAT, 0o600)
            if os.fstat(self._fd).st_size < self._written:
                self.close()
                raise RefusedError(
                    "the records of an unfinished backup are cut off", path=path, hint="--discard drops it"
                )
            truncate(self._fd, self._written)
        except OSError as error:
            raise write_error(error, path) from error

    def append(self, array: int, records: bytes) -> None:
        """Add records of an array; arrays come in ascending order."""
        self.counts += [0] * (array + 1 - len(self.counts))
        self.counts[array] += len(records) // self.kind.itemsize
        self._pending.append(records)
        if sum(self.counts) * self.kind.itemsize - self._written >= _MOST_PENDING:
            self._write()

    def _write(self) -> None:
        data = b"".join(self._pending)
        with_retries(lambda: write_all(self._fd, data, self._written), self._retries, self.path)
        self._pending, self._written = [], self._written + len(data)

    def sync(self) -> None:
        """Make the records durable."""
        self._write()
        self._syncer.sync(self._fd, self.path)

    def count(self, array: int) -> int:
        """Return how many records an array has."""
        return self.counts[array] if array < len(self.counts) else 0

    def chunks(self, array: int) -> Iterator[npt.NDArray[np.void]]:
        """Yield an array's records piece by piece; what was appended must have been synced."""
        size = self.kind.itemsize
        start = sum(self.counts[:array]) * size
        for first in range(0, self.count(array), _ROWS):
            length = min(_ROWS, self.count(array) - first) * size
            data = read_at(self._fd, length, start + first * size)
            if len(data) != length:
                raise TargetWriteError("the records end too early", path=self.path)
            yield np.frombuffer(data, self.kind)

    def elements(self, array: int) -> Iterator[Elements]:
        """Yield an array's records as rows of DELTA_ELEMENT."""
        for chunk in self.chunks(array):
            rows = np.empty(len(chunk), DELTA_ELEMENT)
            for name in DELTA_ELEMENT.names or ():
                rows[name] = chunk[name]
            yield rows

    def tags(self, array: int) -> Iterator[bytes]:
        """Yield the tags of an array's stored blocks, joined piece by piece."""
        for chunk in self.chunks(array):
            yield chunk["tag"][chunk["length"] != 0].tobytes()

    def close(self) -> None:
        """Close the file; what was not synced may be lost."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
