"""A directory's entries as the kernel is told them.

There are directories of a million names: the records are put together by numpy, not one after the other.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mounters.columns import copy_pieces
from mounters.devfuse_protocol import DIRENT, DIRENTPLUS, PADDING, attribute_fields
from mounters.translation import FOREVER, LONGEST_NAME, InodeNumbers, kernel_name, type_bits
from mounters.tree import Attributes, Columns, NodeType

_TYPES = {kind: type_bits(kind) >> 12 for kind in NodeType}  # DT_… of dirent.h
_NO_ENTRY: tuple[int, ...] = (0,) * 22  # a name alone: its attributes are not told


class DirectoryListing:
    """The entries of a directory; the position behind an entry is the cookie to go on from."""

    def __init__(self, columns: Columns, numbers: InodeNumbers) -> None:
        text = _encoded(columns.names)
        if text is None:
            kept = [at for at, name in enumerate(columns.names) if kernel_name(name) is not None]
            names, inodes, types = columns
            columns = Columns([names[at] for at in kept], inodes[kept], [types[at] for at in kept])
            text = os.fsencode("\0".join(columns.names))
        self.names, self._inodes, self._types = columns
        self._numbers = numbers
        self._records, self._ends = _records(text, columns, numbers)
        self.attributes: Mapping[str, Attributes | None] | None = None  # by name, once they are wanted

    def names_from(self, position: int, size: int) -> bytes:
        """Return struct fuse_dirent of the entries from a position, as many as fit into ``size`` bytes."""
        if position >= len(self.names):
            return b""
        start = int(self._ends[position - 1]) if position else 0
        last = int(np.searchsorted(self._ends, start + size, "right"))
        return self._records[start : int(self._ends[last - 1])] if last > position else b""

    def entries_from(
        self, position: int, size: int, attributes_of: Callable[[int], Attributes | None]
    ) -> bytes:
        """Return struct fuse_direntplus of the entries from a position, as many as fit into ``size`` bytes.

        ``attributes_of`` returns the attributes of the entry at a position, None where none are told.
        """
        records: list[bytes] = []
        for at in range(position, len(self.names)):
            name = os.fsencode(self.names[at])
            padding = PADDING[len(name) & 7]
            size -= DIRENTPLUS.size + len(name) + len(padding)
            if size < 0:
                break
            entry, kind = _NO_ENTRY, self._types[at]
            number = self._numbers.kernel(int(self._inodes[at]))
            attributes = attributes_of(at)
            if attributes is not None:
                entry = (number, 0, FOREVER, FOREVER, 0, 0, *attribute_fields(number, attributes))
                kind = attributes.type
            records += (DIRENTPLUS.pack(*entry, number, at + 1, len(name), _TYPES[kind]), name, padding)
        return b"".join(records)


class Habit:
    """Whether who lists directories also asks for the attributes of the files in them.

    Kernels want attributes where any listing begins, in case they are of use; whether they were, they do
    not say, but attributes that they have not got they look for. So some listings are told by names alone.
    """

    _EVERY = 16  # of listings with attributes, one is told without, to see

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = 0
        self._wanted = False
        self._asked = False  # since it was last seen to
        self._by_name: deque[int] = deque(maxlen=64)  # directories told by names alone

    def begins(self, inode: int) -> bool:
        """Return whether to tell attributes with the listing of a directory that begins."""
        with self._lock:
            self._begun += 1
            if self._wanted and self._begun % self._EVERY:
                return True
            self._wanted, self._asked = self._asked, False
            self._by_name.append(inode)
            return False

    def asks(self, inode: int) -> None:
        """Take note that someone asks for a file's attributes by its name in a directory."""
        with self._lock:
            if not self._asked and inode in self._by_name:
                self._wanted = self._asked = True


def _encoded(names: Sequence[str]) -> bytes | None:
    """Return names as bytes with NULs between them; None where one of them cannot be shown."""
    if not names:
        return b""
    text = "\0".join(names)
    if text.count("\0") != len(names) - 1:
        return None
    between = f"\0{text}\0"
    if any(wrong in between for wrong in ("/", "\0\0", "\0.\0", "\0..\0")):
        return None
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return None
    return None if int(_name_ends(encoded)[1].max()) > LONGEST_NAME else encoded


def _name_ends(text: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the names in a text end, and how long each is."""
    ends = np.flatnonzero(np.frombuffer(text + b"\0", np.uint8) == 0)
    return ends, np.diff(ends, prepend=-1) - 1


def _records(text: bytes, columns: Columns, numbers: InodeNumbers) -> tuple[bytes, NDArray[np.int64]]:
    """Return struct fuse_dirent of all entries, and where each of them ends."""
    count = len(columns.names)
    if not count:
        return b"", np.empty(0, np.int64)
    name_ends, lengths = _name_ends(text)
    sizes = DIRENT.size + (lengths + 7 & ~7)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    records = np.zeros(int(ends[-1]), np.uint8)
    quads, words = records.view(np.uint64), records.view(np.uint32)
    quads[starts >> 3] = numbers.all_to_kernel(columns.inodes)
    quads[(starts >> 3) + 1] = np.arange(1, count + 1)
    words[(starts >> 2) + 4] = lengths
    words[(starts >> 2) + 5] = _types(columns.types)
    letters = np.frombuffer(text, np.uint8)
    copy_pieces(letters, name_ends - lengths, records, starts + DIRENT.size, lengths)
    return records.tobytes(), ends


def _types(kinds: Sequence[NodeType]) -> NDArray[np.uint32]:
    identities = np.fromiter(map(id, kinds), np.uint64, len(kinds))  # an enum's hash is a call of Python's
    types = np.zeros(len(kinds), np.uint32)
    for kind, number in _TYPES.items():
        types[identities == id(kind)] = number
    return types
