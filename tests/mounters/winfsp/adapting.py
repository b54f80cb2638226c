"""The adapter under test: a tree mounted over the stand-ins, as an application sees it."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from mounters.session import MountOptions
from mounters.tree import Entry, NodeType, Tree
from tests.mounters.memory_tree import MemoryTree, Node
from tests.mounters.winfsp.descriptors import ADMINISTRATORS, EVERYONE, SYSTEM, USER, Caller, caller
from tests.mounters.winfsp.fake_driver import Volume
from tests.mounters.winfsp.fake_library import FakeLibrary

_SECONDS = 20.0

MOUNTER = caller(USER)
STRANGER = caller("S-1-5-21-1004336348-1177238915-682003330-1002")
ADMINISTRATOR = caller("S-1-5-21-1004336348-1177238915-682003330-500", ADMINISTRATORS)
THE_SYSTEM = Caller(frozenset({SYSTEM, ADMINISTRATORS, EVERYONE}))


class Mounting:
    """A session that runs in a thread of its own."""

    def __init__(self, library: FakeLibrary, tree: Tree, mountpoint: str = "X:", **options: Any) -> None:
        from mounters.winfsp_mount import open_session

        self.library = library
        self.options = MountOptions(**options)
        self.session = open_session(tree, mountpoint, self.options)
        self.error: BaseException | None = None
        self._mounted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mount")

    def _run(self) -> None:
        try:
            self.session.run(self._mounted.set)
        except BaseException as error:
            self.error = error
        finally:
            self._mounted.set()

    def start(self) -> Volume:
        """Return what is mounted; raises what the mount ended with."""
        self._thread.start()
        assert self._mounted.wait(_SECONDS)
        if self.error is not None:
            self._thread.join(_SECONDS)
            raise self.error
        return Volume(self.library.volumes[-1])

    def stop(self) -> None:
        self.session.stop()
        self.wait()

    def wait(self) -> None:
        """Wait until the mount has ended by itself."""
        if self._thread.ident is not None:
            self._thread.join(_SECONDS)
            assert not self._thread.is_alive(), "the mount does not end"


@contextmanager
def mounted(library: FakeLibrary, tree: Tree, mountpoint: str = "X:", **options: Any) -> Iterator[Volume]:
    """Mount a tree, and check at the end that nothing of it is left: no context, no reader."""
    with as_user():
        mounting = Mounting(library, tree, mountpoint, **options)
        volume = mounting.start()
        try:
            yield volume
            assert volume.leaked == 0, "contexts without a handle"
        finally:
            mounting.stop()
        assert mounting.error is None
        if isinstance(tree, MemoryTree):
            assert tree.opened == [], "readers left open"


@contextmanager
def as_user() -> Iterator[None]:
    """Have the mount be that of the stand-ins' user."""
    with patch("mounters.winfsp_security.calls", lambda: SimpleNamespace(user=lambda: USER)):
        yield


def file_with(tree: MemoryTree, name: str, data: bytes, **values: Any) -> Node:
    """Add a file of its own content to the root."""
    node = tree.file(tree.root, name, len(data))
    node.read = lambda offset, length: data[offset : offset + length]
    if values:
        node.attributes = replace(node.attributes, **values)
    return node


def attributes_of(tree: MemoryTree, name: str, **values: Any) -> None:
    """Change what is known of a node."""
    node = tree.nodes[tree.resolve(name)]
    node.attributes = replace(node.attributes, **values)


class SmallTree(MemoryTree):
    """The tree that all mounts are held against, with a directory of some pages instead of very many."""

    many = 1500


class CountingTree(SmallTree):
    """Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def entries(self, inode: int) -> list[Entry]:
        self.asked.append(("entries", inode))
        return super().entries(inode)

    def attributes(self, inode: int) -> Any:
        self.asked.append(("attributes", inode))
        return super().attributes(inode)


class NamesTree(MemoryTree):
    """One directory, of files with given names; their content is their place."""

    def __init__(self, *names: str) -> None:
        self._names = names
        super().__init__()

    def _fill(self) -> None:
        for number, name in enumerate(self._names):
            data = f"content of {number}".encode()
            node = self.add(self.root, name, NodeType.FILE, size=len(data))
            node.read = lambda offset, length, data=data: data[offset : offset + length]


@contextmanager
def quiet() -> Iterator[None]:
    """Let the adapter log damage without printing it."""
    log = logging.getLogger("mounters")
    before, log.propagate = log.propagate, False
    null = logging.NullHandler()
    log.addHandler(null)
    try:
        yield
    finally:
        log.removeHandler(null)
        log.propagate = before
