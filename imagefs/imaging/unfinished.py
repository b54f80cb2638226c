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
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from formats.mrimgx.authentication import TAG_SIZE
from formats.mrimgx.index import Elements
from formats.mrimgx.layout import DELTA_ELEMENT
from imagefs.imaging.errors import RefusedError, TargetWriteError
from imagefs.imaging.target import write_error

SUFFIX = ".unfinished"
TAGGED_ELEMENT = np.dtype([*((name, DELTA_ELEMENT[name]) for name in DELTA_ELEMENT.names or ()),
                           ("tag", "V16")])  # fmt: skip
assert TAGGED_ELEMENT.itemsize == DELTA_ELEMENT.itemsize + TAG_SIZE
_ROWS = 1 << 15


@dataclass
class State:
    """How far a run has come, durably."""

    lengths: list[int] = field(default_factory=lambda: [0])  # bytes of data in each part
    elements: list[int] = field(default_factory=list)  # records of each array of blocks
    next: tuple[int, int] = (0, 0)  # the array and the block to go on with
    unreadable: list[tuple[int, int, int]] = field(default_factory=list)  # array, offset, length
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
            unreadable=[(int(a), int(b), int(c)) for a, b, c in document["unreadable"]],
            counts={str(key): int(value) for key, value in document["counts"].items()},
            moves=[(str(here), str(there)) for here, there in document["moves"]],
        )


class Unfinished:
    """The folder of a run. Every method raises TargetWriteError where the target fails."""

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
            raise write_error(error, folder) from error
        return run

    @classmethod
    def open(cls, folder: Path) -> "Unfinished":
        """Open the folder of a run that was interrupted; RefusedError when it tells nothing usable."""
        try:
            job = json.loads((folder / "job.json").read_bytes())
            state = State.of(json.loads((folder / "state.json").read_bytes()))
        except OSError as error:
            raise RefusedError(
                f"this unfinished backup can't be gone on with: {error.strerror}: {error.filename}",
                path=folder,
                hint="--discard drops it",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
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

    def save(self) -> None:
        """Make the state durable."""
        try:
            _replace(self.folder / "state.json", self.state.document())
        except OSError as error:
            raise write_error(error, self.folder) from error

    def move_into_set(self) -> list[Path]:
        """Give the parts their names in the set, those without an index first; then drop the folder.

        Safe to be done again where it was interrupted. Never replaces a file.
        """
        target = self.folder.parent
        paths = []
        try:
            for here, there in self.state.moves:
                paths.append(target / there)
                if (self.folder / here).exists():
                    move_new(self.folder / here, target / there)
                    sync_folder(target)
                elif not (target / there).exists():
                    raise RefusedError(f"{here} of an unfinished backup is missing", path=self.folder)
        except OSError as error:
            raise write_error(error, self.folder) from error
        self.drop()
        return paths

    def drop(self) -> None:
        """Remove the folder."""
        try:
            # The state goes first: what is left of a removal that was interrupted claims nothing.
            (self.folder / "state.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise write_error(error, self.folder) from error


def find_unfinished(folder: Path) -> list[Path]:
    """Return the folders of unfinished runs in a folder of sets."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_dir())


def move_new(source: Path, target: Path) -> None:
    """Rename a file, never over another; raises FileExistsError, or another OSError."""
    try:
        os.link(source, target)
    except FileExistsError:
        if target.samefile(source):  # linked before an interruption
            source.unlink()
            return
        raise
    except OSError:  # no hard links: FAT, exFAT, some network shares
        if target.exists():
            raise FileExistsError(None, "a file of this name is there already", str(target)) from None
        source.rename(target)
        return
    source.unlink()


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(
            OSError
        ):  # some network file systems refuse; their renames are durable when they return
            os.fsync(fd)
    finally:
        os.close(fd)


def _replace(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole: either the old one or the new one is there, whatever happens."""
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as stream:
        stream.write(json.dumps(document, indent=1, sort_keys=True).encode())
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


class ElementsFile:
    """The records of a run: for each array, in order, what was stored or freed, by ascending blocks."""

    def __init__(self, path: Path, counts: Sequence[int], *, tagged: bool) -> None:
        self.path = path
        self.kind = TAGGED_ELEMENT if tagged else DELTA_ELEMENT
        self.counts = list(counts)  # records of each array
        self._file: BinaryIO
        try:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=1 << 20)
            size = sum(self.counts) * self.kind.itemsize
            if self._file.seek(0, os.SEEK_END) < size:
                self._file.close()
                raise RefusedError("the records of an unfinished backup are cut off", path=path)
            self._file.truncate(size)
            self._file.seek(size)
        except OSError as error:
            raise write_error(error, path) from error

    def append(self, array: int, records: bytes) -> None:
        """Add records of an array; arrays come in ascending order."""
        self.counts += [0] * (array + 1 - len(self.counts))
        self.counts[array] += len(records) // self.kind.itemsize
        try:
            self._file.write(records)
        except OSError as error:
            raise write_error(error, self.path) from error

    def sync(self) -> None:
        """Make the records durable."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(error, self.path) from error

    def count(self, array: int) -> int:
        """Return how many records an array has."""
        return self.counts[array] if array < len(self.counts) else 0

    def chunks(self, array: int) -> Iterator[npt.NDArray[np.void]]:
        """Yield an array's records piece by piece; what was appended must have been synced."""
        size = self.kind.itemsize
        start = sum(self.counts[:array]) * size
        for first in range(0, self.count(array), _ROWS):
            length = min(_ROWS, self.count(array) - first) * size
            data = os.pread(self._file.fileno(), length, start + first * size)
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
        with suppress(OSError):
            self._file.close()
