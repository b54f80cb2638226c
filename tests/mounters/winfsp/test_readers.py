"""Readers of open files: one for all that have a file open, few at rest."""

import threading

import pytest

from mounters.winfsp_readers import READERS_KEPT, Readers
from tests.mounters.memory_tree import MemoryTree, content


@pytest.fixture(scope="module")
def filled() -> MemoryTree:
    tree = MemoryTree()
    for number in range(60):
        tree.file(tree.root, f"{number}.dat", 1000, inode=5000 + number)
    return tree


@pytest.fixture
def tree(filled: MemoryTree) -> MemoryTree:
    filled.opened.clear()
    return filled


def test_a_file_that_is_open_twice_has_one_reader_until_the_last_is_closed(tree: MemoryTree) -> None:
    readers = Readers(tree)
    readers.opened(5000)
    readers.opened(5000)
    assert tree.opened == []  # opening costs nothing
    assert readers.read(5000, 10, 20) == content(5000, 10, 20)
    assert readers.read(5000, 990, 20) == content(5000, 990, 10)
    assert tree.opened == [5000]
    readers.closed(5000)
    assert tree.opened == [5000]
    readers.closed(5000)
    assert tree.opened == []


def test_few_readers_are_kept_of_many_open_files(tree: MemoryTree) -> None:
    readers = Readers(tree)
    for _ in range(2):
        for inode in range(5000, 5060):
            readers.opened(inode)
            assert readers.read(inode, 0, 8) == content(inode, 0, 8)
            assert len(tree.opened) <= READERS_KEPT
    assert sorted(tree.opened) == list(range(5060 - READERS_KEPT, 5060))  # those used last
    readers.read(5060 - READERS_KEPT, 0, 8)
    readers.read(5000, 0, 8)
    assert 5060 - READERS_KEPT in tree.opened
    readers.close_all()
    assert tree.opened == []


def test_what_is_being_read_keeps_its_reader(tree: MemoryTree) -> None:
    """However many others are read meanwhile, and though the file is closed."""
    readers = Readers(tree, kept=2)
    began, go, given = threading.Event(), threading.Event(), []
    whole = tree.nodes[5000].read
    assert whole is not None

    def late(offset: int, length: int) -> bytes:
        began.set()
        assert go.wait(10)
        assert 5000 in tree.opened
        return whole(offset, length)

    tree.nodes[5000].read = late
    try:
        readers.opened(5000)
        thread = threading.Thread(target=lambda: given.append(readers.read(5000, 0, 8)))
        thread.start()
        assert began.wait(10)
        for inode in range(5001, 5010):
            readers.opened(inode)
            readers.read(inode, 0, 8)
        assert len(tree.opened) == 3
        readers.closed(5000)
        assert 5000 in tree.opened
        go.set()
        thread.join(10)
    finally:
        go.set()
        tree.nodes[5000].read = whole
    assert given == [content(5000, 0, 8)]
    assert 5000 not in tree.opened
    readers.close_all()


def test_a_file_is_opened_once_by_all_who_read_it_first(tree: MemoryTree) -> None:
    readers = Readers(tree)
    readers.opened(5000)
    together = threading.Barrier(8)

    def read() -> None:
        together.wait(10)
        assert readers.read(5000, 0, 8) == content(5000, 0, 8)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert tree.opened == [5000]
    readers.close_all()


def test_what_cannot_be_opened_leaves_nothing(tree: MemoryTree) -> None:
    readers = Readers(tree)
    mismatched = tree.resolve("mismatched.bin")
    readers.opened(mismatched)
    for _ in range(2):
        with pytest.raises(ValueError, match="its handle"):
            readers.read(mismatched, 0, 8)
        assert tree.opened == []
    readers.closed(mismatched)
