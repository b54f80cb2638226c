"""Directories as Windows sees them."""

import random
import threading
from collections.abc import Sequence

import pytest

from mounters.tree import Attributes, Entry, NodeType
from mounters.winfsp_folding import fold
from mounters.winfsp_views import View, Views
from tests.mounters.memory_tree import MANY, MemoryTree


def view_of(*names: str) -> View:
    return View([Entry(name, 100 + at, NodeType.FILE) for at, name in enumerate(names)])


def test_names_are_sorted_and_found_whatever_their_case() -> None:
    view = view_of("beta", "Alpha", "\u00fcber", "a:b", "GAMMA")
    assert view.names == sorted(view.names, key=fold)
    for asked, stored in (
        ("ALPHA", "Alpha"),
        ("Beta", "beta"),
        ("\u00dcBER", "\u00fcber"),
        ("A\uf03aB", "a\uf03ab"),
    ):
        at = view.find(asked)
        assert at is not None
        assert view.names[at] == stored
    assert view.entries[view.find("a\uf03ab") or 0].name == "a:b"
    assert view.find("alph") is view.find("alphaa") is view.find("") is view.find("zz") is None
    assert view_of().find("x") is None


def test_what_comes_behind_a_name() -> None:
    view = view_of("b", "D", "f")
    assert [view.after(name) for name in ("A", "b", "B", "c", "d", "E", "F", "g")] == [0, 1, 1, 1, 2, 2, 3, 3]


def test_100_000_names() -> None:
    names = [f"File {number:06}.TXT" for number in range(100_000)]
    random.Random(1).shuffle(names)
    view = view_of(*names)
    assert len(view) == 100_000
    seen = 0
    while seen < len(view):  # page by page
        seen = view.after(view.names[min(seen + 449, len(view) - 1)])
    assert all(view.find(name.lower()) is not None for name in names[:1000])


class CountingTree(MemoryTree):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.began, self.go = threading.Event(), threading.Event()
        self.go.set()

    def entries(self, inode: int) -> list[Entry]:
        self.asked.append(inode)
        self.began.set()
        self.go.wait(60)
        return super().entries(inode)


class ReorderedTree(MemoryTree):
    """One that lists in another order, and fails to, when it gives attributes as well."""

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        return super().entries_with_attributes(inode)[::-1][:-1]


def test_directories_are_kept_up_to_a_number_of_names() -> None:
    tree = CountingTree()
    views = Views(tree, capacity=100)
    small, many = tree.resolve("odd"), tree.resolve("many")
    assert views.of(small) is views.of(small)
    assert tree.asked == [small]
    assert len(views.of(many)) == MANY
    assert views.of(many) is views.of(many)  # the last one stays, however large
    views.of(small)
    assert tree.asked == [small, many, small]
    views.of(many)
    assert tree.asked == [small, many, small, many]
    other = tree.resolve("dir")
    for inode in (small, other, small, other):  # what has gone takes no room
        views.of(inode)
    assert tree.asked[4:] == [small, other]


def test_attributes_belong_to_their_names() -> None:
    tree = ReorderedTree()
    rows = Views(tree).rows(tree.root)
    assert len(rows.attributes) == len(rows.view)
    for entry, attributes in zip(rows.view.entries, rows.attributes, strict=True):
        if entry.name in ("one.bin", "lost.bin"):  # it is left out; it cannot be read
            assert attributes is None
        else:
            assert attributes == tree.attributes(tree.lookup(tree.root, entry.name))


def test_a_directory_is_made_once_for_all_who_ask_and_holds_up_no_other() -> None:
    tree = CountingTree()
    views = Views(tree)
    slow, quick = tree.resolve("odd"), tree.resolve("dir")
    views.of(quick)
    tree.began.clear()
    tree.go.clear()
    threads = [threading.Thread(target=views.of, args=(slow,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert tree.began.wait(60)
    views.of(quick)
    assert all(thread.is_alive() for thread in threads)
    tree.go.set()
    for thread in threads:
        thread.join()
    assert tree.asked.count(slow) == 1


def test_a_failure_is_not_kept() -> None:
    tree = CountingTree()
    views = Views(tree)
    with pytest.raises(NotADirectoryError):
        views.of(tree.resolve("one.bin"))
    with pytest.raises(NotADirectoryError):
        views.rows(tree.resolve("one.bin"))
