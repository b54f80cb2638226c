"""The Tree contract: what a mounter shows.

A tree is read-only and never changes while it is mounted. Nodes are named by inode numbers that are
stable for its life. Every method may block, and may be called from several threads at once.

Errors are exceptions with an ``errno`` attribute, as OSError has: ENOENT for a name that is not there,
ENOTDIR, EISDIR, EIO for damage. A mounter answers with that number; any other exception is a fault of
the tree, logged and answered with EIO.
"""

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class NodeType(StrEnum):
    """The kinds of nodes."""

    FILE = "file"
    DIRECTORY = "dir"
    LINK = "link"
    OTHER = "other"  # devices, sockets, pipes: shown, not openable


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is known of a node. Times are integer nanoseconds since 1970-01-01 UTC."""

    inode: int
    type: NodeType
    size: int = 0  # bytes
    mode: int = 0o444  # permission bits
    links: int = 1
    uid: int = 0
    gid: int = 0
    modified: int = 0
    accessed: int = 0
    changed: int = 0  # of the metadata
    created: int = 0
    allocated: int | None = None  # bytes that are stored; None: as many as size
    file_attributes: int | None = None  # Windows' FILE_ATTRIBUTE_*, where a volume has them


class Entry(NamedTuple):
    """A name in a directory.

    Names hold undecodable bytes as surrogate escapes, so that ``os.fsencode`` always succeeds. They are
    not empty, "." or "..", and contain neither "/" nor NUL; a tree renames what breaks this.
    """

    name: str
    inode: int
    type: NodeType


class Columns(NamedTuple):
    """A directory's entries, column by column."""

    names: Sequence[str]
    inodes: NDArray[np.uint64]
    types: Sequence[NodeType]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Self:
        """Return entries as columns."""
        return cls(
            [entry.name for entry in entries],
            np.array([entry.inode for entry in entries], np.uint64),
            [entry.type for entry in entries],
        )


class Handle(ABC):
    """An opened file's data. Its methods may be called from several threads at once."""

    size: int  # bytes; the same as the attributes' size

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``, fewer only at the end of the file."""

    def next_data(self, offset: int) -> int | None:
        """Return where the first data at or behind ``offset`` starts (SEEK_DATA); None: no more of it."""
        return offset if offset < self.size else None

    def next_hole(self, offset: int) -> int:
        """Return where the first hole at or behind ``offset`` starts (SEEK_HOLE); the end counts as one."""
        return self.size

    def close(self) -> None:  # noqa: B027  (most handles own nothing)
        """Release the handle."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Tree(ABC):
    """Directories, files and links, read-only."""

    root: int  # the inode number of "/"

    @abstractmethod
    def attributes(self, inode: int) -> Attributes:
        """Return a node's attributes."""

    @abstractmethod
    def entries(self, inode: int) -> Sequence[Entry]:
        """Return a directory's entries without "." and "..", in one fixed order.

        Of a damaged directory an entry may have the number of what has taken its place: ``lookup`` says so.
        """

    def columns(self, inode: int) -> Columns:
        """Return a directory's entries column by column; a tree may know a faster way."""
        return Columns.of(self.entries(inode))

    @abstractmethod
    def lookup(self, inode: int, name: str) -> int:
        """Return the inode number of a name in a directory; ENOENT when it is not there."""

    @abstractmethod
    def read_link(self, inode: int) -> str:
        """Return a symbolic link's target."""

    @abstractmethod
    def open(self, inode: int) -> Handle:
        """Open a file for reading."""

    def extended_attributes(self, inode: int) -> Sequence[str]:
        """Return the names of a node's extended attributes that are listed."""
        return ()

    def extended_attribute(self, inode: int, name: str) -> bytes:
        """Return the value of an extended attribute, listed or not; ENODATA when there is none."""
        raise no_such_attribute(name)

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        """Return a directory's entries, each with its attributes; a tree may know a faster way.

        Attributes that cannot be read are None: the entry is listed all the same, and ``attributes``
        raises the reason when asked.
        """
        return [(entry, self._attributes_if_readable(entry.inode)) for entry in self.entries(inode)]

    def _attributes_if_readable(self, inode: int) -> Attributes | None:
        try:
            return self.attributes(inode)
        except Exception:  # whatever it is, it is raised and reported where the attributes are asked for
            return None

    def size(self) -> int:
        """Return the bytes of what is shown, for statfs; 0 where that has no meaning."""
        return 0

    def resolve(self, path: str) -> int:
        """Return the inode number of a "/"-separated path from the root; links are not followed."""
        inode = self.root
        for name in path.split("/"):
            if name not in ("", "."):
                inode = self.lookup(inode, name)
        return inode


def not_found(name: str) -> OSError:
    """Return the error for a name that is not there."""
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def no_such_attribute(name: str) -> OSError:
    """Return the error for an extended attribute that is not there."""
    return OSError(errno.ENODATA, os.strerror(errno.ENODATA), name)


def not_a_directory(name: str) -> OSError:
    """Return the error for a file used as a directory."""
    return OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)


def is_a_directory(name: str) -> OSError:
    """Return the error for a directory opened as a file."""
    return OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
