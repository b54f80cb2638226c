"""The FileSystem contract: what the tree asks of a file system inside a volume."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Lock
from typing import Generic, NamedTuple, Self, TypeVar

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.upcase import UpCase, fold_names
from mounters.tree import Attributes, Columns, Entry, NodeType, no_such_attribute, not_a_directory, not_found

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

ENTRIES_KEPT = 200_000  # names in cached listings
NODES_KEPT = 50_000


@dataclass(frozen=True, slots=True)
class VolumeKey:
    """A secret that may open an encrypted volume; it is tried on each that is met."""

    value: bytes = field(repr=False)  # a password or recovery key as UTF-8 text, or a key file's bytes
    origin: str = ""  # where it came from, for messages


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How the volumes of a tree are read."""

    deleted: bool = False  # show what was deleted, in $Deleted
    raw_efs: bool = False  # give the stored bytes of files that EFS encrypted
    keys: tuple[VolumeKey, ...] = ()


class RecoveryState(StrEnum):
    """How much of a deleted file is left."""

    WHOLE = "whole"
    PARTLY = "partly overwritten"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What is left of a deleted file, as far as the volume's structures tell.

    What was overwritten by a file that has left no trace either can't be told.
    """

    state: RecoveryState
    gone: int = 0  # bytes of the space where its data was stored, of ``stored``
    stored: int = 0
    reason: str = ""  # why it is lost, where that is not that others have all of its space

    def with_unknown(self, size: int) -> "Recovery":
        """Return what is left of a file that had ``size`` bytes more, of which it is not known where."""
        if not size:
            return self
        gone, stored = self.gone + size, self.stored + size
        return Recovery(
            RecoveryState.PARTLY if gone < stored else RecoveryState.LOST, gone, stored, self.reason
        )


class GoneError(DamagedError):
    """Bytes of a deleted file whose place is another file's now, or is not in the image."""


class Stream(NamedTuple):
    """A named stream of a file or directory: data beside its own."""

    name: str  # without the colon
    size: int  # bytes
    allocated: int  # bytes that are stored


class RecordedTimes(NamedTuple):
    """The times that one record of a node keeps, in nanoseconds since 1970; None: it keeps none.

    A node of NTFS has a record of its own, and one with each of its names.
    """

    modified: int | None
    accessed: int | None
    changed: int | None  # of the metadata
    created: int | None
    source: str = ""  # "$STANDARD_INFORMATION", "$FILE_NAME"; "" where there is one record only
    name: str = ""  # of a $FILE_NAME
    parent: int = 0  # inode number of the directory that this name is in
    alias: str = ""  # where the times are those of an 8.3 name beside ``name``: that one


class FileSystem(ABC):
    """A volume's directories, files and links, read-only.

    Nodes are named by the file system's own inode numbers. Every method may be called from several
    threads at once. Damage is a FormatError, never a missing name and never a shorter listing; a name
    that is not there is ``mounters.tree.not_found``.
    """

    kind: str  # "NTFS", "FAT32", "exFAT", "ext4", "HFS+", "ISO 9660", …
    label: str  # the volume's label, "" if none
    root: int  # inode number of the root directory
    block_size: int  # bytes of a cluster

    @abstractmethod
    def attributes(self, inode: int) -> Attributes:
        """Return a node's attributes."""

    @abstractmethod
    def entries(self, inode: int) -> Sequence[Entry]:
        """Return a directory's entries without "." and "..", in one fixed order.

        Of a damaged directory an entry may have the number of what has taken its place: ``lookup`` and
        ``entries_with_attributes`` say so.
        """

    def columns(self, inode: int) -> Columns:
        """Return a directory's entries column by column; a file system may know a faster way."""
        return Columns.of(self.entries(inode))

    @abstractmethod
    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        """Return a directory's entries, each with its attributes.

        None stands for attributes that can't be read: ``attributes`` raises why.
        """

    @abstractmethod
    def lookup(self, inode: int, name: str) -> int:
        """Return the inode number of a name in a directory; ENOENT when it is not there."""

    @abstractmethod
    def read_link(self, inode: int) -> str:
        """Return a symbolic link's target; EINVAL for anything else."""

    @abstractmethod
    def open(self, inode: int) -> BlockReader:
        """Return a file's data, holes as extents; EISDIR for a directory.

        Raises UnsupportedError where the stored bytes are not the file's (encrypted, kept elsewhere).
        """

    def streams(self, inode: int) -> Sequence[Stream]:
        """Return the named streams of a node, in one fixed order.

        ``lookup`` finds ``name:stream`` as a node of its own, in a file system that has streams.
        """
        return ()

    def open_stream(self, inode: int, name: str) -> BlockReader:
        """Return the data of a node's named stream; ENOENT when it has none of this name."""
        raise not_found(name)

    def extended_attributes(self, inode: int) -> Sequence[str]:
        """Return the names of a node's extended attributes, as ``getfattr`` lists them."""
        return ()

    def extended_attribute(self, inode: int, name: str) -> bytes:
        """Return the value of an extended attribute, listed or not; ENODATA when there is none."""
        raise no_such_attribute(name)

    def recorded_times(self, inode: int) -> Sequence[RecordedTimes]:
        """Return every record of a node's times, its own first."""
        known = self.attributes(inode)
        modified, accessed = known.modified or None, known.accessed or None
        return [RecordedTimes(modified, accessed, known.changed or None, known.created or None)]

    def system_entries(self) -> Sequence[Entry]:
        """Return the file system's own files in the root directory, which are not listed there."""
        return ()

    def recorded_number(self, inode: int) -> int:
        """Return the number that the volume itself has for a node, where ``inode`` was made for it."""
        return inode

    def is_deleted(self, inode: int) -> bool:
        """Whether a node of ``$Deleted`` was deleted itself, and does not only lead to what was."""
        return False

    def recovery(self, inode: int) -> Recovery | None:
        """Return what is left of a file that is deleted; None for anything else."""
        return None

    def close(self) -> None:  # noqa: B027  (most file systems own nothing)
        """Release what the file system holds; the reader below stays open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LeastRecentlyUsed(Generic[Key, Value]):
    """A bounded cache, safe from threads; ``weigh`` says how much of ``capacity`` a value takes."""

    def __init__(self, capacity: int, weigh: Callable[[Value], int] = lambda _: 1) -> None:
        self.capacity = capacity
        self._weigh = weigh
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._weight = 0
        self._lock = Lock()

    def get(self, key: Key) -> Value | None:
        """Return the value kept under a key, else None."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: Key, value: Value) -> None:
        """Keep a value; the longest unused ones go."""
        with self._lock:
            old = self._values.pop(key, None)
            if old is not None:
                self._weight -= self._weigh(old)
            self._values[key] = value
            self._weight += self._weigh(value)
            while self._weight > self.capacity and len(self._values) > 1:
                _, gone = self._values.popitem(last=False)
                self._weight -= self._weigh(gone)

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()
            self._weight = 0


class CachedFileSystem(FileSystem):
    """A file system that loads a directory or a node once, as long as they stay in bounded caches."""

    def __init__(self) -> None:
        self._listings: LeastRecentlyUsed[int, dict[str, Entry]] = LeastRecentlyUsed(ENTRIES_KEPT, len)
        self._nodes: LeastRecentlyUsed[int, Attributes] = LeastRecentlyUsed(NODES_KEPT)
        self._folded: LeastRecentlyUsed[int, dict[str, str]] = LeastRecentlyUsed(ENTRIES_KEPT, len)

    def _upcase(self) -> UpCase | None:
        """Return the upper case by which names are compared, None where they differ by case."""
        return None

    @abstractmethod
    def _load_attributes(self, inode: int) -> Attributes:
        """Read a node's attributes."""

    @abstractmethod
    def _load_listing(self, inode: int) -> Iterable[Entry]:
        """Read a directory's entries."""

    def attributes(self, inode: int) -> Attributes:
        """Return a node's attributes."""
        known = self._nodes.get(inode)
        if known is None:
            known = self._load_attributes(inode)
            self._nodes.put(inode, known)
        return known

    def entries(self, inode: int) -> Sequence[Entry]:
        """Return a directory's entries."""
        return list(self._listing(inode).values())

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        """Return a directory's entries with their attributes, None where these can't be read."""
        return [(entry, self._readable(entry.inode)) for entry in self._listing(inode).values()]

    def lookup(self, inode: int, name: str) -> int:
        """Return the inode number of a name, compared exactly or else, where case is ignored, without it."""
        listing = self._listing(inode)
        entry = listing.get(name)
        upcase = self._upcase() if entry is None else None
        if upcase is not None:
            folded = self._folded.get(inode)
            if folded is None:
                folded = fold_names(upcase, listing)
                self._folded.put(inode, folded)
            entry = listing.get(folded.get(upcase.fold(name), name))
        if entry is None:
            raise not_found(name)
        return entry.inode

    def close(self) -> None:
        """Forget the caches."""
        self._listings.clear()
        self._nodes.clear()
        self._folded.clear()

    def _readable(self, inode: int) -> Attributes | None:
        try:
            return self.attributes(inode)
        except FormatError:
            return None

    def _listing(self, inode: int) -> dict[str, Entry]:
        known = self._listings.get(inode)
        if known is None:
            if self.attributes(inode).type is not NodeType.DIRECTORY:
                raise not_a_directory(str(inode))
            known = {}
            for entry in self._load_listing(inode):
                if known.setdefault(entry.name, entry) != entry:
                    raise DamagedError(f"directory {inode}: the name {entry.name!r} is there twice")
            self._listings.put(inode, known)
        return known
