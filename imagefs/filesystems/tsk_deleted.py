"""Deleted files of FAT, exFAT and ext volumes: found by TSK, their data by our own reading of where it was.

They stand where they were; those whose directory is not known stand in ``$Orphans``. A name that is taken
has ``~`` and the file's inode number behind it. Only directories that lead to deleted files are shown.
"""

import errno
import os
import threading
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import pytsk3

from formats.blockreader import BlockReader, ConcatReader
from formats.errors import FormatError, UnsupportedError
from imagefs.filesystems.base import FileSystem, GoneError, Recovery, RecoveryState
from imagefs.filesystems.claims import Claims, Contested
from imagefs.filesystems.deleted import DELETED_ATTRIBUTE, free_name
from imagefs.filesystems.names import name_of_bytes
from imagefs.filesystems.remains import NOT_HELD, GoneReader, Remains, RemainsReader
from imagefs.filesystems.runs import Run, RunsReader
from imagefs.filesystems.tsk_image import TskImage
from mounters.tree import (
    Attributes,
    Entry,
    NodeType,
    is_a_directory,
    no_such_attribute,
    not_a_directory,
    not_found,
)

_LIMIT = 500_000  # names that are kept while directories are gone through
_ROOT = 1
_REUSED = "what was kept of it is another file's now"
_ALLOCATED_NAME = int(pytsk3.TSK_FS_NAME_FLAG_ALLOC)
_ALLOCATED = int(pytsk3.TSK_FS_META_FLAG_ALLOC)
_VIRTUAL_DIRECTORY = int(pytsk3.TSK_FS_NAME_TYPE_VIRT_DIR)
_VIRTUAL = int(pytsk3.TSK_FS_NAME_TYPE_VIRT)
_TYPES = {
    int(pytsk3.TSK_FS_META_TYPE_REG): NodeType.FILE,
    int(pytsk3.TSK_FS_META_TYPE_DIR): NodeType.DIRECTORY,
}
_NAME_TYPES = {
    int(pytsk3.TSK_FS_NAME_TYPE_REG): NodeType.FILE,
    int(pytsk3.TSK_FS_NAME_TYPE_DIR): NodeType.DIRECTORY,
}


class Placed(NamedTuple):
    """What is still told of a deleted node."""

    attributes: Attributes
    runs: Sequence[Run] = ()  # where its data was
    valid: int = 0  # bytes; what lies beyond reads as zeros
    unknown: int = 0  # bytes at its end whose place is not known
    reason: str = ""  # why its data is lost, where it is not known where it was


class _Found(NamedTuple):
    """A name; its place in the list makes its number here."""

    parent: int
    name: str
    inode: int
    type: NodeType
    is_deleted: bool
    is_reused: bool = False  # its inode is another file's
    is_made: bool = False  # $Orphans


class ContestedRemains(Remains):
    """Clusters that are free, and that no two deleted files claim: which was the last can't be told."""

    contested: Contested = Contested([])


class DeletedFileSystem(FileSystem):
    """The deleted files of a volume; it is gone through when the first is asked for.

    ``live`` reads what is not deleted; ``with_orphans`` has files without a name looked for as well.
    """

    root = _ROOT

    def __init__(
        self,
        live: FileSystem,
        image: TskImage,
        tsk_type: int,
        remains: ContestedRemains,
        *,
        with_orphans: bool,
    ) -> None:
        self.kind, self.label, self.block_size = live.kind, live.label, live.block_size
        self._live = live
        self._image = image
        self._tsk_type = tsk_type
        self._remains = remains
        self._with_orphans = with_orphans
        self._lock = threading.Lock()
        self._found: list[_Found] = []
        self._listings: dict[int, dict[str, Entry]] | None = None

    @abstractmethod
    def _placed(self, fs: Any, inode: int) -> Placed:
        """Return what is told of a deleted inode; called with TSK's lock. Raises FormatError."""

    def attributes(self, inode: int) -> Attributes:
        """Return a node's attributes."""
        found = self._node(inode)
        if found is None or found.is_made:
            return Attributes(inode, NodeType.DIRECTORY, mode=0o555)
        from_live = not found.is_deleted
        with suppress(FormatError):
            known = self._live.attributes(found.inode) if from_live else self._place(found).attributes
            return _numbered(known, inode, found.type)
        return Attributes(inode, found.type, mode=0o555 if found.type is NodeType.DIRECTORY else 0o444)

    def entries(self, inode: int) -> Sequence[Entry]:
        """Return what was in a directory, and the directories that lead to more."""
        return list(self._listing(inode).values())

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        """Return a directory's entries with their attributes."""
        return [(entry, self.attributes(entry.inode)) for entry in self.entries(inode)]

    def lookup(self, inode: int, name: str) -> int:
        """Return the inode number of a name, compared exactly."""
        entry = self._listing(inode).get(name)
        if entry is None:
            raise not_found(name)
        return entry.inode

    def read_link(self, inode: int) -> str:
        """Raise EINVAL: deleted links are not told as such."""
        self._node(inode)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def recorded_number(self, inode: int) -> int:
        """Return the inode number that a node has, or had; 0 for directories that are made here."""
        found = self._node(inode)
        return 0 if found is None or found.is_made else found.inode

    def is_deleted(self, inode: int) -> bool:
        """Whether a file or directory was deleted, and does not only lead to what was."""
        found = self._node(inode)
        return found is not None and found.is_deleted

    def recovery(self, inode: int) -> Recovery | None:
        """Return what is left of a deleted file, None for directories and what is alive."""
        found = self._node(inode)
        if found is None or not found.is_deleted or found.type is not NodeType.FILE:
            return None
        if found.is_reused:
            return Recovery(RecoveryState.LOST, reason=_REUSED)
        try:
            placed = self._place(found)
        except FormatError as error:
            return Recovery(RecoveryState.LOST, reason=error.what)
        if placed.reason:
            return Recovery(RecoveryState.LOST, reason=placed.reason)
        recovery = self._remains.recovery(found.inode, placed.runs).with_unknown(placed.unknown)
        if recovery.state is RecoveryState.LOST and not self._remains.is_held:
            return replace(recovery, reason=NOT_HELD)
        return recovery

    def open(self, inode: int) -> BlockReader:
        """Return a deleted file's data; GoneError when all of it is lost, and where others' is read."""
        found = self._node(inode)
        if found is None or found.type is NodeType.DIRECTORY:
            raise is_a_directory(str(inode))
        recovery = self.recovery(inode)
        if recovery is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        what = f"file {found.inode}"
        if recovery.state is RecoveryState.LOST:
            reason = recovery.reason or "others have all of its clusters, or the image has none"
            raise GoneError(f"{what} is deleted and lost: {reason}")
        placed = self._place(found)
        volume = RemainsReader(self._remains, found.inode, what)
        size = placed.attributes.size - placed.unknown
        known = RunsReader(volume, placed.runs, size, initialized=placed.valid, name=what)
        return ConcatReader([known, GoneReader(placed.unknown, what)]) if placed.unknown else known

    def extended_attributes(self, inode: int) -> Sequence[str]:
        """Return the name of the attribute that tells what is left of a deleted file."""
        return () if self.recovery(inode) is None else (DELETED_ATTRIBUTE,)

    def extended_attribute(self, inode: int, name: str) -> bytes:
        """Return the value of an extended attribute; ENODATA when there is none."""
        recovery = self.recovery(inode) if name == DELETED_ATTRIBUTE else None
        if recovery is None:
            raise no_such_attribute(name)
        return recovery.state.encode()

    # what is found

    def _node(self, number: int) -> _Found | None:
        """Return what is known of a number, None for the root."""
        if number == _ROOT:
            return None
        self._load()
        if not _ROOT < number < _ROOT + 1 + len(self._found):
            raise not_found(f"inode {number}")
        return self._found[number - _ROOT - 1]

    def _place(self, found: _Found) -> Placed:
        with self._image.calls(f"inode {found.inode}"):
            return self._placed(self._open(), found.inode)

    def _listing(self, inode: int) -> dict[str, Entry]:
        found = self._node(inode)
        if found is not None and found.type is not NodeType.DIRECTORY:
            raise not_a_directory(str(inode))
        return self._load().get(inode, {})

    def _load(self) -> dict[int, dict[str, Entry]]:
        with self._lock:
            if self._listings is None:
                with self._image.calls("looking for deleted files"):
                    found = self._search(self._open())
                    self._remains.contested = self._claims(found)
                self._found = found
                self._listings = _listings(found)
            return self._listings

    def _open(self) -> Any:
        return pytsk3.FS_Info(self._image, 0, self._tsk_type)

    def _search(self, fs: Any) -> list[_Found]:
        found: list[_Found] = []
        root = int(fs.info.root_inum)
        waiting, seen = [(_ROOT, root, False)], {root}
        while waiting:
            parent, directory, is_deleted = waiting.pop()
            try:
                nodes = fs.open_dir(inode=directory)
            except OSError:
                if is_deleted:
                    continue
                raise
            for node in nodes:
                item = self._take(fs, node, parent, is_deleted)
                if item is None:
                    continue
                if len(found) >= _LIMIT:
                    raise UnsupportedError(
                        f"more than {_LIMIT:,} names are too many to look for deleted files"
                    )
                found.append(item)
                if item.type is NodeType.DIRECTORY and item.inode not in seen and self._is_readable(fs, item):
                    seen.add(item.inode)
                    waiting.append((_ROOT + len(found), item.inode, item.is_deleted or item.is_made))
        return found

    def _take(self, fs: Any, node: Any, parent: int, in_deleted: bool) -> _Found | None:
        """Return what is to be kept of a TSK directory entry: what is deleted, and directories."""
        name, meta = node.info.name, node.info.meta
        inode, kind = int(name.meta_addr), int(name.type)
        if meta is None and inode:
            with suppress(OSError):
                node = fs.open_meta(inode)  # which owns what it tells
                meta = node.info.meta
        if kind == _VIRTUAL or name.name in (b"", b".", b".."):
            return None
        if kind == _VIRTUAL_DIRECTORY:
            if not self._with_orphans or parent != _ROOT:
                return None
            return _Found(parent, "$Orphans", inode, NodeType.DIRECTORY, False, is_made=True)
        type_ = _NAME_TYPES.get(kind, NodeType.OTHER)
        if meta is not None:
            type_ = _TYPES.get(int(meta.type), type_ if int(meta.type) == 0 else NodeType.OTHER)
        is_deleted = in_deleted or not int(name.flags) & _ALLOCATED_NAME
        if not is_deleted:
            if type_ is not NodeType.DIRECTORY:
                return None
            return _Found(parent, name_of_bytes(name.name), inode, type_, False)
        is_reused = not inode or meta is None or bool(int(meta.flags) & _ALLOCATED)
        if is_reused:
            type_ = _NAME_TYPES.get(kind, NodeType.FILE)
        return _Found(parent, name_of_bytes(name.name), inode, type_, True, is_reused)

    def _is_readable(self, fs: Any, item: _Found) -> bool:
        """Whether a directory's entries are there: of a deleted one only if its clusters are its own."""
        if not item.is_deleted:
            return True
        if item.is_reused:
            return False
        with suppress(FormatError, OSError):
            recovery = self._remains.recovery(item.inode, self._placed(fs, item.inode).runs)
            return recovery.state is RecoveryState.WHOLE and recovery.stored > 0
        return False

    def _claims(self, found: Sequence[_Found]) -> Contested:
        claims, fs = Claims(), self._open()
        size, first = self._remains.cluster_size, self._remains.first
        for inode in {item.inode for item in found if item.is_deleted and not item.is_reused}:
            with suppress(FormatError, OSError):
                for run in self._placed(fs, inode).runs:
                    if run.start is not None:
                        start = (run.start - first) // size
                        claims.add(start, start - (-run.length // size), inode)
        return claims.contested()


def _numbered(known: Attributes, number: int, kind: NodeType) -> Attributes:
    return replace(known, inode=number, type=kind, links=max(1, known.links))


def _listings(found: Sequence[_Found]) -> dict[int, dict[str, Entry]]:
    """Return the entries of every directory that leads to something deleted, by its number."""
    is_shown = [item.is_deleted for item in found]
    for index in reversed(range(len(found))):
        parent = found[index].parent - _ROOT - 1
        if is_shown[index] and parent >= 0:
            is_shown[parent] = True
    listings: dict[int, dict[str, Entry]] = {}
    for is_first in (True, False):  # what is alive keeps its name
        for index, item in enumerate(found):
            if is_shown[index] and item.is_deleted is not is_first:
                names = listings.setdefault(item.parent, {})
                name = free_name(item.name, item.inode, names)
                names[name] = Entry(name, _ROOT + 1 + index, item.type)
    return listings
