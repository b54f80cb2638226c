"""A directory as Windows sees it: sorted, every name once, found whatever its case."""

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from operator import itemgetter

from mounters.tree import Attributes, Entry, NodeType, Tree
from mounters.winfsp_folding import fold
from mounters.winfsp_names import unique_names

ENTRIES_KEPT = 100_000  # in all views together; one directory may have more
_LONGEST_FILE = 2**63 - 4096  # bytes: Windows has signed sizes, those of whole allocation units too


class View:
    """The names of one directory in the order in which they are listed. It never changes."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        shown = unique_names([entry.name for entry in entries])
        keyed = sorted(zip(map(fold, shown), shown, entries, strict=True), key=itemgetter(0))
        self.keys = [key for key, _, _ in keyed]
        self.names = [name for _, name, _ in keyed]  # as shown
        self.entries = [entry for _, _, entry in keyed]  # as the tree has them

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, name: str) -> int | None:
        """Return the place of a shown name in any case, None where it is not there."""
        key = fold(name)
        at = bisect_left(self.keys, key)
        return at if at < len(self.keys) and self.keys[at] == key else None

    def after(self, name: str) -> int:
        """Return the place of the first name behind ``name``, which need not be there itself."""
        return bisect_right(self.keys, fold(name))


def is_possible(attributes: Attributes) -> bool:
    """Tell whether a node has a size that Windows has: one that has not would spoil its whole directory."""
    return attributes.type in (NodeType.DIRECTORY, NodeType.LINK) or 0 <= attributes.size <= _LONGEST_FILE


class Rows:
    """A view with the attributes of its entries, None where these can't be read, or can't be."""

    def __init__(self, view: View, attributes: Sequence[Attributes | None]) -> None:
        self.view = view
        self.attributes = attributes


class Views:
    """The views of a tree's directories; those used last are kept. Safe from several threads."""

    def __init__(self, tree: Tree, capacity: int = ENTRIES_KEPT) -> None:
        self._tree = tree
        self._capacity = capacity
        self._lock = threading.Lock()  # of what follows; never held while the tree is asked
        self._views: OrderedDict[int, View] = OrderedDict()
        self._rows: dict[int, Rows] = {}  # of some of the views
        self._entries = 0
        self._making: dict[int, threading.Lock] = {}

    def of(self, inode: int) -> View:
        """Return the view of a directory; raises what the tree does."""
        view = self._known(inode)
        if view is None:
            with self._one_at_a_time(inode):
                view = self._known(inode)
                if view is None:
                    view = View(self._tree.entries(inode))
                    self._keep(inode, view)
        return view

    def rows(self, inode: int) -> Rows:
        """Return the view of a directory with the attributes of its entries; raises what the tree does."""
        view = self.of(inode)
        with self._lock:
            rows = self._rows.get(inode)
        if rows is None:
            with self._one_at_a_time(inode):
                with self._lock:
                    rows = self._rows.get(inode)
                if rows is None:
                    found = self._tree.entries_with_attributes(inode)
                    by_name = {
                        entry.name: attributes
                        for entry, attributes in found
                        if attributes is not None and is_possible(attributes)
                    }
                    rows = Rows(view, [by_name.get(entry.name) for entry in view.entries])
                    with self._lock:
                        if inode in self._views:
                            self._rows[inode] = rows
        return rows

    def _known(self, inode: int) -> View | None:
        with self._lock:
            view = self._views.get(inode)
            if view is not None:
                self._views.move_to_end(inode)
            return view

    def _keep(self, inode: int, view: View) -> None:
        with self._lock:
            self._views[inode] = view
            self._entries += len(view)
            while self._entries > self._capacity and len(self._views) > 1:
                gone, old = self._views.popitem(last=False)
                self._entries -= len(old)
                self._rows.pop(gone, None)

    def _one_at_a_time(self, inode: int) -> threading.Lock:
        """Return the lock under which what is known of a directory is found out."""
        with self._lock:
            if len(self._making) > len(self._views) + 1000:
                self._making = {at: lock for at, lock in self._making.items() if lock.locked()}
            return self._making.setdefault(inode, threading.Lock())
