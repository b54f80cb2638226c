"""Listings: pages, markers, dots, order."""

import random
from typing import Any

import pytest

from mounters.tree import Attributes, Entry, NodeType
from tests.mounters.winfsp import nt
from tests.mounters.winfsp.adapting import CountingTree, NamesTree, SmallTree, mounted
from tests.mounters.winfsp.fake_driver import PAGE
from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.nt import Options

LARGE = 50_000


class LargeTree(SmallTree):
    """One directory of many files, as quick as a tree can be."""

    def _fill(self) -> None:
        dice = random.Random(5)
        letters = "abcdefgXYZäß😀 ~."
        for number in range(LARGE):
            name = f"{''.join(dice.choices(letters, k=dice.randrange(1, 20)))}x{number:05}"
            self.add(self.root, name, NodeType.FILE, size=number)

    def entries_with_attributes(self, inode: int) -> list[tuple[Entry, Attributes | None]]:
        known = self.nodes
        return [
            (Entry(name, child, NodeType.FILE), known[child].attributes)
            for name, child in known[inode].children.items()
        ]


def test_fifty_thousand_entries(library: FakeLibrary) -> None:
    tree = LargeTree()
    with mounted(library, tree) as volume:
        found = volume.list("\\")
        calls = volume.calls.count("ReadDirectory")
        assert len(found) == LARGE
        assert {entry.name: entry.info.size for entry in found} == {
            name: tree.nodes[child].attributes.size for name, child in tree.nodes[tree.root].children.items()
        }
        size = sum(104 + 2 * nt.units(entry.name) + 7 & ~7 for entry in found)
        assert calls <= size / (PAGE - 700) + 2, "every page is full"


def test_a_listing_again_and_in_parts(library: FakeLibrary) -> None:
    """One order, whatever the size of the pages; listing twice asks the tree once."""
    tree = CountingTree()
    with mounted(library, tree) as volume:
        first = [entry.name for entry in volume.list("\\many")]
        assert sorted(first) == [f"file {number:05}" for number in range(SmallTree.many)]
        asked = tree.asked.count(("entries", tree.resolve("many")))
        volume.page = 6000
        assert [entry.name for entry in volume.list("\\many")] == first
        assert tree.asked.count(("entries", tree.resolve("many"))) <= asked + 1


@pytest.mark.parametrize("page", [700, 1024, 4096, PAGE])
def test_pages_of_any_size(library: FakeLibrary, page: int) -> None:
    tree = SmallTree()
    with mounted(library, tree) as volume:
        volume.page = page
        for path, inode in (
            ("\\", tree.root),
            ("\\dir", tree.resolve("dir")),
            ("\\odd", tree.resolve("odd")),
        ):
            assert len(volume.list(path)) == len(tree.nodes[inode].children)


def test_dots(library: FakeLibrary) -> None:
    """First, in this order, not in the root; what they say is that of the directory and the one above."""
    with mounted(library, SmallTree()) as volume:
        with volume.open("\\", nt.LIST, Options.DIRECTORY_FILE) as handle:
            assert not {".", ".."} & {entry.name for entry in volume.read_directory(handle)}
        for path, above in (("\\dir", "\\"), ("\\dir\\sub", "\\dir"), ("\\empty directory", "\\")):
            with volume.open(path, nt.LIST, Options.DIRECTORY_FILE) as handle:
                own, parent, *_ = volume.read_directory(handle)
            assert (own.name, parent.name) == (".", "..")
            assert own.info == volume.stat(path)
            assert parent.info == volume.stat(above)


def test_dots_as_markers(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume, volume.open("\\dir", nt.LIST) as handle:
        assert [entry.name for entry in next(volume.pages(handle))] == [".", "..", "sub"]
        assert [entry.name for entry in next(volume.pages(handle, "."))] == ["..", "sub"]
        assert [entry.name for entry in next(volume.pages(handle, ".."))] == ["sub"]
        assert next(volume.pages(handle, "sub")) == []


def test_markers(library: FakeLibrary) -> None:
    """Strictly behind the name, which may be one that is not there, in whatever case."""
    names = ("b", "D", "f", "Ä", "ö")
    with mounted(library, NamesTree(*names)) as volume, volume.open("\\", nt.LIST) as handle:
        order = [entry.name for entry in next(volume.pages(handle))]
        assert sorted(order) == sorted(names)
        for at, name in enumerate(order):
            for marker in (name, nt.upper(name), name.lower()):
                assert [entry.name for entry in next(volume.pages(handle, marker))] == order[at + 1 :]
        for marker in ("a", "c", "e", "zz", "c\uf03a", "\ud800"):
            behind = [entry.name for entry in next(volume.pages(handle, marker))]
            assert behind == order[len(order) - len(behind) :]
        assert next(volume.pages(handle, "c"))[0].name == "D"


def test_markers_are_of_a_handle_that_did_not_begin(library: FakeLibrary) -> None:
    """The driver's cache goes on where another handle stopped."""
    with mounted(library, SmallTree()) as volume:
        with volume.open("\\many", nt.LIST) as first:
            page = next(volume.pages(first))
        with volume.open("\\MANY", nt.LIST) as second:
            behind = [entry.name for found in volume.pages(second, page[-1].name) for entry in found]
        assert len(behind) + len(page) - 2 == SmallTree.many


def test_a_handle_lists_twice(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume, volume.open("\\dir", nt.LIST) as handle:
        assert volume.read_directory(handle) == volume.read_directory(handle)


def test_two_handles_list_at_once(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        volume.page = 4096
        with volume.open("\\many", nt.LIST) as first, volume.open("\\many", nt.LIST) as second:
            pages = zip(volume.pages(first), volume.pages(second), strict=True)
            assert all(one == other for one, other in pages)


def test_a_directory_that_changes_its_mind(library: FakeLibrary) -> None:
    """What a handle has begun to list it goes on with, as the tree was."""

    class Moving(SmallTree):
        turn = 0

        def entries(self, inode: int) -> list[Entry]:
            self.turn += 1
            found = super().entries(inode)
            return found if self.turn % 2 else found[::-1]

        def entries_with_attributes(self, inode: int) -> Any:
            return super().entries_with_attributes(inode)

    with mounted(library, Moving()) as volume:
        volume.page = 4096
        assert len(volume.list("\\many")) == SmallTree.many


def test_what_a_program_asks_for_by_pattern(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        assert {entry.name for entry in volume.list("\\", "*.BIN")} >= {"one.bin", "big.bin", "lost.bin"}
        assert [entry.name for entry in volume.list("\\many", "file 0007?")] == [
            f"file 0007{number}" for number in range(10)
        ]


def test_an_empty_directory(library: FakeLibrary) -> None:
    with mounted(library, SmallTree()) as volume:
        assert volume.list("\\empty directory") == []
