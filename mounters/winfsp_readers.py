"""The data of open files: opened when first read, once for all that have the file open.

Windows keeps files open for as long as its cache holds them, many thousands at once: of those that nobody
is reading only a few keep their reader, and the others get one again when they are read.
"""

import threading
from collections import OrderedDict

from mounters.translation import log, open_checked, read_checked
from mounters.tree import Handle, Tree

READERS_KEPT = 16  # that nobody is reading from; each may hold what was decoded ahead


class _Reader:
    """One file's reader."""

    __slots__ = ("handle", "lock", "reads")

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while the file is opened
        self.handle: Handle | None = None
        self.reads = 0  # at this moment


class Readers:
    """The readers of a tree's files by inode number. Safe from several threads."""

    def __init__(self, tree: Tree, kept: int = READERS_KEPT) -> None:
        self._tree = tree
        self._kept = kept
        self._lock = threading.Lock()  # of what follows; never held while a file is opened or read
        self._readers: OrderedDict[int, _Reader] = OrderedDict()
        self._opened: dict[int, int] = {}  # how often each file is open

    def opened(self, inode: int) -> None:
        """Take note that a file has been opened once more."""
        with self._lock:
            self._opened[inode] = self._opened.get(inode, 0) + 1

    def closed(self, inode: int) -> None:
        """Take note that a file has been closed; its reader goes with the last one."""
        with self._lock:
            left = self._opened.get(inode, 1) - 1
            if left > 0:
                self._opened[inode] = left
                return
            self._opened.pop(inode, None)
            gone = self._surplus()
        _close(gone)

    def read(self, inode: int, offset: int, length: int) -> bytes:
        """Return ``length`` bytes of a file, fewer only at its end; raises what the tree does."""
        with self._lock:
            reader = self._readers.setdefault(inode, _Reader())
            self._readers.move_to_end(inode)
            reader.reads += 1
        try:
            with reader.lock:
                if reader.handle is None:
                    reader.handle = open_checked(self._tree, inode)
            return read_checked(reader.handle, offset, length)
        finally:
            with self._lock:
                reader.reads -= 1
                gone = self._surplus()
            _close(gone)

    def close_all(self) -> None:
        """Close all readers, when nothing is read any more."""
        with self._lock:
            gone = list(self._readers.items())
            self._readers.clear()
            self._opened.clear()
        _close(gone)

    def _surplus(self) -> list[tuple[int, _Reader]]:
        """Forget and return the readers of closed files, and those unused for long if they are too many."""
        idle = [(inode, reader) for inode, reader in self._readers.items() if not reader.reads]
        closed = [item for item in idle if item[0] not in self._opened]
        still = [item for item in idle if item[0] in self._opened]
        gone = closed + still[: max(0, len(still) - self._kept)]
        for inode, _ in gone:
            del self._readers[inode]
        return gone


def _close(gone: list[tuple[int, _Reader]]) -> None:
    for inode, reader in gone:
        try:
            if reader.handle is not None:
                reader.handle.close()
        except Exception:
            log.exception("close inode %d", inode)
