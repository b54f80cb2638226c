r"""Paths and links of a tree as Windows walks them.

A volume of Windows shows no links here (``reparse_points`` is off: winfspy cannot say which part of a path
is one). So a link is shown as what it leads to:

- a link to a file inside the tree is that file, a link to a directory that directory;
- a link to a directory above itself, which would make the tree endless, or any link to a directory inside a
  directory that is shown through a link, which would make it grow beyond measure, is a small file that holds
  the target; so is a link that leads nowhere, in a circle, or out of the tree, as absolute targets do.

What such a file holds is the target as it is stored, in UTF-8.
"""

import errno
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

from mounters.tree import Attributes, Entry, NodeType, Tree, not_found
from mounters.winfsp_statuses import PathNotFoundError
from mounters.winfsp_views import Rows, View, Views, is_possible

_MOST_LINKS = 40  # on the way to one target, as Linux has it
_KEPT = 4096  # directories by path, and links

_READONLY, _HIDDEN, _SYSTEM, _ARCHIVE = 0x1, 0x2, 0x4, 0x20
_DIRECTORY = 0x10
_NOT_CONTENT_INDEXED = 0x2000  # the indexer shall not read a whole image
_PASSED_ON = _READONLY | _HIDDEN | _SYSTEM | _ARCHIVE  # the others change how files are read or copied


class DamagedSizeError(Exception):
    """A file is said to be of a size that no file has."""

    errno = errno.EIO


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory with the way to it, which ".." takes."""

    inode: int
    above: "Directory | None" = None
    is_linked: bool = False  # shown through a link, or inside a directory that is

    def is_within(self, inode: int) -> bool:
        """Tell whether this directory is, or lies in, the one with this number."""
        directory: Directory | None = self
        while directory is not None:
            if directory.inode == inode:
                return True
            directory = directory.above
        return False


@dataclass(frozen=True, slots=True)
class Node:
    """What a name is shown as."""

    attributes: Attributes
    directory: Directory | None = None  # where it is one
    text: bytes | None = None  # what is read instead of the node's data: a link's target


def file_attributes(attributes: Attributes) -> int:
    """Return FILE_ATTRIBUTE_* ([MS-FSCC] 2.6) of a node that is shown as what it is."""
    shown = (attributes.file_attributes or 0) & _PASSED_ON | _NOT_CONTENT_INDEXED
    return shown | _DIRECTORY if attributes.type is NodeType.DIRECTORY else shown


class Nodes:
    """The nodes of a tree by path. Safe from several threads; what the tree raises is raised."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._views = Views(tree)
        self.root = Directory(tree.root)
        self._lock = threading.Lock()
        self._directories: OrderedDict[str, tuple[Directory, str]] = OrderedDict()
        self._links: OrderedDict[tuple[int, int, bool], Node] = OrderedDict()

    def resolve(self, path: str) -> tuple[Node, str]:
        r"""Return what a path is, and the path with its names as they are shown.

        ENOENT where its last name is not there, PathNotFoundError where one before it is no directory.
        """
        above, _, name = path.rstrip("\\").rpartition("\\")
        if not name:
            return Node(self._tree.attributes(self.root.inode), self.root), "\\"
        directory, shown = self._directory(above)
        view = self._views.of(directory.inode)
        at = view.find(name)
        if at is None:
            raise not_found(name)
        return self.child(directory, view.entries[at]), f"{shown}\\{view.names[at]}"

    def _directory(self, path: str) -> tuple[Directory, str]:
        """Return a directory, "" being the root, and its path as it is shown, without a last backslash."""
        if not path:
            return self.root, ""
        with self._lock:
            known = self._directories.get(path)
            if known is not None:
                self._directories.move_to_end(path)
                return known
        above, _, name = path.rpartition("\\")
        directory, shown = self._directory(above)
        view = self._views.of(directory.inode)
        at = view.find(name)
        found = None if at is None else self._directory_at(directory, view.entries[at])
        if at is None or found is None:
            raise PathNotFoundError(path)
        known = found, f"{shown}\\{view.names[at]}"
        with self._lock:
            self._directories[path] = known
            if len(self._directories) > _KEPT:
                self._directories.popitem(last=False)
        return known

    def _directory_at(self, directory: Directory, entry: Entry) -> Directory | None:
        if entry.type is NodeType.DIRECTORY:
            inode = self._tree.lookup(directory.inode, entry.name)
            return Directory(inode, directory, directory.is_linked)
        return self.child(directory, entry).directory if entry.type is NodeType.LINK else None

    def child(self, directory: Directory, entry: Entry) -> Node:
        """Return what an entry of a directory is shown as."""
        attributes = self._tree.attributes(self._tree.lookup(directory.inode, entry.name))
        return self.shown(directory, attributes)

    def shown(self, directory: Directory, attributes: Attributes) -> Node:
        """Return what a node in a directory is shown as."""
        if attributes.type is NodeType.DIRECTORY:
            return Node(attributes, Directory(attributes.inode, directory, directory.is_linked))
        if attributes.type is NodeType.LINK:
            return self._link(directory, attributes)
        return Node(_checked(attributes))

    def view(self, directory: Directory) -> View:
        """Return the names of a directory."""
        return self._views.of(directory.inode)

    def rows(self, directory: Directory) -> Rows:
        """Return the names of a directory with their attributes."""
        return self._views.rows(directory.inode)

    # Links

    def _link(self, directory: Directory, attributes: Attributes) -> Node:
        key = attributes.inode, directory.inode, directory.is_linked
        with self._lock:
            known = self._links.get(key)
        if known is None:
            known = self._link_node(directory, attributes)
            with self._lock:
                self._links[key] = known
                if len(self._links) > _KEPT:
                    self._links.popitem(last=False)
        return known

    def _link_node(self, directory: Directory, attributes: Attributes) -> Node:
        target = self._tree.read_link(attributes.inode)
        found = self._walk(directory, target, [_MOST_LINKS])
        if isinstance(found, Directory) and not (directory.is_linked or directory.is_within(found.inode)):
            return Node(self._led_to(found.inode, attributes), replace(found, is_linked=True))
        if isinstance(found, int):
            return Node(self._led_to(found, attributes))
        text = target.encode("utf-8", "surrogateescape")
        return Node(replace(attributes, type=NodeType.FILE, size=len(text)), text=text)

    def _led_to(self, inode: int, link: Attributes) -> Attributes:
        """Return the attributes of what a link leads to; a hidden link, such as Windows makes, stays so."""
        found = _checked(self._tree.attributes(inode))
        own = (link.file_attributes or 0) & (_HIDDEN | _SYSTEM)
        return replace(found, file_attributes=(found.file_attributes or 0) | own) if own else found

    def _walk(self, directory: Directory, target: str, left: list[int]) -> Directory | int | None:
        """Return the directory, or the inode number of the file, that a target leads to.

        None where it leads nowhere, or out of the tree; ``left`` is how many links may still be followed.
        """
        if target.startswith("/"):
            return None
        at: Directory | int | None = directory
        for part in target.split("/"):
            if not isinstance(at, Directory):
                return None
            if part not in ("", "."):
                at = at.above if part == ".." else self._step(at, part, left)
        return at

    def _step(self, directory: Directory, name: str, left: list[int]) -> Directory | int | None:
        try:
            inode = self._tree.lookup(directory.inode, name)
        except FileNotFoundError:
            return None
        kind = self._tree.attributes(inode).type
        if kind is NodeType.DIRECTORY:
            return Directory(inode, directory)
        if kind is not NodeType.LINK:
            return inode
        left[0] -= 1
        return self._walk(directory, self._tree.read_link(inode), left) if left[0] > 0 else None


def _checked(attributes: Attributes) -> Attributes:
    if not is_possible(attributes):
        raise DamagedSizeError(f"inode {attributes.inode} cannot have {attributes.size} bytes")
    return attributes
