"""A directory of NTFS as it is listed, and how its names are found."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from formats.errors import DamagedError
from imagefs.filesystems.ntfs.index_blocks import Names
from imagefs.filesystems.ntfs.layout import (
    FILE_DIRECTORY,
    FILE_REPARSE,
    FILE_SYSTEM,
    FIRST_USER,
    REFERENCE_MASK,
    ROOT,
)
from imagefs.filesystems.upcase import UpCase, fold_names
from mounters.tree import Columns, Entry, NodeType

# Without a Python call for each: there are directories of a million names.
_entry: Callable[[tuple[str, int, NodeType]], Entry] = partial(tuple.__new__, Entry)


class Listing:
    """A directory's names, and the references they stand for."""

    def __init__(self, columns: Columns, references: NDArray[np.uint64], hidden: dict[str, int]) -> None:
        self.columns = columns
        self.references = references
        self._hidden = hidden
        self._by_name: dict[str, int] | None = None
        self._folded: dict[str, str] | None = None

    def __len__(self) -> int:
        return len(self.columns.names) + 1

    def entries(self) -> list[Entry]:
        """Return the names as entries."""
        names, numbers, types = self.columns
        return list(map(_entry, zip(names, numbers.tolist(), types, strict=True)))

    def includes(self, part: "Listing") -> bool:
        """Tell whether all names of another listing are here, and stand for the same."""
        return set(self._pairs()).issuperset(part._pairs())

    def reference(self, name: str, upcase: UpCase | None) -> int | None:
        """Return what a name stands for; the file system's own files are found as well.

        With ``upcase`` a name that is not there stands for the first that differs by case alone.
        """
        if self._by_name is None:
            self._by_name = {**self._hidden, **dict(self._pairs())}
        reference = self._by_name.get(name)
        if reference is None and upcase is not None:
            if self._folded is None:
                self._folded = fold_names(upcase, self._by_name)
            stored = self._folded.get(upcase.fold(name))
            return None if stored is None else self._by_name[stored]
        return reference

    def _pairs(self) -> Iterator[tuple[str, int]]:
        return zip(self.columns.names, self.references.tolist(), strict=True)


class ListingBuilder:
    """Puts a listing together from the names of index nodes."""

    def __init__(self, inode: int, recorded_type: Callable[[int, NodeType], NodeType]) -> None:
        self._inode = inode
        self._recorded_type = recorded_type  # by the file record; for names that are more than they tell
        self._names: list[str] = []
        self._types: list[NodeType] = []
        self._references: list[NDArray[np.uint64]] = []
        self._hidden: dict[str, int] = {}

    def add(self, found: Names) -> None:
        """Add some names; DamagedError where one can't be a file's."""
        names, references, file_attributes = found
        numbers = references & np.uint64(REFERENCE_MASK)
        if self._inode == ROOT and len(numbers) and int(numbers.min()) < FIRST_USER:
            names, references, file_attributes = self._without_own(found, numbers < FIRST_USER)
            numbers = references & np.uint64(REFERENCE_MASK)
        text = "\0".join(names)
        if "/" in text or text.count("\0") >= max(1, len(names)) or "." in names or ".." in names:
            wrong = next(name for name in names if "/" in name or "\0" in name or name in (".", ".."))
            raise DamagedError(f"directory {self._inode}: the name {wrong!r} can't be")
        kinds = [NodeType.FILE] * len(names)
        for at in np.flatnonzero(file_attributes & FILE_DIRECTORY).tolist():
            kinds[at] = NodeType.DIRECTORY
        for at in np.flatnonzero(file_attributes & (FILE_REPARSE | FILE_SYSTEM)).tolist():
            kinds[at] = self._recorded_type(int(numbers[at]), kinds[at])
        self._names += names
        self._types += kinds
        self._references.append(references)

    def listing(self) -> Listing:
        """Return the listing of all names."""
        references = np.concatenate([np.empty(0, np.uint64), *self._references])
        numbers = references & np.uint64(REFERENCE_MASK)
        return Listing(Columns(self._names, numbers, self._types), references, self._hidden)

    def _without_own(self, found: Names, are_own: NDArray[np.bool_]) -> Names:
        """Keep the file system's own files, which are not listed, and return the others."""
        for at in np.flatnonzero(are_own).tolist():
            if found.names[at] != ".":
                self._hidden[found.names[at]] = int(found.references[at])
        others = np.flatnonzero(~are_own)
        names = [found.names[at] for at in others.tolist()]
        return Names(names, found.references[others], found.file_attributes[others])
