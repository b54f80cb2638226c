"""Going through what lies below a path of the tree, in its order, without holding it all."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from formats.errors import DamagedError, FormatError
from imagefs.tree import ImageTree, own_number
from mounters.tree import Attributes, Entry, NodeType

DELETED = "$Deleted"  # in a volume's root, beside its files: what was deleted
Failed = Callable[[str, Exception], None]  # a path in the tree, and what is wrong with it
PassedOver = Callable[[str], None]  # the path of $Shadow or $Deleted, which were not named


class Found(NamedTuple):
    """A node, and where it was found."""

    path: str  # in the tree, without a "/" at its ends; "" for the root
    attributes: Attributes
    directory: int = 0  # inode number of the directory that it lies in; 0: not known
    deleted: bool = False  # it is "$Deleted", or below it


def nothing_said(path: str) -> None:
    """Take no note of what is passed over."""


def walk(
    tree: ImageTree,
    path: str,
    failed: Failed,
    *,
    deleted: bool = False,
    system: bool = False,
    passed_over: PassedOver = nothing_said,
) -> Iterator[Found]:
    """Return what yields a node and all that lies below it, directories before what is in them.

    Disks and partitions as bytes are passed over unless ``path`` names one; so is what stands beside a
    volume's files in its root, with ``deleted`` but for what was deleted: that is told to ``passed_over``.
    ``system`` adds the file systems' own files. What can't be read is told to ``failed``, and the rest goes
    on. Raises OSError when there is no such path, FormatError when it can't be read.
    """
    path = path.strip("/")
    inode = tree.resolve(path)
    directory = tree.resolve(path.rpartition("/")[0]) if path else 0
    first = Found(path, tree.attributes(inode), directory, _is_in_deleted(tree, path))
    return _Walk(tree, failed, passed_over, deleted=deleted, system=system).from_node(first)


class _Walk:
    """One call of ``walk``."""

    def __init__(
        self, tree: ImageTree, failed: Failed, passed_over: PassedOver, *, deleted: bool, system: bool
    ) -> None:
        self._tree = tree
        self._failed = failed
        self._passed_over = passed_over
        self._deleted = deleted
        self._system = system
        self._seen: set[int] = set()  # directories: a damaged volume may have loops

    def from_node(self, start: Found) -> Iterator[Found]:
        levels = [iter([start])]
        while levels:
            node = next(levels[-1], None)
            if node is None:
                levels.pop()
                continue
            yield node
            if node.attributes.type is NodeType.DIRECTORY:
                levels.append(self._children(node))

    def _children(self, node: Found) -> Iterator[Found]:
        inode = node.attributes.inode
        if inode in self._seen:
            self._failed(node.path, DamagedError("the directory has another place as well"))
            return
        self._seen.add(inode)
        try:
            entries = self._tree.entries_with_attributes(inode)
        except (OSError, FormatError) as error:
            self._failed(node.path, error)
            entries = []
        yield from self._read(node, [*self._system_entries(inode), *entries])

    def _read(self, node: Found, entries: Sequence[tuple[Entry, Attributes | None]]) -> Iterator[Found]:
        for entry, known in entries:
            path = f"{node.path}/{entry.name}" if node.path else entry.name
            if self._tree.is_added(entry.inode) and not (self._deleted and entry.name == DELETED):
                self._passed_over(path)
                continue
            if entry.type is NodeType.FILE and self._tree.file_system(entry.inode) is None:
                continue  # bytes
            try:
                attributes = known or self._tree.attributes(entry.inode)  # which raises why it can't
            except (OSError, FormatError) as error:
                self._failed(path, error)
            else:
                deleted = node.deleted or self._tree.is_added(entry.inode)
                yield Found(path, attributes, node.attributes.inode, deleted)

    def _system_entries(self, inode: int) -> list[tuple[Entry, Attributes | None]]:
        """Return the own files of the file system whose root a directory is."""
        file_system = self._tree.file_system(inode)
        if not self._system or file_system is None or own_number(inode) != file_system.root:
            return []
        volume = inode - own_number(inode)
        return [(entry._replace(inode=volume | entry.inode), None) for entry in file_system.system_entries()]


def _is_in_deleted(tree: ImageTree, path: str) -> bool:
    names = path.split("/")
    places = (n for n, name in enumerate(names, 1) if name == DELETED)
    return any(tree.is_added(tree.resolve("/".join(names[:place]))) for place in places)
