"""Paths and links as Windows walks them."""

import errno
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mounters.tree import NodeType
from mounters.winfsp_nodes import Nodes, file_attributes
from mounters.winfsp_statuses import PathNotFoundError
from tests.mounters.memory_tree import DamagedBlockError, MemoryTree

HIDDEN, SYSTEM, DIRECTORY, ARCHIVE, NOT_CONTENT_INDEXED = 0x2, 0x4, 0x10, 0x20, 0x2000  # [MS-FSCC] 2.6


class LinkTree(MemoryTree):
    """Links of every kind: /a/b/file, /c."""

    def _fill(self) -> None:
        root = self.root
        a = self.directory(root, "a")
        b = self.directory(a, "b")
        self.c = self.directory(root, "c")
        self.file(b, "file", 100)
        self.file(root, "File Two", 50)
        for parent, name, target in (
            (root, "to file", "a/b/file"),
            (root, "to directory", "a/b"),
            (root, "with slash", "a/b/"),
            (root, "dots", "./a//./b/../b/file"),
            (root, "to a link", "to file"),
            (root, "through a link", "to directory/file"),
            (root, "through many", "links/1/2/to b/file"),
            (root, "self", "self"),
            (root, "this", "x/that"),
            (root, "nowhere", "a/none"),
            (root, "other case", "A/B/FILE"),
            (root, "absolute", "/a/b/file"),
            (root, "out", "../a/b/file"),
            (root, "below a file", "a/b/file/x"),
            (root, "behind a file", "a/b/file/."),
            (root, "here", "."),
            (root, "empty target", ""),
            (b, "up", ".."),
            (b, "top", "../.."),
            (b, "beside", "../../c"),
            (b, "up and down", "../b/file"),
            (self.c, "to a", "../a"),
            (self.c, "to file", "../a/b/file"),
            (self.c, "physical", "../to directory/../b/file"),
        ):
            self.link(parent, name, target)
        x = self.directory(root, "x")
        self.link(x, "that", "../this")
        links = self.directory(root, "links")
        one = self.directory(links, "1")
        two = self.directory(one, "2")
        self.link(two, "to b", "../../../a/b")
        long = self.directory(root, "long")
        for number in range(60):
            self.link(long, str(number), str(number + 1))
        self.file(long, "60", 7)


@pytest.fixture(scope="module")
def tree() -> LinkTree:
    return LinkTree()


@pytest.fixture
def nodes(tree: LinkTree) -> Nodes:
    return Nodes(tree)


@pytest.mark.parametrize(
    "path",
    [r"\to file", r"\dots", r"\to a link", r"\through a link", r"\through many", r"\a\b\up and down",
     r"\to directory\file", r"\with slash\file", r"\c\to file", r"\c\to a\b\file", r"\a\b\beside\to file",
     r"\c\physical", r"\TO DIRECTORY\FILE", r"\C\TO A\B\UP AND DOWN"],
)  # fmt: skip
def test_links_that_lead_to_a_file(tree: LinkTree, nodes: Nodes, path: str) -> None:
    node, _ = nodes.resolve(path)
    assert node.attributes == tree.attributes(tree.resolve("a/b/file"))
    assert node.directory is None
    assert node.text is None


@pytest.mark.parametrize("path", [r"\to directory", r"\with slash", r"\a\b\beside", r"\c\to a"])
def test_links_that_lead_to_a_directory(nodes: Nodes, path: str) -> None:
    node, _ = nodes.resolve(path)
    assert node.directory is not None
    assert node.directory.is_linked
    assert node.attributes.type is NodeType.DIRECTORY


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (r"\self", "self"),
        (r"\this", "x/that"),
        (r"\nowhere", "a/none"),
        (r"\other case", "A/B/FILE"),
        (r"\absolute", "/a/b/file"),
        (r"\out", "../a/b/file"),
        (r"\below a file", "a/b/file/x"),
        (r"\here", "."),
        (r"\empty target", ""),
        (r"\a\b\up", ".."),
        (r"\a\b\top", "../.."),
        (r"\c\to a\b\beside", "../../c"),  # a directory link inside what is shown through one
        (r"\to directory\top", "../.."),
        (r"\to directory\beside", "../../c"),
        (r"\behind a file", "a/b/file/."),
    ],
)
def test_links_that_are_shown_as_their_target(nodes: Nodes, path: str, target: str) -> None:
    node, _ = nodes.resolve(path)
    assert node.text == target.encode()
    assert node.directory is None
    assert (node.attributes.type, node.attributes.size) == (NodeType.FILE, len(target))


def test_as_many_links_as_linux_follows(nodes: Nodes, tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("Linux says how many it follows")
    for number in range(60):
        (tmp_path / str(number)).symlink_to(str(number + 1))
    (tmp_path / "60").write_bytes(b"7 bytes")
    for number in range(60):
        text = nodes.resolve(f"\\long\\{number}")[0].text
        try:
            (tmp_path / str(number)).stat()
        except OSError as error:
            assert error.errno == errno.ELOOP
            assert text == str(number + 1).encode()
        else:
            assert text is None


def test_every_walk_ends(tree: LinkTree, nodes: Nodes) -> None:
    """All paths that listings lead to are fewer than each directory once more for every link."""
    found, left = 0, [""]
    while left:
        path = left.pop()
        node, shown = nodes.resolve(path or "\\")
        assert shown == (path or "\\")
        if node.directory is not None:
            left += [f"{path}\\{name}" for name in nodes.view(node.directory).names]
        found += 1
        assert found < len(tree.nodes) * 10
    assert found > len(tree.nodes)


def test_paths_are_told_as_they_are_stored(nodes: Nodes) -> None:
    assert nodes.resolve(r"\A\B\FILE")[1] == r"\a\b\file"
    assert nodes.resolve(r"\FILE TWO")[1] == r"\File Two"
    assert nodes.resolve("\\TO DIRECTORY\\FILE\\")[1] == r"\to directory\file"
    assert nodes.resolve("\\")[1] == "\\"
    assert nodes.resolve("\\")[0].directory == nodes.root


def test_what_is_missing(nodes: Nodes) -> None:
    for path in (r"\none", r"\a\none", r"\a\b\none", r"\to directory\none"):
        with pytest.raises(FileNotFoundError) as caught:
            nodes.resolve(path)
        assert not isinstance(caught.value, PathNotFoundError)
    for path in (r"\none\x", r"\a\none\x", r"\File Two\x", r"\to file\x", r"\self\x", r"\a\b\file\x\y"):
        for _ in range(2):
            with pytest.raises(PathNotFoundError):
                nodes.resolve(path)


def test_attributes_of_windows(tree: LinkTree) -> None:
    file, directory = (tree.attributes(tree.resolve(path)) for path in ("a/b/file", "a"))
    assert file_attributes(file) == NOT_CONTENT_INDEXED
    assert file_attributes(directory) == NOT_CONTENT_INDEXED | DIRECTORY
    assert file_attributes(replace(file, file_attributes=0x80)) == NOT_CONTENT_INDEXED  # NORMAL stands alone
    # READONLY, HIDDEN, SYSTEM, ARCHIVE; neither COMPRESSED, ENCRYPTED, SPARSE, REPARSE_POINT nor OFFLINE
    assert file_attributes(replace(file, file_attributes=0xFFFF_FFEF)) == NOT_CONTENT_INDEXED | 0x27
    assert file_attributes(replace(directory, file_attributes=0x7)) == NOT_CONTENT_INDEXED | DIRECTORY | 0x7
    assert file_attributes(replace(file, file_attributes=0x10)) == NOT_CONTENT_INDEXED


def test_a_hidden_link_stays_hidden() -> None:
    tree = LinkTree()
    for path, own in (
        ("c/to a", 0x406),
        ("to file", HIDDEN | ARCHIVE),
        ("a/b/file", ARCHIVE),
        ("out", HIDDEN),
    ):
        inode = tree.resolve(path)
        tree.nodes[inode].attributes = replace(tree.attributes(inode), file_attributes=own)
    nodes = Nodes(tree)
    assert file_attributes(nodes.resolve(r"\c\to a")[0].attributes) & 0x3F == HIDDEN | SYSTEM | DIRECTORY
    assert file_attributes(nodes.resolve(r"\to file")[0].attributes) & 0x3F == HIDDEN | ARCHIVE
    assert file_attributes(nodes.resolve(r"\a\b\file")[0].attributes) & 0x3F == ARCHIVE
    assert file_attributes(nodes.resolve(r"\out")[0].attributes) & 0x3F == HIDDEN


def test_damage_on_the_way_is_no_missing_name() -> None:
    tree = LinkTree()
    tree.nodes[tree.resolve("a/b")].lost = True
    nodes = Nodes(tree)
    for path in (r"\to directory", r"\to file", r"\a\b"):
        with pytest.raises(DamagedBlockError):
            nodes.resolve(path)


def test_damage_that_hides_where_a_link_leads() -> None:
    class Damaged(LinkTree):
        def lookup(self, inode: int, name: str) -> int:
            if name == "file":
                raise DamagedBlockError("the index has a bad hash")
            return super().lookup(inode, name)

    with pytest.raises(DamagedBlockError):
        Nodes(Damaged()).resolve(r"\to file")


def test_one_link_by_two_ways(tree: LinkTree) -> None:
    direct, linked = r"\a\b\beside", r"\c\to a\b\beside"
    for ways in ((direct, linked), (linked, direct)):
        nodes = Nodes(tree)
        found = {way: nodes.resolve(way)[0] for way in ways}
        assert found[direct].directory is not None
        assert found[linked].text == b"../../c"


def test_what_a_link_holds_is_what_is_stored() -> None:
    tree = LinkTree()
    tree.link(tree.root, "odd", "n\u00f6 \udcff")
    node, _ = Nodes(tree).resolve(r"\odd")
    assert node.text == b"n\xc3\xb6 \xff"
    assert node.attributes.size == 5
